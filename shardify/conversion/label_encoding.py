"""Detect how the masks of a source encode their values, from some of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from shardify.conversion.survey import BuildPlan
from shardify.errors import BuildError, EntryError, ImageError
from shardify.images.mask_values import Mask, Reading, choose_rule, read_values
from shardify.images.parser import parse
from shardify.images.pixels import STANDARD, LabelEncoding, is_standard, read_mask
from shardify.sources.catalog import OpenSources, entry_reader

_MAX_MASKS_READ = 64
"""Standard masks are copied without being decoded, so a faulty one shows only here, among the
samples measured for the statistics, and under ``--verify decode``."""

_MAX_VALUES_RECORDED = 8

_MAX_FRAMED_SHARE = 0.9
"""If the object fills the whole border of more masks than this, they may be inverted."""


def detect_label_encoding(plan: BuildPlan) -> tuple[LabelEncoding, dict[str, Any]]:
    """Read some masks, and return the encoding of all of them.

    Returns:
        The encoding, and what was seen of the masks, for the manifest.

    Raises:
        BuildError: The masks use several encodings or an unknown one, or none shows an object.
    """
    layout, catalog = plan.layout, plan.catalog
    if "mask" not in layout.members:
        return STANDARD, {}
    with OpenSources([each.path for each in catalog.sources]) as descriptors:
        return _mask_rule(plan, entry_reader(catalog, descriptors), _MAX_MASKS_READ)


def _mask_rule(
    plan: BuildPlan, read: Callable[[int], bytes], wanted: int
) -> tuple[LabelEncoding, dict[str, Any]]:
    """Return the encoding of the masks, and what was seen of ``wanted`` of them."""
    readings: list[Reading] = []
    names: list[str] = []
    kinds: set[str] = set()
    count, standard = 0, True
    given = plan.mask_rule or ""
    for count, (entry, mask, plain) in enumerate(_read_masks(plan, read, given, wanted), 1):
        reading = read_values(mask)
        kinds.add(reading.kind)
        standard = standard and plain
        # If all are empty, or all are full, the others are read until one is not.
        proven = bool(given) or kinds not in ({"empty"}, {"full"})
        if count <= wanted or proven:
            readings.append(reading)
            names.append(plan.catalog.names[entry])
        if count >= wanted and proven:
            break
    if not given and kinds in ({"empty"}, {"full"}):
        what = "empty" if kinds == {"empty"} else f"full: one value ({readings[0].top}) fills each"
        raise BuildError(
            f"{plan.where}: all {count} masks are {what} (as {names[0]}); expected objects on a "
            "background; correct the masks, or pass a layout file without them"
        )
    rule, odd = given, False
    try:
        if not given:
            rule, odd = choose_rule(readings, names)
    except ImageError as error:
        raise BuildError(f"{plan.where}: {error}; {_remedy(readings)}") from error
    seen = {
        "rule": "given by the layout file" if given else "from the values",
        "read": count,
        "empty": sum(each.kind == "empty" for each in readings),
        "unfit": 0 if given else sum(bool(each.problem) for each in readings),
        "object_values": sorted({each.top for each in readings if each.top})[:_MAX_VALUES_RECORDED],
        "form": sorted({each.form for each in readings}),
    }
    shown = [each for each in readings if each.kind in ("two", "soft")]
    if (framed := sum(each.at_border for each in shown)) > _MAX_FRAMED_SHARE * len(shown):
        seen["inverted"] = f"{framed} of {len(shown)}"
    checked = odd or not standard
    return LabelEncoding(mask=rule, mask_given=bool(given), check_masks=checked), seen


def mask_warnings(mask_values: dict[str, Any]) -> list[str]:
    """Return warnings about what was seen of the masks."""
    if "inverted" not in mask_values:
        return []
    return [
        f"the object fills the whole border in {mask_values['inverted']} masks looked at; if they "
        "are inverted (the object is 0), invert them and build again"
    ]


def _remedy(readings: Sequence[Reading]) -> str:
    """Return what to do with masks that no rule fits."""
    shown = next(each for each in sorted(readings, key=lambda each: not each.problem) if each.top)
    remedy = "masks with an object and a background are expected; convert them"
    if shown.form == "color":
        return f"{remedy}, or pass a layout file without them"
    # 255 round objects is no object.
    example = min(filter(None, shown.levels)) if "void" in shown.problem else shown.top
    return (
        f"{remedy}, or say what is the object in a layout file, as [mask] object = {example} (see "
        "docs/layouts.md), and pass it by --layout"
    )


def _read_masks(
    plan: BuildPlan, read: Callable[[int], bytes], rule: str, wanted: int
) -> Iterator[tuple[int, Mask, bool]]:
    """Yield the entry, the mask, and whether it is a standard picture, of each readable mask."""
    for entry in _spread_entries(plan, wanted):
        try:
            data = read(entry)
            picture = parse(data)
            yield entry, read_mask(data, picture, rule), is_standard(picture, "mask", STANDARD)
        except EntryError:
            continue  # The worker that reads it reports it.


def _spread_entries(plan: BuildPlan, first: int) -> list[int]:
    """Return the entries of the masks, ``first`` evenly spaced ones before the others."""
    rows = np.flatnonzero(plan.usable)
    chosen = np.zeros(len(rows), np.bool_)
    chosen[np.linspace(0, len(rows) - 1, min(first, len(rows))).astype(np.int64)] = True
    entries = plan.layout.members["mask"]
    ordered: list[int] = np.concatenate([entries[rows[chosen]], entries[rows[~chosen]]]).tolist()
    return ordered
