"""What the rows of a map say: which files are one sample, and which background a sample has.

Rows of cells in, indexes out. A column means the role that its cells name best, judged over many
rows, so that ``7.jpg`` may be a composite in one column and a background in the next. Rows that
contradict each other are refused, by line; rows that say nothing of this source are counted.

Maps that come with a data set: a csv, tsv or txt whose rows name files that belong together.

Text in, rows of cells out; and the file that a cell means. What the rows of a map come to is
``pairs``' word. Reads nothing itself.
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
from shardify.layout.sample_table import SampleTable, build_table

__all__ = [
    "MOST_LINES",
    "Backgrounds",
    "Finder",
    "Row",
    "backgrounds_by_map",
    "join_by_map",
    "rows_of",
]


MOST_LINES = 2_000_000
"""Of a map: a small zip can hold a text of any length."""

_LONGEST = 1 << 16
"""Line of a map; a text with a longer one is none. Characters."""

_MOST_CELLS = 64
"""Of a row that are looked at."""

_SEPARATORS = "\t,;|"


class Row(NamedTuple):
    """One line of a map."""

    cells: list[str]
    file: str
    """Name of the map."""
    line: int
    """Counted from 1."""


def rows_of(data: bytes, file: str) -> list[Row]:
    """The cells of each line, whatever separates them and however lines end.

    Args:
        data: The map's bytes.
        file: Its name.

    Returns:
        Rows of at least two cells; nothing for what is no text.

    Raises:
        LayoutError: It has more than ``MOST_LINES`` lines.
    """
    # Spreadsheets save "Unicode text" as UTF-16, which begins with one of these marks.
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError:
        return []
    # Before anything is made of them: rows take twenty times a text's room.
    if max(text.count("\n"), text.count("\r")) > MOST_LINES:
        raise LayoutError(
            f"{file}: over {MOST_LINES} lines; expected a map with a row or a few for each sample "
            "of this source; cut it to these, or pass --layout without it"
        )
    lines = io.StringIO(text, newline=None)
    head = list(itertools.islice(lines, 50))
    lines.seek(0)
    counts = {mark: sum(mark in line for line in head) for mark in _SEPARATORS}
    mark = max(counts, key=lambda each: counts[each])
    rows: list[Row] = []
    try:
        if counts[mark] * 2 >= len(head) > 0:
            reader = csv.reader(_short(lines), delimiter=mark)
            found = (([cell.strip() for cell in row], reader.line_num) for row in reader)
        else:
            found = ((line.split(), number) for number, line in enumerate(_short(lines), 1))
        for cells, number in found:
            if len(cells) > 1:
                rows.append(Row(cells[:_MOST_CELLS], file, number))
    except csv.Error:
        return []
    return rows


def _short(lines: Iterable[str]) -> Iterator[str]:
    """The lines. Raises csv.Error where one is too long for a map's."""
    for line in lines:
        if len(line) > _LONGEST:
            raise csv.Error("a line without end")
        yield line


class Finder:
    """Finds the file that a map's cell means, among those of one role."""

    def __init__(self, names: Sequence[str], indexes: Iterable[int]) -> None:
        self._names = names
        self._by_stem: defaultdict[str, list[int]] = defaultdict(list)
        for index in indexes:
            self._by_stem[_stem(names[index])].append(index)

    def find(self, cell: str) -> int | None:
        """The one file that ``cell`` means: a path, a file's name, or that without extension."""
        path = cell.replace("\\", "/").removeprefix("./").strip("/").lower()
        found = self._by_stem.get(_stem(path), [])
        if len(found) > 1:
            bare = path.rpartition(".")[0] if "." in path.rpartition("/")[2] else path
            tails = (f"/{path}", f"/{bare}.")
            found = [
                index
                for index in found
                if (name := f"/{self._names[index].lower()}").endswith(tails[0])
                or f"{name.rpartition('.')[0]}.".endswith(tails[1])
            ]
        return found[0] if len(found) == 1 else None

    def find_all(self, cells: Iterable[str]) -> set[int]:
        """The files that cells mean, each by ``find``."""
        return {index for cell in cells if (index := self.find(cell)) is not None}

    def likeness(self, cell: str) -> int:
        """How far a cell and the file that it means agree: the more, the more folders do; or 0."""
        index = self.find(cell)
        if index is None:
            return 0
        said, name = _parts(cell), _parts(self._names[index])
        same = 0
        for one, other in zip(said[1:], name[1:], strict=False):
            if one != other:
                break
            same += 1
        return 2 * (1 + same) + (said[0] == name[0])


def _parts(path: str) -> list[str]:
    """File and folders, from within."""
    return path.replace("\\", "/").removeprefix("./").strip("/").lower().split("/")[::-1]


def _stem(path: str) -> str:
    base = path.rpartition("/")[2].lower()
    return base.rpartition(".")[0] or base


IntArray = npt.NDArray[np.int32]

_JUDGED = 1000
"""Rows by which a column's meaning is told."""

_SHOWN = 80
"""Of a row's cells in a message. Characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backgrounds:
    """The background of each sample, as a map has it."""

    of_sample: IntArray
    """(N,) int32, index into the background files; -1 where no row tells."""
    warnings: tuple[str, ...]
    """What the map holds that is of no use here."""


def backgrounds_by_map(
    names: Sequence[str],
    members: Mapping[str, IntArray],
    files: Sequence[int],
    rows: Sequence[Row],
    *,
    where: str,
) -> Backgrounds:
    """The background that stands in the same row as one of a sample's files.

    Args:
        names: Of the source.
        members: role -> (N,) int32, index of each sample's file.
        files: Indexes of the backgrounds.
        rows: Of one map or several.
        where: What to call the source in an error.

    Raises:
        LayoutError: Rows give one sample two backgrounds.
    """
    row_of = {
        role: {index: row for row, index in enumerate(column.tolist())}
        for role, column in members.items()
    }
    finders = {role: Finder(names, column.tolist()) for role, column in members.items()}
    finders["bg"] = Finder(names, files)
    place = {index: number for number, index in enumerate(files)}
    found = np.full(len(next(iter(members.values()))), -1, np.int32)
    told: dict[int, Row] = {}
    clashes: dict[int, tuple[Row, Row, int, int]] = {}
    strange, bare = _Unused("no sample"), _Unused("no background")
    for row, cells in _judged(rows, finders):
        backs = {place[index] for index in finders["bg"].find_all(cells.get("bg", ()))}
        samples = {
            row_of[role][index]
            for role in members
            for index in finders[role].find_all(cells.get(role, ()))
        }
        if not samples:
            strange.add(row, header=not backs)
        elif not backs:
            bare.add(row)
        for sample in samples:
            for back in sorted(backs):
                before = int(found[sample])
                if before == -1:
                    found[sample], told[sample] = back, row
                elif before != back and sample not in clashes:
                    clashes[sample] = told[sample], row, before, back
    if clashes:
        sample, (one, other, before, back) = next(iter(clashes.items()))
        raise LayoutError(
            f"{where}: {_lines(one, other)} {names[int(members['fg_bg'][sample])]} two backgrounds "
            f"({names[files[before]]}, {names[files[back]]}){_more(len(clashes))}; expected one "
            f"for each sample; {_remedy(one, other)}"
        )
    return Backgrounds(of_sample=found, warnings=(*strange.told(), *bare.told()))


def join_by_map(
    names: Sequence[str],
    files: Mapping[str, IntArray],
    backgrounds: Sequence[int],
    rows: Sequence[Row],
    *,
    where: str,
) -> SampleTable | None:
    """Bring together what stands in one row of a map; None where the map tells of no sample.

    Rows that name the same composite are one sample. Files that no row names stay apart, each in a
    row of its own.

    Args:
        names: Of the source.
        files: role -> indexes of its files; without backgrounds.
        backgrounds: Indexes of these.
        rows: Of one map or several.
        where: What to call the source in an error.

    Raises:
        LayoutError: Rows give one composite two masks, or two depths.
    """
    roles = list(files)
    finders = {role: Finder(names, files[role].tolist()) for role in roles}
    finders["bg"] = Finder(names, backgrounds)
    items: list[tuple[int, int, str]] = []
    told: dict[tuple[str, str], tuple[int, Row]] = {}
    clashes: dict[str, tuple[str, Row, Row, int, int]] = {}
    strange = _Unused("no file")
    for row, cells in _judged(rows, finders):
        meant: dict[str, int] = {}
        for role in roles:
            each = finders[role].find_all(cells.get(role, ()))
            if len(each) == 1:
                meant[role] = each.pop()
        if not meant:
            strange.add(row, header=True)
        front = meant.get("fg_bg")
        key = f"row {sorted(meant.items())}" if front is None else f"file {front}"
        for role, index in meant.items():
            before, by = told.setdefault((key, role), (index, row))
            if by is row:
                items.append((index, roles.index(role), key))
            elif before != index:
                clashes.setdefault(key, (role, by, row, before, index))
    if clashes:
        key, (role, one, other, before, after) = next(iter(clashes.items()))
        front, _ = told[key, "fg_bg"]
        raise LayoutError(
            f"{where}: {_lines(one, other)} {names[front]} two files as its {role} "
            f"({names[before]}, {names[after]}){_more(len(clashes))}; expected one for each "
            f"sample; {_remedy(one, other)}"
        )
    if not items:
        return None
    taken = {index for index, _, _ in items}
    for code, role in enumerate(roles):
        apart = (index for index in files[role].tolist() if index not in taken)
        items += [(index, code, f"alone {index}") for index in apart]
    table = build_table(items, roles, "rows of a map")
    assert table is not None
    return replace(table, warnings=tuple(strange.told()))


def _judged(
    rows: Sequence[Row], finders: Mapping[str, Finder]
) -> Iterator[tuple[Row, dict[str, list[str]]]]:
    """Each row with the cells that may name a file of each role."""
    for _, group in itertools.groupby(rows, key=lambda row: row.file):
        listed = list(group)
        columns = _columns(listed, finders)
        for row in listed:
            cells: dict[str, list[str]] = {}
            for cell, roles in zip(row.cells, columns, strict=False):
                for role in roles:
                    cells.setdefault(role, []).append(cell)
            yield row, cells


def _columns(rows: Sequence[Row], finders: Mapping[str, Finder]) -> list[tuple[str, ...]]:
    """The roles whose files a column's cells may name; of one map."""
    judged = rows[:: max(1, len(rows) // _JUDGED)]
    columns: list[tuple[str, ...]] = []
    for number in range(max(len(row.cells) for row in rows)):
        cells = [row.cells[number] for row in judged if number < len(row.cells)]
        likeness = {role: sum(map(each.likeness, cells)) for role, each in finders.items()}
        best = max(likeness.values())
        fitting = tuple(role for role, each in likeness.items() if each == best > 0)
        # A column of few names, all of them backgrounds', is found among many samples as well.
        columns.append(("bg",) if "bg" in fitting else fitting)
    known = {role for roles in columns for role in roles}
    if rest := tuple(role for role in finders if role not in known and role != "bg"):
        # No column is theirs; but companions may bear the same name.
        columns = [roles if roles == ("bg",) else (*roles, *rest) for roles in columns]
    return columns


class _Unused:
    """Rows that are of no use, counted, and the first of them."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._first: Row | None = None

    def add(self, row: Row, *, header: bool = False) -> None:
        """Count a row; the first line of a map that names nothing is its header."""
        if header and row.line == 1:
            return
        self._first = self._first or row
        self._count += 1

    def told(self) -> list[str]:
        """One line, or none."""
        if self._first is None:
            return []
        file, line = self._first.file, self._first.line
        many = "row names" if self._count == 1 else "rows name"
        cells = ", ".join(self._first.cells)[:_SHOWN]
        return [f"{file}: {self._count} {many} {self._what} of the source, as line {line}: {cells}"]


def _lines(one: Row, other: Row) -> str:
    """Where two rows stand."""
    if one is other:
        return f"{one.file}: line {one.line} gives"
    if one.file == other.file:
        return f"{one.file}: lines {one.line} and {other.line} give"
    return f"{one.file}: line {one.line}, and {other.file}: line {other.line}, give"


def _more(count: int) -> str:
    return f", and so for {count} samples" if count > 1 else ""


def _remedy(one: Row, other: Row) -> str:
    if one.file == other.file:
        return "correct the map"
    return "correct them, or name the one that counts in a layout file (--layout)"
