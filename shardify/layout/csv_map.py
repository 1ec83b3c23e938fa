"""Parse the maps of a data set, and join samples and backgrounds by their rows.

A map is a csv, tsv or txt file; each row names files that belong together. Each column gets the
role whose files its cells match best, over many rows: ``7.jpg`` may be a composite in one column
and a background in the next. Rows that contradict each other are an error with their line numbers;
rows that match no file are counted in a warning.
"""

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from shardify.errors import LayoutError
from shardify.layout.filenames import IntArray, file_stem
from shardify.layout.sample_table import SampleTable, build_table

MAX_LINES = 2_000_000
"""Largest number of lines of a map: a small zip can hold a text of any length."""

_MAX_LINE_LENGTH = 1 << 16
"""Longest line of a map, in characters; a text with a longer line is no map."""

_MAX_CELLS = 64
"""Number of cells of a row that are read."""

_MAX_SAMPLED_ROWS = 1000
"""Number of rows, about, by which the role of a column is decided."""

_MAX_SHOWN_CHARACTERS = 80
"""Length of a row in a message. Characters."""

_SEPARATORS = "\t,;|"


class Row(NamedTuple):
    """One line of a map."""

    cells: list[str]
    file: str
    """Name of the map."""
    line: int
    """Counted from 1."""


def parse_rows(data: bytes, file: str) -> list[Row]:
    """Split a map into rows of at least two cells; the separator is detected.

    Returns no rows if the data is no text. ``file`` is the name of the map.

    Raises:
        LayoutError: It has more than ``MAX_LINES`` lines.
    """
    # Spreadsheets save "Unicode text" as UTF-16, which begins with one of these marks.
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        return []
    # Checked before parsing: rows take twenty times the memory of the text.
    if max(text.count("\n"), text.count("\r")) > MAX_LINES:
        raise LayoutError(
            f"{file}: over {MAX_LINES} lines; expected a map with a row or a few for each sample "
            "of this source; cut it to these, or pass --layout without it"
        )
    lines = io.StringIO(text, newline=None)
    head = list(itertools.islice(lines, 50))
    lines.seek(0)
    counts = {mark: sum(mark in line for line in head) for mark in _SEPARATORS}
    mark = max(counts, key=counts.__getitem__)
    numbered: Iterable[tuple[int, list[str]]]
    try:
        if counts[mark] * 2 >= len(head) > 0:
            reader = csv.reader(_check_lengths(lines), delimiter=mark)
            numbered = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
        else:
            numbered = enumerate(map(str.split, _check_lengths(lines)), 1)
        return [Row(cells[:_MAX_CELLS], file, line) for line, cells in numbered if len(cells) > 1]
    except csv.Error:
        return []


def _check_lengths(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines; raise csv.Error at one that is too long."""
    for line in lines:
        if len(line) > _MAX_LINE_LENGTH:
            raise csv.Error("line too long")
        yield line


class FileFinder:
    """Finds the file that a cell names, among the files of one role."""

    def __init__(self, names: Sequence[str], indexes: Iterable[int]) -> None:
        self._names = names
        self._by_stem: defaultdict[str, list[int]] = defaultdict(list)
        for index in indexes:
            self._by_stem[_cell_stem(names[index])].append(index)

    def find(self, cell: str) -> int | None:
        """Return the only file that a path or file name, with or without extension, can mean."""
        path = _clean_path(cell)
        matches = self._by_stem.get(_cell_stem(path), [])
        if len(matches) > 1:
            bare_path = path.rpartition(".")[0] if "." in path.rpartition("/")[2] else path
            matches = [
                index
                for index in matches
                if (name := f"/{self._names[index].lower()}").endswith(f"/{path}")
                or f"{name.rpartition('.')[0]}.".endswith(f"/{bare_path}.")
            ]
        return matches[0] if len(matches) == 1 else None

    def find_all(self, cells: Iterable[str]) -> set[int]:
        """Return the files that cells name, each by ``find``."""
        return {index for cell in cells if (index := self.find(cell)) is not None}

    def similarity(self, cell: str) -> int:
        """Return 0 if ``cell`` names no file; else the higher, the more of its folders match."""
        index = self.find(cell)
        if index is None:
            return 0
        parts = _clean_path(cell).split("/")[::-1]
        expected = _clean_path(self._names[index]).split("/")[::-1]
        folders = zip(parts[1:], expected[1:], strict=False)
        matching = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], folders))
        return 2 * (1 + matching) + (parts[0] == expected[0])


def _clean_path(path: str) -> str:
    """Return a path in lower case, with ``/`` between folders and none around."""
    return path.replace("\\", "/").removeprefix("./").strip("/").lower()


def _cell_stem(path: str) -> str:
    """Return the stem in lower case; cells may have no extension."""
    return (file_stem(path) or path.rpartition("/")[2]).lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class MapBackgrounds:
    """The background of each sample by a map."""

    background_index: IntArray
    """(N,) int32, index into the background files; -1 for samples without a row."""
    warnings: tuple[str, ...]
    """Rows of the map that match nothing."""


def backgrounds_by_map(
    names: Sequence[str],
    members: Mapping[str, IntArray],
    files: Sequence[int],
    rows: Sequence[Row],
    *,
    where: str,
) -> MapBackgrounds:
    """Give each sample the background that is in the same row as one of its files.

    Args:
        names: All names of the source.
        members: role -> (N,) int32, index of each sample's file.
        files: Indexes of the backgrounds.
        rows: Rows of one or several maps.
        where: Name of the source in errors.

    Raises:
        LayoutError: Rows give one sample two backgrounds.
    """
    sample_rows = {
        role: {index: sample for sample, index in enumerate(column.tolist())}
        for role, column in members.items()
    }
    finders = {role: FileFinder(names, column.tolist()) for role, column in members.items()}
    finders["bg"] = FileFinder(names, files)
    numbers = {index: number for number, index in enumerate(files)}
    background_index = np.full(len(members["fg_bg"]), -1, np.int32)
    first_rows: dict[int, Row] = {}
    clashes: dict[int, tuple[Row, Row, int, int]] = {}
    without_sample: list[Row] = []
    without_background: list[Row] = []
    for row, cells in _rows_by_role(rows, finders):
        backgrounds = sorted(numbers[index] for index in finders["bg"].find_all(cells["bg"]))
        samples = {
            sample_rows[role][index]
            for role in members
            for index in finders[role].find_all(cells[role])
        }
        if not samples and (backgrounds or row.line > 1):
            without_sample.append(row)
        elif samples and not backgrounds:
            without_background.append(row)
        for sample in samples:
            for background in backgrounds:
                before = int(background_index[sample])
                if before == -1:
                    background_index[sample], first_rows[sample] = background, row
                elif before != background and sample not in clashes:
                    clashes[sample] = first_rows[sample], row, before, background
    if clashes:
        sample, (one, other, *both) = next(iter(clashes.items()))
        raise _contradiction(
            where, one, other, sample=names[int(members["fg_bg"][sample])], what="backgrounds",
            files=[names[files[number]] for number in both], count=len(clashes),
        )  # fmt: skip
    return MapBackgrounds(
        background_index=background_index,
        warnings=(
            *_unused_warning(without_sample, "no sample"),
            *_unused_warning(without_background, "no background"),
        ),
    )


def join_by_map(
    names: Sequence[str],
    files: Mapping[str, IntArray],
    backgrounds: Sequence[int],
    rows: Sequence[Row],
    *,
    where: str,
) -> SampleTable | None:
    """Join the files that are in one row of a map; None if the map names no sample.

    Rows that name the same composite are one sample. Each file that no row names gets a row of its
    own.

    Args:
        names: All names of the source.
        files: role -> (n,) int32, indexes of its files; without backgrounds.
        backgrounds: Indexes of the backgrounds.
        rows: Rows of one or several maps.
        where: Name of the source in errors.

    Raises:
        LayoutError: Rows give one composite two masks, or two depths.
    """
    roles = list(files)
    finders = {role: FileFinder(names, files[role].tolist()) for role in roles}
    finders["bg"] = FileFinder(names, backgrounds)
    joined: dict[str, list[tuple[int, str]]] = {role: [] for role in roles}
    first: dict[tuple[str, str], tuple[int, Row]] = {}
    clashes: dict[str, tuple[str, Row, Row, int, int]] = {}
    unmatched: list[Row] = []
    for row, cells in _rows_by_role(rows, finders):
        named = {}
        for role in roles:
            matches = finders[role].find_all(cells[role])
            if len(matches) == 1:
                named[role] = matches.pop()
        if not named and row.line > 1:
            unmatched.append(row)
        key = f"file {named['fg_bg']}" if "fg_bg" in named else f"row {sorted(named.items())}"
        for role, index in named.items():
            before, first_row = first.setdefault((key, role), (index, row))
            if first_row is row:
                joined[role].append((index, key))
            elif before != index:
                clashes.setdefault(key, (role, first_row, row, before, index))
    if clashes:
        key, (role, one, other, *both) = next(iter(clashes.items()))
        raise _contradiction(
            where, one, other, sample=names[first[key, "fg_bg"][0]], what=f"files as its {role}",
            files=[names[index] for index in both], count=len(clashes),
        )  # fmt: skip
    if not first:
        return None
    batches = []
    for code, role in enumerate(roles):
        known = {index for index, _ in joined[role]}
        joined[role] += [(i, f"alone {i}") for i in files[role].tolist() if i not in known]
        indexes = np.array([index for index, _ in joined[role]], np.int32)
        batches.append((indexes, code, [key for _, key in joined[role]]))
    table = build_table(batches, roles, "rows of a map")
    assert table is not None
    return replace(table, warnings=tuple(_unused_warning(unmatched, "no file")))


def _rows_by_role(
    rows: Sequence[Row], finders: Mapping[str, FileFinder]
) -> Iterator[tuple[Row, defaultdict[str, list[str]]]]:
    """Yield each row with its cells by the roles that they may name."""
    for _, group in itertools.groupby(rows, key=lambda row: row.file):
        map_rows = list(group)
        columns = _column_roles(map_rows, finders)
        for row in map_rows:
            cells = defaultdict(list)
            for cell, roles in zip(row.cells, columns, strict=False):
                for role in roles:
                    cells[role].append(cell)
            yield row, cells


def _column_roles(rows: Sequence[Row], finders: Mapping[str, FileFinder]) -> list[tuple[str, ...]]:
    """Return, for each column of one map, the roles whose files its cells may name."""
    sampled = rows[:: max(1, len(rows) // _MAX_SAMPLED_ROWS)]
    columns: list[tuple[str, ...]] = []
    for number in range(max(len(row.cells) for row in rows)):
        cells = [row.cells[number] for row in sampled if number < len(row.cells)]
        similarity = {role: sum(map(finder.similarity, cells)) for role, finder in finders.items()}
        best = max(similarity.values())
        fitting = tuple(role for role, total in similarity.items() if total == best > 0)
        # A column of a few background names may match many samples as well: backgrounds win.
        columns.append(("bg",) if "bg" in fitting else fitting)
    known = {role for roles in columns for role in roles}
    if rest := tuple(role for role in finders if role not in known and role != "bg"):
        # No column matches these roles best; their files may have the same names as others.
        columns = [roles if roles == ("bg",) else (*roles, *rest) for roles in columns]
    return columns


def _unused_warning(rows: Sequence[Row], what: str) -> list[str]:
    """Return one line about rows that are not used; none without any."""
    if not rows:
        return []
    _, file, line = rows[0]
    cells = ", ".join(rows[0].cells)[:_MAX_SHOWN_CHARACTERS]
    name = "row names" if len(rows) == 1 else "rows name"
    return [f"{file}: {len(rows)} {name} {what} of the source, as line {line}: {cells}"]


def _contradiction(
    where: str, one: Row, other: Row, *, sample: str, what: str, files: Sequence[str], count: int
) -> LayoutError:
    """Return the error of two rows that give one sample two files; ``count`` samples have such."""
    remedy = "correct the map"
    if one is other:
        lines = f"line {one.line} gives"
    elif one.file == other.file:
        lines = f"lines {one.line} and {other.line} give"
    else:
        lines = f"line {one.line}, and {other.file}: line {other.line}, give"
        remedy = "correct them, or name the one that counts in a layout file (--layout)"
    more = f", and so for {count} samples" if count > 1 else ""
    return LayoutError(
        f"{where}: {one.file}: {lines} {sample} two {what} ({', '.join(files)}){more}; expected "
        f"one for each sample; {remedy}"
    )
