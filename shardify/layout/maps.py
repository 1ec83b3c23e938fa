"""Maps that come with a data set: a csv, tsv or txt whose rows name files that belong together.

Text in, rows of cells out; and the file that a cell means. What the rows of a map come to is
``pairs``' word. Reads nothing itself.
"""

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from shardify.errors import LayoutError

__all__ = ["MOST_LINES", "Finder", "Row", "rows_of"]


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
