"""Ranges give the bytes that a file would, and are fetched together where they are announced."""

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardify.sources.catalog import ENTRY_DTYPE
from shardify.storage.atomic_write import AtomicFile
from shardify.storage.paths import Url
from shardify.storage.readers import ObjectReader, announce_reads, close_source, open_source, pread

DATA = np.random.Generator(np.random.Philox(key=1)).bytes(50_000)
URL = "memory://ranges/x.bin"


@pytest.fixture(scope="module", autouse=True)
def stored() -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/ranges/x.bin", DATA)
    yield
    memory.rm("/ranges", recursive=True)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """The spans of each request."""
    calls: list[list[tuple[int, int]]] = []
    get = ObjectReader._get

    def counting(self: ObjectReader, spans: list[tuple[int, int]]) -> list[bytes]:
        calls.append(spans)
        return get(self, spans)

    monkeypatch.setattr(ObjectReader, "_get", counting)
    return calls


def rows_of(spans: list[tuple[int, int]]) -> np.ndarray:
    rows = np.zeros(len(spans), ENTRY_DTYPE)
    for row, (start, stop) in zip(rows, spans, strict=True):
        row["offset"], row["limit"], row["packed"] = start, stop, stop - start
    return rows


@given(
    st.lists(st.tuples(st.integers(0, 51_000), st.integers(0, 9_000)), min_size=1, max_size=12),
    st.lists(st.integers(0, 11), max_size=20),
)
def test_any_reading_gives_the_bytes_of_the_file(
    spans: list[tuple[int, int]], order: list[int]
) -> None:
    ranges = ObjectReader(Url(URL))
    ranges.expect([(start, start + length) for start, length in spans])
    for number in [*range(len(spans)), *order]:
        start, length = spans[number % len(spans)]
        assert ranges.read(length, start) == DATA[start : start + length]
        assert ranges.read(length // 2, start) == DATA[start : start + length // 2]
        assert ranges.read(length, start + 7) == DATA[start + 7 : start + 7 + length]


def test_announced_entries_are_fetched_in_one_request_and_neighbours_as_one_span(
    asked: list[list[tuple[int, int]]],
) -> None:
    spans = [(30_000, 31_000), (0, 500), (500, 900), (31_000, 32_000)]
    handle = open_source(URL)
    announce_reads([handle], rows_of(spans))
    for start, stop in spans:
        assert pread(handle, stop - start, start) == DATA[start:stop]
    assert asked == [[(0, 900), (30_000, 32_000)]]


def test_a_window_is_bounded(
    asked: list[list[tuple[int, int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardify.storage.readers._WINDOW_BYTES", 10_000)
    spans = [(start, start + 1_000) for start in range(0, 50_000, 1_000)]
    ranges = ObjectReader(Url(URL))
    ranges.expect(spans)
    assert b"".join(ranges.read(1_000, start) for start, _ in spans) == DATA
    assert [sum(stop - start for start, stop in each) for each in asked] == [10_000] * 5


def test_a_file_is_read_by_its_descriptor(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    handle = open_source(str(tmp_path / "x"))
    announce_reads([handle], rows_of([(0, 10)]))
    assert pread(handle, 100, 49_950) == DATA[49_950:]
    close_source(handle)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)  # type: ignore[arg-type]


def test_a_missing_object_is_told_like_a_missing_file() -> None:
    with pytest.raises(FileNotFoundError):
        open_source("memory://ranges/none.bin")


def test_a_draft_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for where in (tmp_path / "x.tar", Url("memory://ranges/x.tar")):
        with pytest.raises(ZeroDivisionError), AtomicFile(where) as draft:
            draft.file.write(b"half")
            raise ZeroDivisionError
        assert not where.exists()
        with AtomicFile(where) as draft:
            draft.file.write(b"whole")
            assert not where.exists()
            draft.publish()
        assert where.read_bytes() == b"whole"
    assert [each.name for each in tmp_path.iterdir()] == ["x.tar"]
    memory.rm("/ranges/x.tar")
