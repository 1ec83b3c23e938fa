from pathlib import Path

import pytest

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.synth.generate import generate
from shardify.workers import factory


def test_a_build_by_the_compiled_worker_gives_the_bytes_of_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "x.zip"
    generate(source, samples=24, backgrounds=3, size=32, seed=0)
    contents = []
    for least in (10**9, 1):
        monkeypatch.setattr(factory, "_MIN_ENTRIES_FOR_FAST_COPY", least)
        out = tmp_path / f"out{least}"
        build([source], out, BuildOptions(val=0.25, workers=2))
        contents.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert contents[0] == contents[1]
