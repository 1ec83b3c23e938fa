"""Schema (version 1), strict reading and atomic writing of ``manifest.json``.

The manifest ends with a digest of its own content. ``shardify verify`` compares it; ``load`` does
not, so that users may edit a threshold or a mean on purpose. The loader compares the records of
shards with the shards.

Units: sizes in pixels, ``bytes`` in bytes, ``mean`` and ``std`` in [0, 1] of the role's full range,
digests as lower-case SHA-256 hex.

The annotations of the dataclasses are the schema: ``int`` (0 or more), ``float``, ``str``,
``T | None``, ``list[T]``, ``dict[str, T]``, ``dict[str, Any]`` and dataclasses of these. Unknown
JSON fields are ignored; missing or invalid ones are named in the error.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

from shardify.errors import ManifestError
from shardify.resolution import Resolution, resolution
from shardify.storage.atomic_write import write_atomic
from shardify.storage.paths import PathOrUrl, as_path

T = TypeVar("T")

_EXPECTED = {
    int: "a whole number, 0 or more",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def record(kind: type[T], document: object, where: str) -> T:
    """Build the dataclass ``kind`` from a JSON object.

    Args:
        kind: Dataclass to build.
        document: Parsed JSON.
        where: Name of the document in errors.

    Raises:
        ManifestError: A field is missing or of the wrong type.
    """
    if not isinstance(document, dict):
        raise unfit(where, document, "an object")
    values: dict[str, Any] = {}
    for spec in dataclasses.fields(kind):  # type: ignore[arg-type]  # every caller passes one
        if spec.name in document:
            values[spec.name] = _read(spec.type, document[spec.name], f"{where}: {spec.name}")
        elif spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            raise ManifestError(f"{where}: no field {spec.name!r}; build the data set again")
    return kind(**values)


def unfit(where: str, value: object, expected: str) -> ManifestError:
    """Create the error for an invalid value."""
    return ManifestError(
        f"{where}: found {json.dumps(value)[:60]}; expected {expected}; build the data set again"
    )


def _read(annotation: Any, value: Any, where: str) -> Any:
    """Check a value against its annotation, and return it."""
    if annotation is Any:
        return value
    if annotation == int | str:
        try:
            return resolution(value).to_json()
        except ValueError:
            raise unfit(where, value, "a resolution, like 64 or '128x224'") from None
    if dataclasses.is_dataclass(annotation):
        return record(annotation, value, where)  # type: ignore[arg-type]  # a class
    kind, inner = get_origin(annotation) or annotation, get_args(annotation)
    if kind is UnionType:
        return None if value is None else _read(inner[0], value, where)
    accepted: Any = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or isinstance(value, bool) or (kind is int and value < 0):
        raise unfit(where, value, _EXPECTED[kind])
    if kind is list:
        return [_read(inner[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
    if kind is dict:
        return {name: _read(inner[1], item, f"{where}.{name}") for name, item in value.items()}
    return float(value) if kind is float else value


VERSION = 1
NAME = "manifest.json"
REJECTED = "rejected.jsonl"
BACKGROUNDS = "backgrounds.tar"
DIGEST = "sha256"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One source of the data set."""

    name: str
    bytes: int
    entries: int
    digest: str
    """SHA-256 of the zip's central directory (names, sizes, checksums and offsets of all entries).
    For a folder, of one line ``name NUL size`` per file, sorted by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """Format of the files of one role (``bg``, ``fg_bg``, ``mask``, ``depth``)."""

    extensions: list[str]
    """File extensions without a dot, as after ``KEY.ROLE.`` in a shard, most frequent first."""

    channels: int
    """1 gray, 3 colour; the most frequent number."""

    sizes: list[list[int]]
    """``[width, height, count]``, most frequent first."""

    bits: int = 8
    """Bits per channel: 8 or 16; 1 for a raw mask."""

    threshold: int | None = None
    """Mask only: smallest value of an object pixel."""

    codec: str = "keep"
    """``keep``: payloads of the source; ``jpeg``, ``png``; ``raw``: pixels without a header."""

    unit: str | None = None
    """Depth only, as the following: unit of the source's values, as ``m``; None if not known."""

    scale: float | None = None
    """Stored steps to a unit; None if not known."""

    max: float | None = None
    """Largest depth in that unit; None if not known."""

    invalid: int | None = None
    """Stored value that means "no depth"; None if no such value is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Background:
    """One background: stored once, referenced by its index in the ``bg.cls`` of each sample."""

    id: str
    index: int
    member: str
    """Name in ``backgrounds.tar``."""
    width: int
    height: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One tar and its index; names are relative to the manifest's folder."""

    name: str
    index: str
    samples: int
    bytes: int
    sha256: str
    """SHA-256 of the tar."""
    index_sha256: str = ""
    """SHA-256 of the index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """The shards of ``train`` or ``val``, in reading order."""

    samples: int
    shards: list[Shard]
    backgrounds: list[int] = field(default_factory=list)
    """Number of samples on each background, by its index; empty without backgrounds, and in
    manifests of older programs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejected:
    """Number of rejected samples and entries; ``rejected.jsonl`` lists them."""

    count: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Per-channel mean, and per-channel mean of the images' standard deviations."""

    mean: list[float]
    std: list[float]
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredResolution:
    """One of several data sets with the same samples at different sizes."""

    res: int | str
    """Side of its square images in pixels, or ``"HEIGHTxWIDTH"``."""
    path: str

    @property
    def size(self) -> Resolution:
        """Height and width of its images. Pixels."""
        return resolution(self.res)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Content of ``manifest.json``."""

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
    resolutions: list[StoredResolution] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the other files: ``backgrounds.tar``, ``rejected.jsonl``."""
    costs: dict[str, dict[str, float]] = field(default_factory=dict)
    """Loss of re-encoding by role: see docs/data.md. Empty if nothing was re-encoded."""

    @classmethod
    def load(cls, path: PathOrUrl) -> "Manifest":
        """Read a manifest.

        Args:
            path: The data set's folder, or its ``manifest.json``.

        Raises:
            ManifestError: Missing, not JSON, another version, or a field is missing or of the
                wrong type.
        """
        document, where = read_document(path)
        return cls.from_json(document, where=where)

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
        manifest = record(cls, document, where)
        for name, role in manifest.roles.items():
            if bad := next((size for size in role.sizes if len(size) != 3), None):
                raise unfit(f"{where}: roles.{name}.sizes", bad, "[width, height, count]")
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
        """Return the text of ``manifest.json``: indented, keys in schema order, final newline.

        The last key, ``sha256``, is the digest of all others; see ``is_altered``.
        """
        document = dataclasses.asdict(self)
        document[DIGEST] = _digest(document)
        return json.dumps(document, indent=1, ensure_ascii=True) + "\n"

    def save(self, out: PathOrUrl) -> None:
        """Write ``out/manifest.json`` atomically.

        Raises:
            OSError: The folder is missing, not writable, or the disk is full.
        """
        write_atomic(out / NAME, self.to_json().encode())


def dataset_folder(path: PathOrUrl) -> PathOrUrl:
    """Return the folder of a data set, given that folder or its ``manifest.json``."""
    path = as_path(path)
    return path.parent if isinstance(path, Path) and path.name == NAME else path


def read_document(path: PathOrUrl) -> tuple[object, str]:
    """Read the JSON of a manifest; return it and its name for errors.

    Args:
        path: The data set's folder, or its ``manifest.json``.

    Raises:
        ManifestError: Missing, unreadable or not JSON.
    """
    path = as_path(path)
    file = path / NAME if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        # A Path joins the slashes of a URL.
        url = re.match(r"([a-z][a-z0-9+.-]+):/(.*)", str(path)) if isinstance(path, Path) else None
        if url:
            raise ManifestError(
                f"{url[1]}://{url[2]}: a URL; expected a folder; copy the data set to this machine "
                "first"
            ) from None
        raise ManifestError(
            f"{path}: no {NAME}; expected a folder that `shardify build` finished; build it first"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, UnicodeDecodeError) and file.name != NAME:
            raise ManifestError(
                f"{file}: not a data set; expected a folder that `shardify build` finished; build "
                f"one first: shardify build {file} OUT"
            ) from None
        raise ManifestError(
            f"{file}: cannot be read ({error}); build the data set again"
        ) from error
    try:
        return json.loads(text), str(file)
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{file}: not JSON ({error}); it was damaged or edited: build the data set again"
        ) from error


def is_altered(document: dict[str, Any]) -> bool:
    """Return whether a manifest's JSON differs from what ``save`` wrote.

    A manifest without a digest comes from an older program, which wrote no unknown fields.
    """
    if DIGEST not in document:
        return not set(document) <= {spec.name for spec in dataclasses.fields(Manifest)}
    return bool(document[DIGEST] != _digest(document))


def _digest(document: dict[str, Any]) -> str:
    """Return the SHA-256 of the JSON without its digest: sorted keys, no spaces, ASCII."""
    content = {name: value for name, value in document.items() if name != DIGEST}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
