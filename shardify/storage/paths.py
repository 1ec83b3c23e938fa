"""Paths and object-store URLs with one interface, over fsspec.

``Url`` has the few methods of ``pathlib.Path`` that this package uses, so the same code handles a
folder and a bucket. Objects are put as a whole: nothing here appends or locks. A failure
of a store raises StoreError, one line with the URL, what happened and what to do.
"""

import errno
import hashlib
import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, cast

from shardify.errors import StoreError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BLOCK_BYTES = 8 << 20
_MAX_REQUESTS = 32
_MAX_FILES_LISTED = 64
"""Most files of a folder that ``local_files`` returns: it may hold millions of pictures."""
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs"}
_REMEDIES = (
    (
        r"NoCredentials|PartialCredentials|CredentialRetrieval|TokenRetrieval",
        "no credentials; expected those of the store's owner; set AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or log in",
    ),
    (
        r"InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|PermissionError",
        "access denied; expected credentials that may use it; check them",
    ),
    (
        r"EndpointConnection|ConnectionRefused|ClientConnector|ConnectTimeout|gaierror",
        "the store cannot be reached; expected one that answers; check the network, and "
        "AWS_ENDPOINT_URL if that is set",
    ),
)


class ObjectStatus(NamedTuple):
    """The part of ``os.stat_result`` that an object store provides."""

    st_size: int
    """Bytes."""


@dataclass(frozen=True, order=True, slots=True)
class Url:
    """An object or prefix of an object store; created by ``as_path``.

    Methods raise FileNotFoundError if there is no such object, and StoreError if the store cannot
    be used: not reachable, no bucket, no credentials, a package missing.
    """

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.url}/{name}") if name else self

    @property
    def name(self) -> str:
        """The last part, without a query."""
        return PurePosixPath(self.url.partition("?")[0]).name

    @property
    def stem(self) -> str:
        """The name without its last extension."""
        return PurePosixPath(self.name).stem

    @property
    def is_local(self) -> bool:
        """Whether only this process can read it: ``memory://``."""
        return self.url.lower().startswith("memory://")

    def absolute(self) -> "Url":
        """Return the URL itself."""
        return self

    def with_suffix(self, suffix: str) -> "Url":
        """Return the URL with another last extension."""
        return Url(self.url.removesuffix(PurePosixPath(self.name).suffix) + suffix)

    def exists(self) -> bool:
        """Whether there is an object of this name, or any under this prefix."""
        with self.client() as (files, path):
            return bool(files.exists(path))

    def is_dir(self) -> bool:
        """Whether there is any object under this prefix. Always False for a web server."""
        if self.url.lower().startswith("http"):
            return False
        with self.client() as (files, path):
            return bool(files.isdir(path))

    def iterdir(self) -> Iterator["Url"]:
        """Yield the objects and prefixes directly under this one, sorted by name."""
        with self.client() as (files, path):
            paths = sorted(str(listed).rstrip("/") for listed in files.ls(path, detail=False))
        for listed in paths:
            if listed.strip("/") != path.strip("/"):
                yield self / listed.rpartition("/")[2]

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a store has no folders."""

    def stat(self) -> ObjectStatus:
        """Return the object's size."""
        with self.client() as (files, path):
            status = files.info(path)
        if status.get("type") == "directory":
            raise self.not_found_error()
        if status.get("size") is None:
            raise StoreError(f"{self}: the server states no size; expected one; download it first")
        return ObjectStatus(int(status["size"]))

    def open(self, mode: str = "rb") -> BufferedReader:
        """Open the object for sequential reading, a few MiB at a time."""
        assert mode == "rb"
        with self.client() as (files, path):
            return cast(BufferedReader, files.open(path, "rb", block_size=_BLOCK_BYTES))

    def read_bytes(self) -> bytes:
        """Read a whole, small object."""
        with self.client() as (files, path):
            return bytes(files.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Read a whole, small object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Put a whole object."""
        with self.client(writing=True) as (files, path):
            files.pipe_file(path, data)

    def put(self, file: BinaryIO) -> None:
        """Put a local file as a whole object; a large one in parts."""
        with self.client(writing=True) as (files, path):
            # By descriptor, because the file has no name.
            files.put_file(f"/dev/fd/{file.fileno()}", path)

    @contextmanager
    def client(self, *, writing: bool = False) -> Iterator[tuple[Any, str]]:
        """Yield what ``connect`` returns; translate the errors of the block."""
        connection = self.connect()
        with self.translate_errors(writing=writing):
            yield connection

    def connect(self) -> tuple[Any, str]:
        """Return fsspec's filesystem and this object's name in it. Does not use the network."""
        core = importlib.import_module("fsspec.core")
        protocol = self.url.partition("://")[0].lower()
        try:
            connection: tuple[Any, str] = core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            package = _PACKAGES.get(protocol)
            remedy = f"pip install {package}" if package else str(error)
            raise StoreError(
                f"{self}: {protocol}:// needs a package that is not installed; {remedy}"
            ) from error
        except ValueError as error:
            raise StoreError(f"{self}: {error}; expected a URL that fsspec knows") from error
        return connection

    @contextmanager
    def translate_errors(self, *, writing: bool = False) -> Iterator[None]:
        """Turn any error of the store's client into FileNotFoundError or a one-line StoreError."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise self.not_found_error(writing=writing) from error
        except Exception as error:
            chain = " ".join(_error_chain(error))
            for pattern, remedy in _REMEDIES:
                if re.search(pattern, chain):
                    raise StoreError(f"{self}: {remedy}") from error
            raise StoreError(
                f"{self}: {type(error).__name__}: {error}; expected the store to answer; see to "
                "it and run the same command again"
            ) from error

    def not_found_error(self, *, writing: bool = False) -> Exception:
        """Return the error for a missing object; StoreError if its bucket is missing."""
        files, path = self.connect()
        root = path.strip("/").partition("/")[0]
        if self.url.lower().startswith("s3"):
            try:
                bucket_exists = files.exists(root)
            except Exception:  # Without the right to list a bucket, one may still read from it.
                bucket_exists = True
            if not bucket_exists or writing:
                return StoreError(
                    f"{self}: no bucket {root!r}; expected one that exists; make it, or mend the "
                    "URL"
                )
        return FileNotFoundError(errno.ENOENT, "no such object", self.url)


PathOrUrl = Path | Url
"""Location of a source or of a data set."""


def as_path(text: "str | Path | Url") -> PathOrUrl:
    """Return a ``Url`` for ``protocol://...``, else a path; also for ``file://``."""
    if not isinstance(text, str):
        return text
    if not _URL.match(text):
        return Path(text)
    protocol, _, rest = text.partition("://")
    return Path(rest) if protocol.lower() in ("file", "local") else Url(text.rstrip("/"))


def file_sha256(path: PathOrUrl) -> str:
    """Return the SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_many(folder: PathOrUrl, names: Sequence[str]) -> list[bytes]:
    """Read small files of one folder; objects are fetched many at a time.

    Raises:
        OSError: One is missing or cannot be read.
        StoreError: The store is at fault.
    """
    if isinstance(folder, Path) or not names:
        return [(folder / name).read_bytes() for name in names]
    with folder.client() as (files, path):
        paths = [f"{path}/{name}" for name in names]
        contents = files.cat(paths, on_error="raise", **request_options(files))
    return [bytes(contents[path]) for path in paths]


def request_options(files: Any) -> dict[str, int]:
    """Return the arguments that limit the requests of a fsspec filesystem at a time."""
    return {"batch_size": _MAX_REQUESTS} if getattr(files, "async_impl", False) else {}


def copy_many(source: Url, target: Url, names: Sequence[str]) -> None:
    """Copy objects from one prefix to another of the same store, which copies them itself.

    Raises:
        FileNotFoundError: One is missing.
        StoreError: The store is at fault.
    """
    if names:
        _, destination = target.connect()
        with source.client() as (files, path):
            files.copy(
                [f"{path}/{name}" for name in names],
                [f"{destination}/{name}" for name in names],
                on_error="raise",
            )


def delete_many(folder: Url, names: Sequence[str]) -> None:
    """Delete objects under one prefix.

    Raises:
        StoreError: The store is at fault.
    """
    if names:
        with folder.client(writing=True) as (files, path):
            files.rm([f"{path}/{name}" for name in names])


def _error_chain(error: BaseException | None) -> Iterator[str]:
    """Yield the name and text of an error and of each of its causes."""
    while error is not None:
        yield f"{type(error).__name__} {error}"
        error = error.__cause__ or error.__context__


def local_files(paths: Sequence[PathOrUrl]) -> list[Path]:
    """Return the files of this machine among ``paths``, and the first files of each folder."""
    files: list[Path] = []
    for path in paths:
        # The survey will report what cannot be listed.
        with suppress(OSError):
            if isinstance(path, Path):
                inside = islice(path.iterdir(), _MAX_FILES_LISTED) if path.is_dir() else [path]
                files += [file for file in inside if file.is_file()]
    return files


def total_size(files: Sequence[Path]) -> int:
    """Return the total size of ``files`` in bytes; unreadable files count as 0."""
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.stat().st_size
    return total
