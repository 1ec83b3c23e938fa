"""Small data sets for tests of the loader: shards, indexes, backgrounds and manifest, by hand.

Written with ``tarfile``, so that a fault in the shard writer cannot hide one in the reader.
"""

import hashlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
from PIL import Image

from shardify.dataset.manifest import Background, Manifest, Role, Shard, Source, Split, Stats
from shardify.loader.augmentation import affine_matrices, rotations
from shardify.resolution import ResolutionLike

IMAGES = ("fg_bg", "mask", "depth")

Images = tuple[np.ndarray, np.ndarray, np.ndarray]
"""fg_bg (H, W, 3), mask (H, W), depth (H, W) uint8 or uint16."""


def encode(image: np.ndarray, kind: str, **options: object) -> bytes:
    """One image as a file; RAW: colour planar, a mask of booleans as bits."""
    if kind == "RAW":
        if image.dtype == bool:
            return np.packbits(image).tobytes()
        return (image.transpose(2, 0, 1) if image.ndim == 3 else image).tobytes()
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def matrices(
    angle: np.ndarray, *, width: int, height: int, res: ResolutionLike, aspect: float | None = None
) -> np.ndarray:
    """(n, 2, 3) output to source, of images of one size turned by (n,) degrees.

    ``aspect`` is that of the picture that is turned, None: of the images.
    """
    aspect = width / height if aspect is None else aspect
    return affine_matrices(rotations(angle), [[[width, height]]], res=res, aspect=aspect)[:, 0]


def scene(index: int, size: int = 40, depth_size: int = 36) -> Images:
    """An image that differs from sample to sample: waves, a disc, a slope."""
    rng = np.random.default_rng(index)
    y, x = np.mgrid[:size, :size] / size
    phase = rng.uniform(0, 6, 3)
    waves = np.sin(x[..., None] * rng.uniform(2, 9, 3) + y[..., None] * 5 + phase)
    fg_bg = (127 + 100 * waves).astype(np.uint8)
    centre = rng.uniform(0.3, 0.7, 2)
    mask = np.where(np.hypot(x - centre[0], y - centre[1]) < 0.25, 255, 0).astype(np.uint8)
    v, u = np.mgrid[:depth_size, :depth_size] / depth_size
    depth = (200 * (u * phase[0] + v) / (phase[0] + 1) + 20).astype(np.uint8)
    return fg_bg, mask, depth


def write_data_set(
    out: Path,
    *,
    train: int = 40,
    val: int = 13,
    per_shard: int = 16,
    backgrounds: int = 3,
    images: Callable[[int], Images] = scene,
    background: Callable[[int], np.ndarray] | None = None,
    picture: str = "PNG",
    lacks: Collection[str] = (),
    invalid: int | None = None,
) -> Path:
    """Write a data set whose samples are numbered through: train first, then val.

    Args:
        out: The folder; made here.
        train: Samples.
        val: Samples.
        per_shard: Samples a shard.
        backgrounds: Sample i has background i % backgrounds.
        images: Of a sample's number.
        background: Of a background's index; (H, W, 3) uint8.
        picture: How fg_bg, mask and backgrounds are encoded: PNG (exact) or JPEG; RAW: all, also
            depth, are stored without a codec.
        lacks: Roles that the data set does not have.
        invalid: Value of depth that means "no depth", if there is one.
    """
    out.mkdir(parents=True)
    extension = {"PNG": "png", "JPEG": "jpg", "RAW": "raw"}[picture]
    deep = "RAW" if picture == "RAW" else "PNG"
    background = background or (lambda index: scene(1000 + index, size=60)[0])
    splits: dict[str, Split] = {}
    sizes: dict[str, Counter[tuple[int, ...]]] = {name: Counter() for name in IMAGES}
    for split, numbers in (("train", range(train)), ("val", range(train, train + val))):
        shards = []
        for first in range(numbers.start, numbers.stop, per_shard):
            chosen = range(first, min(first + per_shard, numbers.stop))
            members = []
            for number in chosen:
                fg_bg, mask, depth = images(number)
                seen = mask >= 150 if picture == "RAW" else mask
                for name, image in zip(IMAGES, (fg_bg, mask, depth), strict=True):
                    sizes[name][image.shape[1::-1]] += 1
                bits = 16 if depth.dtype == np.uint16 else 8
                for role, data in (
                    (f"fg_bg.{extension}", encode(fg_bg, picture)),
                    (
                        f"mask.{extension}",
                        encode(seen, picture),
                    ),
                    (f"depth.{'raw' if picture == 'RAW' else 'png'}", encode(depth, deep)),
                    ("bg.cls", b"%05d" % (number % backgrounds)),
                ):
                    if role.partition(".")[0] not in lacks:
                        members.append((f"s{number:05d}", role, data))
            shards.append(_write_shard(out, f"{split}-{len(shards):05d}", members))
        splits[split] = Split(samples=len(numbers), shards=shards)
    bank: list[Background] = []
    with tarfile.open(out / "backgrounds.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(backgrounds):
            pixels = background(index)
            data = encode(pixels, picture)
            member = f"b{index}.{extension}"
            _add(tar, member, data)
            digest = hashlib.sha256(data).hexdigest()
            bank.append(
                Background(
                    id=f"b{index}", index=index, member=member, width=pixels.shape[1],
                    height=pixels.shape[0], sha256=digest,
                )
            )  # fmt: skip
    count = train + val

    def role(name: str, extension: str, channels: int, **extra: int | None) -> Role:
        found = [[*size, many] for size, many in sizes[name].most_common()]
        return Role(
            extensions=[extension], channels=channels, sizes=found,
            codec="raw" if picture == "RAW" else "keep", **extra,
        )  # fmt: skip

    roles = {
        "bg": Role(
            extensions=[extension], channels=3,
            sizes=[[bank[0].width, bank[0].height, backgrounds]],
            codec="raw" if picture == "RAW" else "keep",
        ),
        "fg_bg": role("fg_bg", extension, 3),
        "mask": role("mask", extension, 1, threshold=150),
        "depth": role("depth", "png", 1, bits=bits, invalid=invalid),
    }  # fmt: skip
    stats = {
        "bg": Stats(mean=[0.45, 0.44, 0.43], std=[0.21, 0.20, 0.22], samples=backgrounds),
        "fg_bg": Stats(mean=[0.46, 0.45, 0.47], std=[0.22, 0.21, 0.23], samples=count),
    }
    if "bg" in lacks:
        bank.clear()
        (out / "backgrounds.tar").unlink()
    Manifest(
        created_by="tests", source=[Source(name="t.zip", bytes=1, entries=1, digest="0")],
        options={}, layout={}, backgrounds=bank, splits=splits,
        roles={name: each for name, each in roles.items() if name not in lacks},
        stats={name: each for name, each in stats.items() if name not in lacks},
    ).save(out)  # fmt: skip
    return out


def _write_shard(out: Path, name: str, members: list[tuple[str, str, bytes]]) -> Shard:
    lines: dict[str, list[str]] = {}
    path = out / f"{name}.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, role, data in members:
            offset = tar.offset + 512
            _add(tar, f"{key}.{role}", data)
            lines.setdefault(key, []).append(f"{role} {offset} {len(data)} {key}.{role}")
    text = "\n".join([f"v1.2 {len(lines)}", *(" ".join(line) for line in lines.values())]) + "\n"
    (out / f"{name}.idx").write_text(text)
    return Shard(
        name=path.name,
        index=f"{name}.idx",
        samples=len(lines),
        bytes=path.stat().st_size,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
