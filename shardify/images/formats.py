"""Image formats other than JPEG and PNG: recognise them, read their headers, decode their arrays.

Pillow reads GIF, BMP, TIFF, WebP, JPEG 2000, AVIF and, with pillow-heif, HEIC. This module reads
``.npy``, ``.npz`` and PFM; the package OpenEXR reads ``.exr``. Sizes are taken from headers, so
that a caller can refuse them before pixels are allocated.

Sources: NumPy's format.rst (.npy, .npz), Debevec's PFM, openexr.com "OpenEXR File Layout".
"""

import importlib
import io
import os
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from shardify.errors import ImageError
from shardify.images.foreign_files import recognise

if TYPE_CHECKING:
    import zipfile

ARRAY_KINDS = ("npy", "npz", "pfm", "exr")
"""Formats that ``load_array`` decodes; Pillow decodes the others."""

NEW_PICTURE_KINDS = {
    "avif": ("AVIF", frozenset({"avif"})),
    "heic": ("HEIC", frozenset({"heic", "heif", "hif"})),
    "jp2": ("JPEG 2000", frozenset({"jp2", "j2k", "jpx"})),
}
"""Formats read under their own extensions only: kind -> name, extensions."""

_PILLOW_FORMATS = {
    "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "webp": "WEBP", "jp2": "JPEG2000", "avif": "AVIF",
    "heic": "HEIF",
}  # fmt: skip
_EXTRA = "run `pip install shardline[formats]`"

_MAX_ARRAY_BYTES = 256 << 20
"""Largest array in an .npz, unpacked: as for an entry of a zip. Bytes."""
_NPY_HEADER = 1 << 16
_ARRAY_NAMES = ("depth", "arr_0")
"""The array of an .npz that is read if it holds several."""
_MAX_NAMES_IN_ERROR = 6

_MAGIC = (
    (0, b"GIF8", "gif"), (0, b"BM", "bmp"), (0, b"II*\x00", "tif"), (0, b"MM\x00*", "tif"),
    (0, b"II+\x00", "tif"), (0, b"MM\x00+", "tif"), (0, b"\x93NUMPY", "npy"),
    (8, b"WEBP", "webp"), (0, b"\x00\x00\x00\x0cjP  \r\n", "jp2"), (0, b"\xff\x4f\xff\x51", "jp2"),
    (0, b"v/1\x01", "exr"), (0, b"Pf", "pfm"), (0, b"PF", "pfm"), (0, b"PK\x03\x04", "npz"),
)  # fmt: skip
"""Offset, first bytes, kind."""
_HEIF_BRANDS = frozenset(
    {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
)
_PFM_HEADER = re.compile(rb"P([fF])\s+(\d{1,9})\s+(\d{1,9})\s+([-+.\deE]{1,30})(?:\r\n|\s)")
_LOW_BYTES = {"16B": "16L", "16L": "16B", "16N": "16B"}
"""Pillow's name of the order of two bytes -> that under which it takes the other byte."""


class Header(NamedTuple):
    """The header of a picture; not yet checked against the limit of pixels."""

    kind: str
    width: int
    """Of the stored pixels, before an EXIF orientation is applied."""
    height: int
    channels: int
    bits: int
    trait: str = ""
    """Pillow's mode or the array's dtype."""
    orientation: int = 1


def read_header(data: bytes) -> Header:
    """Return the header of a picture that is neither JPEG nor PNG.

    Raises:
        ImageError: Not a picture of a known format, damaged, or one of several pictures.
    """
    kind = _kind(data)
    if kind is None:
        foreign = recognise(data[:512])
        if foreign:
            raise ImageError("; ".join(foreign))
        empty = not data.strip(b"\x00")
        raise ImageError("all zero bytes" if empty else "not an image (no known signature)")
    if kind == "exr":
        header = _exr_header(data)[0]
        _import_exr("OpenEXR")
        return header
    if kind == "pfm":
        return _pfm_header(data)[0]
    if kind == "npz":
        member, head = _npz_member(data)
        return _npy_header(head, member.file_size, "npz")
    if kind == "npy":
        return _npy_header(data, len(data), "npy")
    return _pillow_header(data, kind)


def load_array(data: bytes, kind: str, role: str) -> NDArray[Any]:
    """Decode a file of ``ARRAY_KINDS`` whose header was checked: (H, W) or (H, W, C), any dtype.

    Raises:
        ImageError: It cannot be decoded, or is an .npz of several arrays for another role than
            depth.
    """
    try:
        if kind == "pfm":
            return _load_pfm(data)
        if kind == "exr":
            return _load_exr(data)
        if kind == "npz":
            import zipfile

            member, _ = _npz_member(data, "" if role == "depth" else role)
            with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(member) as file:
                data = file.read(member.file_size)
        plane: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except ImageError:
        raise
    except Exception as error:
        # zipfile and NumPy raise nearly anything on damaged input.
        raise ImageError(f"cannot be decoded ({type(error).__name__})") from error
    return plane[0] if _has_leading_one(plane.shape) else plane


def open_picture(data: bytes) -> Any:
    """Open a file with Pillow, as ``PIL.Image.open``; HEIC where pillow-heif is installed."""
    from PIL import Image

    if _kind(data) == "heic":
        _register_heif()
    return Image.open(io.BytesIO(data))


def load_wide_colour(data: bytes) -> NDArray[np.uint16]:
    """Decode a PNG or TIFF of 16 bits a channel in colour: (H, W, 3), turned by its EXIF tag.

    Pillow keeps one byte of each value. It keeps the other one if it is told the other byte order.

    Raises:
        Exception: Anything that Pillow raises.
    """
    from PIL import Image, ImageOps

    halves = []
    for low in (False, True):
        with Image.open(io.BytesIO(data)) as image:
            if low:
                image.tile = [_swap_bytes(tile) for tile in image.tile]
            image.load()
            halves.append(np.asarray(ImageOps.exif_transpose(image))[..., :3].astype(np.uint16))
    return cast(NDArray[np.uint16], halves[0] << 8 | halves[1])


def _swap_bytes(tile: Any) -> Any:
    args = tile.args
    mode, rest = (args, None) if isinstance(args, str) else (args[0], args[1:])
    colours, _, order = mode.partition(";")
    swapped = f"{colours};{_LOW_BYTES[order]}"
    return tile._replace(args=swapped if rest is None else (swapped, *rest))


def _kind(data: bytes) -> str | None:
    for offset, magic, kind in _MAGIC:
        if data.startswith(magic, offset) and (kind != "webp" or data.startswith(b"RIFF")):
            return kind
    if data[4:8] == b"ftyp":
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, min(data[3], 64), 4))}
        if brands & {b"avif", b"avis"}:
            return "avif"
        if brands & _HEIF_BRANDS:
            return "heic"
    return None


def _pillow_header(data: bytes, kind: str) -> Header:
    """Read a header with Pillow. Its decoding, when it is converted, checks the rest."""
    from PIL import Image, features

    if kind == "heic":
        _register_heif()
    if kind == "avif" and not features.check("avif"):
        raise ImageError("an AVIF picture; to read it, run `pip install 'pillow>=11.3'`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=[_PILLOW_FORMATS[kind]]) as image:
                frames = getattr(image, "n_frames", 1)
                turned = int(image.getexif().get(0x0112, 1))
                turned = turned if turned in range(2, 9) else 1
                width, height = image.size
                if kind == "tif" and turned >= 5:  # Pillow states the size after turning.
                    width, height = height, width
                wide = (
                    image.mode.startswith("I;16")
                    or image.mode in ("I", "F")
                    or ";16" in str([tile.args for tile in image.tile])
                )
                header = Header(
                    kind, width, height, len(image.getbands()), 16 if wide else 8, image.mode,
                    turned,
                )  # fmt: skip
    except Exception as error:
        # Pillow raises nearly anything on damaged input.
        raise ImageError(f"damaged {kind.upper()} ({type(error).__name__})") from error
    if frames != 1:
        raise ImageError(f"a {kind.upper()} of {frames} pictures; expected one")
    return header


def _register_heif() -> None:
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError as error:
        raise ImageError(f"an HEIC picture; to read it, {_EXTRA}") from error


def _has_leading_one(shape: tuple[int, ...]) -> bool:
    """Whether a shape is (1, H, W), as networks return a map, and no picture one row high."""
    return len(shape) == 3 and shape[0] == 1 and shape[2] not in (1, 3, 4)


def _npy_header(head: bytes, length: int, kind: str) -> Header:
    file = io.BytesIO(head)
    try:
        version = npy_format.read_magic(file)
        newer = version != (1, 0)
        read = npy_format.read_array_header_2_0 if newer else npy_format.read_array_header_1_0
        shape, _, dtype = read(file)
    except Exception as error:
        raise ImageError(f"damaged {kind.upper()} ({type(error).__name__})") from error
    if dtype.hasobject or dtype.kind not in "buif" or dtype.itemsize > 8:
        raise ImageError(f"an array of {dtype}, which is not taken")
    rows = shape[1:] if _has_leading_one(shape) else shape
    if len(rows) not in (2, 3) or (len(rows) == 3 and rows[2] not in (1, 3, 4)):
        raise ImageError(f"an array of shape {shape}; expected (H, W) or (H, W, 1, 3 or 4)")
    channels = rows[2] if len(rows) == 3 else 1
    if length - file.tell() != rows[0] * rows[1] * channels * dtype.itemsize:
        raise ImageError("an array whose header and length disagree")
    return Header(kind, rows[1], rows[0], channels, 8 * dtype.itemsize, dtype.name)


def _npz_member(data: bytes, only_for: str = "") -> "tuple[zipfile.ZipInfo, bytes]":
    """Return the array of an .npz that is read, and the bytes of its header.

    Raises:
        ImageError: It is damaged, another kind of zip, too large, or has several arrays of which
            none is named for depth, or ``only_for`` names another role.
    """
    import zipfile

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = {
                info.filename.removesuffix(".npy"): info
                for info in archive.infolist()
                if info.filename.endswith(".npy")
            }
            if not found:
                raise ImageError("a zip archive; unpack it, and pass the folder")
            name = next(iter(found))
            if len(found) > 1:
                chosen = [each for each in _ARRAY_NAMES if each in found and not only_for]
                if not chosen:
                    names = ", ".join(list(found)[:_MAX_NAMES_IN_ERROR])
                    raise ImageError(
                        f"an NPZ of {len(found)} arrays ({names}); expected one, or a depth map "
                        "named depth"
                    )
                name = chosen[0]
            if found[name].file_size > _MAX_ARRAY_BYTES:
                raise ImageError(f"an NPZ of over {_MAX_ARRAY_BYTES >> 20} MiB unpacked")
            with archive.open(found[name]) as file:
                return found[name], file.read(_NPY_HEADER)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"damaged NPZ or zip ({type(error).__name__})") from error


def _pfm_header(data: bytes) -> tuple[Header, int, str]:
    """Return the header, the offset of the pixels, and their dtype."""
    match = _PFM_HEADER.match(data)
    try:
        order = "<f4" if match and float(match[4]) < 0 else ">f4"
    except ValueError:
        match = None
    if match is None:
        raise ImageError("damaged PFM (its header is not understood)")
    channels = 3 if match[1] == b"F" else 1
    header = Header("pfm", int(match[2]), int(match[3]), channels, 32, "float32")
    if len(data) - match.end() != 4 * header.width * header.height * channels:
        raise ImageError("a PFM whose header and length disagree")
    return header, match.end(), order


def _load_pfm(data: bytes) -> NDArray[Any]:
    header, offset, order = _pfm_header(data)
    plane = np.frombuffer(data, order, offset=offset).astype(np.float32)
    shape = (header.height, header.width, *([3] if header.channels == 3 else []))
    return plane.reshape(shape)[::-1]  # The bottom row comes first.


def _exr_header(data: bytes) -> tuple[Header, list[str]]:
    """Return the header and the names of the channels that are read."""
    (version,) = struct.unpack_from("<I", data.ljust(8, b"\0"), 4)
    if version & 0x1800:
        raise ImageError("an OpenEXR of several parts or of deep pixels; save the depth alone")
    try:
        attributes = dict(_exr_attributes(data))
        left, top, right, bottom = struct.unpack("<4i", attributes["dataWindow"])
        shown = struct.unpack("<4i", attributes["displayWindow"])
        names = _exr_channels(attributes["channels"])
    except (KeyError, ValueError, struct.error) as error:
        raise ImageError(f"damaged EXR ({type(error).__name__} in its header)") from error
    if (left, top, right, bottom) != shown:
        raise ImageError("an OpenEXR that holds a part of its picture; save it whole")
    chosen = _exr_choice(names)
    size = max(0, right - left + 1), max(0, bottom - top + 1)
    return Header("exr", *size, len(chosen), 32, "float32"), chosen


def _exr_attributes(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 8
    while data[at : at + 1] != b"\0":
        name_end = data.index(b"\0", at, at + 256)
        type_end = data.index(b"\0", name_end + 1, name_end + 257)
        (size,) = struct.unpack_from("<I", data, type_end + 1)
        start = type_end + 5
        if start + size >= len(data):
            raise ValueError("an attribute runs over the end")
        yield data[at:name_end].decode("latin-1"), data[start : start + size]
        at = start + size


def _exr_channels(block: bytes) -> list[str]:
    names = []
    at = 0
    while block[at : at + 1] != b"\0":
        end = block.index(b"\0", at)
        names.append(block[at:end].decode("latin-1"))
        if struct.unpack_from("<2i", block, end + 9) != (1, 1):
            raise ImageError(f"an OpenEXR whose channel {names[-1]} is smaller than the picture")
        at = end + 17
    return names


def _exr_choice(names: list[str]) -> list[str]:
    """Return the channel of the depth, or red, green and blue."""
    if len(names) == 1:
        return names
    for words in (("z", "depth"), ("v", "y")):
        named = [name for name in names if name.lower().split(".")[-1] in words]
        if len(named) == 1:
            return named
    if {"R", "G", "B"} <= set(names):
        return ["R", "G", "B"]
    shown = ", ".join(names[:_MAX_NAMES_IN_ERROR])
    raise ImageError(f"an OpenEXR of the channels {shown}; expected one, or one named Z or depth")


def _load_exr(data: bytes) -> NDArray[Any]:
    header, names = _exr_header(data)
    types = _import_exr("Imath").PixelType
    library = _import_exr("OpenEXR")
    with _silence_stderr():  # The library writes there what it also raises.
        file = library.InputFile(io.BytesIO(data))
        try:
            float32 = types(types.FLOAT)
            planes = [np.frombuffer(file.channel(name, float32), np.float32) for name in names]
        finally:
            file.close()
    shaped = [plane.reshape(header.height, header.width) for plane in planes]
    return shaped[0] if len(shaped) == 1 else np.stack(shaped, axis=2)


def _import_exr(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImageError(f"an OpenEXR picture; to read it, {_EXTRA}") from error


@contextmanager
def _silence_stderr() -> Iterator[None]:
    """Discard what C code writes to the standard error of this process."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
