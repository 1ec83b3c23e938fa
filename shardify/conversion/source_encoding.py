"""Detect what the values of a source's pictures and labels mean, from a few files of each role.

The rules found here are held against every file that is converted; see ``images.pixels``. A role of
which no file can be read is refused here, before any shard is written.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.conversion.label_encoding import detect_label_encoding, mask_warnings
from shardify.conversion.survey import MEMBERS, BuildOptions, BuildPlan, survey
from shardify.errors import BuildError, EntryError, ImageError
from shardify.images.depth import (
    INTEGER,
    DepthValues,
    choose_depth_encoding,
    depth_values,
    unexplained_zeros,
)
from shardify.images.orientation import STORED, TURNED, edge_agreement, fitting_frame, turn
from shardify.images.parser import ImageInfo
from shardify.images.pixels import LabelEncoding, pixels, values_of
from shardify.sources.catalog import OpenSources, entry_reader
from shardify.sources.nested_zips import UnpackCache
from shardify.storage.paths import PathOrUrl
from shardify.writer.sample_check import parse_named

_MAX_FILES = 16
"""Files of a role that are opened."""
_MAX_HEADERS, _MAX_HEADER_BYTES = 64, 64 << 20
"""Pictures whose headers are read for an EXIF orientation: their number, and their bytes."""
_DEPTHS = (8, 10, 12, 14, 16)
"""True bits that pictures of 16 bits may have."""
_FLIPPED = 4
"""EXIF orientation of a picture whose rows are stored from bottom to top."""
_MIN_LABELS = 4
_MIN_DIFFERENCE, _MIN_T = 0.04, 4.0
"""Edges decide on which pixels labels lie if the mean difference of the agreement is at least this,
and this many times its standard error."""

_Opened = tuple[str, bytes, ImageInfo]
"""Name, payload and header of a file."""


def detect_encoding(plan: BuildPlan) -> tuple[LabelEncoding, dict[str, Any]]:
    """Open a few files of every role, and return what their values mean.

    Also returns what was seen of the masks, for the manifest.

    Raises:
        BuildError: No file of a role can be read, or the values of a role fit no rule.
    """
    layout, catalog = plan.layout, plan.catalog
    with OpenSources([each.path for each in catalog.sources]) as descriptors:
        read = entry_reader(catalog, descriptors)

        def open_file(entry: int) -> _Opened:
            data = read(entry)
            return catalog.names[entry], data, parse_named(data, catalog.names.raw(entry))

        opened = {
            role: _open_some(plan, role, entries, open_file)
            for role, entries in _entries(plan).items()
        }
        encoding, mask_values = detect_label_encoding(plan)
        bits = {
            role: found
            for role in ("bg", "fg_bg")
            if (found := _true_bits(opened.get(role, ()))) is not None
        }
        try:
            maps = _depth_values(opened.get("depth", ()), plan)
            depth = choose_depth_encoding(maps, plan.depth)
        except ImageError as error:
            raise BuildError(f"{plan.where}: {error}") from error
        if zeros := unexplained_zeros(maps, depth, plan.depth):
            depth = depth._replace(has_holes=True)
        if any(picture.kind == "pfm" for _, _, picture in opened.get("depth", ())):
            _refuse_upside_down(plan, open_file)
        frames = dict.fromkeys((role for role in layout.members if role != "fg_bg"), plan.exif)
        if not plan.exif:
            frames = _label_frames(plan, open_file)
    encoding = encoding._replace(
        depth=depth,
        zeros=zeros,
        bits=tuple(sorted(bits.items())),
        exif=tuple(sorted((role, frame) for role, frame in frames.items() if frame)),
    )
    return encoding, mask_values


def inspect_source(
    paths: Sequence[PathOrUrl], options: BuildOptions, *, check: bool = True
) -> dict[str, Any]:
    """Return what ``inspect --json`` prints: the plan of a build, and what the values mean.

    Raises:
        ShardifyError: As ``build``, for all that shows before a shard is written.
    """
    with UnpackCache() as work:
        plan = survey(paths, options, work, check=check)
        encoding, mask_values = detect_encoding(plan)
        found = plan.to_json()
    if mask_values:
        found["layout"] |= {"masks": encoding.mask, "mask_values": mask_values}
    if warnings := mask_warnings(mask_values) + depth_warnings(encoding):
        found["layout"]["warnings"] = [*found["layout"].get("warnings", []), *warnings]
    found["layout"] |= describe_encoding(encoding)
    return {**found, "layout_file": plan.layout_file()}


def describe_encoding(encoding: LabelEncoding) -> dict[str, object]:
    """Return what the manifest and ``inspect`` say of depths and pictures; without what is usual.

    Masks have a rule of their own.
    """
    depth = encoding.depth
    found: dict[str, object] = {}
    if (depth.scale, depth.invalid, depth.unit, depth.maximum, encoding.zeros) != (
        None, (), "", None, 0,
    ):  # fmt: skip
        values = [
            f"{depth.scale:g} steps to 1{f' {depth.unit}' if depth.unit else ''}"
            if depth.scale is not None
            else depth.unit,
            f"at most {depth.maximum:g}" if depth.maximum is not None else "",
            *(
                f"{value:g} is no depth"
                for value in (*depth.invalid, *([0] * bool(encoding.zeros)))
            ),
        ]
        found["depths"] = "; ".join(filter(None, values))
    if encoding.bits:
        found["bits"] = dict(encoding.bits)
    if encoding.exif:
        found["exif"] = {role: f"on the {frame} pixels" for role, frame in encoding.exif}
    return found


def depth_warnings(encoding: LabelEncoding) -> list[str]:
    """Return a line if 0 is taken for "no depth" because of the number of zeros."""
    if not encoding.zeros:
        return []
    return [
        f'0 means "no depth": {100 * encoding.zeros:.1f} % of the pixels of the depth maps looked '
        "at are 0; if 0 is a depth, pass a layout file with [depth] invalid = false"
    ]


def significant_bits(data: bytes) -> int | None:
    """Return the significant bits that a PNG states (chunk sBIT); None if it states none."""
    at = data.find(b"sBIT", 0, max(0, data.find(b"IDAT")))
    return max(data[at + 4 : at + 4 + min(4, data[at - 1])], default=None) if at > 0 else None


def _entries(plan: BuildPlan) -> dict[str, NDArray[Any]]:
    """Return the entries to open by role, evenly spaced."""
    layout = plan.layout
    rows = _spaced(np.flatnonzero(plan.usable), _MAX_FILES)
    entries = {role: layout.members[role][rows] for role in MEMBERS if role in layout.members}
    if layout.background_ids:
        used = np.flatnonzero(np.bincount(1 + layout.background[plan.usable])[1:])
        entries["bg"] = layout.background_members[_spaced(used, _MAX_FILES)]
    return entries


def _spaced(rows: NDArray[Any], count: int) -> NDArray[Any]:
    return rows[:: max(1, len(rows) // count)][:count]


def _open_some(
    plan: BuildPlan, role: str, entries: NDArray[Any], open_file: Callable[[int], _Opened]
) -> list[_Opened]:
    """Open files of a role; those that cannot be read are left to the workers, which name them.

    Raises:
        BuildError: None can be read.
    """
    opened: list[_Opened] = []
    reason = ""
    for entry in entries.tolist():
        try:
            opened.append(open_file(entry))
        except EntryError as error:
            reason = reason or f"{plan.catalog.names[entry]}: {error}"
    if reason and not opened:
        raise BuildError(
            f"{plan.where}: none of the {len(entries)} {role} files looked at can be read: {reason}"
        )
    return opened


def _true_bits(opened: Sequence[_Opened]) -> int | None:
    """Return the true bits of the pictures that have 16 bits a channel; None if none has."""
    peak, stated = -1, 0
    for _, data, picture in opened:
        if picture.bits != 16:
            continue
        try:
            values = values_of(data, picture, "fg_bg")
        except ImageError:
            continue  # The worker that reads it reports it.
        if values.dtype.kind in "ui":
            peak = max(peak, int(values[..., :3].max(initial=0)))
            stated = max(stated, significant_bits(data) or 0)
    if peak < 0:
        return None
    # A file that follows the PNG standard states the true bits of values scaled to all 16.
    if 8 <= stated and not peak >> stated:
        return stated
    return next((bits for bits in _DEPTHS if not peak >> bits), None)


def _depth_values(opened: Sequence[_Opened], plan: BuildPlan) -> list[DepthValues]:
    """Describe depth maps. Raises ImageError if the values of none can be told."""
    given = plan.depth.invalid if plan.depth else ()
    found: list[DepthValues] = []
    reason = ""
    for name, data, picture in opened:
        if picture.bits == 8 and picture.kind != "npy" and picture.channels == 1:
            found.append(
                DepthValues(
                    name=name, source=INTEGER, bits=8, peak=0, marks=(), whole=True, has_holes=False
                )
            )
            continue
        try:
            values = values_of(data, picture, "depth")
            found.append(depth_values(values, name=name, invalid=given))
        except ImageError as error:
            # If others can be read, the worker that reads it reports it.
            reason = reason or f"{name}: {error}"
    if reason and not found:
        raise ImageError(
            f"none of the {len(opened)} depth files looked at can be used: {reason}; convert them "
            "to gray, or leave them out"
        )
    return found


def _label_frames(plan: BuildPlan, open_file: Callable[[int], _Opened]) -> dict[str, str]:
    """Return on which pixels of EXIF-turned pictures the labels of each role lie, if known.

    Raises:
        BuildError: It cannot be told, and more pictures are turned than may be left out.
    """
    layout = plan.layout
    roles = [role for role in layout.members if role != "fg_bg"]
    frames = dict.fromkeys(roles, "")
    turned: list[tuple[int, _Opened]] = []
    size = looked_at = 0
    for row in _spaced(np.flatnonzero(plan.usable), _MAX_HEADERS).tolist():
        if looked_at >= _MAX_FILES and size > _MAX_HEADER_BYTES:
            break
        try:
            picture = open_file(int(layout.members["fg_bg"][row]))
        except EntryError:
            continue
        size, looked_at = size + len(picture[1]), looked_at + 1
        if picture[2].orientation != 1 and len(turned) < _MAX_FILES:
            turned.append((row, picture))
    for role in roles if turned else ():
        by_size: set[str] = set()
        differences: list[float] = []
        for row, picture in turned:
            try:
                label = open_file(int(layout.members[role][row]))
                if label[2].orientation != 1:
                    continue
                frame = fitting_frame(label[2], picture[2])
                if frame:
                    by_size.add(frame)
                else:
                    differences.append(_stored_advantage(picture, label, role))
            except EntryError:
                continue
        if by_size:
            # Of labels of both kinds, each goes by its own size.
            frames[role] = by_size.pop() if len(by_size) == 1 else ""
        elif differences:
            frames[role] = _decide(differences)
            share = len(differences) / looked_at
            if not frames[role] and share > plan.options.max_bad:
                raise BuildError(
                    f"{plan.where}: {turned[0][1][0]}: turned by EXIF (orientation "
                    f"{turned[0][1][2].orientation}), and neither size nor pixels tell whether its "
                    f"{role} lies on the stored or on the turned pixels ({len(differences)} of "
                    f"{looked_at} pictures looked at); set exif = 'stored' or 'turned' in a layout "
                    "file, or save the pictures turned and without the tag"
                )
    return frames


def _stored_advantage(picture: _Opened, label: _Opened, role: str) -> float:
    """Return how much better a label's edges agree with the picture if it lies as stored."""
    return _advantage_of_turning(picture, label, role, picture[2].orientation)


def _refuse_upside_down(plan: BuildPlan, open_file: Callable[[int], _Opened]) -> None:
    """Raise BuildError if PFM maps were written with the top row first, against the format."""
    members = plan.layout.members
    differences: list[float] = []
    name = ""
    for row in _spaced(np.flatnonzero(plan.usable), _MAX_FILES).tolist():
        try:
            picture = open_file(int(members["fg_bg"][row]))
            label = open_file(int(members["depth"][row]))
            if label[2].kind == "pfm" and picture[2].orientation == 1:
                differences.append(_advantage_of_turning(picture, label, "depth", _FLIPPED))
                name = name or label[0]
        except EntryError:
            continue
    if _decide(differences) == STORED:
        raise BuildError(
            f"{plan.where}: {name}: a PFM that lies upside down on its picture; the format stores "
            "the bottom row first; write it so, or save it as .npy"
        )


def _advantage_of_turning(picture: _Opened, label: _Opened, role: str, orientation: int) -> float:
    """Return how much better a label's edges agree with the shown picture once it is turned."""
    shown = pixels(picture[1], picture[2], "fg_bg", LabelEncoding()).mean(axis=2)
    plane = values_of(label[1], label[2], role)
    if plane.ndim == 3:
        plane = plane[..., :3].mean(axis=2)
    return edge_agreement(shown, turn(plane, orientation)) - edge_agreement(shown, plane)


def _decide(differences: Sequence[float]) -> str:
    """Return the frame that the edges of several labels agree on; empty if they do not."""
    values = np.array(differences)
    if len(values) < _MIN_LABELS:
        return ""
    mean, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    if abs(mean) < max(_MIN_DIFFERENCE, _MIN_T * error):
        return ""
    return STORED if mean > 0 else TURNED
