import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from train.checkpoint import checkpoint_file
from train.checkpoint.checkpoint_file import Checkpoints
from train.errors import CheckpointError

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text()
)
keys = st.one_of(st.text(), st.integers(0, 9))
states = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=10,
)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(states)
def test_what_is_read_is_what_was_written(tmp_path: Path, value: object) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint_file.write(path, {"value": value})
    assert checkpoint_file.read(path).state == {"value": value}


def test_tensors_keep_type_shape_and_every_bit(tmp_path: Path) -> None:
    tensors = {
        0: torch.randn(3, 2, dtype=torch.float64),
        "half": torch.randn(5).to(torch.bfloat16),
        "whole": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "nan": torch.tensor([math.nan, math.inf]),
        "strided": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    path = tmp_path / "x.safetensors"
    checkpoint_file.write(path, {"tensors": tensors})
    found = checkpoint_file.read(path).state["tensors"]
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].nan_to_num(9), tensor.nan_to_num(9))


def test_what_cannot_be_restored_is_refused_not_lost(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/a/0 is a set"):
        checkpoint_file.write(tmp_path / "x.safetensors", {"a": [{1, 2}]})
    assert not any(tmp_path.iterdir())


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "step-00000001.safetensors"
    checkpoint_file.write(path, {"weights": torch.arange(1000.0), "step": 1})
    return path


def test_any_flipped_byte_is_noticed(written: Path) -> None:
    whole = written.read_bytes()
    for place in range(0, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0x04
        written.write_bytes(damaged)
        try:
            state = checkpoint_file.read(written).state
        except CheckpointError as error:
            assert str(written) in str(error) and "\n" not in str(error)
        else:  # A byte without meaning, such as padding.
            assert state["step"] == 1 and torch.equal(state["weights"], torch.arange(1000.0))


@pytest.mark.parametrize("size", [0, 3, 100, 2000])
def test_a_cut_file_is_named(written: Path, size: int) -> None:
    os.truncate(written, size)
    with pytest.raises(CheckpointError, match=r"step-00000001\.safetensors: damaged"):
        checkpoint_file.read(written)


def test_a_missing_file_weights_alone_and_another_version_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        checkpoint_file.read(tmp_path / "none.safetensors")
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="contains weights only"):
        checkpoint_file.read(path)
    save_file({"w": torch.zeros(1)}, path, {"version": "99", "state": "{}"})
    with pytest.raises(CheckpointError, match="version 99; this program reads 1"):
        checkpoint_file.read(path)


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints", keep=2)
    assert store.newest() is None
    for step in (5, 10, 15, 100):
        store.save(step, {"step": step})
    assert [path.name for path in store.files()] == [
        "step-00000100.safetensors",
        "step-00000015.safetensors",
    ]
    found = store.newest()
    assert found is not None and found.state == {"step": 100}


def test_a_damaged_newest_is_named_with_the_one_before_it(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=3)
    first, second = store.save(1, {"step": 1}), store.save(2, {"step": 2})
    os.truncate(second, 40)
    with pytest.raises(CheckpointError) as caught:
        store.newest()
    assert str(second) in str(caught.value) and str(first) in str(caught.value)
    second.unlink()
    found = store.newest()
    assert found is not None and found.path == first
    os.truncate(first, 40)
    with pytest.raises(CheckpointError, match="no earlier one"):
        store.newest()


def test_what_is_whole_but_no_checkpoint_of_ours_is_never_called_damaged(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path, keep=3)
    first, second = store.save(1, {"step": 1}), store.save(2, {"step": 2})
    whole = second.read_bytes()

    def refused(says: str) -> None:
        with pytest.raises(CheckpointError, match=says) as caught:
            store.newest()
        line = str(caught.value)
        assert "damaged" not in line and "delete" not in line and "\n" not in line
        assert line.startswith(str(second)) and f"to continue from {first}" in line

    save_file({}, second, {"version": "2", "state": "{}"})
    refused("continue with the version of the program that wrote it; or move it out of")
    save_file({"w": torch.zeros(1)}, second)
    refused("contains weights only; .*replace it by one")
    second.unlink()
    second.mkdir()
    refused("is a folder")
    store.save(3, {"step": 3})
    store.save(4, {"step": 4})
    assert second.is_dir() and not first.exists()
    second.rmdir()
    second.write_bytes(whole)
    found = Checkpoints(tmp_path, keep=3).newest()
    assert found is not None and found.state == {"step": 4}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint_file.write(written, {"step": 2})
    monkeypatch.undo()
    assert checkpoint_file.read(written).state["step"] == 1
    assert list(written.parent.iterdir()) == [written]
