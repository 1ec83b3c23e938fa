"""Recognise, by their first bytes, files that are passed in place of a zip or of pictures."""

import zlib

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_SIZES = (120, 140)
"""A Git LFS pointer has a size in this range. Bytes."""

_LFS_REMEDY = "run `git lfs pull` where the repository was cloned, and pass that"
_UNPACK = "unpack it with `{} {}`, and pass the folder"
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "7z x"),
    (b"Rar!\x1a\x07", "a rar archive", "unrar x"),
    (b"\x1f\x8b", "a gzip file", "gunzip"),
    (b"BZh", "a bzip2 file, as tar.bz2 is", "tar -xf"),
    (b"\xfd7zXZ\x00", "an xz file, as tar.xz is", "tar -xf"),
    (b"\x28\xb5\x2f\xfd", "a zstd file, as tar.zst is", "tar --zstd -xf"),
)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")


def describe_file(head: bytes, name: str) -> str | None:
    """Describe a file that is no zip: what it is, and the remedy. None if it is not known.

    Args:
        head: Its first 512 bytes.
        name: Its name, for the remedy.
    """
    if head.startswith(LFS_POINTER):
        return f"a Git LFS pointer, not the file itself; {_LFS_REMEDY}"
    if head[257:262] == b"ustar":
        return f"a tar archive, not a zip; {_UNPACK.format('tar -xf', name)}"
    if _is_tar_gz(head):
        return f"a tar.gz archive, not a zip; {_UNPACK.format('tar -xzf', name)}"
    for magic, kind, command in _KINDS:
        if head.startswith(magic):
            return f"{kind}, not a zip; {_UNPACK.format(command, name)}"
    if head.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page, not a zip: the download failed; download it again"
    if head.startswith(_PICTURES):
        return "a picture, not a zip; pass the folder that it is in"
    return None


def describe_pointers(count: int, total: int, example: str) -> str:
    """Describe a source whose files are Git LFS pointers."""
    return (
        f"{count} of {total} files are Git LFS pointers, not the files themselves (as {example}); "
        f"expected pictures; {_LFS_REMEDY}"
    )


def _is_tar_gz(head: bytes) -> bool:
    if not head.startswith(b"\x1f\x8b"):
        return False
    try:
        return zlib.decompressobj(31).decompress(head, 512)[257:262] == b"ustar"
    except zlib.error:
        return False
