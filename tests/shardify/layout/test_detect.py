"""Layouts are told from names alone, and never by position."""

import random
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from shardify.errors import LayoutError
from shardify.layout import background_rules
from shardify.layout import detect as layout


def composites(samples: int, *, backgrounds: int = 5, first: int = 1) -> list[str]:
    """Names as the composites' authors gave them, ``first`` being the first background's number."""
    names = [f"data_all/bg/park{number}.jpg" for number in range(1, backgrounds + 1)]
    for number in range(samples):
        back = number % backgrounds + first
        stem = f"fg_{number % 7:03d}_bg_{back:03d}_{number:06d}"
        names += [
            f"data_all/fg_bg/bg_{back:03d}/{stem}.jpg",
            f"data_all/fg_bg_mask/bg_{back:03d}/mask_{stem}.jpg",
            f"data_all/fg_bg_depth/bg_{back:03d}/depth_{stem}.png",
        ]
    return names


def detect(names: list[str]) -> layout.Layout:
    return layout.detect(names, where="data.zip")


def test_companions_share_a_row_and_the_background_has_the_number_in_the_name() -> None:
    names = composites(40, backgrounds=12)
    found = detect(names)
    assert found.roles == ("bg", "fg_bg", "mask", "depth")
    assert len(found.keys) == 40
    for row, key in enumerate(found.keys):
        back = int(key.split("_")[3])
        assert names[found.members["fg_bg"][row]].endswith(f"/{key}.jpg")
        assert names[found.members["mask"][row]].endswith(f"/mask_{key}.jpg")
        assert names[found.members["depth"][row]].endswith(f"/depth_{key}.png")
        place = found.background[row]
        assert found.background_ids[place] == f"park{back}"
        assert names[found.background_members[place]] == f"data_all/bg/park{back}.jpg"
        assert found.foreground is not None
        assert found.foreground[row] == int(key.split("_")[1])


def test_backgrounds_are_sorted_and_only_those_in_use() -> None:
    names = [*composites(30, backgrounds=12), "data_all/bg/park77.jpg"]
    found = detect(names)
    assert found.background_ids == sorted(f"park{n}" for n in range(1, 13))
    told = found.description["background"]
    assert isinstance(told, dict)
    assert told["rule"] == "background numbered as the number after bg"
    assert (told["files"], told["used"]) == (13, 12)
    assert told["proof"] == "none: only the names were looked at"


def test_order_of_the_names_does_not_matter() -> None:
    names = composites(50)
    one = detect(names)
    shuffled = names.copy()
    random.Random(3).shuffle(shuffled)
    other = detect(shuffled)
    assert one.keys == other.keys
    assert one.background_ids == other.background_ids
    assert np.array_equal(one.background, other.background)
    for role in one.members:
        assert [names[i] for i in one.members[role]] == [shuffled[i] for i in other.members[role]]


def test_numbers_that_no_background_has_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"samples name background 0, but .* numbered 1 to 5"):
        detect(composites(20, first=0))


def test_incomplete_and_doubled_samples_are_left_out_by_name() -> None:
    names = composites(20)
    masks = {name[-10:-4]: name for name in names if "/mask_" in name}
    names.remove(masks["000003"])
    names.append(masks["000004"].replace(".jpg", ".png"))
    found = detect(names)
    assert len(found.keys) == 18
    assert [(r.key[-6:], r.role, r.reason) for r in found.rejected] == [
        ("000003", "mask", "incomplete: no mask"),
        ("000004", "mask", "duplicate: 2 files claim to be its mask"),
    ]


def test_natural_order_counts_digits_as_numbers() -> None:
    files = background_rules.BackgroundFiles(["park10", "park2", "park1", "lake3", "park02"])
    assert [files.stems[place] for place in files.order["natural"]] == [
        "lake3", "park1", "park02", "park2", "park10",
    ]  # fmt: skip
    assert [files.stems[place] for place in files.order["lexicographic"]] == [
        "lake3", "park02", "park1", "park10", "park2",
    ]  # fmt: skip


def test_litter_is_ignored_and_counted() -> None:
    litter = [
        "data_all/",
        "data_all/fg_bg/",
        "__MACOSX/data_all/fg_bg/._fg_001_bg_001_000000.jpg",
        "data_all/.DS_Store",
        "data_all/bg/Thumbs.db",
        "README.md",
    ]
    found = detect(litter + composites(10) + ["data_all/labels.csv"])
    assert len(found.keys) == 10
    assert found.description["ignored"] == {"junk": 6, ".csv": 1}
    assert not found.rejected


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("/fg_bg/", r"^data.zip: no composite images .*--layout$"),
        ("data_all", r"^data.zip: no image among the files"),
    ],
)
def test_what_is_missing_is_named_in_one_line(drop: str, message: str) -> None:
    with pytest.raises(LayoutError, match=message) as caught:
        detect([name for name in composites(10) if drop not in name])
    assert "\n" not in str(caught.value)


def test_real_photographs_are_told(photos: Path) -> None:
    names = zipfile.ZipFile(photos).namelist()
    found = detect(names)
    assert len(found.keys) == 2000
    assert len(found.background_ids) == 100
    assert not found.rejected
    for row, key in enumerate(found.keys):
        assert found.background_ids[found.background[row]] == f"park{key.split('_')[3]}"


def test_120_000_names_take_no_more_than_a_few_seconds() -> None:
    names = composites(40_000, backgrounds=100)
    start = time.process_time()
    found = detect(names)
    assert len(found.keys) == 40_000
    assert time.process_time() - start < 3
