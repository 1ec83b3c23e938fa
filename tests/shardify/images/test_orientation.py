"""Labels of pictures that EXIF turns lie on the pixels as stored, or as shown."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from shardify.errors import ImageError
from shardify.images.orientation import edge_agreement, fitting_frame, label_orientation, turn
from shardify.images.parser import ImageInfo

PLANE = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


def info(width: int, height: int, orientation: int = 1) -> ImageInfo:
    return ImageInfo("jpg", width, height, 3, 8, "rotated" if orientation > 1 else "", orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_turned_as_pillow_turns_them(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(PLANE).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(turn(PLANE, orientation), expected)
    assert np.array_equal(turn(PLANE[..., 0], orientation), expected[..., 0])


def test_size_tells_the_frame_where_it_can() -> None:
    picture = info(80, 60, 8)
    for scale in (1, 2):
        assert fitting_frame(info(80 // scale, 60 // scale), picture) == "stored"
        assert fitting_frame(info(60 // scale, 80 // scale), picture) == "turned"
    assert fitting_frame(info(70, 70), info(70, 70, 6)) is None
    assert fitting_frame(info(80, 60), info(80, 60, 3)) is None


def test_a_label_is_turned_with_its_picture_only_if_it_lies_on_the_stored_pixels() -> None:
    assert label_orientation(info(80, 60), info(80, 60, 8), "") == 8
    assert label_orientation(info(60, 80), info(80, 60, 8), "") == 1
    assert label_orientation(info(70, 70), info(70, 70, 6), "stored") == 6
    assert label_orientation(info(70, 70), info(70, 70, 2), "turned") == 1
    assert label_orientation(info(80, 60), info(80, 60), "stored") == 1
    assert label_orientation(info(70, 70, 6), info(70, 70, 6), "stored") == 1


def test_a_label_that_contradicts_the_rule_or_cannot_be_told_is_refused() -> None:
    with pytest.raises(ImageError, match=r"EXIF \(orientation 6\).*lies on the turned pixels"):
        label_orientation(info(60, 80), info(80, 60, 6), "stored")
    with pytest.raises(ImageError, match=r"EXIF.*does not tell"):
        label_orientation(info(70, 70), info(70, 70, 3), "")


def test_edges_agree_where_a_label_lies_on_its_object() -> None:
    rng = np.random.Generator(np.random.Philox(key=1))
    picture = rng.integers(0, 60, (64, 64)).astype(np.float32)
    mask = np.zeros((64, 64), np.uint8)
    mask[5:20, 8:40] = 255
    picture[5:20, 8:40] += 150
    right, wrong = edge_agreement(picture, mask), edge_agreement(picture, mask[::-1])
    assert right > wrong + 0.2
    assert edge_agreement(picture, np.zeros_like(mask)) == 0
