"""A mask's values tell what it is; what is no binary mask is described and never cut to one."""

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shardify.errors import ImageError
from shardify.images.mask_values import Reading, choose_rule, object_plane, read_values
from shardify.images.parser import parse
from shardify.images.pixels import STANDARD, LabelEncoding, normalize, read_mask

SIDE = 80
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
DISTANCE = np.hypot(ROWS - 38, COLUMNS - 43)
DISC = DISTANCE < 22
RING = (DISTANCE >= 22) & (DISTANCE < 23.5)
PHOTO = np.random.Generator(np.random.Philox(key=3)).integers(0, 256, (SIDE, SIDE, 3)).astype("u1")

VOC = [0, 0, 0, *(37 * place % 256 for place in range(765))]
"""A palette of many colours, the first of them black."""


def saved(plane: Any, kind: str = "PNG", **options: Any) -> bytes:
    image = plane if isinstance(plane, Image.Image) else Image.fromarray(plane)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def npy(plane: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, plane)
    return buffer.getvalue()


def flat(level: int, dtype: Any = np.uint8, shape: np.ndarray = DISC) -> np.ndarray:
    return np.where(shape, level, 0).astype(dtype)


def palette(indices: np.ndarray, colours: list[int] = VOC) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


def colours(*each: tuple[int, int, int]) -> np.ndarray:
    """The first colour outside, the others in bands of the disc."""
    plane = np.zeros((SIDE, SIDE, 3), np.uint8)
    plane[:] = each[0]
    for number, colour in enumerate(each[1:]):
        plane[DISC & (ROWS * (len(each) - 1) // SIDE == number)] = colour
    return plane


def resized(from_side: int, filter_: int) -> np.ndarray:
    small = Image.fromarray(flat(255)).resize((from_side, from_side), Image.Resampling.BOX)
    return np.asarray(small.resize((SIDE, SIDE), filter_))


def cutout(alpha: np.ndarray) -> bytes:
    return saved(np.dstack([PHOTO, alpha]))


def reading(data: bytes) -> Reading:
    return read_values(read_mask(data, parse(data)))


@pytest.mark.parametrize(
    ("data", "kind", "form", "top"),
    [
        (saved(flat(255)), "two", "gray", 255),
        (saved(flat(9)), "two", "gray", 9),
        (saved(flat(9, np.uint16)), "two", "gray", 9),
        (saved(flat(300, np.uint16), "TIFF"), "two", "gray", 300),
        (saved(flat(65535, np.uint16)), "two", "gray", 65535),
        (saved(flat(70_000, np.int32), "TIFF"), "two", "gray", 70_000),
        (npy(flat(4, np.int64)), "two", "gray", 4),
        (npy(DISC), "two", "gray", 255),
        (npy(flat(1, np.float32)), "two", "gray", 65535),
        (npy(flat(255, np.float64)), "two", "gray", 255),
        (saved(palette(flat(2))), "two", "palette", 2),
        (saved(palette(flat(1), [255, 255, 255, 0, 0, 0])), "two", "gray", 255),
        (saved(flat(255), "GIF"), "two", "gray", 255),
        (saved(Image.fromarray(DISC)), "two", "gray", 255),
        (saved(flat(255), "JPEG", quality=30), "soft", "gray", 255),
        (saved(flat(255, shape=DISTANCE < 5), "JPEG", quality=30), "soft", "gray", 255),
        (saved(flat(255, shape=np.abs(DISTANCE - 20) < 1), "JPEG"), "soft", "gray", 255),
        (saved(np.array([[0, 180, 90, 255]], np.uint8)), "soft", "gray", 255),
        (saved(np.repeat(flat(255)[..., None], 3, 2), "JPEG"), "soft", "gray", 255),
        (saved(resized(20, Image.Resampling.BILINEAR)), "soft", "gray", 255),
        (saved(resized(30, Image.Resampling.BICUBIC), "JPEG"), "soft", "gray", 255),
        (saved(resized(40, Image.Resampling.NEAREST)), "soft", "gray", 255),
        (saved(resized(30, Image.Resampling.BICUBIC).astype(np.uint16) * 257), "soft", "gray",
         65535),
        (npy(resized(30, Image.Resampling.BILINEAR) / 255), "soft", "gray", 65535),
        (saved(colours((0, 0, 0), (200, 30, 10))), "two", "color", 255),
        (saved(colours((0, 0, 0), (20, 30, 110)), "JPEG", quality=90), "soft", "color", 255),
        (cutout(flat(255)), "two", "alpha", 255),
        (saved(np.zeros((SIDE, SIDE), np.uint8)), "empty", "gray", 0),
        (saved(np.full((SIDE, SIDE), 3, np.uint16)), "full", "gray", 3),
    ],
)  # fmt: skip
def test_a_binary_mask_is_known_by_its_values(data: bytes, kind: str, form: str, top: int) -> None:
    found = reading(data)
    assert (found.kind, found.form, found.problem) == (kind, form, "")
    assert abs(found.top - top) <= (6 if kind == "soft" else 0)


VOID = np.where(RING, 255, flat(4))
TRIMAP = np.where(DISTANCE < 16, 255, np.where(DISTANCE < 24, 127, 0)).astype(np.uint8)
MATTE = np.clip(255 - (DISTANCE - 8) * 9, 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (saved(VOID.astype(np.uint8)), "the values 0, 4, 255, of which 255 is thin .*void"),
        (saved(palette(VOID)), "the values 0, 4, 255, of which 255 is thin .*void"),
        (npy(VOID.astype(np.int32)), "void"),
        (saved(TRIMAP), "0, 127, 255, of which 127 fills areas .a trimap"),
        (saved(TRIMAP, "JPEG", quality=80), "of which about 12. fills areas .a trimap"),
        (saved(TRIMAP.astype(np.uint16) * 257), "a trimap"),
        (saved(np.where(DISTANCE < 12, 1, np.where(DISTANCE < 18, 3, 2)).astype("u1")), "Oxford"),
        (saved(flat(1) + flat(1, shape=DISTANCE < 9)), "the values 0, 1, 2 .a class map"),
        (saved(palette(flat(1) + flat(2, shape=DISTANCE < 9))), "the values 0, 1, 3 .a class map"),
        (saved(np.where(DISC, 7, 3).astype(np.uint8)), "3, 7, without 0"),
        (saved(MATTE), "a matte"),
        (saved(MATTE, "JPEG"), "a matte"),
        (cutout(MATTE), "a matte"),
        (saved(resized(30, Image.Resampling.BICUBIC) // 3), "up to 8. only"),
        (saved(colours((0, 0, 0), (200, 30, 10), (10, 200, 30))), "#c81e0a, #0ac81e .a class map"),
        (saved(colours((90, 0, 0), (10, 20, 220))), "neither of them black"),
        (npy(flat(-1, np.int16)), "negative"),
        (npy(np.where(DISC, np.nan, 0)), "no numbers"),
        (saved(np.dstack([*[flat(255)] * 3, flat(255, shape=ROWS < 30)])), "another in its alpha"),
    ],
)
def test_what_is_no_binary_mask_is_described(data: bytes, problem: str) -> None:
    assert re.search(problem, reading(data).problem)
    if parse(data).trait or parse(data).bits != 8:
        with pytest.raises(ImageError, match=problem):
            normalize(data, parse(data), "mask", STANDARD)


def rule_of(*masks: bytes) -> tuple[str, bool]:
    return choose_rule([reading(each) for each in masks], [f"{n}.png" for n in range(len(masks))])


EMPTY = saved(np.zeros((SIDE, SIDE), np.uint8))


@pytest.mark.parametrize(
    ("masks", "rule"),
    [
        ([saved(flat(255)), EMPTY, saved(flat(255), "JPEG")], "threshold"),
        ([saved(flat(255, np.uint16)), saved(flat(255))], "threshold"),
        ([saved(flat(65535, np.uint16))], "threshold 65535"),
        ([saved(flat(1)), EMPTY, saved(flat(1, np.uint16))], "level 1"),
        ([saved(flat(77, np.uint16))], "level 77"),
        ([saved(palette(flat(3)))], "level 3"),
        ([saved(palette(flat(level))) for level in (1, 2, 9)], "one value"),
        ([saved(flat(level, np.uint16)) for level in (4, 900, 12)], "one value"),
        ([cutout(flat(255)), cutout(flat(255, shape=RING))], "alpha"),
        ([cutout(flat(255)), saved(flat(255))], "threshold"),
        ([saved(colours((0, 0, 0), (9, 9, 200))), saved(colours((0, 0, 0), (200, 200, 0)))],
         "color"),
        ([EMPTY], "threshold"),
    ],
)  # fmt: skip
def test_masks_of_one_data_set_give_one_rule(masks: list[bytes], rule: str) -> None:
    assert rule_of(*masks) == (rule, False)
    for data in masks:
        plane = object_plane(read_mask(data, parse(data), rule), rule)
        assert plane.any() == (data != EMPTY)
        assert set(np.unique(plane)) <= {0, 255}
        if reading(data).kind == "two" and plane.sum() > 255 * 1000:
            assert ((plane > 0) == DISC).all()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ([saved(flat(1)), saved(flat(255))],
         "^0.png: masks of mixed meaning: the values 0, 1 here, the values 0, 255 in 1.png"),
        ([saved(flat(255, np.uint16)), saved(flat(65535, np.uint16))], "mixed meaning"),
        ([saved(palette(flat(3))), saved(flat(255))], "mixed .*palette indices"),
        ([EMPTY, saved(palette(VOID)), saved(palette(flat(4)))],
         r"^1.png: .*void line\) \(1 of 2 masks"),
    ],
)  # fmt: skip
def test_masks_of_several_meanings_are_refused_by_name(masks: list[bytes], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        rule_of(*masks)


def test_one_odd_mask_among_many_has_every_mask_checked() -> None:
    assert rule_of(*[saved(flat(255))] * 12, saved(TRIMAP)) == ("threshold", True)


def cells(numbers: list[int], dtype: Any = np.uint16) -> bytes:
    """Squares with the numbers, in rows of five."""
    plane = np.zeros((SIDE, SIDE), dtype)
    for place, number in enumerate(numbers):
        row, column = 15 * (place // 5), 15 * (place % 5)
        plane[row + 2 : row + 12, column + 2 : column + 12] = number
    return saved(plane)


def test_numbers_that_count_the_objects_of_each_picture_are_instance_ids() -> None:
    masks = [cells(list(range(1, count + 1))) for count in (3, 7, 1, 12, 22)]
    assert rule_of(*masks, EMPTY) == ("nonzero", False)
    data = masks[3]
    assert object_plane(read_mask(data, parse(data)), "nonzero").sum() == 255 * 12 * 100


@pytest.mark.parametrize(
    "numbers",
    [
        [[1, 2, 3]] * 4,  # the same in every picture
        [[1], [1, 2], [1, 2], [1]],  # an organ and what grows in it
        [[2, 7, 11], [1, 7], [8, 11, 12, 13], [2, 13], [1, 2, 5]],  # with gaps
    ],
)
def test_a_few_values_that_recur_are_classes(numbers: list[list[int]]) -> None:
    for dtype in (np.uint8, np.uint16):
        with pytest.raises(ImageError, match="class map"):
            rule_of(*(cells(each, dtype) for each in numbers))


def test_numbers_that_cover_the_whole_picture_are_no_objects() -> None:
    full = [saved(np.full((SIDE, SIDE), level, np.uint16)) for level in (24001, 26004, 33)]
    with pytest.raises(ImageError, match="nearly nothing at 0"):
        rule_of(*full, saved(flat(7, np.uint16)))


@pytest.mark.parametrize(
    ("rule", "misfit"),
    [
        ("threshold", saved(flat(149, np.uint16))),
        ("threshold", saved(flat(65535, np.uint16))),
        ("threshold", saved(palette(flat(255)))),
        ("threshold", saved(colours((0, 0, 0), (200, 30, 10)))),
        ("threshold", saved(MATTE)),
        ("threshold 65535", saved(flat(255))),
        ("level 3", saved(flat(4))),
        ("level 3", saved(flat(3) + flat(1, shape=RING))),
        ("nonzero", saved(palette(VOID))),
        ("one value", saved(flat(1) + flat(1, shape=DISTANCE < 9))),
        ("nonzero", saved(flat(255), "JPEG")),
        ("alpha", saved(flat(255))),
        ("alpha", cutout(MATTE)),
        ("color", saved(colours((0, 0, 0), (200, 30, 10), (10, 200, 30)))),
        ("color", cutout(flat(255))),
    ],
)
def test_a_mask_that_the_rule_does_not_fit_is_refused(rule: str, misfit: bytes) -> None:
    with pytest.raises(ImageError, match="a mask "):
        object_plane(read_mask(misfit, parse(misfit), rule), rule)


@pytest.mark.parametrize(
    ("rule", "data", "expected"),
    [
        ("level 4", saved(palette(VOID)), DISC & ~RING),
        ("level 0", saved(flat(255)), ~DISC),
        ("nonzero", saved(palette(VOID)), DISC | RING),
        ("nonzero", saved(colours((0, 0, 0), (200, 30, 10), (10, 200, 30))), DISC),
        ("threshold", saved(MATTE), MATTE >= 150),
        ("alpha", cutout(MATTE), MATTE >= 150),
    ],
)
def test_a_rule_given_by_the_user_is_followed(rule: str, data: bytes, expected: np.ndarray) -> None:
    encoding = LabelEncoding(rule, mask_given=True)
    found = normalize(data, parse(data), "mask", encoding, decode=True).plane
    assert found is not None and ((found == 255) == expected).all()


def test_each_picture_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image as module

    calls = []
    opened: Callable[..., Any] = module.open
    monkeypatch.setattr(module, "open", lambda data: calls.append(1) or opened(data))
    for data in (cutout(flat(255)), saved(palette(flat(2))), saved(flat(255))):
        rule = "level 2" if parse(data).trait == "palette" else "threshold"
        calls.clear()
        found = normalize(data, parse(data), "mask", LabelEncoding(rule), decode=True)
        assert found.plane is not None and ((found.plane == 255) == DISC).all()
        assert len(calls) == 1
