"""Open the shards of a split: map the files and read the byte range of each member.

Reads the manifest, each shard's ``.idx`` and the background tar; maps the shards or reads them
into memory. Payloads are views, never copies. A file that disagrees with the manifest is refused,
and the error names it.
"""

import contextlib
import hashlib
import mmap
import operator
import resource
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardify.dataset.index import BLOCK, read_index
from shardify.dataset.manifest import BACKGROUNDS, Manifest, Shard
from shardify.errors import DataError, ShardifyError
from shardify.loader.cpu_kernels import parse_numbers
from shardify.loader.sampler import Indexes
from shardify.resolution import ResolutionLike, resolution

Bytes = npt.NDArray[np.uint8]


def open_shard(path: Path, shard: Shard, cache: str) -> Bytes:
    """Check a shard's length, then map it or read it into memory.

    Raises:
        DataError: The file is missing, has another length, or cannot be read.
    """
    try:
        found = path.stat().st_size
        if found != shard.bytes:
            raise DataError(
                f"{path}: {found} bytes; the manifest says {shard.bytes}: it was cut or changed; "
                f"run `shardify verify {path.parent}`, then build it again"
            )
        if cache == "ram":
            return np.fromfile(path, np.uint8)
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; the manifest lists it with {shard.samples} samples; "
            "restore it, or build the data set again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the disk") from error


def sha256_hex(buffer: Bytes) -> str:
    """Return the SHA-256 of some bytes, lower-case hex."""
    return hashlib.sha256(buffer.data).hexdigest()


def raise_open_file_limit(count: int) -> None:
    """Raise this process's soft limit of open files; each mapped shard keeps a descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


IMAGES = ("fg_bg", "mask", "depth")
"""Roles with an image in each sample, in this order, before its ``bg.cls``; a data set may lack
any but ``fg_bg``."""

MEMBERS = (*IMAGES, "bg")


def load_manifest(path: Path, *, res: ResolutionLike) -> tuple[Path, Manifest]:
    """Read a data set's manifest, or that of its best resolution if it has several.

    Args:
        path: The data set's folder, or its ``manifest.json``.
        res: Resolution of the batches: the smallest that is at least as high and as wide is
            chosen, else the largest. Pixels.

    Returns:
        The folder that holds the shards, and their manifest.

    Raises:
        DataError: The manifest is missing or cannot be read.
    """
    try:
        manifest = Manifest.load(path)
        folder = path if path.is_dir() else path.parent
        if manifest.resolutions:
            least = resolution(res)
            built = sorted(manifest.resolutions, key=lambda one: one.size.pixels)
            enough = (one for one in built if all(map(operator.ge, one.size, least)))
            chosen = next(enough, built[-1])
            folder = folder / chosen.path
            manifest = Manifest.load(folder)
    except ShardifyError as error:
        raise DataError(str(error)) from error
    return folder, manifest


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shards:
    """One open split. Samples are numbered from 0 in the order of the shards."""

    folder: Path
    split: str
    members: tuple[str, ...]
    """The k roles of which every sample has a member, in order; ``bg`` last if present."""

    files: list[Shard]
    buffers: list[Bytes]
    """Each shard's bytes."""

    first: Indexes
    """(shards + 1,) number of each shard's first sample."""

    base: Indexes
    """(shards,) address of each shard's first byte."""

    offsets: npt.NDArray[np.int64]
    """(samples, k) first payload byte of each member in the shard. Bytes."""

    sizes: npt.NDArray[np.int64]
    """(samples, k) payload lengths. Bytes."""

    names: npt.NDArray[np.bytes_]
    """(samples,) keys, ASCII."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def images(self) -> tuple[str, ...]:
        """Roles with an image in each sample: the members without ``bg``."""
        return tuple(role for role in self.members if role != "bg")

    @property
    def fingerprint(self) -> str:
        """Hex digest that changes with a sample, its bytes or its position in the split."""
        digest = hashlib.sha256()
        for shard in self.files:
            digest.update(f"{shard.samples} {shard.sha256}\n".encode())
        return digest.hexdigest()[:16]

    def shard_of(self, indexes: Indexes) -> Indexes:
        """Return the number of each sample's shard."""
        return np.searchsorted(self.first, indexes, side="right") - 1

    def keys(self, indexes: Indexes) -> list[str]:
        """Return the samples' keys."""
        return [name.decode("ascii") for name in self.names[indexes]]

    def payloads(self, indexes: Indexes, role: str) -> list[Bytes]:
        """Return the encoded bytes of one role of some samples, as read-only views."""
        column = self.members.index(role)
        begins = self.offsets[indexes, column]
        ends = begins + self.sizes[indexes, column]
        buffers = self.buffers
        return [
            buffers[shard][begin:end]
            for shard, begin, end in zip(
                self.shard_of(indexes).tolist(), begins.tolist(), ends.tolist(), strict=True
            )
        ]

    def backgrounds(self, indexes: Indexes, *, count: int) -> Indexes:
        """Return each sample's background as an index in the manifest; 0 without backgrounds.

        Raises:
            DataError: A ``bg.cls`` is not a number below ``count``.
        """
        found = np.zeros(len(indexes), np.int64)
        if "bg" not in self.members:
            return found
        column = self.members.index("bg")
        first = self.base[self.shard_of(indexes)] + self.offsets[indexes, column]
        parse_numbers(first, self.sizes[indexes, column], found)
        wrong = np.flatnonzero((found < 0) | (found >= count))
        if len(wrong):
            index = indexes[wrong[:1]]
            text = self.payloads(index, "bg")[0].tobytes()
            raise DataError(
                f"{self.where(int(index[0]))}: bg.cls holds {text[:16]!r}; expected a "
                f"number below {count}; {self.remedy()}"
            )
        return found

    def where(self, index: int) -> str:
        """Return the shard's file and the sample's key, to begin an error message."""
        shard = int(self.shard_of(np.array([index]))[0])
        return f"{self.folder / self.files[shard].name}: {self.names[index].decode('ascii')}"

    def remedy(self) -> str:
        """Return the remedy for a data set that differs from its manifest."""
        return f"run `shardify verify {self.folder}`, then build it again"

    def changed(self, index: int) -> bool:
        """Whether a sample's shard differs from the manifest's digest."""
        shard = int(self.shard_of(np.array([index]))[0])
        return sha256_hex(self.buffers[shard]) != self.files[shard].sha256

    def header_fault(self, index: int) -> str | None:
        """Return how the tar disagrees with the index about a sample; None if it does not."""
        shard = int(self.shard_of(np.array([index]))[0])
        key = self.names[index].decode("ascii")
        for column, role in enumerate(self.members):
            offset, size = int(self.offsets[index, column]), int(self.sizes[index, column])
            header = self.buffers[shard][offset - BLOCK : offset].tobytes()
            name = header[:100].rstrip(b"\0").decode("ascii", "replace")
            if header[257:262] != b"ustar":
                return f"the index has {key}.{role} at byte {offset}, where no member begins"
            if not name.startswith(f"{key}.{role}.") or int(header[124:135], 8) != size:
                return (
                    f"the index has {key}.{role} of {size} bytes at byte {offset}, "
                    f"where the tar has {name} of {int(header[124:135], 8)}"
                )
        return None


def open_split(
    folder: Path, manifest: Manifest, split: str, *, cache: str = "disk", verify: bool = False
) -> Shards:
    """Map every shard of a split and read its index.

    Args:
        folder: The folder of the shards.
        manifest: The manifest of that folder.
        split: ``train`` or ``val``.
        cache: ``disk``: mapped; the system reads pages when they are needed and may drop them.
            ``ram``: read once, checked against the manifest's digests, and kept.
        verify: Check the digests of mapped shards too; this reads every byte.

    Raises:
        DataError: No such split, no ``fg_bg``, or a shard or index is missing or disagrees with
            the manifest.
    """
    _check_split(folder, manifest, split)
    members = tuple(role for role in MEMBERS if role in manifest.roles)
    files = manifest.splits[split].shards
    raise_open_file_limit(len(files))
    buffers, offsets, sizes, names = [], [], [], []
    for shard in files:
        buffer = open_shard(folder / shard.name, shard, cache)
        if (verify or cache == "ram") and sha256_hex(buffer) != shard.sha256:
            raise DataError(
                f"{folder / shard.name}: its bytes are not those of the manifest (SHA-256); "
                f"run `shardify verify {folder}`, then build it again"
            )
        starts, lengths, keys = read_index(folder / shard.index, shard, len(buffer), members)
        buffers.append(buffer)
        offsets.append(starts)
        sizes.append(lengths)
        names.append(keys)
    return Shards(
        folder=folder,
        split=split,
        members=members,
        files=files,
        buffers=buffers,
        first=np.cumsum([0, *(shard.samples for shard in files)], dtype=np.int64),
        base=np.array([one.__array_interface__["data"][0] for one in buffers], np.int64),
        offsets=np.concatenate(offsets),
        sizes=np.concatenate(sizes),
        names=np.concatenate(names),
    )


def background_payloads(folder: Path, manifest: Manifest) -> list[Bytes]:
    """Return the encoded bytes of every background, in the order of their indexes.

    Empty if the data set has no backgrounds.

    Raises:
        DataError: The tar is missing or truncated, or a background is missing or changed.
    """
    if "bg" not in manifest.roles:
        return []
    path = folder / BACKGROUNDS
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is not None:
                    found[member.name] = stream.read()
    except (OSError, tarfile.TarError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}); expected {len(manifest.backgrounds)} backgrounds; "
            "build the data set again"
        ) from error
    for background in manifest.backgrounds:
        payload = found.get(background.member)
        if payload is None or hashlib.sha256(payload).hexdigest() != background.sha256:
            what = "missing" if payload is None else "not the bytes of the manifest (SHA-256)"
            raise DataError(f"{path}: {background.member}: {what}; build the data set again")
    return [np.frombuffer(found[one.member], np.uint8) for one in manifest.backgrounds]


def _check_split(folder: Path, manifest: Manifest, split: str) -> None:
    """Refuse a data set without samples in the split, or without ``fg_bg``."""
    if split not in manifest.splits or not manifest.splits[split].samples:
        has = ", ".join(f"{name} ({one.samples})" for name, one in manifest.splits.items())
        raise DataError(
            f"{folder}: no samples in split {split!r}; it has {has or 'none'}; "
            "build it with another --val"
        )
    if "fg_bg" not in manifest.roles:
        raise DataError(
            f"{folder}: the data set has no fg_bg, only {', '.join(manifest.roles) or 'nothing'}; "
            "build it from a source that has composite images"
        )


def find_samples(shards: Shards, keys: Sequence[str]) -> Indexes:
    """Return the indexes of the samples with these keys.

    Raises:
        DataError: A key is not in the split.
    """
    wanted = np.array([key.encode("ascii", "replace") for key in keys], np.bytes_)
    if not len(wanted):
        return np.empty(0, np.int64)
    missing = wanted[~np.isin(wanted, shards.names)]
    if len(missing):
        raise DataError(
            f"{shards.folder}: no sample {missing[0].decode()!r} in split {shards.split!r}; "
            "give keys as errors and rejected.jsonl name them"
        )
    return np.flatnonzero(np.isin(shards.names, wanted))
