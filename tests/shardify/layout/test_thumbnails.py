"""What a picture shows is told by its pixels, however they are stored."""

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from shardify.errors import EntryError
from shardify.layout.thumbnails import kind_of_files, pixel_kind

RNG = np.random.default_rng(3)
DISC = np.hypot(*(np.mgrid[:60, :80] - [[[30]], [[40]]])) < 20
RAMP = np.tile(np.linspace(10, 240, 80), (60, 1))
PHOTO = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8)).resize((80, 60), Image.BICUBIC)
)
VOID = np.where(DISC, 15, 0).astype(np.uint8)
VOID[8:14] = 255


def saved(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def plane(values: npt.NDArray[np.generic], kind: str = "PNG") -> bytes:
    return saved(Image.fromarray(values), kind)


def array(values: npt.NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def palette(values: npt.NDArray[np.uint8]) -> bytes:
    image = Image.new("P", values.shape[::-1])
    image.putdata(values.ravel().tolist())
    image.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    return saved(image)


def rgba(colour: npt.NDArray[np.uint8], alpha: npt.NDArray[np.bool_]) -> bytes:
    return plane(np.dstack([colour, np.where(alpha, 255, 0).astype(np.uint8)]))


WHITE = np.full((60, 80, 3), 255, np.uint8)
RED = np.where(DISC[..., None], [200, 30, 30], 0).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (plane(PHOTO), "picture"),
        (plane(PHOTO, "JPEG"), "picture"),
        (plane(PHOTO[..., 0]), "gray"),
        (plane(DISC), "two"),
        (plane(DISC.astype(np.uint8)), "two"),
        (plane(np.where(DISC, 255, 0).astype(np.uint8)), "two"),
        (plane(np.where(DISC, 255, 0).astype(np.uint8), "JPEG"), "two"),
        (plane(np.where(DISC, 65535, 0).astype(np.uint16)), "two"),
        (array(DISC), "two"),
        (palette(DISC.astype(np.uint8)), "two"),
        (plane(RED), "two"),
        (rgba(WHITE, DISC), "two"),
        (plane(VOID), "few"),
        (palette(VOID), "few"),
        (plane(np.where(DISC, 128, VOID).astype(np.uint8)), "few"),
        (rgba(PHOTO, DISC), "cutout"),
        (plane(RAMP.astype(np.uint8)), "gray"),
        (plane(RAMP.astype(np.uint8), "JPEG"), "gray"),
        (plane(np.repeat(RAMP.astype(np.uint8)[..., None], 3, axis=2)), "gray"),
        (plane((RAMP * 200).astype(np.uint16)), "gray"),
        (array(RAMP.astype(np.float32)), "gray"),
        (array(np.where(DISC, np.nan, RAMP)), "gray"),
        (plane(np.zeros((9, 9), np.uint8)), None),
        (b"no picture", None),
        (plane(PHOTO)[:60], None),
    ],
)
def test_a_kind_is_told_by_pixels(data: bytes, kind: str | None) -> None:
    assert pixel_kind(data) == kind


def test_files_have_a_kind_where_nearly_all_agree() -> None:
    data = [plane(DISC)] * 9 + [plane(RAMP.astype(np.uint8)), b"damaged"]

    def read(index: int) -> bytes:
        if index == 11:
            raise EntryError("gone")
        return data[index]

    assert kind_of_files(range(12), read) == ("two", {"two": 9, "gray": 1})
    assert kind_of_files([0, 9], read) == (None, {"two": 1, "gray": 1})
    assert kind_of_files([10, 11], read) == (None, {})
