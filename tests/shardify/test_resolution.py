import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardify.resolution import Resolution, is_resolution, parse_resolutions, resolution

SIDES = st.integers(1, 8192)


@given(SIDES, SIDES)
def test_every_written_form_is_read_back(height: int, width: int) -> None:
    size = Resolution(height, width)
    for form in (str(size), size.to_json(), (height, width), f"{height}x{width}"):
        assert resolution(form) == size
    assert is_resolution(json.loads(json.dumps(size.to_json())))


def test_a_square_is_written_as_its_side() -> None:
    square, wide = resolution("64x64"), resolution("128x224")
    assert (str(square), square.to_json(), square.folder) == ("64", 64, "res-064")
    assert (str(wide), wide.to_json(), wide.folder) == ("128x224", "128x224", "res-128x224")
    assert (wide.height, wide.width, wide.pixels) == (128, 224, 128 * 224)
    assert parse_resolutions("64,128x224") == (square, wide)


@pytest.mark.parametrize(
    "text",
    ["", "x", "64x", "x64", "0", "0x64", "-1", "64x64x64", "6 4", "64.5", "8193", "²", "9" * 99],
)
def test_anything_else_is_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(ValueError, match="expected a side in pixels, 1 to 8192, or HEIGHTxWIDTH"):
        resolution(text)


@pytest.mark.parametrize("value", [None, True, 1.5, 0, -1, (), (1, 2, 3), (1, None), "64", {}])
def test_json_that_no_resolution_is_written_as(value: object) -> None:
    assert not is_resolution(value)
