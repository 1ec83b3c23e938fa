"""Maps that come with a data set: a csv, tsv or txt whose rows name files that belong together.

Text in, rows of cells out; and the file that a cell means. What the rows of a map come to is
``pairs``' word. Reads nothing itself.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["EXTENSIONS", "Finder", "Row", "rows_of"]

EXTENSIONS = frozenset({"csv", "tsv", "txt"})
"""Of files that may be maps, in lower case."""

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
    """
    # Spreadsheets save "Unicode text" as UTF-16, which begins with one of these marks.
    wide = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        lines = data.decode("utf-16" if wide else "utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return []
    head = lines[:50]
    counts = {mark: sum(mark in line for line in head) for mark in _SEPARATORS}
    mark = max(counts, key=lambda each: counts[each])
    try:
        if counts[mark] * 2 >= len(head) > 0:
            reader = csv.reader(lines, delimiter=mark)
            rows = [Row([cell.strip() for cell in row], file, reader.line_num) for row in reader]
        else:
            rows = [Row(line.split(), file, number) for number, line in enumerate(lines, 1)]
    except csv.Error:
        return []
    return [row for row in rows if len(row.cells) > 1]


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
