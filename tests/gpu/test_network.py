"""The network on a GPU. Each check is one function of the device, so that a CPU runs it too."""

from pathlib import Path

import pytest
import torch
from shardline_gpu import noisy
from shardline_samples import write_data_set

from model.losses import Criterion
from model.registry import create
from shardify.loader.batch import synthetic
from train.bench.cases import begin
from train.bench.fixtures import BenchConfig, FixtureCache
from train.optim.compute import choose_precision, set_cudnn_algorithms
from train.optim.step import TrainStep

ON_BOTH = [
    pytest.param("cpu", id="cpu"),
    pytest.param("cuda", id="cuda", marks=pytest.mark.gpu),
    pytest.param("cuda:0", id="cuda:0", marks=pytest.mark.gpu),
]


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Path:
    return write_data_set(
        tmp_path_factory.mktemp("pixels") / "data", train=16, images=noisy, picture="RAW",
        background=lambda n: noisy(900 + n)[0],
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _as_before():
    """Which algorithms may be used is a matter of the whole process."""
    before = torch.get_float32_matmul_precision()
    with torch.backends.cudnn.flags(enabled=True):
        yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(before)


def gradients(device: str, precision: str = "fp32") -> tuple[torch.Tensor, torch.Tensor]:
    """Raw outputs and all gradients of ResUNet for a batch of 4 at 32 px, on the CPU."""
    torch.manual_seed(0)
    model = create("resunet").to(device, memory_format=torch.channels_last)
    arithmetic = choose_precision(precision, torch.device(device))
    step = TrainStep(
        model, Criterion(), torch.optim.SGD(model.parameters(), lr=0.1),
        precision=arithmetic, clip=1.0, clip_by="norm",
    )  # fmt: skip
    model.train()
    (result,) = step.gradients([synthetic(4, 32, device=device, channels_last=True)])
    seen = torch.cat([one.flatten() for one in result.prediction])
    slopes = torch.cat([each.grad.flatten() for each in model.parameters()])
    return seen.float().cpu(), slopes.float().cpu()


@pytest.mark.parametrize("device", ON_BOTH[:2])
def test_outputs_and_gradients_are_a_cpus(device) -> None:
    expected, slopes = gradients("cpu")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found, others = gradients(device)
    assert (found - expected).abs().max() < 1e-3
    # Batch norms of few pixels magnify what rounding differs in.
    assert (others - slopes).norm() / slopes.norm() < 0.02


@pytest.mark.parametrize("device", ON_BOTH[:2])
def test_bf16_is_near_fp32(device) -> None:
    expected, _ = gradients("cpu")
    found, slopes = gradients(device, "bf16")
    assert slopes.isfinite().all()
    assert (found - expected).abs().mean() < 0.02


@pytest.mark.parametrize("device", ON_BOTH)
def test_what_is_measured_runs(pixels, device) -> None:
    job = BenchConfig(shards=str(pixels), res=32, batch_size=4, threads=2, device=device)
    shelf = FixtureCache()
    try:
        for name in ("to device", "model alone", "end to end"):
            samples = begin(name, job, shelf).samples
            assert [next(samples) for _ in range(5)] == [4] * 5
            samples.close()
    finally:
        shelf.close()


@pytest.mark.parametrize("device", ON_BOTH)
@pytest.mark.parametrize("deterministic", [False, True])
def test_algorithms_can_be_chosen(device, deterministic) -> None:
    set_cudnn_algorithms(torch.device(device), deterministic=deterministic)
    if device != "cpu":
        assert torch.backends.cudnn.benchmark == (not deterministic)
        assert torch.are_deterministic_algorithms_enabled() == deterministic
