"""Formats other than JPEG and PNG are read by their first bytes, or named with the remedy."""

import importlib
import io
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shardify.errors import ImageError
from shardify.images.formats import load_array
from shardify.images.parser import MAX_PIXELS, parse
from shardify.images.pixels import STANDARD, LabelEncoding, normalize, pixels, values_of
from shardify.writer.sample_check import parse_named

DEPTH = np.random.Generator(np.random.Philox(key=3)).random((5, 7)).astype(np.float32)
WIDE = np.random.Generator(np.random.Philox(key=4)).integers(0, 1 << 16, (5, 7, 3), np.uint16)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))


def png16(plane: np.ndarray) -> bytes:
    height, width, _ = plane.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in plane)
    header = struct.pack(">2L5B", width, height, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def tiff16(plane: np.ndarray, order: str) -> bytes:
    height, width, _ = plane.shape
    body = plane.astype(f"{order}u2").tobytes()
    tags = [(256, width), (257, height), (258, 0), (259, 1), (262, 2), (273, 0), (277, 3),
            (278, height), (279, len(body)), (284, 1)]  # fmt: skip
    bits_at = 8 + 2 + 12 * len(tags) + 4
    places = {258: bits_at, 273: bits_at + 6}
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}LH", 8, len(tags))
    for tag, value in tags:
        count = 3 if tag == 258 else 1
        if tag in places or tag == 279:
            kind = 3 if tag == 258 else 4
            data += struct.pack(f"{order}HHLL", tag, kind, count, places.get(tag, value))
        else:
            data += struct.pack(f"{order}HHLHH", tag, 3, count, value, 0)
    return data + bytes(4) + struct.pack(f"{order}3H", 16, 16, 16) + body


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def pfm(plane: np.ndarray, order: str = "<") -> bytes:
    height, width = plane.shape[:2]
    kind = "Pf" if plane.ndim == 2 else "PF"
    scale = -1.0 if order == "<" else 1.0
    return (
        f"{kind}\n{width} {height}\n{scale}\n".encode() + plane[::-1].astype(f"{order}f4").tobytes()
    )


def exr(path: Path, channels: dict[str, np.ndarray], compression: str = "ZIP") -> bytes:
    library = pytest.importorskip("OpenEXR")
    header = {
        "compression": getattr(library, f"{compression}_COMPRESSION"),
        "type": library.scanlineimage,
    }
    library.File(header, channels).write(str(path / "x.exr"))
    return (path / "x.exr").read_bytes()


def picture(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray((WIDE >> 8).astype(np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_pfm_is_read_in_both_byte_orders_with_its_bottom_row_first(order: str) -> None:
    for plane in (DEPTH, np.repeat(DEPTH[..., None], 3, axis=2)):
        data = pfm(plane, order)
        found = parse(data)
        assert (found.kind, found.width, found.height) == ("pfm", 7, 5)
        assert (load_array(data, "pfm", "depth") == plane).all()
    with pytest.raises(ImageError, match="length disagree"):
        parse(data[:-1])


def test_an_npz_gives_its_one_array_or_the_one_named_for_depth() -> None:
    other = np.zeros((3, 3))
    for data in (npz(x=DEPTH), npz(True, x=DEPTH), npz(k=other, depth=DEPTH), npz(True, arr_0=DEPTH,
                 k=other), npz(x=DEPTH[None])):  # fmt: skip
        found = parse(data)
        assert (found.kind, found.width, found.height) == ("npz", 7, 5)
        assert (load_array(data, "npz", "depth") == DEPTH).all()
    with pytest.raises(ImageError, match=r"2 arrays \(k, z\); expected one, or a depth map named"):
        parse(npz(k=other, z=DEPTH))
    with pytest.raises(ImageError, match="2 arrays"):
        load_array(npz(k=other, depth=DEPTH), "npz", "mask")


def test_a_bomb_in_an_npz_is_refused_before_it_is_unpacked() -> None:
    def bomb(shape: tuple[int, ...]) -> bytes:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("depth.npy", header.getvalue() + bytes(1 << 16))
        return buffer.getvalue()

    with pytest.raises(ImageError, match="length disagree"):
        parse(bomb((1 << 15, 1 << 15)))
    stated = bytearray(bomb((256, 256)))
    at = stated.rindex(b"PK\1\2") + 24
    stated[at : at + 4] = struct.pack("<L", (256 << 20) + 1)
    with pytest.raises(ImageError, match="over 256 MiB"):
        parse(bytes(stated))


def test_headers_that_state_giants_are_refused() -> None:
    side = MAX_PIXELS // 1024
    with pytest.raises(ImageError, match="length disagree"):
        parse(b"Pf\n%d 1025\n-1\n" % side)
    with pytest.raises(ImageError, match="damaged EXR"):
        parse(b"v/1\x01\2\0\0\0nonsense")


@pytest.mark.parametrize("compression", ["NO", "ZIP", "ZIPS", "PIZ", "RLE"])
def test_an_openexr_is_read_by_its_depth_channel(tmp_path: Path, compression: str) -> None:
    for channels in ({"Z": DEPTH}, {"RGBA": np.zeros((5, 7, 4), np.float32), "Depth.Z": DEPTH}):
        data = exr(tmp_path, channels, compression)
        found = parse(data)
        assert (found.kind, found.width, found.height) == ("exr", 7, 5)
        assert (load_array(data, "exr", "depth") == DEPTH).all()
    gray = exr(tmp_path, {"RGB": np.repeat(DEPTH[..., None], 3, axis=2)}, compression)
    stored, _, rule, *_ = normalize(gray, parse(gray), "depth", STANDARD)
    assert (values_of(stored, parse(stored), "depth") == np.rint(DEPTH * 256)).all()
    assert rule == "depth: float32 EXR (1 is 256 of 65535) to PNG"


def test_a_damaged_openexr_is_an_image_error_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = exr(tmp_path, {"Z": DEPTH})
    for length in range(4, len(data)):
        with pytest.raises(ImageError):
            parse(data[:length])
            load_array(data[:length], "exr", "depth")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("module", "data"),
    [("OpenEXR", None), ("pillow_heif", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")],
)
def test_without_its_package_a_format_is_named_with_the_extra(
    module: str, data: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data or exr(tmp_path, {"Z": DEPTH})
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImageError, match=r"pip install shardline\[formats\]"):
        parse(data)


def test_an_avif_jpeg2000_or_heic_picture_is_read_under_its_own_extension_only() -> None:
    kinds = {"AVIF": "avif", "JPEG2000": "jp2"}
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        kinds["HEIF"] = "heic"
    for kind, extension in kinds.items():
        data = picture(kind)
        found = parse_named(data, f"a/x.{extension}".encode())
        assert (found.kind, found.width, found.height) == (extension, 7, 5)
        stored, _, rule, *_ = normalize(data, found, "fg_bg", STANDARD)
        with Image.open(io.BytesIO(data)) as image:
            assert (pixels(stored, parse(stored), "fg_bg", STANDARD) == np.asarray(image)).all()
        assert rule == f"fg_bg: RGB {extension.upper()} to PNG"
        with pytest.raises(ImageError, match=rf"named \.jpeg; rename it to \.{extension}, or save"):
            parse_named(data, b"a/x.jpeg")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
        (b"7z\xbc\xaf\x27\x1c\0\4", "7z archive; unpack it"),
        (b"Rar!\x1a\x07\x01\0", "rar archive; unpack it"),
        (b"a.jpg".ljust(257, b"\0") + b"ustar\x0000", "tar archive; unpack it"),
        (b"\x1f\x8b\x08\0", "gzip.*unpack it"),
        (b"\n<!DOCTYPE html><html>", "web page.*download it again"),
        (b"\x89HDF\r\n\x1a\n\0", "HDF5"),
        (b"MATLAB 5.0 MAT-file", "MATLAB"),
        (b"\xff\x0a\xfa", "JPEG XL.*PNG"),
    ],
)
def test_what_stands_in_place_of_a_picture_is_named_with_the_remedy(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        parse(data)


def test_a_zip_without_arrays_is_no_npz() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(ImageError, match="a zip archive; unpack it"):
        parse(buffer.getvalue())


def test_colour_of_16_bits_keeps_both_bytes() -> None:
    for data in (png16(WIDE), tiff16(WIDE, "<"), tiff16(WIDE, ">")):
        assert parse(data).bits == 16
        assert (values_of(data, parse(data), "fg_bg") == WIDE).all()
    gray = np.repeat(WIDE[..., :1], 3, axis=2)
    stored, found, rule, *_ = normalize(png16(gray), parse(png16(gray)), "depth", STANDARD)
    assert (values_of(stored, found, "depth") == WIDE[..., 0]).all()
    assert rule == "depth: 16-bit PNG to PNG"
    with pytest.raises(ImageError, match="in colours"):
        normalize(png16(WIDE), parse(png16(WIDE)), "depth", STANDARD)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_picture_of_fewer_than_16_bits_is_scaled_by_its_true_ones(bits: int) -> None:
    plane = WIDE >> (16 - bits)
    encoding = LabelEncoding(bits=(("fg_bg", bits),))
    gray = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(plane[..., 0])).save(gray, "PNG")
    for data in (png16(plane), tiff16(plane, "<"), gray.getvalue()):
        stored, found, rule, *_ = normalize(data, parse(data), "fg_bg", encoding)
        expected = (plane if parse(data).channels == 3 else plane[..., [0, 0, 0]]) >> (bits - 8)
        assert (pixels(stored, found, "fg_bg", STANDARD) == expected).all()
        assert rule.startswith(f"fg_bg: {bits}-bit ")
    if bits < 16:
        with pytest.raises(ImageError, match=f"at most {bits} bits"):
            normalize(png16(WIDE), parse(png16(WIDE)), "fg_bg", encoding)


def test_a_floating_point_picture_is_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(DEPTH).save(buffer, "TIFF")
    with pytest.raises(ImageError, match=r"float32.*which is no fg_bg"):
        pixels(buffer.getvalue(), parse(buffer.getvalue()), "fg_bg", STANDARD)
