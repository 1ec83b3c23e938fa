"""Splits that a data set brings along: ``train`` and ``val`` folders, or what a layout file names.

Names in, numbers out. Draws nothing: samples without such a word are for others to divide.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames, layout_file
from shardify.layout.outlines import ALONE, Outlines

__all__ = ["given_split"]

IntArray = npt.NDArray[np.int32]


def given_split(
    names: Sequence[str],
    members: IntArray,
    layout: layout_file.Rules | None,
    outlines: Outlines | None = None,
) -> tuple[IntArray | None, npt.NDArray[np.bool_], int]:
    """The source's own split.

    A ``test`` split stands for ``val`` where there is none, and is left aside where there is.

    Args:
        names: Of the source.
        members: (N,) index of each sample's composite.
        layout: A layout file's rules, whose group ``split`` counts if it has one.
        outlines: Of the names, where they are known: then it is quick.

    Returns:
        (N,) int32, 0 train and 1 val, or None where not every sample says so or all say the same;
        (N,) bool, which samples to keep; how many those are that are not kept.
    """
    known: dict[str, str | None] = {}
    said = np.zeros(len(members), np.int32)
    codes = {"train": 0, "val": 1, "test": 2, None: 3}
    if outlines is not None and layout is None:
        for outline, rows, group in outlines.groups(members):
            paths = [name.rpartition("/")[0] for name in group[: 1 if outline != ALONE else None]]
            said[rows] = [codes[filenames.split_of(path)] for path in paths]
        members = members[:0]
    for row, index in enumerate(members.tolist()):
        path = names[index].rpartition("/")[0]
        if layout is not None and any(
            "split" in pattern.groupindex for pattern in layout.patterns["fg_bg"]
        ):
            path = layout_file.text_of(layout, names[index], "split") or ""
        if path not in known:
            known[path] = filenames.split_of(path)
        said[row] = codes[known[path]]
    kept = np.ones(len(said), np.bool_)
    has = set(np.flatnonzero(np.bincount(said)).tolist())
    if 3 in has or 0 not in has or len(has) < 2:
        return None, kept, 0
    if 1 in has:
        kept = said != 2
        return said, kept, int((~kept).sum())
    return np.minimum(said, 1), kept, 0
