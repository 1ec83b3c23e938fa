"""Backgrounds that several parts repeat are one; different ones of one name are refused."""

from pathlib import Path

import pytest
from shardline_scenes import background, composite
from shardline_sources import files_of, inline, only, pack, run, shards, spread, zipped

from shardify.conversion.survey import BuildOptions, survey
from shardify.errors import LayoutError

__all__ = ["inline"]

pytestmark = pytest.mark.usefixtures("inline")


def halves(lead: tuple[str, str] = ("", "")) -> list[dict[str, bytes]]:
    """Two parts of one data set, each with all backgrounds."""
    found = []
    for number, folder in enumerate(lead):
        part = files_of(6, first=6 * number)
        found.append({folder + name: data for name, data in part.items()})
    return found


@pytest.mark.parametrize("lead", [("", ""), ("first/", "second/")])
def test_parts_that_repeat_the_backgrounds_are_one_data_set(
    tmp_path: Path, lead: tuple[str, str]
) -> None:
    run([spread(tmp_path / "whole", files_of(12))], tmp_path / "one")
    for number, part in enumerate(halves(lead)):
        pack(tmp_path / f"part{number}.zip", part)
    report = run([tmp_path / "part0.zip", tmp_path / "part1.zip"], tmp_path / "out", val=0)
    manifest = report.manifest
    assert manifest.splits["train"].samples == 12
    assert [each.id for each in manifest.backgrounds] == ["park1", "park2", "park3", "park4"]
    if lead == ("", ""):
        assert manifest.layout["warnings"] == [
            "part1.zip: 4 files stand in part0.zip too, with the same bytes; they are taken once"
        ]
    else:
        assert manifest.layout["ignored"] == {"backgrounds that another part repeats": 4}
    assert manifest.layout["background"]["files"] == 4


def test_the_order_of_the_parts_is_of_no_account(tmp_path: Path) -> None:
    one, two = (pack(tmp_path / f"part{number}.zip", part) for number, part in enumerate(halves()))
    run([one, two], tmp_path / "a")
    run([two, one], tmp_path / "b")
    assert shards(tmp_path / "a") == shards(tmp_path / "b")


def test_parts_inside_a_zip_and_in_folders_may_repeat_them_too(tmp_path: Path) -> None:
    one, two = halves()
    pack(tmp_path / "all.zip", {"part0.zip": zipped(one), "part1.zip": zipped(two)})
    spread(tmp_path / "part0", one)
    pack(tmp_path / "part1.zip", two)
    run([tmp_path / "part0", tmp_path / "part1.zip"], tmp_path / "mixed")
    run([tmp_path / "all.zip"], tmp_path / "nested")
    assert shards(tmp_path / "mixed") == shards(tmp_path / "nested")


def test_different_backgrounds_of_one_name_are_refused_with_both_places(tmp_path: Path) -> None:
    one, two = halves()
    two["bg/park3.jpg"] = background(99)
    found = [pack(tmp_path / f"part{number}.zip", part) for number, part in enumerate((one, two))]
    with pytest.raises(
        LayoutError,
        match=r"named bg/park3\.jpg differ: part0/bg/park3\.jpg and part1/bg/park3\.jpg; expected",
    ):
        survey(found, BuildOptions())


def test_other_backgrounds_of_the_second_part_are_kept(tmp_path: Path) -> None:
    one = files_of(6, backgrounds=3)
    two = {
        name.replace("park1.", "park4.").replace("bg_001", "bg_004"): data
        for name, data in files_of(6, backgrounds=3, first=6).items()
    }
    two["bg/park4.jpg"] = background(4)
    for number, name in enumerate(two):
        if name.startswith("fg_bg/bg_004/"):
            two[name] = composite(number, 4)
    found = [pack(tmp_path / f"part{number}.zip", part) for number, part in enumerate((one, two))]
    assert len(survey(found, BuildOptions()).layout.background_ids) == 4
    assert only(two, "bg").keys() == {"bg/park2.jpg", "bg/park3.jpg", "bg/park4.jpg"}
