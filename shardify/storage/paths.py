"""Paths and object-store URLs with one interface, over fsspec.

``Url`` has the few methods of ``pathlib.Path`` that this package uses, so the same code handles a
folder and a bucket. Objects are put as a whole: nothing here appends or locks. A failure
of a store raises StoreError, one line with the URL, what happened and what to do.
"""

import errno
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
        files, path = self.connect()
        with self.translate_errors():
            return bool(files.exists(path))

    def is_dir(self) -> bool:
        """Whether there is any object under this prefix. Always False for a web server."""
        if self.url.lower().startswith("http"):
            return False
        files, path = self.connect()
        with self.translate_errors():
            return bool(files.isdir(path))

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        files, path = self.connect()
        with self.translate_errors():
            return bool(files.isfile(path))

    def iterdir(self) -> Iterator["Url"]:
        """Yield the objects and prefixes directly under this one, sorted by name."""
        files, path = self.connect()
        with self.translate_errors():
            listed = files.ls(path, detail=False)
        for each in sorted(listed):
            name = str(each).rstrip("/").rpartition("/")[2]
            if name and str(each).strip("/") != path.strip("/"):
                yield self / name

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a store has no folders."""

    def stat(self) -> ObjectStatus:
        """Return the object's size."""
        files, path = self.connect()
        with self.translate_errors():
            found = files.info(path)
        if found.get("type") == "directory":
            raise self.not_found_error()
        if found.get("size") is None:
            raise StoreError(f"{self}: the server states no size; expected one; download it first")
        return ObjectStatus(int(found["size"]))

    def open(self, mode: str = "rb") -> BufferedReader:
        """Open the object for sequential reading, a few MiB at a time."""
        assert mode == "rb"
        files, path = self.connect()
        with self.translate_errors():
            return cast(BufferedReader, files.open(path, "rb", block_size=_BLOCK_BYTES))

    def read_bytes(self) -> bytes:
        """Read a whole, small object."""
        files, path = self.connect()
        with self.translate_errors():
            return bytes(files.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Read a whole, small object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> int:
        """Put a whole object. Returns its size in bytes."""
        files, path = self.connect()
        with self.translate_errors(writing=True):
            files.pipe_file(path, data)
        return len(data)

    def put(self, file: BinaryIO) -> None:
        """Put a local file as a whole object; a large one in parts."""
        files, path = self.connect()
        with self.translate_errors(writing=True):
            # By descriptor, because the file has no name.
            files.put_file(f"/dev/fd/{file.fileno()}", path)

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        files, path = self.connect()
        try:
            with self.translate_errors(writing=True):
                files.rm_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def connect(self) -> tuple[Any, str]:
        """Return fsspec's filesystem and this object's name in it. Does not use the network."""
        core = importlib.import_module("fsspec.core")
        protocol = self.url.partition("://")[0].lower()
        try:
            found: tuple[Any, str] = core.url_to_fs(self.url, use_listings_cache=False)
        except ImportError as error:
            package = _PACKAGES.get(protocol)
            remedy = f"pip install {package}" if package else str(error)
            raise StoreError(
                f"{self}: {protocol}:// needs a package that is not installed; {remedy}"
            ) from error
        except ValueError as error:
            raise StoreError(f"{self}: {error}; expected a URL that fsspec knows") from error
        return found

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


def read_many(folder: PathOrUrl, names: Sequence[str]) -> list[bytes]:
    """Read small files of one folder; objects are fetched many at a time.

    Raises:
        OSError: One is missing or cannot be read.
        StoreError: The store is at fault.
    """
    if isinstance(folder, Path) or not names:
        return [(folder / name).read_bytes() for name in names]
    files, path = folder.connect()
    paths = [f"{path}/{name}" for name in names]
    options = {"batch_size": _MAX_REQUESTS} if getattr(files, "async_impl", False) else {}
    with folder.translate_errors():
        found = files.cat(paths, on_error="raise", **options)
    return [bytes(found[each]) for each in paths]


def copy_many(source: Url, target: Url, names: Sequence[str]) -> None:
    """Copy objects from one prefix to another of the same store, which copies them itself.

    Raises:
        FileNotFoundError: One is missing.
        StoreError: The store is at fault.
    """
    if names:
        files, path = source.connect()
        _, destination = target.connect()
        with source.translate_errors():
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
        files, path = folder.connect()
        with folder.translate_errors(writing=True):
            files.rm([f"{path}/{name}" for name in names])


def _error_chain(error: BaseException | None) -> Iterator[str]:
    """Yield the name and text of an error and of each of its causes."""
    while error is not None:
        yield f"{type(error).__name__} {error}"
        error = error.__cause__ or error.__context__


def local_files(paths: Sequence[PathOrUrl]) -> list[Path]:
    """Return the files of this machine among ``paths``, and the first files of each folder."""
    found: list[Path] = []
    for path in paths:
        # The survey will report what cannot be listed.
        with suppress(OSError):
            if isinstance(path, Path):
                inside = islice(path.iterdir(), _MAX_FILES_LISTED) if path.is_dir() else [path]
                found += [each for each in inside if each.is_file()]
    return found


def total_size(files: Sequence[Path]) -> int:
    """Return the total size of ``files`` in bytes; unreadable files count as 0."""
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.stat().st_size
    return total
