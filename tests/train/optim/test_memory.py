from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shardline_tiny_run import TinyNet

from model.losses import Criterion
from shardify.loader.batch import Batch, synthetic
from train.errors import FitError
from train.optim import memory
from train.optim.compute import choose_precision
from train.optim.memory import is_out_of_memory, largest_batch, next_batches, oom_message, peak_mb
from train.optim.step import TrainStep

CPU = torch.device("cpu")


@given(st.integers(0, 500), st.integers(1, 500))
def test_the_batch_named_fits_and_is_close_to_the_largest(limit: int, above: int) -> None:
    found = largest_batch(lambda samples: samples <= limit, limit + above)
    assert found <= limit
    assert limit - found <= max(1, found // 16)
    assert (found == 0) == (limit == 0)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_loader_that_runs_out_of_memory_is_told_in_a_line() -> None:
    def failing(error: Exception) -> Iterator[Batch]:
        yield synthetic(1, 16)
        raise error

    assert len(next_batches(iter([synthetic(1, 16)] * 3), 2)) == 2
    with pytest.raises(FitError, match="--batch: out of memory in the loader"):
        next_batches(failing(torch.OutOfMemoryError("CUDA out of memory")), 2)
    with pytest.raises(RuntimeError, match="another"):
        next_batches(failing(RuntimeError("another")), 2)


def test_a_cpu_says_by_itself_that_memory_ran_out() -> None:
    with pytest.raises(memory.OOM_ERRORS) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


class Limited(TinyNet):
    """Runs out of memory above so many samples."""

    most = 0

    def forward(self, x: torch.Tensor) -> object:  # type: ignore[override]
        if x.shape[0] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


@pytest.mark.parametrize(
    ("most", "says"),
    [(11, "the largest that fits is 11"), (0, "a single sample does not fit either")],
)
def test_a_refusal_names_the_batch_that_would_have_fitted(most: int, says: str) -> None:
    model = Limited("unet")
    model.most = most
    step = TrainStep(
        model,
        Criterion(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        precision=choose_precision("fp32", CPU),
        clip=0.0,
        clip_by="norm",
    )
    line = oom_message(step, 64, 16, CPU, channels_last=False)
    assert line.startswith("--batch 64: does not fit into the memory of cpu at 16 px; ")
    assert says in line and "\n" not in line


def test_the_peak_is_at_least_what_a_tensor_took() -> None:
    tensor = torch.ones(25_000_000)
    assert peak_mb(CPU) > tensor.numel() * 4 / 1e6
