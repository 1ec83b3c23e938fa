from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shardify.errors import DataError
from train.inference.input_pairs import find_pairs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


def paired(folder: Path) -> dict[str, str]:
    return {job.fg_bg.name: job.bg.name for job in find_pairs(folder / "bg", folder / "fg")}


def test_pictures_find_their_background_by_stem_or_by_the_number_after_bg(tmp_path: Path) -> None:
    touch(tmp_path / "bg", "park021.jpg", "park2.jpg", "a.png")
    touch(tmp_path / "fg", "sub/fg_070_bg_021_000435.jpg", "x_bg2_9.jpg", "a.jpg")
    assert paired(tmp_path) == {
        "fg_070_bg_021_000435.jpg": "park021.jpg",
        "x_bg2_9.jpg": "park2.jpg",
        "a.jpg": "a.png",
    }


def test_one_background_serves_all_pictures(tmp_path: Path) -> None:
    touch(tmp_path / "bg", "any.jpg")
    touch(tmp_path / "fg", "1.jpg", "2.jpg")
    assert paired(tmp_path) == {"1.jpg": "any.jpg", "2.jpg": "any.jpg"}


@pytest.mark.parametrize(
    ("backgrounds", "picture", "says"),
    [
        (("park1.jpg", "park2.jpg"), "x_bg_3.jpg", r"x_bg_3\.jpg: .*none"),
        (("park1.jpg", "lake1.jpg"), "x_bg_1.jpg", r"lake1\.jpg, .*park1\.jpg"),
        (("park1.jpg", "park2.jpg"), "fgbg_1.jpg", "none"),
    ],
)
def test_a_picture_without_exactly_one_background_is_refused(
    tmp_path: Path, backgrounds: tuple[str, ...], picture: str, says: str
) -> None:
    touch(tmp_path / "bg", *backgrounds)
    touch(tmp_path / "fg", picture)
    with pytest.raises(DataError, match=says):
        find_pairs(tmp_path / "bg", tmp_path / "fg")


def test_pictures_that_would_overwrite_each_other_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "bg", "b.jpg")
    touch(tmp_path / "fg", "a/1.jpg", "b/1.jpg")
    with pytest.raises(DataError, match="several images are named 1"):
        find_pairs(tmp_path / "bg", tmp_path / "fg")


def test_what_holds_no_picture_is_refused_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "x.jpg")
    with pytest.raises(DataError, match=r"none\.jpg: no such file"):
        find_pairs(tmp_path / "none.jpg", tmp_path / "x.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no images"):
        find_pairs(tmp_path / "empty", tmp_path / "x.jpg")
