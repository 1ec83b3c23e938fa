"""One sample at a time, read and checked with all care; what is wrong with it is said.

Whatever goes through here is a whole sample with what there is to know of it, or a line for the
record. It writes nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, count
from typing import Any

from numpy.typing import NDArray

from shardify.errors import EntryError
from shardify.images.channel_stats import fast_stats, measure
from shardify.images.parser import ImageInfo, parse
from shardify.images.pixels import (
    STANDARD,
    LabelEncoding,
    normalize,
    pixels,
    refuse_faint,
    same_aspect,
)
from shardify.sources.zip_extract import read_payload
from shardify.storage.readers import ReadHandle
from shardify.writer.fast_copy import BY_NAME, FastCopier
from shardify.writer.tasks import ShardTask

__all__ = ["CheckedSample", "Figure", "check_picture", "check_sample", "measure_samples"]

Figure = tuple[list[float], list[float]]
"""Mean and deviation of one picture, by channel."""


@dataclass(frozen=True, slots=True)
class CheckedSample:
    """One sample, found good."""

    members: list[tuple[str, bytes, ImageInfo]]
    """Role, payload and what that is, of each member."""
    rules: list[str]
    """Those that converted a picture."""
    pixels: dict[str, NDArray[Any]]
    """role -> pixels, where a variant encodes anew."""
    stats: list[Figure]
    """Of each role, if it is measured."""


def check_sample(
    task: ShardTask, handles: Sequence[ReadHandle], number: int, figures: list[Figure]
) -> CheckedSample | list[str]:
    """Read and check one sample.

    Args:
        task: Whose.
        handles: The sources, open.
        number: Of the sample in the task.
        figures: Its figures, if they are known.

    Returns:
        The sample; or what the record says of it, if it must be left out.
    """
    names, measured = task.names_of(number), task.measured[number]
    plain = all(variant.unchanged for variant in task.variants)
    # What is measured or encoded anew is parsed in any case.
    parsed = task.verify == "none" and (measured or not plain)
    sample = CheckedSample([], [], {}, figures)
    role = task.roles[0]
    try:
        for role, name, row in zip(task.roles, names, task.rows[number].tolist(), strict=True):
            data, picture, rule = check_picture(
                read_payload(handles[row[0]], name, *row[1:]),
                name,
                role,
                "headers" if parsed else task.verify,
                task.meaning,
            )
            sample.members.append((role, data, picture))
            if rule:
                sample.rules.append(rule)
        for role, _, picture in sample.members:
            _check_shape(role, picture, sample.members[0])
        new = measured and not figures
        for role, data, picture in sample.members if new or not plain else ():
            # A converted mask is 0 or 255 by now.
            if not plain:
                sample.pixels[role] = pixels(data, picture, role, STANDARD)
            if new:
                plane = sample.pixels.get(role)
                figures.append(fast_stats(data, picture, role) if plane is None else measure(plane))
    except EntryError as error:
        member = names[task.roles.index(role)].decode(errors="replace")
        return [task.keys[number], member, role, str(error)]
    return sample


def check_picture(
    data: bytes, name: bytes, role: str, verify: str, meaning: LabelEncoding
) -> tuple[bytes, ImageInfo, str]:
    """Check one payload as ``--verify`` asks, and convert it if its meaning is not plain.

    Returns:
        The bytes, what they are, and the rule that changed them, if one did. With ``none`` a
        JPEG or PNG goes by its name and has no size.

    Raises:
        EntryError: It is no whole picture.
    """
    if verify == "none" and meaning.mask == "threshold":
        kind = BY_NAME.get(name.rpartition(b".")[2].lower())
        if kind:
            return data, ImageInfo(kind, 0, 0, 0, 0), ""
    given = parse(data)
    if verify == "decode" and role == "mask":
        refuse_faint(data, given, meaning)
    data, picture, rule = normalize(data, given, role, meaning)
    if verify == "decode" and not rule:
        pixels(data, picture, role, meaning)
    return data, picture, rule


def measure_samples(
    task: ShardTask, handles: Sequence[ReadHandle], copier: FastCopier
) -> dict[int, list[Figure]]:
    """Number -> figures of each role, of the measured samples that are plain and can be decoded.

    Of those that will be copied alone: one after another, while the processor still knows its way
    about a decoder. Their payloads are read again for the tar, so that none has to be kept. What is
    wrong with the others shows there.
    """
    found: dict[int, list[Figure]] = {}
    for number in compress(count(), task.measured if copier.able else ()):
        sample = check_sample(task, handles, number, [])
        if isinstance(sample, CheckedSample) and not sample.rules:
            found[number] = sample.stats
            copier.learn_header(sample.members)
    return found


def _check_shape(role: str, picture: ImageInfo, first: tuple[str, bytes, ImageInfo]) -> None:
    """A sample's pictures may differ in size, but not in aspect."""
    main = first[2]
    if picture[1:3] != main[1:3] and not same_aspect(picture, main):
        raise EntryError(
            f"{role} of {picture.width}x{picture.height} has another aspect than {first[0]} of "
            f"{main.width}x{main.height}"
        )
