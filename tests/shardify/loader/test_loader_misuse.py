"""A loader that is used wrongly says so: it neither hangs nor hands out what it should not."""

import gc
import itertools
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shardline_samples import write_data_set

from shardify.errors import DataError
from shardify.loader.batch import Batch
from shardify.loader.loader import Loader

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", params=["PNG", "RAW"])
def data(tmp_path_factory, request) -> Path:
    out = tmp_path_factory.mktemp("misuse") / "data"
    return write_data_set(out, picture=request.param)


# After close


def test_a_closed_loader_gives_no_more_batches(data) -> None:
    with Loader(data, res=24, batch_size=8) as loader:
        batches = iter(loader)
        next(batches)
        steps = loader._sampler.steps(0, 0)
    for ask in (lambda: list(loader), lambda: next(batches)):
        with pytest.raises(RuntimeError, match="the loader is closed; open another"):
            ask()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader._producer.batches(steps))
    loader.epoch = 2
    loader.load_state_dict(loader.state_dict())


# Threads and processes


def held_up(loader: Loader, monkeypatch) -> threading.Event:
    """Have the engine make one batch and then none until the event is set."""
    go_on, made = threading.Event(), loader._producer.batches

    def slow(steps: Any) -> Iterator[Any]:
        batches = made(steps)
        yield next(batches)
        go_on.wait(60)
        yield from batches

    monkeypatch.setattr(loader._producer, "batches", slow)
    return go_on


@pytest.mark.parametrize(
    ("end", "message"),
    [(Loader.close, "the loader is closed"), (iter, "one loop at a time; open a loader for each")],
)
def test_a_thread_that_waits_for_a_batch_is_told_of_the_end(
    data, monkeypatch, end: Callable[[Loader], object], message: str
) -> None:
    with Loader(data, res=24, batch_size=8) as loader:
        go_on = held_up(loader, monkeypatch)
        found: list[object] = []
        taken = threading.Event()

        def take() -> None:
            try:
                for batch in loader:
                    found.append(batch)
                    taken.set()
            except RuntimeError as error:
                found.append(error)

        taker = threading.Thread(target=take, daemon=True)
        taker.start()
        assert taken.wait(60)
        # The loop is ended first, and the batch under way is done after that.
        threading.Timer(0.3, go_on.set).start()
        end(loader)
        taker.join(30)
        assert not taker.is_alive()
        batch, error = found
        assert isinstance(batch, Batch)
        assert message in str(error)


def test_a_forked_child_is_refused_and_does_not_hang(data) -> None:
    code = (
        "import multiprocessing, sys\n"
        "from shardify.loader.loader import Loader\n"
        f"loader = Loader({str(data)!r}, res=24, batch_size=8)\n"
        "batches = iter(loader)\n"
        "next(batches)\n"
        "def ask(what):\n"
        "    try: next(what())\n"
        "    except RuntimeError as error: print(error, flush=True)\n"
        "def child():\n"
        "    ask(lambda: iter(loader)), ask(lambda: batches), loader.close()\n"
        "process = multiprocessing.get_context('fork').Process(target=child)\n"
        "process.start()\n"
        "process.join(30)\n"
        "print(process.exitcode)\n"
        "process.kill()\n"
        "print(len(list(batches)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120
    )
    refusal = "a Loader does not survive fork; make it in the process that has it"
    assert done.stdout.splitlines() == [refusal, refusal, "0", "4"], done.stderr


# Two loops over one loader


def test_two_loops_at_once_are_refused_not_cut_short(data) -> None:
    with Loader(data, res=24, batch_size=8) as loader:
        with pytest.raises(RuntimeError, match="one loop at a time; open a loader for each"):
            list(zip(loader, loader, strict=False))
        inner = 0
        with pytest.raises(RuntimeError, match="a newer loop over this loader"):
            for _ in loader:
                inner += sum(1 for _ in loader)
        assert inner == 5
        before = loader.state_dict()
        batches = iter(loader)
        next(batches)
        loader.load_state_dict(before)
        with pytest.raises(RuntimeError, match="or a new position"):
            next(batches)
        # What was refused has changed nothing.
        assert loader.state_dict() == before
        assert len(list(loader)) == 5


def test_loops_one_after_the_other_go_on_as_before(data) -> None:
    with Loader(data, res=24, batch_size=8) as loader:
        for _ in loader:
            break
        left = iter(loader)
        assert len(list(itertools.islice(left, 2))) == 2
        assert len(list(loader)) == 5
        assert loader.epoch == 3
        # One that was overtaken is closed and dropped in silence; so is one of a closed loader.
        left.close()
        dropped = iter(loader)
        next(dropped)
    del dropped
    gc.collect()


# Arguments


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"order": "random"}, "order 'random': expected one of permuted, block, sequential"),
        ({"dtype": torch.int32}, "dtype torch.int32: expected torch.float32, bfloat16 or float16"),
        ({"seed": 2**63}, "seed 9223372036854775808: expected 0 or more, below"),
        ({"seed": -1}, "seed -1: expected"),
        ({"device": "foo"}, "device 'foo': expected cpu, cuda or cuda:N"),
        ({"device": "meta"}, "device 'meta': expected cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, r"device 'cuda:99': torch finds \d+ GPUs here; expected one"),
        ({"hw_decoder_load": 2.0}, "hw_decoder_load 2.0: expected 0 to 1"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(tmp_path, wrong, message) -> None:
    # There is no data set: arguments come first.
    with pytest.raises(ValueError, match=message) as error:
        Loader(tmp_path, **wrong)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match="device 'cuda': torch finds 0 GPUs here"):
        Loader(tmp_path, device="cuda")


def test_the_largest_seed_and_epoch_work(data) -> None:
    found = []
    for seed in (2**63 - 1, 2**63 - 2):
        with Loader(data, res=24, batch_size=8, seed=seed) as loader:
            loader.epoch = 2**32 - 1
            found.append(next(iter(loader)))
            with pytest.raises(ValueError, match="epoch 4294967296: expected 0 or more, below"):
                loader.epoch = 2**32
    assert not torch.equal(found[0].bg, found[1].bg)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("consumed", -1), ("consumed", 41), ("consumed", "8"), ("consumed", 8.0), ("epoch", -1),
        ("epoch", 2**32), ("epoch", None), ("seed", -1), ("seed", 2**63), ("seed", True),
    ],
)  # fmt: skip
def test_a_position_that_cannot_be_is_refused_and_changes_nothing(data, field, value) -> None:
    with Loader(data, res=24, batch_size=8, seed=3) as loader:
        before = loader.state_dict()
        with pytest.raises(DataError, match=f"position has {field} {value!r}; expected a whole"):
            loader.load_state_dict({**before, field: value})
        lacking = {name: kept for name, kept in before.items() if name != field}
        with pytest.raises(DataError, match=f"{field} None; expected a whole number from 0 to"):
            loader.load_state_dict(lacking)
        assert loader.state_dict() == before
        loader.load_state_dict({**before, "consumed": 40})


def test_what_is_no_position_is_refused(data) -> None:
    with (
        Loader(data, res=24, batch_size=8) as loader,
        pytest.raises(DataError, match="data with version None"),
    ):
        loader.load_state_dict([1, 2])  # type: ignore[arg-type]


# Installations


def test_modules_of_the_users_own_named_train_and_model_do_not_disturb(data, tmp_path) -> None:
    for name in ("train", "model"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('own {name}.py')\n")
    (tmp_path / "script.py").write_text(
        "import sys\n"
        "from shardify import Augmentation, Loader\n"
        "augmentation = Augmentation(angle=5.0)\n"
        "with Loader(sys.argv[1], res=24, batch_size=8, augmentation=augmentation) as loader:\n"
        "    print(len(loader), next(iter(loader)).bg.shape[0])\n"
        "try:\n"
        "    import train\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py", str(data)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    # The last line: the script saw the user's module, not ours.
    assert done.stdout.splitlines() == ["5 8", "own train.py"], done.stderr


def test_compiled_code_runs_where_numba_finds_no_place_for_its_cache(tmp_path) -> None:
    """Files in the place of folders: root, too, can write nothing below them."""
    for package in ("shardify", "model", "train"):
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
        for folder in (tmp_path / package, *(tmp_path / package).glob("*/")):
            (folder / "__pycache__").touch()
    (tmp_path / "home").touch()
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XDG_CACHE_HOME", "NUMBA_CACHE_DIR", "PYTHONPATH")
    }
    code = (
        "import numpy as np\n"
        "from shardify.loader import cpu_kernels\n"
        "text, found = np.frombuffer(b'42', np.uint8), np.zeros(1, np.int64)\n"
        "cpu_kernels.parse_numbers(np.array([text.ctypes.data]), np.array([2]), found)\n"
        "print(found[0], cpu_kernels.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**kept, "HOME": str(tmp_path / "home")},
    )
    assert done.stdout == f"42 {tmp_path / 'shardify' / 'loader' / 'cpu_kernels.py'}\n", done.stderr
