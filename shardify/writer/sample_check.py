"""Read and check one sample: extract, parse, convert, decode, measure."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.errors import EntryError, ImageError
from shardify.images.channel_stats import channel_stats, fast_stats
from shardify.images.formats import NEW_PICTURE_KINDS
from shardify.images.orientation import label_orientation
from shardify.images.parser import ImageInfo, parse
from shardify.images.pixels import LabelEncoding, Normalized, normalize, pixels, same_aspect
from shardify.images.png import encode_png
from shardify.sources.zip_extract import read_payload
from shardify.storage.readers import ReadHandle
from shardify.writer.fast_copy import KIND_BY_EXTENSION, FastCopier
from shardify.writer.tasks import ShardTask

ChannelStats = tuple[list[float], list[float]]
"""Mean and standard deviation of each channel of one image, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class CheckedSample:
    """A sample that passed all checks."""

    members: list[tuple[str, bytes, ImageInfo]]
    """Role, payload and image header of each member."""
    rules: list[str]
    """Conversion rules that changed an image."""
    pixels: dict[str, NDArray[Any]]
    """role -> pixels of each image that was converted, re-encoded or verified by decoding."""
    stats: list[ChannelStats]
    """Statistics of each role if the sample is measured, else empty."""


def check_sample(
    task: ShardTask, handles: Sequence[ReadHandle], number: int, stats: list[ChannelStats]
) -> CheckedSample | list[str]:
    """Read and check one sample.

    Args:
        task: Task of the sample.
        handles: Open handles of the sources.
        number: Number of the sample in the task.
        stats: Statistics of each role if already measured, else an empty list, which is filled.

    Returns:
        The sample, or its ``[key, member, role, reason]`` if it is rejected.
    """
    names, measured = task.entry_names(number), task.measured[number]
    unchanged = all(variant.unchanged for variant in task.variants)
    # Samples that are measured or re-encoded are always parsed.
    must_parse = task.verify == "none" and (measured or not unchanged)
    sample = CheckedSample([], [], {}, stats)
    role = task.roles[0]
    picture: ImageInfo | None = None
    try:
        verify = "headers" if must_parse else task.verify
        for role, name, row in zip(task.roles, names, task.rows[number].tolist(), strict=True):
            data = read_payload(handles[row[0]], name, *row[1:])
            data, info, rule, plane, original = check_image(
                data, name, role, verify, task.label_encoding, picture
            )
            picture = picture or original
            if role == "mask" and number in task.united:
                first = pixels(data, info, role, task.label_encoding) if plane is None else plane
                plane = _unite_masks(task, handles, number, first, picture)
                data, info = encode_png(plane), info._replace(kind="png")
                rule = f"mask: union of {len(task.united[number][0]) + 1}"
            sample.members.append((role, data, info))
            if plane is not None:
                sample.pixels[role] = plane
            if rule:
                sample.rules.append(rule)
        for role, _, info in sample.members:
            _check_aspect(role, info, sample.members[0])
        measure_now = measured and not stats
        for role, data, info in sample.members if measure_now or not unchanged else ():
            plane = sample.pixels.get(role)
            if plane is None and not unchanged:
                plane = sample.pixels[role] = pixels(data, info, role, task.label_encoding)
            if measure_now:
                stats.append(
                    fast_stats(data, info, role, task.label_encoding)
                    if plane is None
                    else channel_stats(plane, task.label_encoding.invalid(role))
                )
    except EntryError as error:
        member = names[task.roles.index(role)].decode(errors="replace")
        return [task.keys[number], member, role, str(error)]
    return sample


def _unite_masks(
    task: ShardTask,
    handles: Sequence[ReadHandle],
    number: int,
    first: NDArray[Any],
    picture: ImageInfo | None,
) -> NDArray[Any]:
    """Return the union of all masks of a sample: (H, W) uint8, 0 or 255.

    Args:
        task: Task of the sample.
        handles: Open handles of the sources.
        number: Number of the sample in the task.
        first: Pixels of its first mask.
        picture: Header of its picture as it is in the source.

    Raises:
        EntryError: One of the masks is damaged, or they differ in size.
    """
    names, rows = task.united[number]
    encoding, union = task.label_encoding, first
    for name, row in zip(names, rows.tolist(), strict=True):
        data = read_payload(handles[row[0]], name, *row[1:])
        data, info, _, plane, _ = check_image(data, name, "mask", "decode", encoding, picture)
        plane = pixels(data, info, "mask", encoding) if plane is None else plane
        if plane.shape != union.shape:
            raise EntryError("its masks differ in size, so that they cannot be united")
        union = np.maximum(union, plane)
    return union


def check_image(
    data: bytes,
    name: bytes,
    role: str,
    verify: str,
    label_encoding: LabelEncoding,
    picture: ImageInfo | None = None,
) -> Normalized:
    """Check one payload as ``--verify`` requests, and convert it if its encoding is not standard.

    With ``none``, the kind of a JPEG or PNG is taken from its name and its size is 0.

    Args:
        data: The payload.
        name: Its name in the source.
        role: Its role.
        verify: ``headers``, ``decode`` or ``none``.
        label_encoding: What the values of the data set mean.
        picture: Header of the sample's picture as it is in the source, if this is a label of it.

    Raises:
        EntryError: It is not a complete image, or not one that fits its role.
    """
    if verify == "none" and not label_encoding.needs_values:
        kind = KIND_BY_EXTENSION.get(name.rpartition(b".")[2].lower())
        if kind:
            info = ImageInfo(kind, 0, 0, 0, 0)
            return Normalized(data, info, "", None, info)
    original = parse_named(data, name)
    turned = 1
    if picture is not None and picture.orientation != 1:
        frame = dict(label_encoding.exif).get(role, "")
        turned = label_orientation(original, picture, frame)
    return normalize(data, original, role, label_encoding, turned, decode=verify == "decode")


def parse_named(data: bytes, name: bytes) -> ImageInfo:
    """Parse a picture's structure; refuse one of a newer format under another's extension.

    Other programs, and the source's own tools, would read such a file as what it is not.

    Raises:
        ImageError: As ``parse``; or it is AVIF, HEIC or JPEG 2000, and named otherwise.
    """
    picture = parse(data)
    if picture.kind in NEW_PICTURE_KINDS:
        format_name, extensions = NEW_PICTURE_KINDS[picture.kind]
        extension = name.rpartition(b".")[2].decode(errors="replace").lower()
        if extension not in extensions:
            raise ImageError(
                f"{format_name} named .{extension}; rename it to .{picture.kind}, or save it as "
                f"{extension.upper()}"
            )
    return picture


def measure_samples(
    task: ShardTask, handles: Sequence[ReadHandle], copier: FastCopier
) -> dict[int, list[ChannelStats]]:
    """Decode the samples chosen for statistics that need no conversion; map sample to its stats.

    Only if the fast copy applies. They are measured one after another, which keeps the decoder in
    the CPU cache. The copy reads their payloads again, so none is kept in memory. Samples that fail
    here are reported when they are written.
    """
    stats_by_sample: dict[int, list[ChannelStats]] = {}
    for number in compress(count(), task.measured if copier.enabled else ()):
        sample = check_sample(task, handles, number, [])
        if isinstance(sample, CheckedSample) and not sample.rules:
            stats_by_sample[number] = sample.stats
            copier.learn_header(sample.members)
    return stats_by_sample


def _check_aspect(role: str, info: ImageInfo, first: tuple[str, bytes, ImageInfo]) -> None:
    """Raise EntryError if an image has another aspect ratio than the first of its sample."""
    main = first[2]
    if info[1:3] != main[1:3] and not same_aspect(info, main):
        raise EntryError(
            f"{role} of {info.width}x{info.height} has another aspect than {first[0]} of "
            f"{main.width}x{main.height}"
        )
