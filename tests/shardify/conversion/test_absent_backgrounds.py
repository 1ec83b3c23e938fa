"""Samples whose names point at a background that does not exist are left out, by name.

Most are built for real; each published sample must stand on the background in its pixels.
"""

import json
import random
import re
import tarfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
from shardline_scenes import background, composite, encoded, flat_mask, noise
from shardline_sources import inline, pack, run

from shardify.conversion.build import BuildReport
from shardify.conversion.survey import BuildOptions, survey
from shardify.errors import BuildError, LayoutError

pytestmark = pytest.mark.usefixtures("inline")

__all__ = ["inline"]

BACKS = 20
EACH = 10
"""Samples on each background."""

Name = Callable[[str, int], str]


def numbered(state: str, number: int) -> str:
    return f"fg_{number % 3:03d}_bg_{state}_{number:06d}"


def foldered(state: str, number: int) -> str:
    return f"{state}/{number:06d}"


def made(
    states: Iterable[tuple[str, int]],
    *,
    name: Name = numbered,
    backs: Iterable[int] = range(1, BACKS + 1),
    back: Callable[[int], str] = "park{}".format,
    masks: bool = True,
) -> tuple[dict[str, bytes], dict[str, str]]:
    """The files; and key of each sample -> its true background, empty where that is not there."""
    names = {number: back(number) for number in backs}
    files = {f"bg/{names[number]}.jpg": background(number) for number in names}
    truth = {}
    for number, (state, true) in enumerate(states):
        stem = name(state, number)
        files[f"fg_bg/{stem}.jpg"] = composite(number, true)
        files[f"depth/{stem}.png"] = DEPTH
        if masks:
            files[f"mask/{stem}.png"] = MASK
        truth[stem.rpartition("/")[2]] = names.get(true, "")
    return files, truth


DEPTH = encoded(noise(7)[:, :, 0], "PNG")
MASK = flat_mask(255)


def states(of: Mapping[str, int], each: int = EACH) -> list[tuple[str, int]]:
    return [pair for pair in of.items() for _ in range(each)]


def padded(first: int = 1, order: Callable[[int], int] = int) -> dict[str, int]:
    """Number in the name, from ``first`` on -> the background that it means."""
    return {f"{first + place:03d}": order(place + 1) for place in range(BACKS)}


LEXICOGRAPHIC = sorted(range(1, BACKS + 1), key=str)


def published(out: Path, report: BuildReport) -> dict[str, str]:
    """Key of each sample in the shards -> its background's name."""
    ids, found = [each.id for each in report.manifest.backgrounds], {}
    for split in report.manifest.splits.values():
        for shard in split.shards:
            with tarfile.open(out / shard.name) as tar:
                for member in tar:
                    key, _, role = member.name.partition(".")
                    if role == "bg.cls":
                        file = tar.extractfile(member)
                        assert file is not None
                        found[key] = ids[int(file.read())]
    return found


def rejected(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert all(line["role"] == "bg" and line["member"].startswith("fg_bg/") for line in lines)
    assert all(line["reason"].startswith("its background does not exist: ") for line in lines)
    return {line["key"]: line["reason"].partition(": ")[2] for line in lines}


def check(
    tmp_path: Path,
    files: dict[str, bytes],
    truth: dict[str, str],
    lost: Iterable[str],
    **options: object,
) -> BuildReport:
    """A build publishes all but the lost, on their true backgrounds; and names the lost."""
    out = tmp_path / "out"
    report = run([pack(tmp_path / "x.zip", files)], out, shard_samples=100, **options)
    lost = set(lost)
    assert published(out, report) == {key: back for key, back in truth.items() if key not in lost}
    assert set(rejected(out)) == lost
    assert report.manifest.rejected.count == len(lost)
    return report


def stating(truth: dict[str, str], *wanted: str) -> set[str]:
    """The keys of samples whose names state these."""
    return {key for key in truth for each in wanted if f"bg_{each}_" in key}


def test_a_sample_that_names_no_background_is_left_out_and_counted(tmp_path: Path) -> None:
    files, truth = made([*states(padded()), ("250", 7)])
    report = check(tmp_path, files, truth, stating(truth, "250"))
    (reason,) = report.manifest.rejected.by_reason
    assert reason == (
        "its background does not exist: names state number 250, "
        "which none of 20 backgrounds (1 to 20) has"
    )
    told = report.manifest.layout["background"]
    assert (told["rule"], told["agrees"]) == ("background numbered as the number after bg", 1.0)


def test_more_such_samples_than_may_be_bad_refuse_the_build(tmp_path: Path) -> None:
    files, truth = made([*states(padded()), *[("250", 7)] * 2, ("251", 8)])
    source = pack(tmp_path / "x.zip", files)
    says = r"3 of 203 samples .* names state number 250.*\(2, as fg_bg/"
    with pytest.raises(BuildError, match=says):
        run([source], tmp_path / "out")
    check(tmp_path, files, truth, stating(truth, "250", "251"), max_bad=0.02)


@pytest.mark.parametrize("gap", [1, 7, BACKS])
def test_a_background_that_is_missing_takes_its_own_samples_alone(tmp_path: Path, gap: int) -> None:
    backs = sorted({*range(1, BACKS + 1)} - {gap})
    files, truth = made(states(padded()), backs=backs)
    with pytest.raises(
        BuildError, match=rf"10 of 200 .* number {gap}, which none of 19 backgrounds"
    ):
        run([pack(tmp_path / "x.zip", files)], tmp_path / "out")
    check(tmp_path, files, truth, stating(truth, f"{gap:03d}"), max_bad=0.06)


@pytest.mark.parametrize(
    "order", [int, lambda place: LEXICOGRAPHIC[place - 1]], ids=["natural", "lexicographic"]
)
@pytest.mark.parametrize("odd", [False, True])
def test_numbers_that_count_from_zero_are_told_by_their_pixels(
    tmp_path: Path, order: Callable[[int], int], odd: bool
) -> None:
    # All but bg_000 have the number of some background: another one.
    rows = states(padded(0, order))
    if odd:
        rows[55] = "250", rows[55][1]
    files, truth = made(rows)
    check(tmp_path, files, truth, stating(truth, "250"))
    with ExitStack() as later:
        found = survey([tmp_path / "x.zip"], BuildOptions(), later=later).layout
        assert found.pending is None
        assert [found.background_ids[each] for each in found.background] == [
            truth[key] for key in found.keys
        ]


def test_places_in_a_list_with_a_gap_are_told_by_their_pixels(tmp_path: Path) -> None:
    # Numbers up to 17 are the backgrounds' own; there is no 18, and 19 is the eighteenth.
    backs = sorted({*range(1, BACKS + 1)} - {18})
    files, truth = made(states({f"{n:03d}": back for n, back in enumerate(backs, 1)}), backs=backs)
    check(tmp_path, files, truth, ())


def test_a_place_that_only_the_last_numbers_show_is_told_by_their_pixels(tmp_path: Path) -> None:
    backs = [*range(1, 18), 19]
    wanted = {f"{n:03d}": back for n, back in enumerate(backs, 1)}
    files, truth = made(states(wanted), backs=backs)
    check(tmp_path, files, truth, ())


def test_a_last_number_whose_pixels_are_no_place_is_missing(tmp_path: Path) -> None:
    files, truth = made(states({f"{n:03d}": n for n in range(1, 19)}), backs=[*range(1, 18), 19])
    check(tmp_path, files, truth, stating(truth, "018"), max_bad=0.06)


def test_no_other_number_of_a_name_stands_for_the_background_it_states(tmp_path: Path) -> None:
    # Samples run through the backgrounds in order: blocks of ten by the last number fit them all.
    rows = states(padded())
    rows[42] = "250", rows[42][1]
    files, truth = made(rows)
    report = check(tmp_path, files, truth, stating(truth, "250"))
    assert report.manifest.layout["background"]["settings"] == {"rule": "number", "number": "bg"}


def test_one_background_is_not_everybodys_where_a_name_states_another(tmp_path: Path) -> None:
    rows = [("001", 1)] * 120
    rows[5] = "002", 1
    files, truth = made(rows, backs=[1])
    check(tmp_path, files, truth, stating(truth, "002"), group_by="none")


@pytest.mark.parametrize("masks", [True, False])
def test_a_map_says_more_than_the_names(tmp_path: Path, masks: bool) -> None:
    files, truth = made([*states(padded()), ("250", 7)], masks=masks)
    lines = [f"{back}.jpg,{key}.jpg" for key, back in truth.items()]
    files["map.csv"] = "\n".join(["background,composite", *lines]).encode()
    report = check(tmp_path, files, truth, ())
    assert report.manifest.layout["background"]["settings"] == {"rule": "map"}


def test_names_that_mostly_name_nothing_are_no_rule(tmp_path: Path) -> None:
    backs = random.Random(3).choices(range(1, BACKS + 1), k=100)
    rows = [(f"{back if n % 5 else back + 307:03d}", back) for n, back in enumerate(backs)]
    files, _ = made(rows)
    with pytest.raises(LayoutError, match=r"names do not tell .* single out no rule"):
        run([pack(tmp_path / "x.zip", files)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


WORDS = [
    f"{one}{two}"
    for one in ("oak", "elm", "fir", "ash", "yew")
    for two in ("hill", "dale", "wood", "lane")
]


@pytest.mark.parametrize("masks", [True, False])
def test_a_folder_that_no_background_is_named_as_is_left_out(tmp_path: Path, masks: bool) -> None:
    back = lambda number: WORDS[number - 1]  # noqa: E731
    rows = [*states({back(number): number for number in range(1, BACKS + 1)}), ("moon", 3)]
    files, truth = made(rows, name=foldered, back=back, masks=masks)
    report = check(tmp_path, files, truth, ["000200"])
    (reason,) = report.manifest.rejected.by_reason
    assert reason.endswith("no part of its path is the name of one of 20 backgrounds")


def test_without_pixels_a_missing_number_is_left_out_unless_numbers_may_be_shifted(
    tmp_path: Path,
) -> None:
    files, truth = made([*states(padded()), ("250", 7)], masks=False)
    report = check(tmp_path, files, truth, stating(truth, "250"))
    assert "without masks" in str(report.manifest.layout["background"]["proof"])
    for odd in ([], [("250", 7)]):
        files, _ = made([*states(padded(0)), *odd], masks=False)
        says = r"samples name background 0, but backgrounds are numbered 1 to 20; expected names"
        with pytest.raises(LayoutError, match=says):
            run([pack(tmp_path / "y.zip", files)], tmp_path / "other")
    # As in a list: 18 may be the eighteenth, or missing.
    files, _ = made(
        states({f"{n:03d}": n for n in range(1, 19)}), backs=[*range(1, 18), 19], masks=False
    )
    with pytest.raises(LayoutError, match="samples name background 18, but"):
        run([pack(tmp_path / "y.zip", files)], tmp_path / "other")


def test_given_splits_and_foregrounds_stay_with_their_samples(tmp_path: Path) -> None:
    rows = [("250", 7), *states(padded())]
    name = lambda state, number: f"{'val' if number % 4 else 'train'}/{numbered(state, number)}"  # noqa: E731
    files, truth = made(rows, name=name)
    report = check(tmp_path, files, truth, stating(truth, "250"))
    keys = published(tmp_path / "out", report)
    found = survey([tmp_path / "x.zip"], BuildOptions(group_by="fg")).layout
    assert found.foreground is not None and found.split is not None
    assert found.keys == sorted(keys)
    for row, key in enumerate(found.keys):
        assert found.foreground[row] == int(key.split("_")[1])
        assert found.split[row] == (int(key.rpartition("_")[2]) % 4 > 0)
        assert len({int(column[row]) for column in found.members.values()}) == 3


ROLES = """
[roles]
bg = ['bg/park(?P<bg>\\d+)\\.jpg']
fg_bg = ['fg_bg/fg_(?P<fg>\\d+)_bg_(?P<bg>\\d+)_(?P<n>\\d+)\\.jpg']
mask = ['mask/fg_(?P<fg>\\d+)_bg_(?P<bg>\\d+)_(?P<n>\\d+)\\.png']
depth = ['depth/fg_(?P<fg>\\d+)_bg_(?P<bg>\\d+)_(?P<n>\\d+)\\.png']
[background]
"""


@pytest.mark.parametrize(
    ("rule", "first", "order", "reason"),
    [
        ("rule = 'number'", 1, int, "names state number 250, which none of 20 backgrounds"),
        ("rule = 'number'\noffset = 1", 0, int, r"names state number 250 \+1, which none of 20"),
        ("rule = 'order'\norder = 'lexicographic'", 0, lambda place: LEXICOGRAPHIC[place - 1],
         "number 250 stands for background 251 of 20"),
        ("rule = 'order'\nfirst = 1", 1, int, "number 250 stands for background 250 of 20"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("checked", ["", "check = false\n"])
def test_a_layout_files_rule_leaves_out_what_it_cannot_give_a_background(
    tmp_path: Path, rule: str, first: int, order: Callable[[int], int], reason: str, checked: str
) -> None:
    told = tmp_path / "layout.toml"
    told.write_text(f"{ROLES}{rule}\n{checked}")
    files, truth = made([*states(padded(first, order)), ("250", 7)])
    report = check(tmp_path, files, truth, stating(truth, "250"), layout=told)
    (says,) = report.manifest.rejected.by_reason
    assert re.search(reason, says)


def test_a_layout_files_texts_and_its_bound(tmp_path: Path) -> None:
    told = tmp_path / "layout.toml"
    text = ROLES.replace("park", "").replace("(?P<bg>\\d+)", "(?P<bg>[a-z]+)") + "rule = 'name'\n"
    told.write_text(text)
    back = lambda number: WORDS[number - 1]  # noqa: E731
    rows = states({back(number): number for number in range(1, BACKS + 1)})
    files, truth = made([*rows, ("moon", 3)], back=back)
    report = check(tmp_path, files, truth, stating(truth, "moon"), layout=told)
    (says,) = report.manifest.rejected.by_reason
    assert says.endswith("its name states moon, which is none of 20 backgrounds")
    files, _ = made([*rows[:50], *[("moon", 3)] * 6], back=back)
    with pytest.raises(LayoutError, match=r"rule \(name\) does not give .* one of 20 backgrounds"):
        run([pack(tmp_path / "y.zip", files)], tmp_path / "other", layout=told)


def test_the_layout_file_that_is_printed_leaves_out_the_same_samples(tmp_path: Path) -> None:
    files, truth = made([*states(padded()), ("250", 7)])
    plain = check(tmp_path, files, truth, stating(truth, "250"))
    source, told = tmp_path / "x.zip", tmp_path / "layout.toml"
    told.write_text(survey([source], BuildOptions()).layout_file())
    again = run([source], tmp_path / "again", shard_samples=100, layout=told)
    assert again.manifest.splits == plain.manifest.splits
    assert rejected(tmp_path / "again") == rejected(tmp_path / "out")
