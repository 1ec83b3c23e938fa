"""Maps: any separator, any line end, and cells that name files more or less exactly."""

import pytest

from shardify.errors import LayoutError
from shardify.layout import csv_map
from shardify.layout.csv_map import Finder


def rows_of(data: bytes) -> list[list[str]]:
    return [row.cells for row in csv_map.rows_of(data, "map.csv")]


@pytest.mark.parametrize("mark", [",", "\t", ";", "|", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_are_read_whatever_separates_them(mark: str, end: str) -> None:
    text = end.join(mark.join(row) for row in (["a.jpg", "b.png"], ["c.jpg", "d.png"]))
    assert rows_of(text.encode()) == [["a.jpg", "b.png"], ["c.jpg", "d.png"]]


def test_what_is_no_table_gives_no_rows() -> None:
    assert rows_of(b"\xff\xfe\x00") == []
    assert rows_of(b"") == []
    assert rows_of(b"one\ntwo\n") == []


def test_quoted_cells_and_a_byte_order_mark_are_understood() -> None:
    assert rows_of('\ufeff"a, b.jpg",c.png\n'.encode()) == [["a, b.jpg", "c.png"]]


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_map_saved_by_a_spreadsheet_as_unicode_text_is_read(code: str) -> None:
    mark = "" if code == "utf-16" else "\ufeff"
    assert rows_of(f"{mark}a.jpg\tb.png\r\n".encode(code)) == [["a.jpg", "b.png"]]


@pytest.mark.parametrize("line", ["a,b\n", "\n", "word\n"])
def test_a_text_without_end_is_refused_before_it_fills_the_memory(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_map, "MOST_LINES", 1000)
    assert len(rows_of(line.encode() * 1000)) == 1000 * ("," in line)
    with pytest.raises(LayoutError, match=r"^map\.csv: over 1000 lines; .*--layout"):
        rows_of(line.encode() * 1001)


def test_a_line_without_end_is_no_row_and_of_a_wide_row_the_first_cells_are_looked_at() -> None:
    assert rows_of(b"a.jpg,b.png\n" + b"a," * 40_000) == []
    assert rows_of(b"a.jpg b.png\n" + b"a " * 40_000) == []
    assert [len(row) for row in rows_of(b"a," * 999)] == [64]


@pytest.mark.parametrize(
    "cell", ["x/one.jpg", "./x/one.jpg", "one.jpg", "one", "X\\ONE.JPG", "root/data/x/one.jpg"]
)
def test_a_cell_means_the_one_file_that_it_names(cell: str) -> None:
    assert Finder(["data/x/one.jpg", "data/x/two.jpg"], [0, 1]).find(cell) == 0


def test_a_cell_that_could_mean_two_files_means_none() -> None:
    finder = Finder(["a/one.jpg", "b/one.jpg", "b/two.jpg"], [0, 1, 2])
    assert finder.find("one.jpg") is None
    assert finder.find("b/one.jpg") == 1
    assert finder.find("b/one") == 1
    assert finder.find("three.jpg") is None
