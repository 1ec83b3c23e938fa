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
import numpy.typing as npt

from shardify.errors import LayoutError
from shardify.layout.filenames import file_stem
from shardify.layout.sample_table import SampleTable, build_table

MAX_LINES = 2_000_000
"""Largest number of lines of a map: a small zip can hold a text of any length."""

_MAX_LINE_LENGTH = 1 << 16
"""Longest line of a map, in characters; a text with a longer line is no map."""

_MAX_CELLS = 64
"""Number of cells of a row that are read."""

IntArray = npt.NDArray[np.int32]

_SEPARATORS = "\t,;|"


class Row(NamedTuple):
    """One line of a map."""

    cells: list[str]
    file: str
    """Name of the map."""
    line: int
    """Counted from 1."""


def parse_rows(data: bytes, file: str) -> list[Row]:
    """Split a map into rows of cells; the separator is detected.

    Args:
        data: The map's bytes.
        file: Its name.

    Returns:
        Rows of at least two cells; none if the data is no text.

    Raises:
        LayoutError: It has more than ``MOST_LINES`` lines.
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
    rows: list[Row] = []
    try:
        if counts[mark] * 2 >= len(head) > 0:
            reader = csv.reader(_check_lengths(lines), delimiter=mark)
            numbered = (([cell.strip() for cell in row], reader.line_num) for row in reader)
        else:
            numbered = (
                (line.split(), number) for number, line in enumerate(_check_lengths(lines), 1)
            )
        for cells, number in numbered:
            if len(cells) > 1:
                rows.append(Row(cells[:_MAX_CELLS], file, number))
    except csv.Error:
        return []
    return rows


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
        path = cell.replace("\\", "/").removeprefix("./").strip("/").lower()
        matches = self._by_stem.get(_cell_stem(path), [])
        if len(matches) > 1:
            bare_path = path.rpartition(".")[0] if "." in path.rpartition("/")[2] else path
            tails = (f"/{path}", f"/{bare_path}.")
            matches = [
                index
                for index in matches
                if (name := f"/{self._names[index].lower()}").endswith(tails[0])
                or f"{name.rpartition('.')[0]}.".endswith(tails[1])
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
        parts, expected = _reversed_parts(cell), _reversed_parts(self._names[index])
        folders = 0
        for one, other in zip(parts[1:], expected[1:], strict=False):
            if one != other:
                break
            folders += 1
        return 2 * (1 + folders) + (parts[0] == expected[0])


def _reversed_parts(path: str) -> list[str]:
    """Return the file name and its folders, innermost first, in lower case."""
    return path.replace("\\", "/").removeprefix("./").strip("/").lower().split("/")[::-1]


def _cell_stem(path: str) -> str:
    """Return the stem in lower case; cells may have no extension."""
    return (file_stem(path) or path.rpartition("/")[2]).lower()


_MAX_SAMPLED_ROWS = 1000
"""Number of rows, about, by which the role of a column is decided."""

_MAX_SHOWN_CHARACTERS = 80
"""Length of a row in a message. Characters."""


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
    row_of = {
        role: {index: row for row, index in enumerate(column.tolist())}
        for role, column in members.items()
    }
    finders = {role: FileFinder(names, column.tolist()) for role, column in members.items()}
    finders["bg"] = FileFinder(names, files)
    place = {index: number for number, index in enumerate(files)}
    result = np.full(len(next(iter(members.values()))), -1, np.int32)
    row_by_sample: dict[int, Row] = {}
    clashes: dict[int, tuple[Row, Row, int, int]] = {}
    unmatched, incomplete = _UnusedRows("no sample"), _UnusedRows("no background")
    for row, cells in _rows_by_role(rows, finders):
        backs = {place[index] for index in finders["bg"].find_all(cells.get("bg", ()))}
        samples = {
            row_of[role][index]
            for role in members
            for index in finders[role].find_all(cells.get(role, ()))
        }
        if not samples:
            unmatched.add(row, header=not backs)
        elif not backs:
            incomplete.add(row)
        for sample in samples:
            for back in sorted(backs):
                before = int(result[sample])
                if before == -1:
                    result[sample], row_by_sample[sample] = back, row
                elif before != back and sample not in clashes:
                    clashes[sample] = row_by_sample[sample], row, before, back
    if clashes:
        sample, (one, other, before, back) = next(iter(clashes.items()))
        raise LayoutError(
            f"{where}: {_describe_lines(one, other)} {names[int(members['fg_bg'][sample])]} two "
            f"backgrounds ({names[files[before]]}, {names[files[back]]})"
            f"{_sample_count(len(clashes))}; expected one for each sample; {_remedy(one, other)}"
        )
    return MapBackgrounds(
        background_index=result, warnings=(*unmatched.warning(), *incomplete.warning())
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
    items: list[tuple[int, int, str]] = []
    first: dict[tuple[str, str], tuple[int, Row]] = {}
    clashes: dict[str, tuple[str, Row, Row, int, int]] = {}
    unmatched = _UnusedRows("no file")
    for row, cells in _rows_by_role(rows, finders):
        named: dict[str, int] = {}
        for role in roles:
            each = finders[role].find_all(cells.get(role, ()))
            if len(each) == 1:
                named[role] = each.pop()
        if not named:
            unmatched.add(row, header=True)
        front = named.get("fg_bg")
        key = f"row {sorted(named.items())}" if front is None else f"file {front}"
        for role, index in named.items():
            before, by = first.setdefault((key, role), (index, row))
            if by is row:
                items.append((index, roles.index(role), key))
            elif before != index:
                clashes.setdefault(key, (role, by, row, before, index))
    if clashes:
        key, (role, one, other, before, after) = next(iter(clashes.items()))
        front, _ = first[key, "fg_bg"]
        raise LayoutError(
            f"{where}: {_describe_lines(one, other)} {names[front]} two files as its {role} "
            f"({names[before]}, {names[after]}){_sample_count(len(clashes))}; expected one for "
            f"each sample; {_remedy(one, other)}"
        )
    if not items:
        return None
    joined = {index for index, _, _ in items}
    for code, role in enumerate(roles):
        rest = (index for index in files[role].tolist() if index not in joined)
        items += [(index, code, f"alone {index}") for index in rest]
    table = build_table(items, roles, "rows of a map")
    assert table is not None
    return replace(table, warnings=tuple(unmatched.warning()))


def _rows_by_role(
    rows: Sequence[Row], finders: Mapping[str, FileFinder]
) -> Iterator[tuple[Row, dict[str, list[str]]]]:
    """Yield each row with its cells by the roles that they may name."""
    for _, group in itertools.groupby(rows, key=lambda row: row.file):
        listed = list(group)
        columns = _column_roles(listed, finders)
        for row in listed:
            cells: dict[str, list[str]] = {}
            for cell, roles in zip(row.cells, columns, strict=False):
                for role in roles:
                    cells.setdefault(role, []).append(cell)
            yield row, cells


def _column_roles(rows: Sequence[Row], finders: Mapping[str, FileFinder]) -> list[tuple[str, ...]]:
    """Return, for each column of one map, the roles whose files its cells may name."""
    sampled = rows[:: max(1, len(rows) // _MAX_SAMPLED_ROWS)]
    columns: list[tuple[str, ...]] = []
    for number in range(max(len(row.cells) for row in rows)):
        cells = [row.cells[number] for row in sampled if number < len(row.cells)]
        similarity = {role: sum(map(each.similarity, cells)) for role, each in finders.items()}
        best = max(similarity.values())
        fitting = tuple(role for role, each in similarity.items() if each == best > 0)
        # A column of a few background names may match many samples as well: backgrounds win.
        columns.append(("bg",) if "bg" in fitting else fitting)
    known = {role for roles in columns for role in roles}
    if rest := tuple(role for role in finders if role not in known and role != "bg"):
        # No column matches these roles best; their files may have the same names as others.
        columns = [roles if roles == ("bg",) else (*roles, *rest) for roles in columns]
    return columns


class _UnusedRows:
    """Counts rows that are not used, and keeps the first."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._first: Row | None = None

    def add(self, row: Row, *, header: bool = False) -> None:
        """Count a row, unless it is the header in the first line of a map."""
        if header and row.line == 1:
            return
        self._first = self._first or row
        self._count += 1

    def warning(self) -> list[str]:
        """Return one line for the user, or none."""
        if self._first is None:
            return []
        file, line = self._first.file, self._first.line
        many = "row names" if self._count == 1 else "rows name"
        cells = ", ".join(self._first.cells)[:_MAX_SHOWN_CHARACTERS]
        return [f"{file}: {self._count} {many} {self._what} of the source, as line {line}: {cells}"]


def _describe_lines(one: Row, other: Row) -> str:
    """Name the lines of two rows."""
    if one is other:
        return f"{one.file}: line {one.line} gives"
    if one.file == other.file:
        return f"{one.file}: lines {one.line} and {other.line} give"
    return f"{one.file}: line {one.line}, and {other.file}: line {other.line}, give"


def _sample_count(count: int) -> str:
    return f", and so for {count} samples" if count > 1 else ""


def _remedy(one: Row, other: Row) -> str:
    if one.file == other.file:
        return "correct the map"
    return "correct them, or name the one that counts in a layout file (--layout)"
