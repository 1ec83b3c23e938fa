"""Places that are URLs: one class that answers like a path, over fsspec.

``Url`` has the few methods of ``pathlib.Path`` that this package uses, so that manifests, checks
and listings read the same for a folder and for a bucket. An object is put whole, so nothing here
renames, appends or locks; nothing is deleted but what ``unlink`` names. Each failure of a store
is one line that says which URL, what happened and what to do.

Which files of what a user names lie on this machine.
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

__all__ = ["PathOrUrl", "Size", "Url", "as_path", "files_at", "read_many", "size_of"]


_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BLOCK = 8 << 20
_AT_ONCE = 32
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


class Size(NamedTuple):
    """What is asked of a file's status."""

    st_size: int
    """Bytes."""


@dataclass(frozen=True, order=True, slots=True)
class Url:
    """A place in an object store; made by ``as_path``.

    Every method raises FileNotFoundError where there is no such object, and StoreError, one line,
    where the store is at fault: not reachable, no bucket, no credentials, a package missing.
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
        """Whether other processes see nothing of it: ``memory://`` lives in this one."""
        return self.url.lower().startswith("memory://")

    def absolute(self) -> "Url":
        """Itself."""
        return self

    def with_suffix(self, suffix: str) -> "Url":
        """The same place with another last extension."""
        return Url(self.url.removesuffix(PurePosixPath(self.name).suffix) + suffix)

    def exists(self) -> bool:
        """Whether an object, or anything under this prefix, is there."""
        files, path = self.connect()
        with self.translate_errors():
            return bool(files.exists(path))

    def is_dir(self) -> bool:
        """Whether anything is under this prefix. A web server tells no such thing."""
        if self.url.lower().startswith("http"):
            return False
        files, path = self.connect()
        with self.translate_errors():
            return bool(files.isdir(path))

    def is_file(self) -> bool:
        """Whether an object is there."""
        files, path = self.connect()
        with self.translate_errors():
            return bool(files.isfile(path))

    def iterdir(self) -> Iterator["Url"]:
        """Objects and prefixes right under this one, by name."""
        files, path = self.connect()
        with self.translate_errors():
            listed = files.ls(path, detail=False)
        for each in sorted(listed):
            name = str(each).rstrip("/").rpartition("/")[2]
            if name and str(each).strip("/") != path.strip("/"):
                yield self / name

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a store has no folders to make."""

    def stat(self) -> Size:
        """How large the object is."""
        files, path = self.connect()
        with self.translate_errors():
            found = files.info(path)
        if found.get("type") == "directory":
            raise self.missing()
        if found.get("size") is None:
            raise StoreError(f"{self}: the server states no size; expected one; download it first")
        return Size(int(found["size"]))

    def open(self, mode: str = "rb") -> BufferedReader:
        """The object, to be read in order, a few MiB at a time."""
        assert mode == "rb"
        files, path = self.connect()
        with self.translate_errors():
            return cast(BufferedReader, files.open(path, "rb", block_size=_BLOCK))

    def read_bytes(self) -> bytes:
        """The whole object: for small ones."""
        files, path = self.connect()
        with self.translate_errors():
            return bytes(files.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object as text: for small ones."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> int:
        """Put a whole object. Returns its size in bytes."""
        files, path = self.connect()
        with self.translate_errors(writing=True):
            files.pipe_file(path, data)
        return len(data)

    def put(self, file: BinaryIO) -> None:
        """Put a local file's bytes as a whole object, in parts where it is large."""
        files, path = self.connect()
        with self.translate_errors(writing=True):
            # By descriptor: the file has no name any more.
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
        """The store, and this object's name in it. Never touches the network."""
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
        """Turn whatever the store's client raises into one line."""
        try:
            yield
        except StoreError:
            raise
        except FileNotFoundError as error:
            raise self.missing(writing=writing) from error
        except Exception as error:
            chain = " ".join(_told_of(error))
            for pattern, remedy in _REMEDIES:
                if re.search(pattern, chain):
                    raise StoreError(f"{self}: {remedy}") from error
            raise StoreError(
                f"{self}: {type(error).__name__}: {error}; expected the store to answer; see to "
                "it and run the same command again"
            ) from error

    def missing(self, *, writing: bool = False) -> Exception:
        """What to raise where nothing is there; a bucket that is not there is said so."""
        files, path = self.connect()
        root = path.strip("/").partition("/")[0]
        if self.url.lower().startswith("s3"):
            try:
                there = files.exists(root)
            except Exception:  # Who may not list a bucket may yet read in it.
                there = True
            if not there or writing:
                return StoreError(
                    f"{self}: no bucket {root!r}; expected one that exists; make it, or mend the "
                    "URL"
                )
        return FileNotFoundError(errno.ENOENT, "no such object", self.url)


PathOrUrl = Path | Url
"""Where a source is, or a data set shall be."""


def as_path(text: "str | Path | Url") -> PathOrUrl:
    """A path, or a ``Url`` for ``protocol://...``; ``file://`` is a path like any other."""
    if not isinstance(text, str):
        return text
    if not _URL.match(text):
        return Path(text)
    protocol, _, rest = text.partition("://")
    return Path(rest) if protocol.lower() in ("file", "local") else Url(text.rstrip("/"))


def read_many(folder: PathOrUrl, names: Sequence[str]) -> list[bytes]:
    """Small files of one folder; objects are fetched many at a time.

    Raises:
        OSError: One is missing or cannot be read.
        StoreError: The store is at fault.
    """
    if isinstance(folder, Path) or not names:
        return [(folder / name).read_bytes() for name in names]
    files, path = folder.connect()
    paths = [f"{path}/{name}" for name in names]
    options = {"batch_size": _AT_ONCE} if getattr(files, "async_impl", False) else {}
    with folder.translate_errors():
        found = files.cat(paths, on_error="raise", **options)
    return [bytes(found[each]) for each in paths]


def _told_of(error: BaseException | None) -> Iterator[str]:
    """Names and texts of an error and of its causes."""
    while error is not None:
        yield f"{type(error).__name__} {error}"
        error = error.__cause__ or error.__context__


_FILES = 64
"""So many of a folder's files are looked at: it may hold pictures by the million."""


def files_at(paths: Sequence[PathOrUrl]) -> list[Path]:
    """Files on this machine that are named, or lie in a folder that is; of a folder's the first."""
    found: list[Path] = []
    for path in paths:
        # What cannot be looked at, the survey will name.
        with suppress(OSError):
            if isinstance(path, Path):
                inside = islice(path.iterdir(), _FILES) if path.is_dir() else [path]
                found += [each for each in inside if each.is_file()]
    return found


def size_of(files: Sequence[Path]) -> int:
    """Bytes; of what cannot be looked at, none."""
    total = 0
    for path in files:
        with suppress(OSError):
            total += path.stat().st_size
    return total
