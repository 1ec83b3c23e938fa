"""Maps: any separator, any line end, and cells that name files more or less exactly.

What a map says is taken once and for all; what it says twice, differently, is refused.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from shardline_sources import files_of, inline, pack, run

from shardify.cli import main
from shardify.errors import LayoutError
from shardify.layout import csv_map
from shardify.layout.csv_map import (
    FileFinder,
    MapBackgrounds,
    backgrounds_by_map,
    join_by_map,
    parse_rows,
)

__all__ = ["inline"]


def rows_of_csv_map(data: bytes) -> list[list[str]]:
    return [row.cells for row in csv_map.parse_rows(data, "map.csv")]


@pytest.mark.parametrize("mark", [",", "\t", ";", "|", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_are_read_whatever_separates_them(mark: str, end: str) -> None:
    text = end.join(mark.join(row) for row in (["a.jpg", "b.png"], ["c.jpg", "d.png"]))
    assert rows_of_csv_map(text.encode()) == [["a.jpg", "b.png"], ["c.jpg", "d.png"]]


def test_what_is_no_table_gives_no_rows() -> None:
    assert rows_of_csv_map(b"\xff\xfe\x00") == []
    assert rows_of_csv_map(b"") == []
    assert rows_of_csv_map(b"one\ntwo\n") == []


def test_quoted_cells_and_a_byte_order_mark_are_understood() -> None:
    assert rows_of_csv_map('\ufeff"a, b.jpg",c.png\n'.encode()) == [["a, b.jpg", "c.png"]]


@pytest.mark.parametrize("code", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_map_saved_by_a_spreadsheet_as_unicode_text_is_read(code: str) -> None:
    mark = "" if code == "utf-16" else "\ufeff"
    assert rows_of_csv_map(f"{mark}a.jpg\tb.png\r\n".encode(code)) == [["a.jpg", "b.png"]]


@pytest.mark.parametrize("line", ["a,b\n", "\n", "word\n"])
def test_a_text_without_end_is_refused_before_it_fills_the_memory(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_map, "MAX_LINES", 1000)
    assert len(rows_of_csv_map(line.encode() * 1000)) == 1000 * ("," in line)
    with pytest.raises(LayoutError, match=r"^map\.csv: over 1000 lines; .*--layout"):
        rows_of_csv_map(line.encode() * 1001)


def test_a_line_without_end_is_no_row_and_of_a_wide_row_the_first_cells_are_looked_at() -> None:
    assert rows_of_csv_map(b"a.jpg,b.png\n" + b"a," * 40_000) == []
    assert rows_of_csv_map(b"a.jpg b.png\n" + b"a " * 40_000) == []
    assert [len(row) for row in rows_of_csv_map(b"a," * 999)] == [64]


@pytest.mark.parametrize(
    "cell", ["x/one.jpg", "./x/one.jpg", "one.jpg", "one", "X\\ONE.JPG", "root/data/x/one.jpg"]
)
def test_a_cell_means_the_one_file_that_it_names(cell: str) -> None:
    assert FileFinder(["data/x/one.jpg", "data/x/two.jpg"], [0, 1]).find(cell) == 0


def test_a_cell_that_could_mean_two_files_means_none() -> None:
    finder = FileFinder(["a/one.jpg", "b/one.jpg", "b/two.jpg"], [0, 1, 2])
    assert finder.find("one.jpg") is None
    assert finder.find("b/one.jpg") == 1
    assert finder.find("b/one") == 1
    assert finder.find("three.jpg") is None


NAMES = ["bg/1.jpg", "bg/2.jpg", *(f"fg_bg/{n}.jpg" for n in range(1, 6))]
BACKS, FRONTS = [0, 1], [2, 3, 4, 5, 6]
SOUND = "image,background\n1.jpg,1.jpg\n2.jpg,1.jpg\n3.jpg,1.jpg\n4.jpg,2.jpg\n5.jpg,2.jpg\n"


def told(*texts: str, names: Sequence[str] = NAMES) -> MapBackgrounds:
    rows = [row for n, text in enumerate(texts) for row in parse_rows(text.encode(), f"{n}.csv")]
    members = {"fg_bg": np.array(FRONTS, np.int32)}
    return backgrounds_by_map(names, members, BACKS, rows, where="x.zip")


def test_a_column_means_composites_or_backgrounds_though_both_bear_the_same_names() -> None:
    turned = [",".join(reversed(line.split(","))) for line in SOUND.splitlines()]
    spelled = [f"fg_bg/{line.replace(',', ',bg/')}" for line in SOUND.splitlines()]
    for text in (SOUND, "\n".join(turned), "\n".join(spelled)):
        found = told(text)
        assert found.background_index.tolist() == [0, 0, 0, 1, 1]
        assert found.warnings == ()


def test_a_row_that_says_the_same_again_is_fine() -> None:
    assert told(SOUND + SOUND, SOUND).background_index.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (
            [SOUND + "4.jpg,1.jpg\n"],
            "0.csv: lines 5 and 7 give fg_bg/4.jpg two backgrounds (bg/2.jpg, bg/1.jpg); expected "
            "one for each sample; correct the map",
        ),
        (
            [SOUND + "4.jpg,1.jpg\n5.jpg,1.jpg\n"],
            "lines 5 and 7 give fg_bg/4.jpg two backgrounds (bg/2.jpg, bg/1.jpg), and so for 2 "
            "samples; expected",
        ),
        (
            [SOUND, "5.jpg,1.jpg\n4.jpg,2.jpg\n3.jpg,1.jpg\n"],
            "0.csv: line 6, and 1.csv: line 1, give fg_bg/5.jpg two backgrounds (bg/2.jpg, "
            "bg/1.jpg); expected one for each sample; correct them, or name the one that counts in "
            "a layout file (--layout)",
        ),
        (
            ["3.jpg,1.jpg,1.jpg\n4.jpg,2.jpg,2.jpg\n5.jpg,1.jpg,2.jpg\n"],
            "0.csv: line 3 gives fg_bg/5.jpg two backgrounds (bg/1.jpg, bg/2.jpg)",
        ),
    ],
    ids=["twice", "several", "two maps", "one row"],
)
def test_rows_that_contradict_each_other_are_refused_by_line(texts: list[str], says: str) -> None:
    with pytest.raises(LayoutError) as caught:
        told(*texts)
    assert str(caught.value).startswith("x.zip: ")
    assert says in str(caught.value)


def test_rows_that_are_of_no_use_are_counted_with_an_example() -> None:
    found = told(SOUND + "7.jpg,1.jpg\n8.jpg,2.jpg\n5.jpg,9.jpg\n")
    assert found.background_index.tolist() == [0, 0, 0, 1, 1]
    assert found.warnings == (
        "0.csv: 2 rows name no sample of the source, as line 7: 7.jpg, 1.jpg",
        "0.csv: 1 row names no background of the source, as line 9: 5.jpg, 9.jpg",
    )


PARTS = ["a/1.jpg", "a/2.jpg", "m/1.png", "m/2.png", "d/7.png", "d/8.png"]
COLUMNS = {
    role: np.array(indexes, np.int32)
    for role, indexes in (("fg_bg", [0, 1]), ("mask", [2, 3]), ("depth", [4, 5]))
}


def joined(text: str) -> list[tuple[str, ...]]:
    rows = parse_rows(text.encode(), "map.csv")
    table = join_by_map(PARTS, COLUMNS, [], rows, where="x.zip")
    assert table is not None
    found = np.stack([table.members[role][table.is_complete] for role in COLUMNS], 1)
    return sorted(tuple(PARTS[index] for index in row) for row in found.tolist())


@pytest.mark.parametrize(
    "text",
    [
        "1.jpg,2.png,7.png\n2.jpg,1.png,8.png\n",
        "1.jpg,2.png,7.png\n2.jpg,1.png,8.png\n1.jpg,2.png,7.png\n",
        "a/1.jpg,m/2.png,\na/2.jpg,m/1.png,\na/1.jpg,,7.png\na/2.jpg,,8.png\n",
    ],
    ids=["a row a sample", "one row twice", "two rows a sample"],
)
def test_what_rows_bring_together_is_one_sample_once(text: str) -> None:
    assert joined(text) == [("a/1.jpg", "m/2.png", "d/7.png"), ("a/2.jpg", "m/1.png", "d/8.png")]


def test_two_masks_for_one_composite_are_refused_by_line() -> None:
    with pytest.raises(LayoutError) as caught:
        joined("1.jpg,2.png,7.png\n2.jpg,1.png,8.png\n1.jpg,1.png,7.png\n")
    assert str(caught.value) == (
        "x.zip: map.csv: lines 1 and 3 give a/1.jpg two files as its mask (m/2.png, m/1.png); "
        "expected one for each sample; correct the map"
    )


@pytest.mark.usefixtures("inline")
def test_a_build_by_a_map_tells_what_in_it_is_of_no_use_and_refuses_what_contradicts_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files, lines = {}, ["image,background", "99.jpg,park1.jpg"]
    for name, data in files_of().items():
        role, _, rest = name.partition("/")
        number = 0 if role == "bg" else int(name[-10:-4]) + 50
        files[f"{role}/{number}{name[-4:]}" if number else name] = data
        if role == "fg_bg":
            lines.append(f"{number}.jpg,park{int(rest[3:6])}.jpg")

    def packed(name: str, lines: Sequence[str]) -> Path:
        return pack(tmp_path / name, files | {"map.csv": "\n".join(lines).encode()})

    good = packed("x.zip", lines)
    manifest = run([good], tmp_path / "out").manifest
    says = "map.csv: 1 row names no sample of the source, as line 2: 99.jpg, park1.jpg"
    assert manifest.layout["warnings"] == [says]
    assert manifest.layout["background"]["settings"] == {"rule": "map"}
    main(["inspect", str(good), "--val", "0"])
    assert f"# warning      {says}\n" in capsys.readouterr().out
    main(["build", str(good), str(tmp_path / "again"), "--val", "0", "--json"])
    assert json.loads(capsys.readouterr().out)["warnings"] == [says]

    bad = packed("bad.zip", [*lines, lines[-1].replace("park4", "park2")])
    with pytest.raises(LayoutError, match=r"lines 14 and 15 give fg_bg/61\.jpg two backgrounds"):
        run([bad], tmp_path / "never")
    assert not (tmp_path / "never").exists()
