"""What is done for many at once, or by a short way, is what is done one by one."""

import dataclasses
import io
import itertools
import struct
import zipfile
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shardify.archive import open_catalog
from shardify.beginnings import Beginnings
from shardify.codecs import Variant
from shardify.copier import Copier
from shardify.errors import EntryError, ImageError
from shardify.extract import payload
from shardify.images import Picture, parse
from shardify.moments import glance, measure
from shardify.names import Names, decode, is_hostile, some_hostile
from shardify.outlines import ALONE, Outlines, numbers_at
from shardify.pixels import PLAIN, pixels
from shardify.recipes import ALL_FOLDERS, LAST_FOLDER, NO_FOLDER, numbers_of, recipe_of
from shardify.sources import Sources
from shardify.tarwriter import TarWriter, headers
from shardify.tasks import ROW, STATE, ShardTask
from shardify.writer import write_shard

ROLES = ("fg_bg", "mask", "depth")


def picture(seed: int, kind: str, mode: str, *, side: int = 20, **how: object) -> bytes:
    noise = np.random.Generator(np.random.Philox(key=seed)).integers(0, 256, (side, side, 3))
    buffer = io.BytesIO()
    Image.fromarray(noise.astype(np.uint8)).convert(mode).save(buffer, kind, **how)
    return buffer.getvalue()


def kinds_of(number: int) -> dict[str, bytes]:
    """Samples of several sorts, some of which no short way takes."""
    depth = picture(number, "PNG", "L")
    if number % 5 == 1:
        depth = picture(number, "PNG", "I;16" if number % 2 else "P")
    return {
        "fg_bg": picture(number, "JPEG", "RGB", quality=95 if number % 3 else 60),
        "mask": picture(number, "JPEG", "L", progressive=number % 4 == 3),
        "depth": depth,
    }


def packed(path: Path, samples: list[dict[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for number, sample in enumerate(samples):
            for role, data in sample.items():
                info = zipfile.ZipInfo(f"{role}/{number}.{'png' if role == 'depth' else 'jpg'}")
                info.compress_type = 8 * (number % 4 != 2)
                # As Info-ZIP's times, in the local header alone or in both.
                info.extra = struct.pack("<2HB4s", 0x5455, 5, 1, b"time") if number % 2 else b""
                file.writestr(info, data)
    return path


def refilled_png(good: bytes, pixels: bytes) -> bytes:
    """A PNG with other packed pixels, all of its checksums right."""
    chunks = [(b"IHDR", good[16:29]), (b"IDAT", pixels), (b"IEND", b"")]
    return good[:8] + b"".join(
        struct.pack(">L", len(data)) + kind + data + struct.pack(">L", crc32(kind + data))
        for kind, data in chunks
    )


def task_of(source: Path, out: Path, **other: object) -> ShardTask:
    catalog = open_catalog([source])
    names = list(catalog.names)
    count = len(names) // len(ROLES)
    (out / STATE).mkdir(parents=True)
    rows = np.empty((count, len(ROLES)), ROW)
    for column in ROW.names or ():
        rows[column] = getattr(catalog.entries, column).reshape(rows.shape)
    task = ShardTask(
        out=str(out),
        name="train-00000",
        sources=[str(source)],
        roles=ROLES,
        keys=[f"key{number}" for number in range(count)],
        names=[[name.encode() for name in names[3 * n : 3 * n + 3]] for n in range(count)],
        rows=rows,
        background=[number - 1 for number in range(count)],
        measured=[number == 7 for number in range(count)],
        verify="headers",
        meaning=PLAIN,
        variants=(Variant(),),
    )
    return dataclasses.replace(task, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("verify", ["headers", "none"])
def test_a_shard_is_the_same_whether_samples_go_the_short_way_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str
) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(number) for number in range(12)])
    measured = [number % 2 == 1 for number in range(12)]
    short, long = (
        task_of(source, tmp_path / each, verify=verify, measured=measured)
        for each in ("short", "long")
    )
    quick = write_shard(short)
    assert quick.moments["mask"].samples == 6
    with Sources(short.sources) as handles:
        taken = [Copier(short, handles).copy(number) is not None for number in range(12)]
    assert any(taken) and (verify == "none" or not all(taken))
    monkeypatch.setattr(Copier, "copy", lambda *_, **__: None)
    assert write_shard(long) == quick
    for suffix in (".tar", ".idx"):
        one, other = (Path(each.out) / f"{each.name}{suffix}" for each in (short, long))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("verify", ["headers", "none"])
def test_a_measured_sample_that_cannot_be_decoded_is_left_out_of_shard_and_figures(
    tmp_path: Path, verify: str
) -> None:
    samples = [kinds_of(number) for number in (0, 2, 4)]
    # Whole by its structure and its checksums; what it unpacks to is no picture.
    samples[1]["depth"] = refilled_png(picture(2, "PNG", "L"), b"no picture")
    source = packed(tmp_path / "x.zip", samples)
    record = write_shard(task_of(source, tmp_path / "out", verify=verify, measured=[True] * 3))
    reason = "cannot be decoded"
    assert [(key, role, why[: len(reason)]) for key, _, role, why in record.rejected] == [
        ("key1", "depth", reason)
    ]
    assert record.samples == 2
    assert {each.samples for each in record.moments.values()} == {2}


def test_a_damaged_sample_is_never_taken_the_short_way(tmp_path: Path) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(0)])
    task = task_of(source, tmp_path / "out")
    good, end = source.read_bytes(), int(task.rows["limit"].max())
    rows = task.rows[0].tolist()

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, end - 1), st.integers(1, 255))
    def law(place: int, change: int) -> None:
        source.write_bytes(good[:place] + bytes([good[place] ^ change]) + good[place + 1 :])
        with Sources(task.sources) as handles:
            found = Copier(task, handles).copy(0)
            if found is not None:
                told = [
                    payload(handles[row[0]], name, *row[1:])
                    for name, row in zip(task.names[0], rows, strict=True)
                ]
                assert found.data == told
                assert list(found.pictures) == [parse(data) for data in told]

    law()


def test_a_cut_source_is_never_taken_the_short_way(tmp_path: Path) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(0)])
    task = task_of(source, tmp_path / "out")
    last = task.rows[0, -1]
    for kept in (0, int(last["offset"]) + 20, int(last["offset"]) + 40, int(last["limit"]) - 1):
        source.write_bytes(source.read_bytes()[:kept])
        with Sources(task.sources) as handles:
            assert Copier(task, handles).copy(0) is None


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "L")])
def test_a_known_beginning_answers_as_a_whole_parse_does(kind: str, mode: str) -> None:
    seen = Beginnings()
    for seed in range(3):
        assert seen.parse(picture(seed, kind, mode)) == parse(picture(seed, kind, mode))
    data = picture(9, kind, mode)

    @settings(max_examples=150, deadline=None)
    @given(st.integers(0, len(data) - 1), st.binary(max_size=3), st.integers(0, 3))
    def law(place: int, put: bytes, drop: int) -> None:
        changed = data[:place] + put + data[place + drop :]
        assert outcome(seen.parse, changed) == outcome(parse, changed)

    law()


def outcome(read: object, data: bytes) -> Picture | str:
    try:
        found: Picture = read(data)  # type: ignore[operator]
    except EntryError as error:
        return str(error)
    return found


NAMES = st.lists(st.binary(min_size=1, max_size=100), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(NAMES, st.data())
def test_headers_made_at_once_are_those_made_one_by_one(
    names: list[bytes], data: st.DataObject
) -> None:
    names = [name.rstrip(b"\0") or b"x" for name in names]
    sizes = [data.draw(st.integers(0, 3000)) for _ in names]
    for name, size, head in zip(names, sizes, headers(names, np.array(sizes)), strict=True):
        file = io.BytesIO()
        writer = TarWriter(file)
        writer.add(name, bytes(size))
        writer.finish()
        assert file.getvalue()[:512] == head


DIGITS = st.text("0123456789", min_size=1, max_size=3)
PATHS = st.sampled_from(
    [
        "a/fg_bg/bg_{}/fg_{}_bg_{}.jpg",
        "Mask/mask_{}{}.PNG",
        "{}.jpg",
        "d/x{}_mask_{}.jpg",
        "é/b{}.jpg",
    ]
)


@st.composite
def alike(draw: st.DrawFn) -> list[str]:
    """Names of a few outlines."""
    return [
        draw(PATHS).format(*(draw(DIGITS) for _ in range(3)))
        for _ in range(draw(st.integers(1, 9)))
    ]


@settings(max_examples=60, deadline=None)
@given(st.lists(alike(), min_size=1, max_size=3), st.data())
def test_every_wanted_name_comes_once_with_those_of_its_outline(
    groups: list[list[str]], data: st.DataObject
) -> None:
    names = list(itertools.chain(*groups))
    wanted = np.array([data.draw(st.booleans()) for _ in names])
    outlines = Outlines(names)
    came: list[int] = []
    for code, indexes, some in outlines.batches(wanted):
        assert some == [names[index] for index in indexes]
        assert code == ALONE or len({noughts(name) for name in some}) == 1
        came += indexes.tolist()
    assert sorted(came) == np.flatnonzero(wanted).tolist()
    members = np.flatnonzero(wanted).astype(np.int32)[::-1]
    places = [
        (names[members[p]], name)
        for _, at, some in outlines.groups(members)
        for p, name in zip(at.tolist(), some, strict=True)
    ]
    assert len(places) == len(members) and all(one == other for one, other in places)


def noughts(name: str) -> str:
    return "".join("0" if each in "123456789" else each for each in name)


@settings(max_examples=60, deadline=None)
@given(alike(), st.sampled_from([NO_FOLDER, LAST_FOLDER, ALL_FOLDERS]))
def test_the_recipe_of_one_name_serves_all_of_its_outline(names: list[str], folders: int) -> None:
    for _, _, some in Outlines(names).batches(np.ones(len(names), bool)):
        recipe, numbers = recipe_of(some[0], 0, folders), numbers_of(some[0], 0)
        assert numbers is not None
        for name in some:
            own = recipe_of(name, 0, folders)
            assert numbers_of(name, 0) == numbers
            assert (own is None) == (recipe is None)
            if own is not None and recipe is not None:
                assert recipe.apply([name]) == own.apply([name])
        for where in (numbers.background, numbers.foreground, numbers.folder):
            if where is not None:
                assert numbers_at(some, where).tolist() == [int(name[where]) for name in some]


def test_companions_get_one_key_by_their_own_recipes() -> None:
    names = ["d/fg_bg/bg_3/fg_07_bg_003_12.jpg", "d/fg_bg_mask/bg_3/mask_fg_07_bg_003_12.jpg"]
    keys = {recipe.apply([name])[0] for name in names if (recipe := recipe_of(name, 1, NO_FOLDER))}
    assert len(keys) == 1
    found = numbers_of(names[0], 1)
    assert found is not None and found.background is not None and found.foreground is not None
    assert [names[0][found.background], names[0][found.foreground]] == ["003", "07"]


def test_a_number_too_great_to_keep_is_the_greatest() -> None:
    assert numbers_at(["a9999999999", "a0000000007"], slice(1, 11)).tolist() == [2**31 - 1, 7]
    assert numbers_at(["é9999999999", "é0000000007"], slice(1, 11)).tolist() == [2**31 - 1, 7]


PARTS = st.sampled_from(["a", ".", "..", ".a", "a.", "", "C:", "b:c", "é", "x y", "\x7f", "\x1f"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4))
def test_names_are_judged_together_as_they_are_alone(names: list[str]) -> None:
    raw = [name.encode() for name in names if name]
    assert some_hostile(b"\n".join(raw)) == any(map(is_hostile, raw))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=6), max_size=5), st.sampled_from(["", "zip/"]))
def test_names_in_a_list_are_those_decoded_alone(raw: list[bytes], prefix: str) -> None:
    bounds = np.cumsum([0, *map(len, raw)])
    names = Names([(bytearray(b"".join(raw)), bounds, prefix)])
    assert list(names) == [prefix + decode(name) for name in raw]


def test_a_glance_at_a_small_picture_measures_every_pixel() -> None:
    data = picture(1, "JPEG", "RGB", side=64)
    whole = measure(pixels(data, parse(data), "bg", PLAIN))
    assert glance(data, parse(data), "bg", PLAIN, least=64) == whole
    half = glance(data, parse(data), "bg", PLAIN, least=32)
    assert half != whole
    assert np.allclose(half[0], whole[0], atol=0.01)


def test_a_glance_at_a_damaged_picture_is_refused() -> None:
    data = picture(1, "JPEG", "RGB", side=64)
    with pytest.raises(ImageError, match="cannot be decoded"):
        glance(data[:200], parse(data), "bg", PLAIN, least=32)
