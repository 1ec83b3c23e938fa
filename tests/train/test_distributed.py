import subprocess
import sys

import pytest
import torch

from train.distributed import RankAgreement, World, connected
from train.errors import ConfigError, PeerError


def test_without_torchrun_this_process_is_alone() -> None:
    world = World.from_environ({})
    assert world == World(rank=0, size=1, local_rank=0) and world.first


def test_torchrun_says_which_of_how_many() -> None:
    world = World.from_environ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert (world.rank, world.size, world.local_rank, world.first) == (5, 8, 1, False)


@pytest.mark.parametrize(
    "environ", [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "-1"}]
)
def test_a_place_that_cannot_be_is_refused(environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        World.from_environ(environ)


def test_a_world_of_one_needs_no_process_group() -> None:
    with connected(World(), torch.device("cpu")) as world:
        assert not torch.distributed.is_initialized()
        tensor = torch.tensor([1.0, 2.0])
        assert world.sum_(tensor) is tensor and tensor.tolist() == [1.0, 2.0]
        assert RankAgreement(world).ask(True, False) == (True, False)
        assert world.same(3)
        world.barrier()


def test_a_lost_rank_is_told_without_the_backends_source_and_advice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise RuntimeError(
            "[/some/where/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
            "[127.0.0.1]:42128. This is typically caused by a remote worker crash."
        )

    monkeypatch.setattr("train.distributed._store", lambda *_: None)
    monkeypatch.setattr("train.distributed._meet", gone)
    with (
        pytest.raises(PeerError, match=r"rank 1 of 2: another rank ended or does not respond "
                      r"\(Connection closed by peer \[127.0.0.1\]:42128\); see the error of that"),
        connected(World(rank=1, size=2), torch.device("cpu")),
    ):  # fmt: skip
        pass


def test_a_rank_that_is_done_ends_with_all_it_said_and_nothing_more() -> None:
    program = (
        "import atexit; from train.distributed import exit_rank\n"
        "atexit.register(print, 'late'); print('done'); exit_rank()"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert (done.returncode, done.stdout) == (0, "done\n")
