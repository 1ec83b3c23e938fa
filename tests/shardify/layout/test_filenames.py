"""Single names: roles, what companions share, numbers, keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardify.layout import filenames
from shardify.sources import file_types


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("fg_015_bg_085_340600", ["fg_bg"]),
        ("fg.015.bg.085.340600", ["fg_bg"]),
        ("mask_fg_bg", ["mask", "fg_bg"]),
        ("dataset_fg_bg_Mask_final", ["fg_bg", "mask"]),
        ("depth_1", ["depth"]),
        ("Depth", ["depth"]),
        ("Background", ["bg"]),
        ("park1", []),
        ("bgfg_b000_f000_0", ["fg_bg", "fg_bg"]),
        ("densedepthbgfg", ["depth", "fg_bg"]),
        ("OverlayedImages", ["fg_bg"]),
        ("OverlayedMasks", ["fg_bg", "mask"]),
        ("bg001_fg001_01_depth_map", ["fg_bg", "depth"]),
        ("00001_depth_mask", ["validity"]),
        ("valid_masks", ["mask"]),
        ("bg_fg_mask", ["fg_bg", "mask"]),
        ("fg_mask", ["cutout"]),
        ("trimaps", ["trimap"]),
        ("leftImg8bit", ["picture"]),
        ("disparity", ["depth"]),
        ("aachen_000001_000019_gtFine_color", ["other"]),
        ("fg", ["fg"]),
        ("train", []),
        ("f0b1c2d30b11_01", []),
        ("bg_7", ["numbered"]),
        ("SegmentationClass", ["label"]),
        ("alpha", ["label"]),
        ("alphabet", []),
        ("depth_colored", ["depth", "eye"]),
        ("mask_of_zorro_depth_bg_003", ["mask", "depth"]),
    ],
)
def test_words_for_a_role_are_found_in_a_name(part: str, words: list[str]) -> None:
    assert list(filenames.role_words(part)) == words


@pytest.mark.parametrize(
    "companions",
    [
        ("fg_015_bg_085_340600", "mask_fg_015_bg_085_340600", "depth_fg_015_bg_085_340600"),
        ("fg_015_bg_085_340600", "fg_015_bg_085_mask_340600", "fg_015_bg_085_depth_340600"),
        ("fg-bg1", "fg-bg-mask1", "depth1"),
        ("fg_bg_638", "fg_bg_mask_638", "depth_638"),
        ("bgfg_b000_f001_0", "mask_b000_f001_0", "densedepthbgfg_b000_f001_0"),
        ("bg001_fg001_01", "bg001_fg001_01_mask", "bg001_fg001_01_depth_map"),
        ("fgbg000001", "mask000001", "fgbg000001"),
        ("00000_colors", "00000_depth", "00000"),
        ("aachen_000001_leftImg8bit", "aachen_000001_disparity", "aachen_000001"),
    ],
)
def test_companions_share_what_is_left_without_words_for_roles(companions: tuple[str, ...]) -> None:
    assert len({filenames.strip_words(each) for each in companions}) == 1


@pytest.mark.parametrize(
    ("stem", "number"),
    [
        ("fg_015_bg_085_340600", 85),
        ("bg_2fg_103_19", 2),
        ("bg001_fg001_000001", 1),
        ("bgfg_b007_f000_0", 7),
        ("fg_bg_638", -1),
        ("fg_bg42001", -1),
        ("fg-bg1", -1),
        ("images_12", -1),
    ],
)
def test_a_background_number_is_one_that_a_word_announces(stem: str, number: int) -> None:
    assert filenames.background_number(filenames.strip_words(stem)) == number


@pytest.mark.parametrize(
    "base",
    ["", ".DS_Store", "._a.jpg", "Thumbs.db", "desktop.ini", "README.md", "LICENSE"],
)
def test_litter_is_known_by_its_name(base: str) -> None:
    assert file_types.is_junk(base)


@pytest.mark.parametrize("base", ["a.jpg", "readmes1.jpg", "icons.png", "fg_bg_1.jpg"])
def test_pictures_are_no_litter(base: str) -> None:
    assert not file_types.is_junk(base)


@pytest.mark.parametrize("path", ["__MACOSX", "data/__MACOSX/bg", ".git", "a/.ipynb_checkpoints"])
def test_folders_of_the_system_are_litter(path: str) -> None:
    assert file_types.is_junk_folder(path)


@given(st.text(max_size=40))
def test_a_remembered_shape_strips_as_a_fresh_look_does(stem: str) -> None:
    shape, lower = filenames.OutlineCache(filenames.parse_stem), stem.lower()
    shape(lower.translate(str.maketrans("0123456789", "9876543210")))
    assert filenames.join_pieces(lower, shape(lower).pieces) == filenames.strip_words(lower)


@given(st.text(max_size=200))
def test_a_safe_key_is_plain_and_short(text: str) -> None:
    key = filenames.safe_key(text)
    assert 0 < len(key) <= filenames.KEY_LIMIT
    assert all(c.isascii() and (c.isalnum() or c in "_-") for c in key)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train/images", "train"),
        ("nyu2_train/bedroom_0001_out", "train"),
        ("set/val", "val"),
        ("validation/x", "val"),
        ("test", "test"),
        ("leftImg8bit_trainvaltest/leftImg8bit/val/ulm", "val"),
        ("trains/latest", None),
        ("", None),
    ],
)
def test_split_is_read_from_the_folders(path: str, split: str | None) -> None:
    assert filenames.split_in_path(path) == split
