"""Zips are read in the order in which they lie on a disk, and tasks wait until theirs are read."""

import ctypes
import io
import itertools
import mmap
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shardify.cli import Bar
from shardify.sources.catalog import ENTRY_DTYPE
from shardify.storage import free_memory, page_cache, readahead
from shardify.storage.free_memory import available_memory
from shardify.storage.page_cache import CacheReader, ReadProgress, merge_spans
from shardify.storage.paths import as_path
from shardify.storage.readahead import ReadAhead, _windows, read_ahead

PAGE = 4096


class Disk:
    """What is read of files, and what the system is told to forget: path, first byte, length."""

    def __init__(self) -> None:
        self.read: list[tuple[str, int, int]] = []
        self.forgotten: list[tuple[str, int, int]] = []
        self.slow = threading.Event()
        """Reading goes on while it is set."""
        self.slow.set()

    def pages(self, path: Path) -> set[int]:
        """Pages of a file that are in memory."""
        held: set[int] = set()
        for told, first, length in self.read:
            if told == str(path):
                held |= set(range(first // PAGE, -(-(first + length) // PAGE)))
        return held

    def gone(self) -> set[int]:
        """Pages that the system was told to forget."""
        pages: set[int] = set()
        for _, first, length in self.forgotten:
            pages |= set(range(first // PAGE, (first + length) // PAGE))
        return pages


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Files of which nothing is in memory yet."""
    found = Disk()

    def path_of(descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def read(descriptor: int, into: list[memoryview], first: int) -> int:
        found.slow.wait(10)
        found.read.append((path_of(descriptor), first, len(into[0])))
        return len(into[0])

    def advise(descriptor: int, first: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            found.forgotten.append((path_of(descriptor), first, length))

    monkeypatch.setattr("os.preadv", read)
    monkeypatch.setattr("os.posix_fadvise", advise)
    monkeypatch.setattr(CacheReader, "_is_cached", lambda *_: False)
    return found


def given(
    ahead: ReadAhead, tasks: Iterable[Any], rows: Iterable[NDArray[Any]], path: Path, *,
    max_in_flight: int = 1,
) -> Iterator[Any]:  # fmt: skip
    """The tasks, each once it is there."""
    rows = list(rows)
    deadline = time.monotonic() + 20
    for task in ahead.ready_tasks(
        tasks, lambda: rows, [str(path), "absent"], max_in_flight=max_in_flight
    ):
        if task is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        else:
            yield task


def rows(*places: tuple[int, int], source: int = 0) -> NDArray[np.void]:
    """A task's entries: where each lies in its source, and how many bytes it has there."""
    made = np.zeros(len(places), ENTRY_DTYPE)
    made["source"] = source
    made["offset"], made["packed"] = np.array(places).reshape(-1, 2).T
    made["limit"] = 1 << 40
    return made


def test_every_byte_of_every_zip_is_read_in_order_before_a_task_is_given_out(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "_STEP", 1000)
    one, two = tmp_path / "one", tmp_path / "folder" / "two.zip"
    two.parent.mkdir()
    one.write_bytes(bytes(2500))
    two.write_bytes(bytes(10))
    (two.parent / "picture.png").write_bytes(bytes(10))
    disk.slow.clear()
    shares: list[float] = []
    paths = [one, two.parent, tmp_path / "absent", as_path("memory://x.zip")]
    with read_ahead(paths, shares.append) as ahead:
        threading.Timer(0.5, disk.slow.set).start()
        for _ in given(ahead, "ab", [rows((0, 2000))] * 2, one):
            # The end of a zip, where its directory is, before all else.
            assert disk.read == [
                (str(one), 2422, 78), (str(one), 0, 1000), (str(one), 1000, 1000),
                (str(one), 2000, 422), (str(two), 0, 10),
            ]  # fmt: skip
    assert shares[0] == 78 / 2510 and not disk.forgotten


@pytest.mark.parametrize("paths", [[], ["absent"], ["memory://x.zip"]])
def test_where_there_is_nothing_to_read_no_task_waits(tmp_path: Path, paths: list[str]) -> None:
    places = [as_path(each) if ":" in each else tmp_path / each for each in paths]
    with read_ahead(places) as ahead:
        assert list(ahead.ready_tasks([1, 2], list, [], max_in_flight=1)) == [1, 2]


def test_where_the_system_does_not_say_what_memory_it_has_no_task_waits(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "available_memory", lambda: 0)
    (tmp_path / "one").write_bytes(bytes(2500))
    with read_ahead([tmp_path / "one"]) as ahead:
        assert list(ahead.ready_tasks([1, 2], list, [], max_in_flight=1)) == [1, 2]
    assert not disk.read


def test_while_a_task_must_wait_the_taker_is_told(tmp_path: Path, disk: Disk) -> None:
    (tmp_path / "one").write_bytes(bytes(100))
    disk.slow.clear()
    with read_ahead([tmp_path / "one"]) as ahead:
        paced = ahead.ready_tasks(
            "a", lambda: [rows((0, 90))], [str(tmp_path / "one")], max_in_flight=1
        )
        assert [next(paced) for _ in range(3)] == [None] * 3
        disk.slow.set()
        assert "a" in paced


def test_where_little_is_wanted_that_alone_is_waited_for(tmp_path: Path, disk: Disk) -> None:
    """As when a build goes on that was nearly done."""
    path = tmp_path / "one"
    path.write_bytes(bytes(100 << 20))
    disk.slow.clear()
    with read_ahead([path]) as ahead:
        while not ahead._thread:
            time.sleep(0.001)
        threading.Timer(0.1, disk.slow.set).start()
        for task in given(ahead, "abc", [rows((9 << 20, 5000)), rows(), rows((7, 100))], path):
            if task == "a":
                assert {9 << 20 >> 12, (9 << 20 >> 12) + 1, 0} <= disk.pages(path)
    assert sum(length for _, _, length in disk.read) < 30 << 20


def test_a_zip_that_would_fill_the_memory_is_read_for_as_many_tasks_as_have_room(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth entry is a task's, as when samples are shuffled."""
    monkeypatch.setattr(readahead, "available_memory", lambda: 2 * 40 * PAGE)
    path = tmp_path / "one"
    path.write_bytes(bytes(80 * PAGE))
    wanted = [rows(*[(k * PAGE + 7, 2000) for k in range(task, 80, 4)]) for task in range(4)]
    reads: list[int] = []
    gone: list[set[int]] = []
    with read_ahead([path]) as ahead:
        for number in given(ahead, range(4), wanted, path):
            pages = {int(place["offset"]) // PAGE for place in wanted[number]}
            assert pages <= disk.pages(path)
            # Nothing more is read before it is asked for.
            time.sleep(0.05)
            reads.append(len(disk.read))
            gone.append(disk.gone())
    # Two tasks a pass, each from front to end. What it read through is forgotten behind it.
    assert reads == [1, 1, 2, 2]
    assert [first // PAGE for _, first, _ in disk.read] == [0, 2]
    assert gone[0] == {page for page in range(77) if page % 4 >= 2}


def test_what_tasks_at_work_read_is_kept_while_the_next_are_read_for(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks 0 and 1 are the first pass, 2 and 3 the second; three may be at work at once."""
    monkeypatch.setattr(readahead, "available_memory", lambda: 2 * 4 * PAGE)
    path = tmp_path / "one"
    path.write_bytes(bytes(20 * PAGE))
    wanted = [rows(*[(k * PAGE, 100) for k in (task, task + 10)]) for task in range(5)]
    gone: list[set[int]] = []
    with read_ahead([path]) as ahead:
        for _ in given(ahead, range(5), wanted, path, max_in_flight=3):
            gone.append(disk.gone())
            disk.forgotten.clear()
    assert not gone[0] & {0, 1, 10, 11}
    assert {5, 6, 15, 16} <= gone[2] and not gone[2] & {0, 1, 10, 11}
    assert {0, 10} <= gone[4] and not gone[4] & {1, 2, 3, 11, 12, 13}


def test_what_is_nearly_all_in_memory_is_not_read_in_passes(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "available_memory", lambda: 2 * PAGE)
    monkeypatch.setattr(page_cache, "_STEP", PAGE)
    monkeypatch.setattr(CacheReader, "_is_cached", lambda _, begin, __: begin != 3 * PAGE)
    path = tmp_path / "one"
    path.write_bytes(bytes(32 * PAGE))
    tasks = [rows((k * PAGE, 100)) for k in range(31)]
    with read_ahead([path]) as ahead:
        assert list(given(ahead, range(31), tasks, path)) == list(range(31))
    assert disk.read == [(str(path), 3 * PAGE, PAGE)] and not disk.forgotten


def test_a_window_is_of_whole_pages_up_to_the_next_entry() -> None:
    one = rows((5000, 10), (9000, 4000), source=3)
    one["limit"] = [5100, 12288]
    two = rows((0, 3 * PAGE - 1100))
    windows = list(_windows([one, two, rows()], room=1))
    assert [[each.tolist() for each in window] for window in windows] == [
        [[[3, PAGE, 2 * PAGE], [3, 2 * PAGE, 3 * PAGE]]], [[[0, 0, 3 * PAGE]]], [[]],
    ]  # fmt: skip


@pytest.mark.usefixtures("disk")
def test_shares_of_several_files_only_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readahead, "available_memory", lambda: 2 * 40 * PAGE)
    monkeypatch.setattr(page_cache, "_PROGRESS_SECONDS", -1)
    monkeypatch.setattr(page_cache, "_STEP", PAGE)
    paths = [tmp_path / "one", tmp_path / "two"]
    for path in paths:
        path.write_bytes(bytes(30 * PAGE))
    task = np.concatenate([rows((0, 9 * PAGE)), rows((0, 9 * PAGE), source=1)])
    shares: list[float] = []
    with read_ahead(paths, shares.append) as ahead:
        list(
            filter(
                None, ahead.ready_tasks("a", lambda: [task], list(map(str, paths)), max_in_flight=1)
            )
        )
    assert len(shares) == 20 and shares == sorted(shares) and shares[-1] == 1


@pytest.mark.parametrize("memory", [1 << 40, 100])
def test_reading_ends_with_its_block(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(readahead, "available_memory", lambda: memory)
    monkeypatch.setattr(page_cache, "_STEP", 1)
    path = tmp_path / "one"
    path.write_bytes(bytes(100_000))
    before = threading.active_count()
    many = lambda: (rows((k * PAGE, 9)) for k in itertools.count())  # noqa: E731
    with read_ahead([path]) as ahead:
        if memory == 100:
            next(ahead.ready_tasks(itertools.count(), many, [str(path)], max_in_flight=1))
            deadline = time.monotonic() + 20
            while len(disk.read) < PAGE and time.monotonic() < deadline:
                time.sleep(0.001)
            disk.forgotten.clear()
    assert threading.active_count() == before
    assert len(disk.read) < 100_000
    # What was not asked for is not begun: a rerun finds what there is.
    assert not disk.forgotten
    ahead.close()


def test_a_file_that_cannot_be_read_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("one", "two", "three")]
    for path in paths:
        path.write_bytes(bytes(100))
    opened: list[str] = []
    plain = CacheReader.__init__

    def opening(self: CacheReader, path: Path, *rest: Any) -> None:
        opened.append(path.name)
        if path.name == "one":
            raise OSError("no")
        plain(self, path, *rest)

    monkeypatch.setattr(CacheReader, "__init__", opening)
    with read_ahead(paths) as ahead:
        assert list(given(ahead, [1, 2], [rows((0, 90))] * 2, paths[0])) == [1, 2]
    assert opened[:3] == ["one", "two", "three"]


def test_files_are_open_one_at_a_time(tmp_path: Path, disk: Disk) -> None:
    paths = [tmp_path / str(number) for number in range(20)]
    for path in paths:
        path.write_bytes(bytes(100))
    disk.slow.clear()
    before = len(list(Path("/dev/fd").iterdir()))
    with read_ahead(paths):
        time.sleep(0.1)
        assert len(list(Path("/dev/fd").iterdir())) <= before + 1
        disk.slow.set()


# On the real file system


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[CacheReader]:
    """Of 4 MB on the disk, of which nothing is in memory."""
    path = tmp_path / "one"
    with path.open("wb") as file:
        file.write(os.urandom(4 << 20))
        os.fsync(file.fileno())
    with CacheReader(path, threading.Event(), ReadProgress()) as reader:
        reader.evict(np.empty((0, 2), np.int64))
        if resident(reader):
            pytest.skip("this file system forgets nothing")
        yield reader


def resident(reader: CacheReader) -> set[int]:
    """Pages that are in memory, as the system says; nothing comes into it by asking."""
    size = reader.size
    with Path(f"/proc/self/fd/{reader._descriptor}").open("rb") as file:
        memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    view = np.frombuffer(memory, np.uint8)
    pages = np.zeros(size // PAGE, np.uint8)
    assert not ctypes.CDLL(None).mincore(
        ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(size), ctypes.c_void_p(pages.ctypes.data)
    )
    return set(np.flatnonzero(pages & 1).tolist())


def test_what_was_read_is_in_memory_and_what_lies_between_is_not(reader: CacheReader) -> None:
    parts = np.array([[2 << 20, (2 << 20) + PAGE], [0, 8 * PAGE], [12 * PAGE, 13 * PAGE]])
    kept = np.array([[10 * PAGE, 11 * PAGE]])
    reader.read_runs(reader.plan_runs(parts), np.concatenate([parts, kept]))
    assert resident(reader) == {*range(8), 10, 12, 512}
    # What is there by now is passed over, and what lies between is forgotten all the same.
    reader.read_all()
    assert not reader.uncached_size() and resident(reader) == set(range(1024))
    reader.read_runs(reader.plan_runs(parts), np.concatenate([parts, kept]))
    assert resident(reader) == set(range(1024)) - {8, 9, 11}
    reader.evict(np.array([[0, PAGE]]))
    assert resident(reader) == {0}
    assert reader.uncached_size() == reader.size


def test_looking_for_what_is_in_memory_does_not_make_it_seem_so(reader: CacheReader) -> None:
    for _ in range(8):
        assert reader.uncached_size() == reader.size
    time.sleep(0.05)
    reader.read_all()
    assert resident(reader) == set(range(1024))


def test_reading_that_was_stopped_reads_nothing(reader: CacheReader) -> None:
    reader._stop.set()
    reader.read_all()
    assert not resident(reader)


def test_where_the_system_cannot_say_what_is_in_memory_all_is_read(
    reader: CacheReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_cache, "_NOWAIT", None)
    reader.read_all()
    assert reader.uncached_size() == reader.size and resident(reader) == set(range(1024))


def test_parts_are_joined_as_a_set_of_bytes() -> None:
    draw = np.random.default_rng(3)
    for _ in range(200):
        begins = draw.integers(0, 60, draw.integers(1, 12))
        spans = np.stack([begins, begins + draw.integers(1, 12, len(begins))], axis=1)
        gap = int(draw.integers(0, 4))
        held = np.zeros(100, bool)
        for begin, end in spans:
            held[begin:end] = True
        found = merge_spans(spans, gap)
        covered = np.zeros(100, bool)
        for begin, end in found:
            covered[begin:end] = True
        assert (covered >= held).all()
        assert (found[1:, 0] - found[:-1, 1] > gap).all()
        extra = np.flatnonzero(covered & ~held)
        runs = np.split(extra, np.flatnonzero(np.diff(extra) > 1) + 1)
        assert all(len(run) <= gap for run in runs)


# Memory that can be had


@pytest.mark.parametrize(
    ("line", "groups", "names"),
    [
        ("0::/job/step", ["job/step", "job", "."], ("memory.max", "memory.current", "file")),
        (
            "4:cpu,memory:/docker/x", ["memory/docker/x", "memory"],
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "cache"),
        ),
    ],
    ids=["version 2", "version 1"],
)  # fmt: skip
def test_a_container_or_a_job_may_have_less_memory_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, groups: list[str],
    names: tuple[str, str, str],
) -> None:  # fmt: skip
    assert available_memory() > 1 << 20
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    monkeypatch.setattr(free_memory, "_PROC", tmp_path)
    monkeypatch.setattr(free_memory, "_CGROUPS", tmp_path / "groups")
    assert available_memory() == 8000 << 10
    (tmp_path / "self" / "cgroup").write_text(f"3:pids:/other\n{line}\n")
    assert available_memory() == 8000 << 10
    limit, use, cached = names
    for name in groups:
        folder = tmp_path / "groups" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / use).write_text("3000000\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cached} 1500000\nshmem 500000\n")
        (folder / limit).write_text("max\n")
        assert available_memory() == 8000 << 10
        (folder / limit).write_text("7000000\n")
        assert available_memory() == 5000000
        (folder / limit).write_text("1000000\n")
        assert available_memory() == 0
        (folder / limit).write_text("9223372036854771712\n")
    (tmp_path / "meminfo").unlink()
    assert available_memory() == 0


def test_a_bar_says_that_the_disk_is_waited_for() -> None:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    shown = io.StringIO()
    columns = TextColumn("{task.completed}/{task.total} {task.fields[rate]}")
    with Progress(columns, console=Console(file=shown, force_terminal=True, width=80)) as lines:
        bar = Bar(lines, "samples")
        bar.waiting(0.345)
        lines.refresh()
        assert "waiting for the disk: 34% read ahead" in shown.getvalue()
        bar(5, 10)
        time.sleep(0.01)
        lines.refresh()
    assert "5/10" in shown.getvalue().rpartition("read ahead")[2]
