"""Headers say what Pillow says, and a picture that is not whole is never called whole."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardify.errors import ImageError
from shardify.images import MASK_THRESHOLD, MAX_PIXELS, Picture, decode, measure, parse


def picture(mode: str, kind: str, *, size: tuple[int, int] = (23, 17), **options: Any) -> bytes:
    noise = np.random.Generator(np.random.Philox(key=7)).integers(0, 256, (size[1], size[0], 4))
    image = Image.fromarray(noise.astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray((noise[..., 0] * 257).astype(np.uint16))
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "options", "expected"),
    [
        ("RGB", {}, ("jpg", 23, 17, 3, 8)),
        ("RGB", {"progressive": True}, ("jpg", 23, 17, 3, 8)),
        ("RGB", {"quality": 5, "optimize": True}, ("jpg", 23, 17, 3, 8)),
        ("RGB", {"restart_marker_blocks": 1}, ("jpg", 23, 17, 3, 8)),
        ("L", {}, ("jpg", 23, 17, 1, 8)),
        ("CMYK", {}, ("jpg", 23, 17, 4, 8)),
    ],
    ids=["plain", "progressive", "optimised", "restarts", "gray", "cmyk"],
)
def test_a_jpeg_is_known_by_its_header(
    mode: str, options: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert parse(picture(mode, "JPEG", **options)) == Picture(*expected)


@pytest.mark.parametrize(
    ("mode", "channels", "bits"),
    [("RGB", 3, 8), ("L", 1, 8), ("LA", 2, 8), ("RGBA", 4, 8), ("P", 3, 8), ("1", 1, 1),
     ("I;16", 1, 16)],
)  # fmt: skip
def test_a_png_is_known_by_its_header(mode: str, channels: int, bits: int) -> None:
    assert parse(picture(mode, "PNG")) == Picture("png", 23, 17, channels, bits)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_cut_is_noticed(kind: str, progressive: bool) -> None:
    data = picture("RGB", kind, **({"progressive": progressive} if kind == "JPEG" else {}))
    parse(data)
    for length in range(len(data)):
        with pytest.raises(ImageError):
            parse(data[:length])


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_behind_the_end_are_allowed(kind: str) -> None:
    data = picture("RGB", kind)
    assert parse(data + bytes(99)) == parse(data)
    assert parse(data + data) == parse(data)


def test_every_flipped_byte_of_a_png_is_noticed() -> None:
    data = picture("L", "PNG")
    for place in range(len(data)):
        with pytest.raises(ImageError):
            parse(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]))
def test_any_bytes_are_a_picture_or_an_image_error(tail: bytes, head: bytes) -> None:
    with pytest.raises(ImageError):
        parse(head + tail)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 255))
def test_a_damaged_jpeg_is_a_picture_or_an_image_error(place: int, value: int) -> None:
    data = bytearray(picture("RGB", "JPEG", progressive=True))
    data[place % len(data)] = value
    try:
        assert parse(bytes(data)).kind == "jpg"
    except ImageError as error:
        assert "\n" not in str(error)


def giant_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(
            ">L", zlib.crc32(kind + body)
        )  # fmt: skip

    header = struct.pack(">2L5B", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(9)))
        + chunk(b"IEND", b"")
    )


def test_a_giant_is_refused_by_its_header() -> None:
    with pytest.raises(ImageError, match="megapixels"):
        parse(giant_png(2**31 - 1, 2**31 - 1))
    with pytest.raises(ImageError, match="0x5"):
        parse(giant_png(0, 5))
    assert parse(giant_png(MAX_PIXELS // 1024, 1024)).height == 1024


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"hello, this is text", "not an image"),
        (b"GIF89a", "GIF"),
        (b"BM1234", "BMP"),
        (b"RIFF\0\0\0\0WEBP", "WebP"),
        (bytes(50), "zero bytes"),
        (b"\xff\xd8\xff\xd9", "no picture"),
    ],
)
def test_what_is_not_taken_is_named(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        parse(data)


def test_pixels_come_out_as_pillow_gives_them() -> None:
    data = picture("RGB", "PNG")
    with Image.open(io.BytesIO(data)) as image:
        assert (decode(data, mode="RGB") == np.asarray(image)).all()
    wide = picture("I;16", "PNG")
    assert decode(wide, mode="I;16").dtype == np.uint16
    assert decode(wide, mode="I;16").max() > 60_000


def test_damaged_pixels_are_an_image_error() -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        decode(giant_png(1000, 1000), mode="L")


def test_moments_are_those_of_the_pixels() -> None:
    data = picture("RGB", "PNG", size=(64, 48))
    mean, std = measure(data, parse(data), "fg_bg")
    pixels = decode(data, mode="RGB") / 255.0
    assert mean == pytest.approx(pixels.mean((0, 1)).tolist())
    assert std == pytest.approx(pixels.std((0, 1)).tolist())


def test_a_mask_is_measured_after_its_threshold() -> None:
    plane = np.array([[0, MASK_THRESHOLD - 1], [MASK_THRESHOLD, 255]], np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "PNG")
    data = buffer.getvalue()
    assert measure(data, parse(data), "mask") == ([0.5], [0.5])


def test_a_16_bit_depth_is_measured_at_its_full_precision() -> None:
    data = picture("I;16", "PNG")
    mean, std = measure(data, parse(data), "depth")
    pixels = decode(data, mode="I;16") / 65535.0
    assert mean == pytest.approx([pixels.mean()])
    assert std == pytest.approx([pixels.std()])
