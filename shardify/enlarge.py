"""Enlarge a synthetic data set: copy every sample several times.

    python -m shardify.enlarge s40k.zip big.zip --times 10
    python -m shardify.enlarge s40k.zip downloads --times 10 --released

400,000 samples take an hour to draw and two minutes to copy. Compressed payloads are copied as
they are; each copy gets a number of its own, backgrounds stand once. It reads what
``shardify synth`` wrote as one zip, and nothing else; no file is ever overwritten.

Sample ``n`` becomes ``n * times`` to ``n * times + times - 1``, so numbers and backgrounds rise
together as they do in the source. Copies of a sample are the same picture: good for measuring
time and memory, no good for training.
"""

import argparse
import mmap
import os
import re
import struct
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path

from shardify.errors import ShardifyError, SourceError
from shardify.synth.generate import open_zips
from shardify.synth.zip_writer import Packed, Section, write_directory

_FOLDERS = (
    "data_all/bg/",
    "data_all/fg_bg/",
    "data_all/fg_bg_mask/",
    "data_all/fg_bg_depth/mask_fg_bg/fg_bg/",
)
"""In the order of the zips of ``open_zips``; those of the depth maps come last."""
_DEPTH = len(_FOLDERS) - 1
_ROOTS = ("data_all/", "data_all/", "data_all/", "data_all/fg_bg_depth/")
"""What the published zips lack of each folder."""
_NUMBER = re.compile(r"(?<=_)\d{6,}(?=\.)")
_LENGTHS = struct.Struct("<HH")
_LENGTHS_AT, _LOCAL = 26, 30
"""Where a local header has the lengths of name and extra field; its size without them. Bytes."""


def enlarge(source: Path, out: Path, *, times: int, released: bool = False) -> int:
    """Write every sample of ``source`` ``times`` times, and its backgrounds once.

    Args:
        source: A zip that ``shardify synth`` made.
        out: The zip to write, or the folder of zips; must not exist. What is left of it after an
            error is no zip.
        times: At least 1.
        released: Write the zips as the authors published them, as ``shardify synth --released``.

    Returns:
        Samples written.

    Raises:
        SourceError: ``source`` holds something else.
        OSError: A file cannot be read or written; FileExistsError if ``out`` is there.
    """
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(source))
        file = stack.enter_context(source.open("rb"))
        data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        entries = [(_folder(info, source), info) for info in archive.infolist()]
        samples = sum(folder == 1 for folder, _ in entries)
        zips: list[tuple[Section, ...]]
        if released:
            out.mkdir()
            zips = open_zips(out, samples, released, stack)
        else:
            zips = [(Section(stack.enter_context(out.open("xb"))),)]
        for folder, info in entries:
            begin = info.header_offset + _LOCAL
            begin += sum(_LENGTHS.unpack_from(data, info.header_offset + _LENGTHS_AT))
            payload = Packed(data[begin : begin + info.compress_size], info.CRC, info.file_size)
            name = info.filename.removeprefix(_ROOTS[folder]) if released else info.filename
            found = _NUMBER.search(name) if folder else None
            number = int(found[0]) if found else 0
            place = folder if released else 0
            if place == _DEPTH:
                place += number * (len(zips) - _DEPTH) // samples
            add = zips[place][0].add
            if found is None:
                add(name, payload)
                continue
            for copy in range(number * times, (number + 1) * times):
                add(f"{name[: found.start()]}{copy:06d}{name[found.end() :]}", payload)
        for each in zips:
            write_directory(each)
            each[0].file.flush()
            os.fsync(each[0].file.fileno())
    return samples * times


def _folder(info: zipfile.ZipInfo, source: Path) -> int:
    """Which of ``_FOLDERS`` an entry lies in."""
    name = info.filename
    for number, folder in enumerate(_FOLDERS):
        named = number == 0 or _NUMBER.search(name)
        if name.startswith(folder) and named and info.compress_type == zipfile.ZIP_DEFLATED:
            return number
    raise SourceError(
        f"{source}: {name}: expected a zip as `shardify synth` writes it; make one, without "
        "--released"
    )


def main(arguments: list[str] | None = None) -> None:
    """Enlarge, and say what was written."""
    parser = argparse.ArgumentParser(prog="python -m shardify.enlarge", description=__doc__)
    parser.add_argument("source", type=Path, help="a zip that `shardify synth` made")
    parser.add_argument("out", type=Path, help="the zip to write, or the folder of zips")
    parser.add_argument("--times", type=int, default=10, help="copies of each sample [10]")
    parser.add_argument("--released", action="store_true", help="write the eight published zips")
    chosen = parser.parse_args(arguments)
    if chosen.times < 1:
        parser.error(f"--times is {chosen.times}; expected 1 or more")
    begun = time.perf_counter()
    try:
        samples = enlarge(chosen.source, chosen.out, times=chosen.times, released=chosen.released)
    except (ShardifyError, OSError, zipfile.BadZipFile) as error:
        parser.exit(1, f"Error: {error}\n")
    print(f"{chosen.out}: {samples:,} samples in {time.perf_counter() - begun:.1f} s")


if __name__ == "__main__":
    main()
