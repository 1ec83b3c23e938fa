"""Zips are read in the order in which they lie on a disk, and tasks wait until theirs are read."""

import io
import itertools
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shardify import pagecache, readahead, spare
from shardify.pagecache import Meter, Reader, joined
from shardify.progress import Bar
from shardify.readahead import reading_ahead
from shardify.remote import place
from shardify.spare import spare_memory
from shardify.tasks import ROW

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
    pread = os.pread

    def path_of(descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def read(descriptor: int, length: int, first: int) -> bytes:
        if threading.current_thread().name != "shardify-ahead":
            return pread(descriptor, length, first)
        found.slow.wait(10)
        found.read.append((path_of(descriptor), first, length))
        return b""

    def advise(descriptor: int, first: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            found.forgotten.append((path_of(descriptor), first, length))

    monkeypatch.setattr("os.pread", read)
    monkeypatch.setattr("os.posix_fadvise", advise)
    monkeypatch.setattr(Reader, "_there", lambda *_: False)
    return found


def rows(*places: tuple[int, int], source: int = 0) -> NDArray[np.void]:
    """A task's entries: where each lies in its source, and how many bytes it has there."""
    made = np.zeros(len(places), ROW)
    made["source"] = source
    made["offset"], made["packed"] = np.array(places).reshape(-1, 2).T
    made["limit"] = 1 << 40
    return made


def test_every_byte_of_every_zip_is_read_in_order_before_a_task_is_given_out(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pagecache, "_STEP", 1000)
    one, two = tmp_path / "one", tmp_path / "folder" / "two.zip"
    two.parent.mkdir()
    one.write_bytes(bytes(2500))
    two.write_bytes(bytes(10))
    (two.parent / "picture.png").write_bytes(bytes(10))
    disk.slow.clear()
    shares: list[float] = []
    paths = [one, two.parent, tmp_path / "absent", place("memory://x.zip")]
    with reading_ahead(paths) as ahead:
        threading.Timer(0.5, disk.slow.set).start()
        for _ in ahead.paced("ab", iter(()), [], shares.append):
            assert disk.read == [
                (str(one), 0, 1000), (str(one), 1000, 1000), (str(one), 2000, 500),
                (str(two), 0, 10),
            ]  # fmt: skip
    assert shares and set(shares) == {0.0} and not disk.forgotten


@pytest.mark.parametrize("paths", [[], ["absent"], ["memory://x.zip"]])
def test_where_there_is_nothing_to_read_no_task_waits(tmp_path: Path, paths: list[str]) -> None:
    places = [place(each) if ":" in each else tmp_path / each for each in paths]
    with reading_ahead(places) as ahead:
        assert list(ahead.paced([1, 2], iter(()), [])) == [1, 2]


def test_where_the_system_does_not_say_what_memory_it_has_no_task_waits(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "spare_memory", lambda: 0)
    (tmp_path / "one").write_bytes(bytes(2500))
    with reading_ahead([tmp_path / "one"]) as ahead:
        assert list(ahead.paced([1, 2], [rows((0, 9))] * 2, [str(tmp_path / "one")])) == [1, 2]
    assert not disk.read


def test_a_zip_that_would_fill_the_memory_is_read_for_as_many_tasks_as_have_room(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth entry is a task's, as when samples are shuffled."""
    monkeypatch.setattr(readahead, "spare_memory", lambda: 2 * 40 * PAGE)
    monkeypatch.setattr(readahead, "_under_way", lambda: 1)
    path = tmp_path / "one"
    path.write_bytes(bytes(80 * PAGE))
    wanted = [rows(*[(k * PAGE + 7, 2000) for k in range(task, 80, 4)]) for task in range(4)]
    reads: list[int] = []
    gone: list[set[int]] = []
    with reading_ahead([path]) as ahead:
        for number, _ in enumerate(ahead.paced(range(4), wanted, [str(path), "absent"])):
            pages = {int(place["offset"]) // PAGE for place in wanted[number]}
            assert pages <= disk.pages(path)
            reads.append(len(disk.read))
            gone.append(disk.gone())
    # Two tasks a pass, each from front to end. What it read through is forgotten behind it.
    assert reads == [1, 1, 2, 2]
    assert [first // PAGE for _, first, _ in disk.read] == [0, 2]
    assert gone[0] == {page for page in range(77) if page % 4 >= 2}


def test_what_the_last_tasks_read_is_kept_while_the_next_are_read_for(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "spare_memory", lambda: 2 * 4 * PAGE)
    monkeypatch.setattr(readahead, "_under_way", lambda: 1)
    path = tmp_path / "one"
    path.write_bytes(bytes(16 * PAGE))
    wanted = [rows(*[(k * PAGE, 100) for k in (task, task + 8)]) for task in range(4)]
    gone: list[set[int]] = []
    with reading_ahead([path]) as ahead:
        for _ in ahead.paced(range(4), wanted, [str(path)]):
            gone.append(disk.gone())
    # Tasks 0 and 1 are the first pass; while 2 and 3 are read for, 1 may still be at work.
    assert not gone[0] & {0, 1, 8, 9} and not gone[2] & {1, 9}
    assert {0, 8} <= gone[2]


def test_what_is_in_memory_already_is_not_read_in_passes(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readahead, "spare_memory", lambda: 4000)
    monkeypatch.setattr(Reader, "_there", lambda *_: True)
    (tmp_path / "one").write_bytes(bytes(2500))
    with reading_ahead([tmp_path / "one"]) as ahead:
        assert list(ahead.paced([1], [rows((0, 9))], [str(tmp_path / "one")])) == [1]
    assert not disk.read and not disk.forgotten


@pytest.mark.parametrize("memory", [1 << 40, 100])
def test_reading_ends_with_its_block(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    monkeypatch.setattr(readahead, "spare_memory", lambda: memory)
    monkeypatch.setattr(pagecache, "_STEP", 1)
    path = tmp_path / "one"
    path.write_bytes(bytes(100_000))
    before = threading.active_count()
    many = (rows((k * PAGE, 9)) for k in itertools.count())
    with reading_ahead([path]) as ahead:
        next(ahead.paced(itertools.count(), many, [str(path)]), None) if memory == 100 else None
    assert threading.active_count() == before
    assert len(disk.read) < 100_000


def test_a_file_that_cannot_be_read_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").write_bytes(bytes(100))

    def refuse(*_: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(Reader, "__init__", refuse)
    with reading_ahead([tmp_path / "one"]) as ahead:
        assert list(ahead.paced([1, 2], iter(()), [])) == [1, 2]


# On the real file system


def test_what_was_read_is_in_memory_and_what_lies_between_is_not(tmp_path: Path) -> None:
    path = tmp_path / "one"
    with path.open("wb") as file:
        file.write(os.urandom(4 << 20))
        os.fsync(file.fileno())
    stop, meter = threading.Event(), Meter()
    with Reader(path, stop, meter) as reader:
        reader.forget(np.empty((0, 2), np.int64))
        if reader._there(0, PAGE):
            pytest.skip("this file system forgets nothing")
        # Far enough from each other for nothing to be read by the way.
        parts = np.array([[2 << 20, (2 << 20) + PAGE], [0, 8 * PAGE]])
        reader.read_parts(parts, np.empty((0, 2), np.int64))
        assert reader._there(0, 8 * PAGE) and reader._there(2 << 20, (2 << 20) + PAGE)
        assert meter.done == 9 * PAGE and meter.share == 1
        reader.read_all()
        assert reader.there()
        reader.forget(np.array([[0, PAGE]]))
        assert reader._there(0, PAGE) and not reader.there()
        stop.set()
        reader.read_all()
        assert not reader.there()


def test_parts_are_joined_as_a_set_of_bytes() -> None:
    draw = np.random.default_rng(3)
    for _ in range(200):
        begins = draw.integers(0, 60, draw.integers(1, 12))
        spans = np.stack([begins, begins + draw.integers(1, 12, len(begins))], axis=1)
        gap = int(draw.integers(0, 4))
        held = np.zeros(100, bool)
        for begin, end in spans:
            held[begin:end] = True
        found = joined(spans, gap)
        covered = np.zeros(100, bool)
        for begin, end in found:
            covered[begin:end] = True
        assert (covered >= held).all()
        assert (found[1:, 0] - found[:-1, 1] > gap).all()
        extra = np.flatnonzero(covered & ~held)
        runs = np.split(extra, np.flatnonzero(np.diff(extra) > 1) + 1)
        assert all(len(run) <= gap for run in runs)


# Memory that can be had


def test_a_container_may_have_less_memory_than_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spare_memory() > 1 << 20
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    8000 kB\n")
    monkeypatch.setattr(spare, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(
        spare, "_GROUPS", [(tmp_path / str(k), *names[1:]) for k, names in enumerate(spare._GROUPS)]
    )
    assert spare_memory() == 8000 << 10
    for folder, limit, use, cached in spare._GROUPS:
        folder.mkdir()
        (folder / use).write_text("3000000\n")
        (folder / "memory.stat").write_text(f"anon 1\n{cached} 1000000\n")
        (folder / limit).write_text("max\n")
        assert spare_memory() == 8000 << 10
        (folder / limit).write_text("7000000\n")
        assert spare_memory() == 5000000
        (folder / limit).write_text("1000000\n")
        assert spare_memory() == 0
        (folder / limit).write_text("9223372036854771712\n")
    (tmp_path / "meminfo").unlink()
    assert spare_memory() == 0


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
