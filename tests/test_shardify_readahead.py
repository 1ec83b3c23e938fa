"""Zips are read ahead from front to end, where memory has room, and no longer than asked for."""

import threading
import time
from pathlib import Path

import pytest

from shardify import readahead
from shardify.readahead import reading_ahead
from shardify.remote import place


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the system is asked to read: offsets and lengths."""
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(readahead, "_STEP", 1000)
    monkeypatch.setattr(
        "os.posix_fadvise", lambda _, offset, length, __: found.append((offset, length))
    )
    return found


def until(count: int, found: list[tuple[int, int]]) -> None:
    deadline = time.monotonic() + 10
    while len(found) < count and time.monotonic() < deadline:
        time.sleep(0.001)


def test_every_byte_of_every_zip_is_asked_for_in_order(
    tmp_path: Path, asked: list[tuple[int, int]]
) -> None:
    (tmp_path / "one").write_bytes(bytes(2500))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "two.zip").write_bytes(bytes(10))
    (tmp_path / "folder" / "picture.png").write_bytes(bytes(10))
    paths = [tmp_path / "one", tmp_path / "folder", tmp_path / "absent", place("memory://x.zip")]
    with reading_ahead(paths):
        until(4, asked)
    assert asked == [(0, 1000), (1000, 1000), (2000, 1000), (0, 1000)]


def test_what_would_fill_the_memory_is_not_read_ahead(
    tmp_path: Path, asked: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one").write_bytes(bytes(2500))
    assert readahead._available() > 1 << 20
    monkeypatch.setattr(readahead, "_available", lambda: 4000.0)
    with reading_ahead([tmp_path / "one"]):
        time.sleep(0.05)
    assert not asked


def test_reading_ends_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_bytes(bytes(100_000))
    monkeypatch.setattr(readahead, "_STEP", 1)
    before = threading.active_count()
    calls: list[int] = []
    monkeypatch.setattr("os.posix_fadvise", lambda *_: (calls.append(1), time.sleep(0.001)))
    with reading_ahead([tmp_path / "one"]):
        pass
    assert threading.active_count() == before
    assert len(calls) < 100_000
