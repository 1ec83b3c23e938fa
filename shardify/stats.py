"""What a finished data set holds, in figures: from its manifest, and from some of its samples.

Means and deviations were measured by the build and are only read here; ranges, mask areas and
depth histograms come from evenly spaced samples, decoded now. It writes nothing and repairs
nothing.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.codecs import unpack_raw
from shardify.errors import ImageError, VerifyError
from shardify.images import MASK_THRESHOLD, Picture, parse
from shardify.index import Member, parse_index
from shardify.manifest import BACKGROUNDS, Manifest, Role
from shardify.pixels import PLAIN, pixels

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

    Raises:
        ManifestError: There is no manifest, or it is unreadable.
        VerifyError: A shard or an index is missing or not what it should be.
    """

    def __init__(self, out: Path) -> None:
        self.top = Manifest.load(out)
        self.folder = Path(out)
        self.manifest = self.top
        if self.top.resolutions:
            self.folder /= max(self.top.resolutions, key=lambda each: each.res).path
            self.manifest = Manifest.load(self.folder)
        self._places: list[tuple[str, str, list[Member]]] = []
        for split, shards in self.manifest.splits.items():
            for shard in shards.shards:
                try:
                    samples = parse_index((self.folder / shard.index).read_text())
                except (OSError, UnicodeDecodeError) as error:
                    raise VerifyError(f"{self.folder / shard.index}: {error}") from error
                self._places += [(split, shard.name, members) for members in samples]

    def __len__(self) -> int:
        return len(self._places)

    def samples(self, most: int) -> Iterator[Sample]:
        """Up to ``most`` samples, evenly spaced over all. Raises VerifyError."""
        step = max(1, -(-len(self) // most))
        for split, name, members in self._places[::step]:
            planes, background = {}, -1
            try:
                with (self.folder / name).open("rb") as file:
                    for member in members:
                        file.seek(member.offset)
                        data = file.read(member.size)
                        role = member.extension.partition(".")[0]
                        if member.extension == "bg.cls":
                            background = int(data)
                        else:
                            planes[role] = self._decode(role, data, member.extension)
            except (OSError, ValueError, ImageError) as error:
                raise VerifyError(
                    f"{self.folder / name}: {members[0].name}: {error}; run `shardify verify`"
                ) from error
            key = members[0].name.partition(".")[0]
            yield Sample(key=key, split=split, background=background, planes=planes)

    def uses(self) -> dict[str, "Counter[int]"]:
        """Split -> how many samples stand on each background. Reads every ``bg.cls``."""
        found: dict[str, Counter[int]] = {split: Counter() for split in self.manifest.splits}
        files = {}
        try:
            for split, name, members in self._places:
                if members[-1].extension != "bg.cls":
                    continue
                if name not in files:
                    files[name] = (self.folder / name).open("rb")
                files[name].seek(members[-1].offset)
                found[split][int(files[name].read(members[-1].size))] += 1
        except (OSError, ValueError) as error:
            raise VerifyError(f"{self.folder}: {error}; run `shardify verify`") from error
        finally:
            for file in files.values():
                file.close()
        return found

    def background(self, index: int) -> tuple[NDArray[Any], int]:
        """One background's pixels, and its bytes as stored. Raises VerifyError."""
        import tarfile

        member = self.manifest.backgrounds[index].member
        try:
            with tarfile.open(self.folder / BACKGROUNDS) as tar:
                file = tar.extractfile(member)
                data = file.read() if file else b""
            return self._decode("bg", data, member), len(data)
        except (OSError, KeyError, ValueError, tarfile.TarError, ImageError) as error:
            raise VerifyError(f"{self.folder / BACKGROUNDS}: {member}: {error}") from error

    def _decode(self, role: str, data: bytes, name: str) -> NDArray[Any]:
        if name.endswith(".raw"):
            stated: Role = self.manifest.roles[role]
            width, height, _ = stated.sizes[0]
            return unpack_raw(
                data, Picture("raw", width, height, stated.channels, stated.bits), role
            )
        return pixels(data, parse(data), role, PLAIN)


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


def figures(out: Path, *, most: int = 200) -> dict[str, Any]:
    """What ``shardify stats`` reports.

    Args:
        out: A finished data set.
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


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
