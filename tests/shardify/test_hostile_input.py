"""A thousand damaged zips: each is converted, quarantined by name or refused in one line."""

import io
import json
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from shardline_scenes import background, composite, depth, mask
from shardline_sources import open_catalog

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions, survey
from shardify.dataset.verify import verify
from shardify.errors import ImageError, ShardifyError
from shardify.images.parser import parse
from shardify.images.pixels import STANDARD, normalize, pixels
from shardify.sources.catalog import entry_reader
from shardify.writer.shard_writer import OpenSources


def files_of(samples: int = 8) -> dict[str, bytes]:
    files = {f"d/bg/park{number}.jpg": background(number) for number in (1, 2)}
    for number in range(samples):
        back = number % 2 + 1
        stem = f"fg_001_bg_{back:03d}_{number:06d}"
        files |= {
            f"d/fg_bg/{stem}.jpg": composite(number, back),
            f"d/fg_bg_mask/mask_{stem}.jpg": mask(number),
            f"d/fg_bg_depth/depth_{stem}.png": depth(number, (8, 8)),
        }
    return files


def pack(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in files.items():
            file.writestr(name, data)
    return buffer.getvalue()


def damaged(sound: bytes, seed: int) -> bytes:
    """One of many ways to spoil a zip, drawn by the seed."""
    draw = np.random.Generator(np.random.Philox(key=seed))
    data = bytearray(sound)
    directory = sound.find(b"PK\x01\x02")

    def place(low: int = 0) -> int:
        return int(draw.integers(low, len(data)))

    kind = seed % 8
    if kind == 0:  # Flipped bytes anywhere.
        for _ in range(int(draw.integers(1, 20))):
            data[place()] = int(draw.integers(256))
    elif kind == 1:  # Flipped bytes in the directory, which everything else hangs on.
        for _ in range(int(draw.integers(1, 6))):
            data[place(directory)] = int(draw.integers(256))
    elif kind == 2:  # Cut at the end.
        del data[place() :]
    elif kind == 3:  # A piece missing.
        start = place()
        del data[start : start + int(draw.integers(1, 5000))]
    elif kind == 4:  # A piece twice.
        start, end = sorted((place(), place()))
        data[end:end] = data[start:end]
    elif kind == 5:  # Sizes, offsets and counts with extreme values.
        for _ in range(3):
            at = place(directory) & ~1
            struct.pack_into(
                "<L", data, min(at, len(data) - 4), 0xFFFFFFFF >> int(draw.integers(9))
            )
    elif kind == 6:  # A run of zeros, as a bad disk leaves.
        start = place()
        stop = min(len(data), start + int(draw.integers(1, 4096)))
        data[start:stop] = bytes(stop - start)
    else:  # Bytes before and behind.
        data[0:0] = bytes(int(draw.integers(0, 300)))
        data += draw.bytes(int(draw.integers(0, 300)))
    return bytes(data)


@pytest.mark.parametrize(
    "seeds",
    [range(150), pytest.param(range(150, 1000), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_a_thousand_damaged_zips_end_in_data_or_one_line(tmp_path: Path, seeds: range) -> None:
    sound = pack(files_of())
    path = tmp_path / "x.zip"
    good = refused = quarantined = 0
    for seed in seeds:
        path.write_bytes(damaged(sound, seed))
        try:
            found = survey([path], BuildOptions(val=0, max_bad=1))
        except ShardifyError as error:
            assert "\n" not in str(error)
            refused += 1
            continue
        # What a worker does with each entry, without the cost of starting one.
        catalog = found.catalog
        with OpenSources([each.path for each in catalog.sources]) as descriptors:
            read = entry_reader(catalog, descriptors)
            for entry in range(len(catalog.names)):
                try:
                    data = read(entry)
                    normalize(data, parse(data), "fg_bg", STANDARD)
                    good += 1
                except ShardifyError as error:
                    assert "\n" not in str(error)
                    quarantined += 1
    assert min(refused, quarantined) > len(seeds) // 10
    assert good > len(seeds)


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_zip_is_built_whole_or_not_at_all(tmp_path: Path, seed: int) -> None:
    (tmp_path / "x.zip").write_bytes(damaged(pack(files_of()), seed))
    out = tmp_path / "out"
    try:
        report = build([tmp_path / "x.zip"], out, BuildOptions(val=0, max_bad=0.9, workers=1))
    except ShardifyError as error:
        assert "\n" not in str(error)
        assert not (out / "manifest.json").exists()
    else:
        assert not verify(out, deep=True, workers=1).problems
        there = sum(split.samples for split in report.manifest.splits.values())
        lines = (out / "rejected.jsonl").read_text().splitlines()
        assert there <= 8
        assert there + len(lines) >= 8 - 8 * (seed % 8 == 1)
    assert {each.name for each in tmp_path.iterdir()} <= {"x.zip", "out"}


@pytest.mark.parametrize(
    "name",
    [
        "../../escape.jpg", "/abs.jpg", "d/fg_bg/../../x.jpg", "C:\\x.jpg", "d/bg/evil\x00.jpg",
        "d/fg_bg/line\nbreak.jpg", "d/" + "n" * 300 + ".jpg", "d/FG_BG/Park.jpg", "d/bg",
        "d/fg_bg/with space and.dots.jpg", "d/fg_bg/é ü.jpg",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_hostile_name_among_good_ones_does_no_harm(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "x.zip").write_bytes(pack(files_of() | {name: composite(99, 1)}))
    report = build([inside / "x.zip"], inside / "out", BuildOptions(val=0, max_bad=0.5, workers=1))
    assert report.manifest.splits["train"].samples == 8
    outside = {each for each in tmp_path.rglob("*") if inside not in each.parents}
    assert outside == {inside, inside.parent}


def png(data: bytes, *, side: int = 8, bits: int = 8, colour: int = 0, passes: int = 0) -> bytes:
    """A PNG of these rows, with sound checksums."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))
        )

    head = chunk(b"IHDR", struct.pack(">2L5B", side, side, bits, colour, 0, 0, passes))
    packed = zlib.compress(data)
    body = chunk(b"IDAT", packed[:7]) + chunk(b"IDAT", packed[7:])
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("size", "form"),
    [
        (8 * 9, {}),
        (8 * 25, {"colour": 2}),
        (8 * 17, {"bits": 16}),
        (2 + 2 + 3 + 6 + 10 + 20 + 36, {"passes": 1}),
        (1 * 3, {"side": 1, "bits": 16}),
        (1200 * 1201, {"side": 1200}),
    ],
    ids=["gray", "colour", "16 bits", "interlaced", "a pixel", "large"],
)
def test_a_png_whose_picture_ends_early_is_refused_though_pillow_takes_it(
    size: int, form: dict[str, int]
) -> None:
    for data in (bytes(size), bytes(size + 99)):
        whole = png(data, **form)
        assert pixels(whole, parse(whole), "depth", STANDARD).size
    short = png(bytes(size - 1), **form)
    with pytest.raises(ImageError, match="truncated PNG"):
        pixels(short, parse(short), "depth", STANDARD)


def test_a_build_that_decodes_leaves_out_a_png_that_ends_early_by_name(tmp_path: Path) -> None:
    name = "d/fg_bg_depth/depth_fg_001_bg_002_000001.png"
    (tmp_path / "x.zip").write_bytes(pack(files_of() | {name: png(bytes(20))}))
    options = BuildOptions(val=0, max_bad=0.5, workers=1, verify="decode")
    build([tmp_path / "x.zip"], tmp_path / "out", options)
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["member"] == name
    assert json.loads(line)["reason"] == "truncated PNG (its picture data end early)"


def test_seventy_thousand_junk_entries_are_passed_over(tmp_path: Path) -> None:
    junk = {f"__MACOSX/d/fg_bg/._{number}.jpg": b"x" for number in range(70_000)}
    (tmp_path / "x.zip").write_bytes(pack(files_of() | junk))
    found = survey([tmp_path / "x.zip"], BuildOptions(val=0))
    assert int(found.usable.sum()) == 8


def test_a_bomb_is_refused_before_any_work(tmp_path: Path) -> None:
    stem = "fg_001_bg_001_000001"
    files = files_of() | {f"d/fg_bg/{stem}.jpg": bytes(300 << 20)}
    path = tmp_path / "x.zip"
    path.write_bytes(pack(files))
    with pytest.raises(ShardifyError, match=r"larger than 256 MiB|bomb|more than --max-bad"):
        build([path], tmp_path / "out", BuildOptions(val=0, workers=1))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_quoted_overlap_is_refused(tmp_path: Path) -> None:
    # One kernel of deflated data, quoted by entries whose data contain the next one's header.
    kernel = pack({"k": bytes(100_000)})
    size = struct.unpack_from("<L", kernel, 18)[0]
    body, records = b"", []
    for number in range(20):
        name = b"d/fg_bg/%02d.jpg" % number
        head = struct.pack(
            "<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, size + 200, 100_000, len(name), 0
        )
        records.append(
            struct.pack(
                "<4s4B4HL2L5H2L", b"PK\x01\x02", 20, 0, 20, 0, 0, 8, 0, 0, 0, size + 200, 100_000,
                len(name), 0, 0, 0, 0, 0, len(body),
            ) + name
        )  # fmt: skip
        body += head + name
    body += kernel[31 : 31 + size]
    directory = b"".join(records)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 20, 20, len(directory), len(body), 0)
    (tmp_path / "x.zip").write_bytes(body + directory + end)
    with pytest.raises(ShardifyError, match="overlap"):
        open_catalog([tmp_path / "x.zip"])
