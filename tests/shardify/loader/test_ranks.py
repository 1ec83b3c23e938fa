import subprocess
import sys
from pathlib import Path

import pytest
from shardline_samples import write_data_set
from torch import distributed

from shardify.loader.loader import Loader
from shardify.loader.ranks import find_rank


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("ranks") / "data", train=27, val=5)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process group in which this process is rank 1 of 3."""
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, (0, 1)),
        ({"RANK": "2", "WORLD_SIZE": "4"}, (2, 4)),
    ],
)
def test_without_a_process_group_the_rank_is_that_of_the_environment_or_0_of_1(
    environ: dict[str, str], expected: tuple[int, int]
) -> None:
    assert find_rank(environ=environ) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "one", "WORLD_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": ""}, {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "-1", "WORLD_SIZE": "2"},
    ],
)  # fmt: skip
def test_half_an_environment_is_an_error_that_says_how(environ: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"pass rank and world_size|below world_size 2"):
        find_rank(environ=environ)


@pytest.mark.parametrize(("rank", "size"), [(0, None), (None, 2), (2, 2), (-1, 2), (0, 0)])
def test_one_of_the_two_or_a_wrong_pair_is_an_error(
    data: Path, rank: int | None, size: int | None
) -> None:
    with pytest.raises(ValueError, match=r"both or neither|below world_size"):
        Loader(data, res=16, rank=rank, world_size=size)


@pytest.mark.usefixtures("group")
def test_the_process_group_goes_before_the_environment_and_arguments_before_both() -> None:
    environ = {"RANK": "2", "WORLD_SIZE": "4"}
    assert find_rank(environ=environ) == (1, 3)
    assert find_rank(0, 2, environ=environ) == (0, 2)


@pytest.mark.usefixtures("group")
def test_a_loader_takes_the_part_of_its_rank(data: Path) -> None:
    with Loader(data, res=16, batch_size=4) as found:
        with Loader(data, res=16, batch_size=4, rank=1, world_size=3) as given:
            assert len(found) == len(given) == 2
            for step in range(2):
                assert list(found.samples_of(0, step)) == list(given.samples_of(0, step))


def test_a_loader_opened_before_the_process_group_says_so_instead_of_repeating_samples(
    data: Path, request: pytest.FixtureRequest
) -> None:
    with (
        Loader(data, res=16, batch_size=4) as early,
        Loader(data, res=16, batch_size=4, rank=0, world_size=1) as given,
    ):
        request.getfixturevalue("group")
        with pytest.raises(RuntimeError, match=r"opened as rank 0 of 1, before .* rank 1 of 3"):
            next(iter(early))
        assert len(next(iter(given)).mask) == 4


def test_importing_shardify_imports_neither_torch_nor_its_process_groups() -> None:
    code = "import shardify, sys; assert 'torch' not in sys.modules, 'torch'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_set_epoch_makes_an_epoch_the_next_one(data: Path) -> None:
    with Loader(data, res=16, batch_size=4) as loader:

        def pixels() -> list[float]:
            return [float(batch.fg_bg.sum()) for batch in loader]

        first, second = pixels(), pixels()
        loader.set_epoch(0)
        assert pixels() == first
        assert pixels() == second  # The loader counts on from there.
        for epoch, expected in ((1, second), (0, first)):
            loader.set_epoch(epoch)
            assert loader.epoch == epoch and pixels() == expected
        with pytest.raises(ValueError, match="epoch -1: expected 0 or more"):
            loader.set_epoch(-1)


def test_set_epoch_keeps_a_restored_position_in_that_epoch_and_restarts_a_loop_that_ended_early(
    data: Path,
) -> None:
    with Loader(data, res=16, batch_size=4) as loader:
        loader.set_epoch(3)
        whole = []
        for batch in loader:
            whole.append(float(batch.fg_bg.sum()))
            if len(whole) == 2:
                state = loader.state_dict()
        loader.load_state_dict(state)
        loader.set_epoch(3)
        assert [float(batch.fg_bg.sum()) for batch in loader] == whole[2:]
        loader.set_epoch(3)
        next(iter(loader))
        loader.set_epoch(3)
        assert [float(batch.fg_bg.sum()) for batch in loader] == whole
        loader.load_state_dict(state)
        loader.set_epoch(2)
        assert len([batch.mask for batch in loader]) == len(whole)


def test_an_iterator_from_which_no_batch_was_taken_is_no_epoch(data: Path) -> None:
    with Loader(data, res=16, batch_size=4) as loader:
        first = [float(batch.fg_bg.sum()) for batch in loader]
        loader.set_epoch(0)
        for _ in range(3):
            iter(loader)
        assert loader.epoch == 0
        assert [float(batch.fg_bg.sum()) for batch in loader] == first
        assert loader.epoch == 1
        begun = iter(loader)
        loader.set_epoch(0)  # Between `iter` and the first batch it counts.
        assert [float(batch.fg_bg.sum()) for batch in begun] == first
