"""Names of files: image and map extensions, junk files and folders."""

import re

__all__ = ["IMAGE_EXTENSIONS", "MAP_EXTENSIONS", "is_junk", "is_junk_folder"]


IMAGE_EXTENSIONS = frozenset("jpg jpeg jpe jfif png gif bmp webp tif tiff npy".split())
"""Extensions, in lower case, of what may hold pixels."""

_JUNK_FOLDERS = re.compile(r"(?:^|/)(?:__MACOSX|\.[^/]*|@eaDir|\$RECYCLE\.BIN)(?:/|$)")
_JUNK_FILES = re.compile(
    r"\.|thumbs\.db$|desktop\.ini$|icon\r?$|(?:readme|licen[cs]e|copying|changelog)(?:$|[._-])",
    re.IGNORECASE,
)


def is_junk(base: str) -> bool:
    """Whether a file's name, without folders, is that of litter or of a note to the reader.

    The empty name, which is what a folder's own entry ends in, is.
    """
    return not base or _JUNK_FILES.match(base) is not None


def is_junk_folder(path: str) -> bool:
    """Whether a folder, or one around it, is an operating system's own."""
    return _JUNK_FOLDERS.search(path) is not None


MAP_EXTENSIONS = frozenset({"csv", "tsv", "txt"})
"""Of files that may be maps, in lower case."""
