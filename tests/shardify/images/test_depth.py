"""One rule says what the depths of a data set mean, and every map that breaks it is refused."""

import numpy as np
import pytest

from shardify.errors import ImageError
from shardify.images.depth import (
    DepthEncoding,
    choose_depth_encoding,
    convert_depth,
    depth_values,
    unexplained_zeros,
)

RAMP = np.linspace(0.5, 1, 24, dtype=np.float32).reshape(4, 6)


def chosen(*planes: np.ndarray, given: DepthEncoding | None = None) -> DepthEncoding:
    marks = given.invalid if given else ()
    maps = [depth_values(each, name=f"{n}.npy", invalid=marks) for n, each in enumerate(planes)]
    return choose_depth_encoding(maps, given)


def with_mark(plane: np.ndarray, mark: float) -> np.ndarray:
    marked = plane.copy()
    marked[0, :2] = mark
    return marked


@pytest.mark.parametrize(
    ("plane", "scale", "unit"),
    [(RAMP, 65535, ""), (RAMP * 80, 256, ""), (np.rint(RAMP * 8123), 1, "mm")],
)
def test_the_scale_follows_the_largest_value(plane: np.ndarray, scale: float, unit: str) -> None:
    encoding = chosen(plane, plane / 2 if scale != 1 else plane)
    assert (encoding.scale, encoding.unit, encoding.invalid) == (scale, unit, ())
    assert (convert_depth(plane, encoding) == np.rint(plane.astype(float) * scale)).all()


@pytest.mark.parametrize("mark", [1e10, 65504.0, 65535.0, 3.4028234663852886e38])
@pytest.mark.parametrize("factor", [1, 80, 8000])
def test_a_value_far_above_all_others_means_no_depth(mark: float, factor: int) -> None:
    plane = RAMP * factor
    if factor > 255:
        plane = np.rint(plane)
    encoding = chosen(plane, with_mark(plane, mark))
    assert encoding.invalid == (mark,)
    assert encoding.has_holes
    stored = convert_depth(with_mark(plane, mark), encoding)
    assert stored[0, :2].tolist() == [0, 0]
    assert (stored[1:] == convert_depth(plane, encoding)[1:]).all()
    assert f"{mark:g} to 0" in encoding.step_text


def test_not_a_number_infinity_and_negative_values_mean_no_depth() -> None:
    plane = RAMP.copy()
    plane[0, :3] = np.nan, np.inf, -1
    encoding = chosen(plane)
    assert (encoding.scale, encoding.has_holes) == (65535, True)
    assert convert_depth(plane, encoding)[0, :3].tolist() == [0, 0, 0]


def test_a_mark_that_is_not_apart_is_told_with_the_remedy() -> None:
    with pytest.raises(ImageError, match=r"1\.npy: depth of up to 65504; .*\[depth\] scale = 1 .*"
                       r"or invalid = 65504"):  # fmt: skip
        chosen(RAMP, with_mark(RAMP * 40000.5, 65504))


def test_values_beyond_what_can_be_stored_are_told_with_the_remedy() -> None:
    with pytest.raises(ImageError, match=r"0\.npy: depth of up to 900; at most 256 .* scale = 10 "):
        chosen(RAMP * 900, RAMP)
    encoding = chosen(RAMP * 900, given=DepthEncoding(scale=50, unit="m"))
    assert convert_depth(RAMP * 900, encoding).max() == 45000
    with pytest.raises(ImageError, match="depth of up to 1400 m; at most 1310"):
        convert_depth(RAMP * 1400, encoding)


def test_a_later_map_that_breaks_the_rule_is_refused() -> None:
    relative = chosen(RAMP)
    with pytest.raises(ImageError, match="depth of up to 2; at most 1 "):
        convert_depth(RAMP * 2, relative)
    with pytest.raises(ImageError, match="integer depth among floating-point maps"):
        convert_depth(np.ones((4, 6), np.uint16), relative)
    with pytest.raises(ImageError, match=r"0\.npy \(floating-point\)|1\.npy \(integer\)"):
        chosen(RAMP, np.ones((4, 6), np.uint8))
    kitti = chosen(RAMP * 80)
    with pytest.raises(ImageError, match=r"1e\+10"):
        convert_depth(with_mark(RAMP, 1e10), kitti)


def test_16_bits_full_of_values_are_kept_and_a_lone_65535_means_no_depth() -> None:
    full = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    assert chosen(full).invalid == ()
    assert convert_depth(full, chosen(full)) is full
    millimetres = np.rint(RAMP * 9000).astype(np.uint16)
    encoding = chosen(millimetres, with_mark(millimetres, 65535))
    assert (encoding.invalid, encoding.scale) == ((65535,), None)
    assert encoding.needs_values(16)
    assert not encoding.needs_values(8)
    assert convert_depth(with_mark(millimetres, 65535), encoding)[0, :2].tolist() == [0, 0]
    assert convert_depth(millimetres, encoding) is millimetres


def test_integers_beyond_16_bits_are_never_cut_off_in_silence() -> None:
    with pytest.raises(ImageError, match="depth of up to 70000; at most 65535"):
        chosen(np.full((2, 2), 70000))
    holes = np.array([[-1, 300], [400, 500]], np.int32)
    encoding = chosen(holes)
    assert encoding.has_holes
    assert convert_depth(holes, encoding).tolist() == [[0, 300], [400, 500]]


def test_a_stated_maximum_and_invalid_value_are_held_against_integers_too() -> None:
    given = DepthEncoding(scale=1000, unit="m", maximum=10, invalid=(7,), has_holes=True)
    plane = np.array([[7, 9999], [1, 10000]], np.uint16)
    encoding = chosen(plane, given=given)
    assert encoding.needs_values(16)
    assert convert_depth(plane, encoding).tolist() == [[0, 9999], [1, 10000]]
    with pytest.raises(ImageError, match="depth of up to 10001 "):
        convert_depth(plane + 1, encoding)


def told(*planes: np.ndarray, given: DepthEncoding | None = None) -> float:
    maps = [depth_values(each, invalid=given.invalid if given else ()) for each in planes]
    return unexplained_zeros(maps, choose_depth_encoding(maps, given), given)


@pytest.mark.parametrize("factor", [8000, 80])
def test_more_than_a_hundredth_of_zeros_means_no_depth_in_16_bits(factor: int) -> None:
    dtype = np.uint16 if factor == 8000 else np.float32
    plane = np.full((20, 20), 0.7) * factor
    holes = plane.copy()
    holes.flat[:9] = 0
    plane, holes = plane.astype(dtype), holes.astype(dtype)
    assert told(holes, plane) == pytest.approx(9 / 800)
    assert told(holes, plane, plane) == 0  # 0.75 %.
    assert told(holes, given=DepthEncoding(has_holes=None)) == 0


def test_zeros_are_depths_in_8_bits_and_in_relative_maps() -> None:
    plane = np.zeros((4, 6), np.uint8)
    plane[0] = 200
    assert told(plane) == 0
    relative = np.where(plane > 0, RAMP, 0)
    assert told(relative) == 0
    assert told(relative * 80) == pytest.approx(18 / 24)


def test_a_user_can_say_that_every_value_is_a_depth() -> None:
    complete = DepthEncoding(has_holes=None)
    plane = np.array([[0, 300], [400, 65535]], np.uint16)
    assert chosen(plane).invalid == (65535,)
    encoding = chosen(plane, given=complete)
    assert (encoding.invalid, encoding.has_holes) == ((), False)
    assert convert_depth(plane, encoding) is plane
    # What is no number cannot be a depth.
    assert chosen(np.float32([[np.nan, 300.5], [0, 1]]) / 10, given=complete).has_holes
