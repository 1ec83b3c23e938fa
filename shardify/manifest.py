"""``manifest.json``: the one contract between a built data set and whoever reads it.

Holds the schema (version 1), reads it strictly and writes it atomically. It opens no shard, and
imports neither torch, click nor zipfile, so that a training process can afford it.

Units: sizes in pixels, bytes in bytes, ``mean`` and ``std`` in [0, 1] of the role's full range,
digests as lower-case SHA-256 hex.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shardify.errors import ManifestError
from shardify.files import write_atomic
from shardify.remote import Place, place

__all__ = [
    "BACKGROUNDS",
    "NAME",
    "REJECTED",
    "VERSION",
    "Background",
    "Manifest",
    "Rejected",
    "Resolution",
    "Role",
    "Shard",
    "Source",
    "Split",
    "Stats",
]

VERSION = 1
NAME = "manifest.json"
REJECTED = "rejected.jsonl"
BACKGROUNDS = "backgrounds.tar"

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One input that the data set was built from."""

    name: str
    bytes: int
    entries: int
    digest: str
    """SHA-256 of the zip's central directory (names, sizes, checksums, places of all entries); of a
    folder, of a line ``name NUL size`` for each file, sorted by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """What the files of one role (``bg``, ``fg_bg``, ``mask``, ``depth``) are like."""

    extensions: list[str]
    """Without a dot, as they follow ``KEY.ROLE.`` in a shard, most frequent first."""

    channels: int
    """1 gray, 3 colour: the most frequent count."""

    sizes: list[list[int]]
    """``[width, height, count]``, most frequent first."""

    bits: int = 8
    """Of one channel of one pixel: 8 or 16; 1 for a raw mask."""

    threshold: int | None = None
    """Mask only: a pixel is object where its value is at least this."""

    codec: str = "keep"
    """``keep``: payloads as they came; ``jpeg``, ``png``; ``raw``: planes without any header."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """One background: stored once, named by its index in every sample's ``bg.cls``."""

    id: str
    index: int
    member: str
    """Member name in ``backgrounds.tar``."""
    width: int
    height: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar and its index, named relative to the manifest's folder."""

    name: str
    index: str
    samples: int
    bytes: int
    sha256: str
    """Of the tar."""
    index_sha256: str = ""
    """Of the index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The shards of ``train`` or ``val``, in reading order."""

    samples: int
    shards: list[Shard]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """How much was left out; ``rejected.jsonl`` names each."""

    count: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Per-channel mean, and the mean over images of each image's own standard deviation."""

    mean: list[float]
    std: list[float]
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """One of several data sets with the same samples at different sizes."""

    res: int
    path: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """A whole data set, as ``manifest.json`` states it."""

    version: int = VERSION
    created_by: str
    source: list[Source]
    options: dict[str, Any]
    layout: dict[str, Any]
    roles: dict[str, Role]
    backgrounds: list[Background]
    splits: dict[str, Split]
    rejected: Rejected = field(default_factory=Rejected)
    stats: dict[str, Stats] = field(default_factory=dict)
    resolutions: list[Resolution] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the other files: ``backgrounds.tar``, ``rejected.jsonl``."""
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    """What re-encoding cost, by role: see docs/shardify.md. Empty when nothing was re-encoded."""

    @classmethod
    def load(cls, path: Place) -> "Manifest":
        """Read a manifest.

        Args:
            path: The data set's folder, or its ``manifest.json``.

        Raises:
            ManifestError: Missing, not JSON, another version, or a field is missing or of the
                wrong type.
        """
        path = place(path)
        file = path / NAME if path.is_dir() else path
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ManifestError(
                f"{path}: no {NAME}; expected a folder that `shardify build` finished; "
                "build it first"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(
                f"{file}: cannot be read ({error}); build the data set again"
            ) from error
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(
                f"{file}: not JSON ({error}); it was damaged or edited: build the data set again"
            ) from error
        return cls.from_json(document, where=str(file))

    @classmethod
    def from_json(cls, document: object, *, where: str = NAME) -> "Manifest":
        """Check a parsed JSON document against the schema; unknown fields are ignored.

        Raises:
            ManifestError: Another version, or a field is missing or of the wrong type.
        """
        if not isinstance(document, dict) or "version" not in document:
            raise ManifestError(f"{where}: no data set's manifest (no version); build it again")
        version = document["version"]
        if version != VERSION:
            raise ManifestError(
                f"{where}: schema version {version!r}; this program reads version {VERSION}; "
                "build the data set again with this program"
            )
        manifest = _record(cls, document, where)
        for index, background in enumerate(manifest.backgrounds):
            if background.index != index:
                raise ManifestError(
                    f"{where}: background {background.id!r} has index {background.index} at "
                    f"place {index}; it was edited: build the data set again"
                )
        for name, split in manifest.splits.items():
            if sum(shard.samples for shard in split.shards) != split.samples:
                raise ManifestError(
                    f"{where}: the shards of split {name!r} do not add up to {split.samples} "
                    "samples; it was edited: build the data set again"
                )
        return manifest

    def to_json(self) -> str:
        """The manifest as it is written: indented, keys in schema order, ends in a newline."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=True) + "\n"

    def save(self, out: Place) -> None:
        """Write ``out/manifest.json`` atomically.

        Raises:
            OSError: The folder is missing, not writable, or the disk is full.
        """
        write_atomic(out / NAME, self.to_json().encode())


def _record(kind: type[T], document: object, where: str) -> T:
    """Build the dataclass ``kind`` from a JSON object, naming the field that does not fit."""
    if not isinstance(document, dict):
        raise _unfit(where, document, "an object")
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]  # every caller passes one
        if spec.name in document:
            read = _READERS[str(spec.type)]
            values[spec.name] = read(document[spec.name], f"{where}: {spec.name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ManifestError(f"{where}: no field {spec.name!r}; build the data set again")
    return kind(**values)


def _unfit(where: str, value: object, expected: str) -> ManifestError:
    return ManifestError(
        f"{where}: found {json.dumps(value)[:60]}; expected {expected}; build the data set again"
    )


def _integer(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _unfit(where, value, "a whole number, 0 or more")
    return value


def _number(value: object, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _unfit(where, value, "a number")
    return float(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise _unfit(where, value, "a text")
    return value


def _optional_integer(value: object, where: str) -> int | None:
    return None if value is None else _integer(value, where)


def _plain(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _unfit(where, value, "an object")
    return value


def _size(value: object, where: str) -> list[int]:
    triple = _list(_integer)(value, where)
    if len(triple) != 3:
        raise _unfit(where, value, "[width, height, count]")
    return triple


def _list(read: Callable[[object, str], T]) -> Callable[[object, str], list[T]]:
    def reader(value: object, where: str) -> list[T]:
        if not isinstance(value, list):
            raise _unfit(where, value, "a list")
        return [read(item, f"{where}[{place}]") for place, item in enumerate(value)]

    return reader


def _dict(read: Callable[[object, str], T]) -> Callable[[object, str], dict[str, T]]:
    def reader(value: object, where: str) -> dict[str, T]:
        return {name: read(item, f"{where}.{name}") for name, item in _plain(value, where).items()}

    return reader


def _object(kind: type[T]) -> Callable[[object, str], T]:
    return lambda value, where: _record(kind, value, where)


# One reader for each annotation that the schema uses; a new field's annotation needs one too.
_READERS: Mapping[str, Callable[[object, str], Any]] = {
    str(annotation): reader
    for annotation, reader in (
        (int, _integer),
        (str, _text),
        (int | None, _optional_integer),
        (list[str], _list(_text)),
        (list[float], _list(_number)),
        (list[list[int]], _list(_size)),
        (dict[str, Any], _plain),
        (dict[str, int], _dict(_integer)),
        (dict[str, str], _dict(_text)),
        (dict[str, dict[str, float]], _dict(_dict(_number))),
        (dict[str, Role], _dict(_object(Role))),
        (dict[str, Split], _dict(_object(Split))),
        (dict[str, Stats], _dict(_object(Stats))),
        (list[Source], _list(_object(Source))),
        (list[Background], _list(_object(Background))),
        (list[Shard], _list(_object(Shard))),
        (list[Resolution], _list(_object(Resolution))),
        (Rejected, _object(Rejected)),
    )
}
