"""Recognise, by their first bytes, files that are neither zips nor images that are read."""

import re
import zlib
from typing import NamedTuple

LFS_POINTER = b"version https://git-lfs.github.com/"
POINTER_SIZES = (120, 140)
"""A Git LFS pointer has a size in this range. Bytes."""
LFS_REMEDY = "run `git lfs pull` where the repository was cloned"

_CONVERT = "save it as PNG"
_CONVERT_ARRAY = "save each map as PNG or .npy"
_UNPACK = "unpack it with `{}`, and pass the folder"
_WEB_PAGE = re.compile(rb"\s*<(?:!doctype html|html|\?xml)", re.IGNORECASE)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


class ForeignFile(NamedTuple):
    """What a file is, and what to do."""

    kind: str
    remedy: str


def _archive(kind: str, command: str) -> ForeignFile:
    return ForeignFile(kind, _UNPACK.format(command))


def _picture(kind: str, remedy: str = _CONVERT) -> ForeignFile:
    return ForeignFile(f"{kind}, which is not read", remedy)


_SIGNATURES = (
    (0, LFS_POINTER, ForeignFile("a Git LFS pointer in place of the file", LFS_REMEDY)),
    (
        0,
        b"/annex/objects/",
        ForeignFile("a git-annex pointer in place of the file", "run `git annex get`"),
    ),
    (0, b"7z\xbc\xaf\x27\x1c", _archive("a 7z archive", "7z x")),
    (0, b"Rar!\x1a\x07", _archive("a rar archive", "unrar x")),
    (257, b"ustar", _archive("a tar archive", "tar -xf")),
    (0, b"\x1f\x8b", _archive("a gzip file", "gunzip")),
    (0, b"BZh", _archive("a bzip2 file, as tar.bz2 is", "tar -xf")),
    (0, b"\xfd7zXZ\x00", _archive("an xz file, as tar.xz is", "tar -xf")),
    (0, b"\x28\xb5\x2f\xfd", _archive("a zstd file, as tar.zst is", "tar --zstd -xf")),
    (0, b"\xff\x0a", _picture("a JPEG XL picture")),
    (0, b"\x00\x00\x00\x0cJXL ", _picture("a JPEG XL picture")),
    (0, b"\x89HDF\r\n\x1a\n", _picture("an HDF5 file (.h5, MATLAB 7.3)", _CONVERT_ARRAY)),
    (0, b"MATLAB 5.0", _picture("a MATLAB file (.mat)", _CONVERT_ARRAY)),
    (128, b"DICM", _picture("a DICOM file")),
    (0, b"#?RADIANCE", _picture("a Radiance HDR picture")),
    (0, b"8BPS", _picture("a Photoshop file")),
    (0, b"%PDF", _picture("a PDF")),
)
"""Offset and first bytes of what is not read."""


def recognise(head: bytes, *, zip_expected: bool = False) -> ForeignFile | None:
    """Return what a file is that is not read; None if it is not known.

    Args:
        head: Its first 512 bytes, or all of it.
        zip_expected: Whether a picture is foreign, too.
    """
    if _is_tar_gz(head):
        return _archive("a tar.gz archive", "tar -xzf")
    for offset, magic, found in _SIGNATURES:
        if head.startswith(magic, offset):
            return found
    if _WEB_PAGE.match(head[:256]):
        return ForeignFile("a web page or XML in place of the file", "download it again")
    if zip_expected and head.startswith(_PICTURES):
        return ForeignFile("a picture", "pass the folder that it is in")
    return None


def _is_tar_gz(head: bytes) -> bool:
    if not head.startswith(b"\x1f\x8b"):
        return False
    try:
        return zlib.decompressobj(31).decompress(head, 512)[257:262] == b"ustar"
    except zlib.error:
        return False
