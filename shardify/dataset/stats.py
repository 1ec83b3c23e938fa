"""Compute the statistics of a finished data set from its manifest and some decoded samples.

Means and standard deviations were measured by the build and are read from the manifest. Ranges,
mask areas and depth histograms come from evenly spaced samples, which are decoded here.
"""

import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.dataset.index import Member, ShardIndex, parse_index
from shardify.dataset.manifest import BACKGROUNDS, Manifest, Shard, dataset_folder
from shardify.errors import ImageError, VerifyError
from shardify.images.parser import MASK_THRESHOLD, ImageInfo, parse
from shardify.images.pixels import STANDARD, pixels
from shardify.images.raw_pixels import unpack_raw
from shardify.storage.paths import PathOrUrl, Url, read_many
from shardify.storage.readers import ObjectReader, ReadHandle, close_source, open_source, pread

BINS = 50
"""Number of bins of each histogram."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One decoded sample."""

    key: str
    split: str
    background: int
    """Index into the manifest's backgrounds, or -1."""
    planes: dict[str, NDArray[Any]]
    """role -> pixels, as ``images.pixels.pixels`` returns them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleStats:
    """Statistics of the decoded samples."""

    samples: int
    mask_area: list[int]
    """Histogram, with ``BINS`` bins, of the fraction of object pixels in an image, 0 to 1."""
    depth: list[int]
    """Histogram, with ``BINS`` bins, of depth pixels in [0, 1] of the full range."""
    ranges: dict[str, list[float]]
    """role -> smallest and largest value, in [0, 1] of the full range."""


class DataSet:
    """Reads samples of a finished data set; with several resolutions, of the largest.

    At a URL, the bytes needed are fetched by range requests.

    Raises:
        ManifestError: There is no manifest, or it is unreadable.
        VerifyError: A shard or an index is missing or damaged.
    """

    def __init__(self, out: PathOrUrl) -> None:
        self.folder = dataset_folder(out)
        self.top = Manifest.load(self.folder)
        self._background_spans: dict[str, tuple[int, int]] = {}
        self._readers: dict[str, ObjectReader] = {}
        self.manifest = self.top
        if self.top.resolutions:
            largest = max(self.top.resolutions, key=lambda stored: stored.size.pixels)
            self.folder = self.folder / largest.path
            self.manifest = Manifest.load(self.folder)
        self._shards: list[tuple[str, Shard, ShardIndex]] = []
        """Split, shard and its index."""
        shards = [
            (name, shard) for name, split in self.manifest.splits.items() for shard in split.shards
        ]
        try:
            texts = read_many(self.folder, [shard.index for _, shard in shards])
        except OSError as error:
            raise VerifyError(
                f"{error.filename or self.folder}: {error.strerror}; run `shardify verify`"
            ) from error
        for (split, shard), text in zip(shards, texts, strict=True):
            try:
                self._shards.append((split, shard, parse_index(text)))
            except VerifyError as error:
                raise VerifyError(f"{self.folder / shard.index}: {error}") from error

    def __len__(self) -> int:
        return sum(len(index.names) for _, _, index in self._shards)

    def samples(self, most: int) -> Iterator[Sample]:
        """Yield up to ``most`` samples, evenly spaced over all. Raises VerifyError."""
        step = max(1, -(-len(self) // most))
        first = 0
        for split, shard, index in self._shards:
            rows = range(-first % step, len(index.names), step)
            first += len(index.names)
            samples = [index.members(row) for row in rows]
            if not samples:
                continue
            with self._open_file(shard.name, chain.from_iterable(samples), shard.bytes) as file:
                for members in samples:
                    yield self._sample(split, shard.name, members, file)

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

    def background_uses(self) -> dict[str, Counter[int]]:
        """Count the samples on each background, by split. Raises VerifyError.

        If an older program wrote the manifest, every ``bg.cls`` is read.
        """
        uses = {
            name: Counter({index: count for index, count in enumerate(split.backgrounds) if count})
            for name, split in self.manifest.splits.items()
        }
        if any(uses.values()):
            return uses
        for split, shard, index in self._shards:
            rows = np.flatnonzero(index.extensions[:, -1] == b"bg.cls").tolist()
            labels = [index.members(row)[-1] for row in rows]
            with self._open_file(shard.name, labels, shard.bytes) as file:
                try:
                    uses[split].update(
                        int(pread(file, label.size, label.offset)) for label in labels
                    )
                except (OSError, ValueError) as error:
                    raise VerifyError(
                        f"{self.folder / shard.name}: {error}; run `shardify verify`"
                    ) from error
        return uses

    def backgrounds(self, indexes: Sequence[int]) -> Iterator[NDArray[Any]]:
        """Yield the pixels of some backgrounds. Raises VerifyError."""
        names = [self.manifest.backgrounds[index].member for index in indexes]
        members = [Member("", *self._background_span(name), name) for name in names]
        with self._open_file(BACKGROUNDS, members) as file:
            for member in members:
                try:
                    data = pread(file, member.size, member.offset)
                    yield self._decode("bg", data, member.name)
                except (OSError, ValueError, ImageError) as error:
                    raise self._background_error(member.name, error) from error

    def stored(self, index: int) -> int:
        """Return the stored size of one background in bytes. Raises VerifyError."""
        return self._background_span(self.manifest.backgrounds[index].member)[1]

    def _background_span(self, member: str) -> tuple[int, int]:
        """Return offset and size of a member of ``backgrounds.tar``."""
        try:
            if not self._background_spans:
                with (
                    (self.folder / BACKGROUNDS).open("rb") as raw,
                    tarfile.open(fileobj=raw) as tar,
                ):
                    self._background_spans = {
                        info.name: (info.offset_data, info.size) for info in tar
                    }
            return self._background_spans[member]
        except (OSError, KeyError, tarfile.TarError) as error:
            raise self._background_error(member, error) from error

    def _background_error(self, member: str, error: Exception) -> VerifyError:
        return VerifyError(f"{self.folder / BACKGROUNDS}: {member}: {error}")

    @contextmanager
    def _open_file(
        self, name: str, members: Iterable[Member], size: int | None = None
    ) -> Iterator[ReadHandle]:
        """Open one file and announce the members that will be read. Raises VerifyError."""
        path = self.folder / name
        file: ReadHandle
        try:
            if isinstance(path, Url):
                # Opened once, because each opening may cost a request.
                if name not in self._readers:
                    self._readers[name] = ObjectReader(path, size)
                file = self._readers[name]
            else:
                file = open_source(str(path))
        except OSError as error:
            raise VerifyError(f"{path}: {error.strerror}; run `shardify verify`") from error
        try:
            if isinstance(file, ObjectReader):
                file.expect([(member.offset, member.offset + member.size) for member in members])
            yield file
        finally:
            close_source(file)

    def _decode(self, role: str, data: bytes, name: str) -> NDArray[Any]:
        if name.endswith(".raw"):
            spec = self.manifest.roles[role]
            width, height, _ = spec.sizes[0]
            info = ImageInfo("raw", width, height, spec.channels, spec.bits)
            return unpack_raw(data, info, role)
        return pixels(data, parse(data), role, STANDARD)


def measure_samples(data: DataSet, *, most: int = 200) -> SampleStats:
    """Decode up to ``most`` samples and compute their statistics. Raises VerifyError."""
    area = np.zeros(BINS, np.int64)
    depth = np.zeros(BINS, np.int64)
    ranges: dict[str, list[float]] = {}
    count = 0
    for sample in data.samples(most):
        count += 1
        for role, plane in sample.planes.items():
            full = float(np.iinfo(plane.dtype).max)
            invalid = data.manifest.roles[role].invalid
            plane = plane if invalid is None else plane[plane != invalid]
            if not plane.size:
                continue
            low, high = float(plane.min()) / full, float(plane.max()) / full
            smallest, largest = ranges.get(role, (low, high))
            ranges[role] = [min(smallest, low), max(largest, high)]
            if role == "mask":
                share = float((plane >= MASK_THRESHOLD).mean())
                area[min(BINS - 1, int(share * BINS))] += 1
            elif role == "depth":
                depth += np.histogram(plane, BINS, (0, full + 1))[0]
    return SampleStats(samples=count, mask_area=area.tolist(), depth=depth.tolist(), ranges=ranges)


def dataset_stats(out: PathOrUrl, *, most: int = 200) -> dict[str, Any]:
    """Return the object that ``shardify stats --json`` prints.

    Args:
        out: A finished data set, in a folder or at a URL.
        most: Maximum samples to decode for the ranges.

    Raises:
        ManifestError: There is no manifest, or it is unreadable.
        VerifyError: A shard is missing or damaged.
    """
    data = DataSet(out)
    manifest = data.manifest
    measured = measure_samples(data, most=most)
    bytes_by_role: Counter[str] = Counter()
    for _, _, index in data._shards:
        for name in np.unique(index.roles):
            bytes_by_role[name.decode()] += int(index.sizes[index.roles == name].sum())
    path = data.folder / BACKGROUNDS
    bytes_by_role["bg"] = path.stat().st_size if path.exists() else 0
    roles = {}
    for role, spec in manifest.roles.items():
        stats = manifest.stats.get(role)
        roles[role] = {
            "mean": stats.mean if stats else None,
            "std": stats.std if stats else None,
            "measured": stats.samples if stats else 0,
            "range": measured.ranges.get(role),
            "sizes": spec.sizes,
            "extensions": spec.extensions,
            "bits": spec.bits,
            "bytes": bytes_by_role.get(role),
        }
    return {
        "out": str(out),
        "samples": {name: split.samples for name, split in manifest.splits.items()},
        "backgrounds": len(manifest.backgrounds),
        "looked_at": measured.samples,
        "roles": roles,
        "costs": manifest.costs,
    }
