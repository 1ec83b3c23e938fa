"""What a finished data set holds, in figures: from its manifest, and from some of its samples.

Means and deviations were measured by the build and are only read here; ranges, mask areas and
depth histograms come from evenly spaced samples, decoded now. It writes nothing and repairs
nothing.
"""

import itertools
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.dataset.index import Member, parse_index
from shardify.dataset.manifest import BACKGROUNDS, Manifest, Role
from shardify.errors import ImageError, VerifyError
from shardify.images.parser import MASK_THRESHOLD, ImageInfo, parse
from shardify.images.pixels import STANDARD, pixels
from shardify.images.raw_pixels import unpack_raw
from shardify.storage.paths import PathOrUrl, Url, as_path, read_many
from shardify.storage.readers import ObjectReader, ReadHandle, close_source, open_source, pread

__all__ = ["BINS", "DataSet", "Findings", "Sample", "figures", "findings"]

BINS = 50
"""Of each histogram."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One sample, decoded."""

    key: str
    split: str
    background: int
    """Index into the manifest's backgrounds, or -1."""
    planes: dict[str, NDArray[Any]]
    """role -> pixels, as ``pixels.pixels`` gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What the samples that were looked at are like."""

    samples: int
    mask_area: list[int]
    """Counts over ``BINS`` equal steps of the share of the picture that is object, 0 to 1."""
    depth: list[int]
    """Pixels over ``BINS`` equal steps of the full range of depth, 0 to 1."""
    ranges: dict[str, list[float]]
    """role -> least and largest value, of its full range."""


class DataSet:
    """A finished data set, opened for looking: one of OUT, or its largest resolution.

    At a URL, what is looked at is fetched by ranges.

    Raises:
        ManifestError: There is no manifest, or it is unreadable.
        VerifyError: A shard or an index is missing or not what it should be.
    """

    def __init__(self, out: PathOrUrl) -> None:
        self.folder = as_path(out)
        self.top = Manifest.load(self.folder)
        self._bank: dict[str, tuple[int, int]] = {}
        self._ranges: dict[str, ObjectReader] = {}
        self.manifest = self.top
        if self.top.resolutions:
            largest = max(self.top.resolutions, key=lambda each: each.res)
            self.folder = self.folder / largest.path
            self.manifest = Manifest.load(self.folder)
        self._places: list[tuple[str, str, list[Member]]] = []
        self._sizes = {
            shard.name: shard.bytes
            for split in self.manifest.splits.values()
            for shard in split.shards
        }
        shards = [
            (split, shard) for split, each in self.manifest.splits.items() for shard in each.shards
        ]
        try:
            texts = read_many(self.folder, [shard.index for _, shard in shards])
        except OSError as error:
            raise VerifyError(
                f"{error.filename or self.folder}: {error.strerror}; run `shardify verify`"
            ) from error
        for (split, shard), text in zip(shards, texts, strict=True):
            try:
                samples = parse_index(text.decode())
            except UnicodeDecodeError as error:
                raise VerifyError(f"{self.folder / shard.index}: {error}") from error
            self._places += [(split, shard.name, members) for members in samples]

    def __len__(self) -> int:
        return len(self._places)

    def samples(self, most: int) -> Iterator[Sample]:
        """Up to ``most`` samples, evenly spaced over all. Raises VerifyError."""
        step = max(1, -(-len(self) // most))
        for split, name, wanted in _by_shard(self._places[::step]):
            with self._opened(name, [each for members in wanted for each in members]) as file:
                for members in wanted:
                    yield self._sample(split, name, members, file)

    def _sample(self, split: str, shard: str, members: list[Member], file: ReadHandle) -> Sample:
        planes, background = {}, -1
        try:
            for member in members:
                data = pread(file, member.size, member.offset)
                role = member.extension.partition(".")[0]
                if member.extension == "bg.cls":
                    background = int(data)
                else:
                    planes[role] = self._decode(role, data, member.extension)
        except (OSError, ValueError, ImageError) as error:
            raise VerifyError(
                f"{self.folder / shard}: {members[0].name}: {error}; run `shardify verify`"
            ) from error
        key = members[0].name.partition(".")[0]
        return Sample(key=key, split=split, background=background, planes=planes)

    def uses(self) -> dict[str, "Counter[int]"]:
        """Split -> how many samples stand on each background. Raises VerifyError.

        Reads every ``bg.cls`` where an older program wrote the manifest.
        """
        found: dict[str, Counter[int]] = {split: Counter() for split in self.manifest.splits}
        if any(split.backgrounds for split in self.manifest.splits.values()):
            for split, each in self.manifest.splits.items():
                found[split].update({i: n for i, n in enumerate(each.backgrounds) if n})
            return found
        for split, name, samples in _by_shard(self._places):
            told = [each[-1] for each in samples if each[-1].extension == "bg.cls"]
            with self._opened(name, told) as file:
                try:
                    found[split].update(int(pread(file, each.size, each.offset)) for each in told)
                except (OSError, ValueError) as error:
                    raise VerifyError(
                        f"{self.folder / name}: {error}; run `shardify verify`"
                    ) from error
        return found

    def backgrounds(self, indexes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """The pixels of some backgrounds. Raises VerifyError."""
        members = [self.manifest.backgrounds[index].member for index in indexes]
        places = [self._place(member) for member in members]
        wanted = [Member("", offset, size, "") for offset, size in places]
        with self._opened(BACKGROUNDS, wanted) as file:
            for member, (offset, size) in zip(members, places, strict=True):
                try:
                    data = pread(file, size, offset)
                    yield self._decode("bg", data, member)
                except (OSError, ValueError, ImageError) as error:
                    raise self._unusable(member, error) from error

    def stored(self, index: int) -> int:
        """The bytes of one background. Raises VerifyError."""
        return self._place(self.manifest.backgrounds[index].member)[1]

    def _place(self, member: str) -> tuple[int, int]:
        """Offset and size of a member of the bank."""
        try:
            if not self._bank:
                with (
                    (self.folder / BACKGROUNDS).open("rb") as raw,
                    tarfile.open(fileobj=raw) as tar,
                ):
                    self._bank = {each.name: (each.offset_data, each.size) for each in tar}
            return self._bank[member]
        except (OSError, KeyError, tarfile.TarError) as error:
            raise self._unusable(member, error) from error

    def _unusable(self, member: str, error: Exception) -> VerifyError:
        return VerifyError(f"{self.folder / BACKGROUNDS}: {member}: {error}")

    @contextmanager
    def _opened(self, name: str, members: Sequence[Member]) -> Iterator[ReadHandle]:
        """One file, with a word ahead on what will be read of it. Raises VerifyError."""
        where = self.folder / name
        file: ReadHandle
        try:
            if isinstance(where, Url):
                # Opened once: each opening may cost a request.
                if name not in self._ranges:
                    self._ranges[name] = ObjectReader(where, self._sizes.get(name))
                file = self._ranges[name]
            else:
                file = open_source(str(where))
        except OSError as error:
            raise VerifyError(f"{where}: {error.strerror}; run `shardify verify`") from error
        try:
            if isinstance(file, ObjectReader):
                file.expect([(each.offset, each.offset + each.size) for each in members])
            yield file
        finally:
            close_source(file)

    def _decode(self, role: str, data: bytes, name: str) -> NDArray[Any]:
        if name.endswith(".raw"):
            stated: Role = self.manifest.roles[role]
            width, height, _ = stated.sizes[0]
            return unpack_raw(
                data, ImageInfo("raw", width, height, stated.channels, stated.bits), role
            )
        return pixels(data, parse(data), role, STANDARD)


def findings(data: DataSet, *, most: int = 200) -> Findings:
    """Look at up to ``most`` samples. Raises VerifyError."""
    area = np.zeros(BINS, np.int64)
    depth = np.zeros(BINS, np.int64)
    ranges: dict[str, list[float]] = {}
    count = 0
    for sample in data.samples(most):
        count += 1
        for role, plane in sample.planes.items():
            full = float(np.iinfo(plane.dtype).max)
            low, high = float(plane.min()) / full, float(plane.max()) / full
            old = ranges.get(role, [low, high])
            ranges[role] = [min(old[0], low), max(old[1], high)]
            if role == "mask":
                share = float((plane >= MASK_THRESHOLD).mean())
                area[min(BINS - 1, int(share * BINS))] += 1
            elif role == "depth":
                depth += np.histogram(plane, BINS, (0, full + 1))[0]
    return Findings(samples=count, mask_area=area.tolist(), depth=depth.tolist(), ranges=ranges)


def figures(out: PathOrUrl, *, most: int = 200) -> dict[str, Any]:
    """What ``shardify stats`` reports.

    Args:
        out: A finished data set, in a folder or at a URL.
        most: Samples to look at for the ranges.

    Raises:
        ManifestError: There is no manifest, or it is unreadable.
        VerifyError: A shard is missing or damaged.
    """
    data = DataSet(out)
    manifest = data.manifest
    found = findings(data, most=most)
    stored: Counter[str] = Counter()
    for _, _, members in data._places:
        for member in members:
            stored[member.extension.partition(".")[0]] += member.size
    roles = {}
    for role, each in manifest.roles.items():
        stats = manifest.stats.get(role)
        roles[role] = {
            "mean": stats.mean if stats else None,
            "std": stats.std if stats else None,
            "measured": stats.samples if stats else 0,
            "range": found.ranges.get(role),
            "sizes": each.sizes,
            "extensions": each.extensions,
            "bits": each.bits,
            "bytes": stored.get(role) if role != "bg" else _size(data.folder / BACKGROUNDS),
        }
    return {
        "out": str(out),
        "samples": {name: split.samples for name, split in manifest.splits.items()},
        "backgrounds": len(manifest.backgrounds),
        "looked_at": found.samples,
        "roles": roles,
        "costs": manifest.costs,
    }


def _size(path: PathOrUrl) -> int:
    return path.stat().st_size if path.exists() else 0


def _by_shard(
    places: Sequence[tuple[str, str, list[Member]]],
) -> Iterator[tuple[str, str, list[list[Member]]]]:
    """(split, shard, its samples), in order."""
    for (split, name), group in itertools.groupby(places, key=lambda each: each[:2]):
        yield split, name, [members for _, _, members in group]
