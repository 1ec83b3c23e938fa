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
from shardify.images.parser import MAX_PIXELS, ImageInfo, parse


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
        ("CMYK", {}, ("jpg", 23, 17, 4, 8, "CMYK")),
    ],
    ids=["plain", "progressive", "optimised", "restarts", "gray", "cmyk"],
)
def test_a_jpeg_is_known_by_its_header(
    mode: str, options: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert parse(picture(mode, "JPEG", **options)) == ImageInfo(*expected)


@pytest.mark.parametrize(
    ("mode", "channels", "bits"),
    [("RGB", 3, 8), ("L", 1, 8), ("LA", 2, 8), ("RGBA", 4, 8), ("P", 3, 8), ("1", 1, 1),
     ("I;16", 1, 16)],
)  # fmt: skip
def test_a_png_is_known_by_its_header(mode: str, channels: int, bits: int) -> None:
    assert parse(picture(mode, "PNG"))._replace(trait="") == ImageInfo(
        "png", 23, 17, channels, bits
    )


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
        (b"GIF89a", "damaged GIF"),
        (b"BM1234", "damaged BMP"),
        (b"RIFF\0\0\0\0WEBP", "damaged WEBP"),
        (b"II*\0", "damaged TIF"),
        (b"\x93NUMPY\1\0", "damaged NPY"),
        (bytes(50), "zero bytes"),
        (b"\xff\xd8\xff\xd9", "no picture"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        parse(data)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "WEBP", "TIFF"])
def test_other_formats_are_known_by_their_header(kind: str) -> None:
    found = parse(picture("RGB", kind))
    assert found.kind == {"TIFF": "tif"}.get(kind, kind.lower())
    assert (found.width, found.height) == (23, 17)


def test_an_animation_is_refused() -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 99, 200)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="3 pictures"):
        parse(buffer.getvalue())


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def test_an_array_is_known_by_its_header() -> None:
    assert parse(npy(np.zeros((5, 7), np.float32))) == ImageInfo("npy", 7, 5, 1, 32, "float32")
    assert parse(npy(np.zeros((5, 7, 1), np.uint8))) == ImageInfo("npy", 7, 5, 1, 8, "uint8")
    for bad in (npy(np.zeros((5, 7)))[:-1], npy(np.zeros(5)), npy(np.array([{}, 1], object))):
        with pytest.raises(ImageError):
            parse(bad)


@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_a_turned_jpeg_is_known_by_its_exif(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    found = parse(picture("RGB", "JPEG", exif=exif.tobytes()))
    assert found.trait == ("" if turn == 1 else "rotated")


@pytest.mark.parametrize(
    ("mode", "trait"), [("P", "palette"), ("RGBA", "alpha"), ("LA", "alpha"), ("L", "")]
)
def test_what_a_png_has_beside_plain_pixels_is_told(mode: str, trait: str) -> None:
    assert parse(picture(mode, "PNG")).trait == trait


@pytest.mark.parametrize("turn", [1, 3, 6])
def test_a_png_that_asks_to_be_turned_is_not_taken_as_it_is(turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    data = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(data, "PNG", exif=exif)
    assert parse(data.getvalue()).trait == ("" if turn == 1 else "rotated")
