"""What is done for many at once, or by a short way, is what is done one by one."""

import dataclasses
import io
import itertools
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from shardline_sources import files_of, open_catalog, pack

from shardify.errors import ImageError
from shardify.images.channel_stats import channel_stats, reduced_stats
from shardify.images.codecs import Variant
from shardify.images.parser import parse
from shardify.images.pixels import STANDARD, pixels
from shardify.layout import sample_table
from shardify.layout.name_groups import group_names
from shardify.layout.name_patterns import (
    ALL_FOLDERS,
    LAST_FOLDER,
    NO_FOLDER,
    UNGROUPED,
    NamePatterns,
    find_key_pattern,
    find_number_spans,
    read_numbers,
)
from shardify.sources.catalog import ENTRY_DTYPE, OpenSources
from shardify.sources.entry_names import Names, any_hostile, decode, is_hostile
from shardify.writer import fast_copy
from shardify.writer.fast_copy import FastCopier, header_length
from shardify.writer.shard_writer import write_shard
from shardify.writer.tar_writer import TarWriter
from shardify.writer.tasks import ShardRecord, ShardTask, staging_folder

if TYPE_CHECKING:
    from shardify.writer.fast_copy_kernel import Buffers, CopyPlan, KnownHeaders

ROOT = Path(__file__).resolve().parents[3]
ROLES = ("fg_bg", "mask", "depth")

Copy = Callable[..., tuple[int, int, int, bool]]


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
    count = len(catalog.names) // len(ROLES)
    joined, ends = catalog.names.joined(np.arange(len(catalog.names), dtype=np.int32))
    staging_folder(out, "").mkdir(parents=True)
    rows = np.empty((count, len(ROLES)), ENTRY_DTYPE)
    for column in ENTRY_DTYPE.names or ():
        rows[column] = getattr(catalog.entries, column).reshape(rows.shape)
    task = ShardTask(
        out=str(out),
        name="train-00000",
        sources=[str(source)],
        roles=ROLES,
        keys=[f"key{number}" for number in range(count)],
        names=joined,
        name_ends=ends,
        rows=rows,
        background=[number - 1 for number in range(count)],
        measured=[number == 7 for number in range(count)],
        verify="headers",
        label_encoding=STANDARD,
        variants=(Variant(),),
    )
    return dataclasses.replace(task, **other)  # type: ignore[arg-type]


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch) -> Copy:
    """The compiled function; compiled once for an installation."""
    monkeypatch.setattr(fast_copy, "_copy", None)
    fast_copy.load()
    assert fast_copy._copy is not None
    return fast_copy._copy


class Ways:
    """Tasks done with the fast copy and on the checked path."""

    def __init__(self, copy: Copy, patch: pytest.MonkeyPatch) -> None:
        self._copy = copy
        self._patch = patch
        self.copied: list[int] = []
        """How many samples each call copied."""

    def same(self, task: ShardTask) -> ShardRecord:
        """Do a task both ways, and see that it makes no difference."""
        records, files = [], []
        for way in (self._counted, None):
            self._patch.setattr(fast_copy, "_copy", way)
            records.append(write_shard(task))
            files.append({path.name: path.read_bytes() for path in written(task)})
            for path in written(task):
                path.unlink()
        assert records[0] == records[1]
        assert files[0] == files[1]
        return records[0]

    def left_alone(self, task: ShardTask) -> None:
        """See that the fast copy alone takes nothing of a task."""
        self._patch.setattr(fast_copy, "_copy", self._copy)
        tar = TarWriter(io.BytesIO())
        with OpenSources(task.sources) as handles:
            assert FastCopier(task, handles).copy(0, tar) is None
        assert not tar.offset

    def _counted(
        self, plan: "CopyPlan", known: "KnownHeaders", buffers: "Buffers", first: int, offset: int
    ) -> tuple[int, int, int, bool]:
        found = self._copy(plan, known, buffers, first, offset)
        self.copied.append(found[0] - first)
        return found


@pytest.fixture
def ways(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> Ways:
    return Ways(copy, monkeypatch)


def written(task: ShardTask) -> list[Path]:
    return [path for path in Path(task.out).rglob("*") if path.is_file()]


@pytest.mark.parametrize("verify", ["headers", "none"])
def test_a_shard_is_the_same_with_the_fast_copy_and_without(
    tmp_path: Path, ways: Ways, verify: str
) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(number) for number in range(60)])
    measured = [number % 2 == 1 for number in range(60)]
    task = task_of(source, tmp_path / "out", verify=verify, measured=measured)
    record = ways.same(task)
    assert record.moments["mask"].samples == 30
    # Measured samples are looked into in any case.
    assert 10 <= sum(ways.copied) < 60 if verify == "headers" else sum(ways.copied) >= 30


@pytest.mark.parametrize("verify", ["headers", "none"])
def test_many_large_samples_fill_block_after_block(tmp_path: Path, ways: Ways, verify: str) -> None:
    alike = [
        {
            "fg_bg": picture(number, "JPEG", "RGB", side=140, quality=90),
            "mask": picture(number, "JPEG", "L", side=140),
            "depth": picture(number, "PNG", "L", side=140),
        }
        for number in range(44)
    ]
    source = packed(tmp_path / "x.zip", alike)
    keys = ["k" * (1 + 2 * number) for number in range(44)]
    task = task_of(source, tmp_path / "out", verify=verify, keys=keys, measured=[False] * 44)
    assert sum(len(data) for sample in alike for data in sample.values()) > 2 << 20
    ways.same(task)
    # In the first call only what was known of none is left; in each of the others a block is full.
    assert sum(ways.copied) >= 43 and len([each for each in ways.copied if each]) >= 3


def test_images_of_unknown_headers_are_soon_left_alone(tmp_path: Path, ways: Ways) -> None:
    each = [
        {
            "fg_bg": picture(number, "JPEG", "RGB", side=16 + number),
            "mask": picture(number, "JPEG", "L", side=16 + number),
            "depth": picture(number, "PNG", "L", side=16 + number),
        }
        for number in range(99)
    ]
    task = task_of(packed(tmp_path / "x.zip", each), tmp_path / "out", measured=[False] * 99)
    assert ways.same(task).samples == 99
    assert len(ways.copied) < 50 and not sum(ways.copied)


def test_a_background_of_six_digits_is_whole_in_shard_and_index(tmp_path: Path, ways: Ways) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(0) for _ in range(4)])
    task = task_of(source, tmp_path / "out", background=[99_999, 100_000, 7, -1])
    ways.same(task)
    write_shard(task)
    staged = staging_folder(tmp_path / "out", "")
    tar = (staged / "train-00000.tar").read_bytes()
    labels = []
    for line in (staged / "train-00000.idx").read_text().splitlines()[1:]:
        extension, offset, size, _ = line.split(" ")[-4:]
        if extension == "bg.cls":
            labels.append(tar[int(offset) :][: int(size)])
    assert labels == [b"99999", b"100000", b"00007"]


def test_a_name_too_long_for_a_header_goes_the_careful_way(tmp_path: Path, ways: Ways) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(0) for _ in range(8)])
    keys = ["k" * (number + 84) for number in range(8)]
    task = task_of(source, tmp_path / "out", keys=keys, verify="none", measured=[False] * 8)
    ways.same(task)
    # ``.fg_bg.jpg`` and ``.depth.png`` are the longest endings.
    assert sum(ways.copied) == len([key for key in keys if len(key) + 10 <= 100])


def test_an_array_of_another_type_is_refused(tmp_path: Path, copy: Copy) -> None:
    task = task_of(packed(tmp_path / "x.zip", [kinds_of(0)]), tmp_path / "out")
    plan = fast_copy._make_plan(task, [0], [0])
    known, buffers = fast_copy._make_known({}, [], 3), fast_copy._make_buffers(1, 3)
    assert copy(plan, known, buffers, 0, 0) == (0, 0, 0, False)
    for name, other in [
        ("keys", np.zeros(1, np.int64)),
        ("files", np.zeros(1, np.int32)),
        ("rows", np.zeros(1, np.int64)),
        ("background", np.zeros(4, np.int64)[::2]),
    ]:
        with pytest.raises(TypeError, match="No matching definition"):
            copy(plan._replace(**{name: other}), known, buffers, 0, 0)


@pytest.mark.usefixtures("copy")
def test_what_is_compiled_is_cached_and_not_compiled_again() -> None:
    code = (
        "from shardify.writer import fast_copy as copier, fast_copy_kernel as kernel; "
        "copier.load()\n"
        "for each in (kernel.copy, kernel.is_whole):\n"
        "    assert each.stats.cache_hits and not each.stats.cache_misses, each.stats"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("absent", ["deflate._deflate", "numba"])
def test_without_the_compiled_function_everything_takes_the_checked_path(absent: str) -> None:
    code = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "from shardify.writer import fast_copy as copier, fast_worker as swift; "
        "swift.prepare(); assert copier._copy is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    code = (
        f"import runpy, sys; sys.modules[{absent!r}] = None\n"
        "runpy.run_module('shardify.precompile', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("copy")
def test_a_damaged_cache_is_not_used_and_can_be_replaced(tmp_path: Path) -> None:
    from shardify.writer import fast_copy_kernel

    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def run(*words: str) -> str:
        command = [sys.executable, *words]
        return subprocess.check_output(command, env=environment, text=True).strip()

    folder = Path(
        run("-c", "from shardify.writer.fast_copy_kernel import copy; print(copy.stats.cache_path)")
    )
    assert folder.parent == tmp_path
    good = {
        each.name: each.read_bytes()
        for each in Path(fast_copy_kernel.copy.stats.cache_path).iterdir()
    }
    good = {name: data for name, data in good.items() if ".nb" in name}
    loaded = (
        "from shardify.writer import fast_copy as copier, fast_worker as swift; swift.prepare(); "
        "print(copier._copy is not None)"
    )
    for kind in ("nbi", "nbc"):
        for damage in (b"", b"x", None):
            for name, data in good.items():
                damaged = data[: len(data) // 2] if damage is None else damage
                (folder / name).write_bytes(damaged if name.endswith(kind) else data)
            assert run("-c", loaded) == "False"
    run("-m", "shardify.precompile")
    assert run("-c", loaded) == "True"


@pytest.fixture(scope="module")
def unwritable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An installation with files in the place of folders: root, too, can write nothing below."""
    folder = tmp_path_factory.mktemp("unwritable")
    shutil.copytree(
        ROOT / "shardify", folder / "shardify", ignore=shutil.ignore_patterns("__pycache__")
    )
    (folder / "shardify" / "writer" / "__pycache__").touch()
    (folder / "home").touch()
    dropped = ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return folder, {**kept, "HOME": str(folder / "home")}


def test_where_no_folder_can_be_written_a_build_takes_the_checked_path(
    tmp_path: Path, unwritable: tuple[Path, dict[str, str]]
) -> None:
    folder, environment = unwritable
    source = pack(tmp_path / "x.zip", files_of())
    code = (
        "import sys, shardify.workers.factory\n"
        f"assert shardify.workers.factory.__file__.startswith({str(folder)!r})\n"
        "shardify.workers.factory._WORTH = 0\n"
        "from shardify.cli import main; main(sys.argv[1:])"
    )
    python, words = [sys.executable, "-c"], ["build", str(source), str(tmp_path / "out")]
    subprocess.run([*python, code, *words], check=True, cwd=folder, env=environment)
    code = (
        "from shardify.writer import fast_copy as copier, fast_worker as swift; swift.prepare(); "
        "assert copier._copy is None"
    )
    subprocess.run([*python, code], check=True, cwd=folder, env=environment)
    assert (tmp_path / "out" / "manifest.json").exists()


def test_a_place_that_cannot_be_written_is_named_with_a_remedy(
    unwritable: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = unwritable
    done = subprocess.run(
        [sys.executable, "-m", "shardify.precompile"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"Error: {folder / 'shardify' / 'writer'}: ")
    assert "NUMBA_CACHE_DIR" in done.stderr


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


@pytest.mark.parametrize("verify", ["headers", "none"])
def test_what_becomes_of_a_damaged_sample_depends_on_no_way(
    tmp_path: Path, ways: Ways, verify: str
) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(number) for number in (0, 12, 24)])
    task = task_of(source, tmp_path / "out", verify=verify, measured=[False] * 3)
    assert ways.same(task).samples == 3 and sum(ways.copied) >= 2
    good = source.read_bytes()
    first, end = int(task.rows["offset"][1].min()), int(task.rows["limit"][1].max())

    @settings(max_examples=120, deadline=None)
    @given(st.integers(first, end - 1), st.integers(1, 255))
    def law(place: int, change: int) -> None:
        source.write_bytes(good[:place] + bytes([good[place] ^ change]) + good[place + 1 :])
        assert ways.same(task).samples >= 2

    law()


def test_what_becomes_of_a_cut_source_depends_on_no_way(tmp_path: Path, ways: Ways) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(0), kinds_of(12)])
    task = task_of(source, tmp_path / "out", measured=[False] * 2)
    last = task.rows[-1, -1]
    for kept in (0, int(last["offset"]) + 20, int(last["offset"]) + 40, int(last["limit"]) - 1):
        source.write_bytes(source.read_bytes()[:kept].ljust(kept, b"x"))
        ways.same(task)


@pytest.mark.parametrize("column", ["packed", "size", "crc", "method", "offset", "limit"])
@pytest.mark.parametrize("change", [1, 8, 1 << 15])
def test_a_directory_that_lies_is_found_out(
    tmp_path: Path, ways: Ways, column: str, change: int
) -> None:
    source = packed(tmp_path / "x.zip", [kinds_of(number) for number in (0, 12, 24)])
    task = task_of(source, tmp_path / "out", measured=[False] * 3)
    row = task.rows[1, 0]
    limit = int(row["limit"])
    if column == "offset":
        row["limit"] = max(row["limit"], row["offset"] ^ change)
    row[column] ^= change
    # Where the next entry begins need not be where this one ends.
    assert ways.same(task).samples == (3 if column == "limit" and row["limit"] > limit else 2)


def test_sizes_whose_sum_seems_small_are_left_alone(tmp_path: Path, ways: Ways) -> None:
    flood = {"fg_bg": bytes(64 << 20), "mask": b"x", "depth": b"x"}
    source = packed(tmp_path / "x.zip", [flood])
    task = task_of(source, tmp_path / "out", verify="none", measured=[False])
    # The directory's reader lets no such sizes pass; nobody may write so much in any case.
    task.rows["size"][0, 1:] = ((1 << 64) - (64 << 20)) // 2
    ways.left_alone(task)
    task.rows["size"][0] = (1 << 63) - 1
    ways.left_alone(task)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "L")])
def test_a_known_header_tells_what_a_whole_parse_does(kind: str, mode: str) -> None:
    from shardify.writer import fast_copy_kernel  # Numba is slow to import.

    first = picture(0, kind, mode)
    found, number = parse(first), int(kind == "PNG")
    length = header_length(first, found)
    assert 0 < length < len(first)
    known = fast_copy_kernel.KnownHeaders(
        np.frombuffer(bytearray(first[:length]), np.uint8),
        np.array([[0, number, 0, length]]),
        np.zeros((1, 1), np.int64),
    )

    def recognised(data: bytes) -> bool:
        block = np.frombuffer(bytearray(data + b"\xff"), np.uint8)
        return bool(fast_copy_kernel.match_header(known, block, 0, len(data), 0, number) == 0)

    data = picture(9, kind, mode)
    assert recognised(first) and recognised(data)

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, len(data)), st.binary(max_size=3), st.integers(0, 3))
    def law(place: int, put: bytes, drop: int) -> None:
        changed = data[:place] + put + data[place + drop :]
        if recognised(changed):
            assert parse(changed) == found

    law()
    for end in range(len(data)):
        assert not recognised(data[:end])


@pytest.mark.parametrize(
    "data",
    [
        picture(1, "JPEG", "RGB", progressive=True),
        picture(1, "JPEG", "RGB") + b"behind",
        picture(1, "PNG", "P"),
    ],
    ids=["progressive", "behind", "palette"],
)
def test_the_header_of_an_image_with_more_in_it_is_not_learned(data: bytes) -> None:
    assert header_length(data, parse(data)) == 0


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
    outlines = NamePatterns(names)
    came: list[int] = []
    for code, indexes, some in outlines.batches(wanted):
        assert some == [names[index] for index in indexes]
        assert code == UNGROUPED or len({noughts(name) for name in some}) == 1
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
    for _, _, some in NamePatterns(names).batches(np.ones(len(names), bool)):
        recipe, numbers = find_key_pattern(some[0], 0, folders), find_number_spans(some[0], 0)
        assert numbers is not None
        for name in some:
            own = find_key_pattern(name, 0, folders)
            assert find_number_spans(name, 0) == numbers
            assert (own is None) == (recipe is None)
            if own is not None and recipe is not None:
                assert recipe.apply([name]) == own.apply([name])
        for where in numbers.values():
            assert read_numbers(some, where).tolist() == [int(name[where]) for name in some]


TREES = st.sampled_from(["{}", "mask/{}", "z_{}", "depth_7/fg_bg/{}", "q/{}", "fg_bg_2/{}"])


@settings(max_examples=60, deadline=None)
@given(alike(), TREES, TREES, st.data())
def test_rules_passed_over_unseen_are_those_that_complete_nothing(
    names: list[str], one: str, other: str, data: st.DataObject
) -> None:
    census = group_names([tree.format(name) for tree in (one, other) for name in names])
    roles = [data.draw(st.sampled_from(["fg_bg", "mask"])) for _ in census.groups]
    found = sample_table.join_by_name(census, roles)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_table, "_can_match", lambda *_: True)
        thorough = sample_table.join_by_name(census, roles)
    assert found.complete_count == thorough.complete_count
    if found.complete_count:
        assert found.rule == thorough.rule


def test_companions_get_one_key_by_their_own_recipes() -> None:
    names = ["d/fg_bg/bg_3/fg_07_bg_003_12.jpg", "d/fg_bg_mask/bg_3/mask_fg_07_bg_003_12.jpg"]
    keys = {
        recipe.apply([name])[0]
        for name in names
        if (recipe := find_key_pattern(name, 1, NO_FOLDER))
    }
    assert len(keys) == 1
    found = find_number_spans(names[0], 1)
    assert found is not None
    assert [names[0][found["bg"]], names[0][found["fg"]]] == ["003", "07"]


def test_a_number_too_great_to_keep_is_the_greatest() -> None:
    assert read_numbers(["a9999999999", "a0000000007"], slice(1, 11)).tolist() == [2**31 - 1, 7]
    assert read_numbers(["é9999999999", "é0000000007"], slice(1, 11)).tolist() == [2**31 - 1, 7]


PARTS = st.sampled_from(["a", ".", "..", ".a", "a.", "", "C:", "b:c", "é", "x y", "\x7f", "\x1f"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=4).map("/".join), min_size=1, max_size=4))
def test_names_are_judged_together_as_they_are_alone(names: list[str]) -> None:
    raw = [name.encode() for name in names if name]
    assert any_hostile(b"\n".join(raw)) == any(map(is_hostile, raw))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=6), max_size=5), min_size=1, max_size=3),
    st.data(),
)
def test_names_joined_are_those_taken_alone(parts: list[list[bytes]], data: st.DataObject) -> None:
    count = sum(map(len, parts))
    bounds = [np.cumsum([0, *map(len, raw)]) for raw in parts]
    names = Names(
        [(bytearray(b"".join(raw)), each, "z/") for raw, each in zip(parts, bounds, strict=True)]
    )
    wanted = data.draw(st.lists(st.integers(0, count - 1), max_size=8) if count else st.just([]))
    joined, ends = names.joined(np.array(wanted, np.int32))
    each = [joined[begin:end] for begin, end in itertools.pairwise(ends.tolist())]
    assert each == [names.raw(index) for index in wanted]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a.jpg", "b/c.JPEG", "x.Png", ".jpg", "jpeg", "d.jpg.txt", "e", "1.PNG"])
        | st.text("aj.pngJPEG/", min_size=1, max_size=9),
        max_size=6,
    )
)
def test_kinds_told_by_many_names_are_those_told_by_each(names: list[str]) -> None:
    raw = [name.encode() for name in names]
    ends = np.cumsum([0, *map(len, raw)])
    told = fast_copy._name_kinds(b"".join(raw), ends).tolist()
    kinds = [fast_copy.KIND_BY_EXTENSION.get(name.rpartition(b".")[2].lower(), "") for name in raw]
    for name, number, kind in zip(raw, told, kinds, strict=True):
        # So short a name may be left to others.
        assert (number == -1 and (not kind or len(name) < 5)) or fast_copy._KINDS[number] == kind


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=6), max_size=5), st.sampled_from(["", "zip/"]))
def test_names_in_a_list_are_those_decoded_alone(raw: list[bytes], prefix: str) -> None:
    bounds = np.cumsum([0, *map(len, raw)])
    names = Names([(bytearray(b"".join(raw)), bounds, prefix)])
    assert list(names) == [prefix + decode(name) for name in raw]


def test_a_glance_at_a_small_picture_measures_every_pixel() -> None:
    data = picture(1, "JPEG", "RGB", side=64)
    whole = channel_stats(pixels(data, parse(data), "bg", STANDARD))
    assert reduced_stats(data, parse(data), "bg", STANDARD, least=64) == whole
    half = reduced_stats(data, parse(data), "bg", STANDARD, least=32)
    assert half != whole
    assert np.allclose(half[0], whole[0], atol=0.01)


def test_a_glance_at_a_damaged_picture_is_refused() -> None:
    data = picture(1, "JPEG", "RGB", side=64)
    with pytest.raises(ImageError, match="cannot be decoded"):
        reduced_stats(data[:200], parse(data), "bg", STANDARD, least=32)
