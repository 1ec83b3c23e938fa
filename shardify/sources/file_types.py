"""Classify files by name: image and map extensions, junk files and folders."""

import re

IMAGE_EXTENSIONS = frozenset(
    "jpg jpeg jpe jfif png gif bmp webp tif tiff avif heic heif hif jp2 j2k jpx "
    "npy npz pfm exr".split()
)
"""Lower-case extensions of files that may hold pixels."""

MAP_EXTENSIONS = frozenset({"csv", "tsv", "txt"})
"""Lower-case extensions of files that may be maps."""

SIDE_EXTENSIONS = MAP_EXTENSIONS | frozenset(
    "json jsonl xml yaml yml toml ini cfg conf log md rst tex bib html htm css js py pyc ipynb m r "
    "sh bat c cpp h java pdf doc docx ppt pptx xls xlsx odt ods rtf url lnk zip tar gz tgz bz2 xz "
    "7z rar md5 sha1 sha256 db sqlite part tmp bak lock".split()
)
"""Lower-case extensions of text, programs and archives, which lie beside pictures."""

_JUNK_FOLDERS = re.compile(r"(?:^|/)(?:__MACOSX|\.[^/]*|@eaDir|\$RECYCLE\.BIN)(?:/|$)")
_JUNK_FILES = re.compile(
    r"\.|thumbs\.db$|desktop\.ini$|icon\r?$|(?:readme|licen[cs]e|copying|changelog)(?:$|[._-])",
    re.IGNORECASE,
)


def is_junk(base: str) -> bool:
    """Whether a file's name, without folders, is that of a junk, readme or licence file.

    Also True for the empty name: that of a folder's own entry.
    """
    return not base or _JUNK_FILES.match(base) is not None


def is_junk_folder(path: str) -> bool:
    """Whether a folder, or one that contains it, is hidden or belongs to the operating system."""
    return _JUNK_FOLDERS.search(path) is not None
