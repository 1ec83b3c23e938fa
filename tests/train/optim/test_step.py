import copy

import pytest
import torch
from shardline_tiny_run import TinyNet

from model.losses import Criterion
from shardify.loader.batch import Batch, synthetic
from train.optim.compute import choose_precision
from train.optim.step import EvalStep, TrainStep

CPU = torch.device("cpu")
FP32 = choose_precision("fp32", CPU)


def make(
    *, lr: float = 0.1, clip: float = 0.0, clip_by: str = "norm", precision: str = "fp32"
) -> tuple[torch.nn.Module, TrainStep]:
    torch.manual_seed(0)
    model = TinyNet("unet")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    step = TrainStep(
        model,
        Criterion(),
        optimizer,
        precision=choose_precision(precision, CPU),
        clip=clip,
        clip_by=clip_by,
    )
    return model, step


def moved(model: torch.nn.Module, step: TrainStep, batch: Batch) -> torch.Tensor:
    """All weights' change by one step, flat."""
    before = copy.deepcopy(model.state_dict())
    step([batch])
    after = model.state_dict()
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


def test_a_step_lowers_the_loss_of_its_own_batch() -> None:
    batch = synthetic(4, 16)
    batch = batch._replace(fg_bg=batch.bg + batch.mask)
    _, step = make()
    losses = [float(step([batch])[0].parts.total) for _ in range(40)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_step_moves_the_weights_by_the_gradient_of_the_loss() -> None:
    batch = synthetic(4, 16)
    model, step = make(lr=0.5)
    reference = copy.deepcopy(model)
    raw = reference(torch.cat((batch.bg, batch.fg_bg), 1))
    Criterion()(raw, batch.mask, batch.depth).total.backward()
    expected = torch.cat([-0.5 * p.grad.flatten() for p in reference.parameters()])
    torch.testing.assert_close(moved(model, step, batch), expected)


def test_the_gradient_is_clipped_by_norm_or_by_value() -> None:
    batch = synthetic(4, 16)
    by_norm = moved(*make(lr=1.0, clip=1e-3), batch)
    assert float(by_norm.norm()) == pytest.approx(1e-3, rel=1e-3)
    by_value = moved(*make(lr=1.0, clip=1e-4, clip_by="value"), batch)
    assert float(by_value.abs().max()) == pytest.approx(1e-4, rel=1e-3)


def test_results_carry_no_graph_and_predictions_are_probabilities() -> None:
    batch = synthetic(2, 16)
    model, step = make()
    for result in (*step([batch]), EvalStep(model.eval(), Criterion(), FP32)(batch)):
        assert not result.parts.total.requires_grad
        for plane in result.prediction:
            assert plane.dtype == torch.float32
            assert 0 <= float(plane.min()) and float(plane.max()) <= 1


def test_evaluation_leaves_the_network_as_it_was() -> None:
    model = TinyNet("resunet").eval()
    before = copy.deepcopy(model.state_dict())
    EvalStep(model, Criterion(), FP32)(synthetic(2, 16))
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_bf16_computes_nearly_what_fp32_does_with_float32_weights() -> None:
    batch = synthetic(2, 16)
    model, step = make(precision="bf16")
    _, exact = make()
    loss, expected = (float(each([batch])[0].parts.total) for each in (step, exact))
    assert loss == pytest.approx(expected, rel=0.02)
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_auto_is_fp32_on_a_cpu() -> None:
    assert choose_precision("auto", CPU) == torch.float32


def test_two_batches_in_one_step_are_one_batch_of_both() -> None:
    whole = synthetic(4, 16)
    halves = [Batch(*(part[:2] for part in whole)), Batch(*(part[2:] for part in whole))]
    one, other = make(lr=0.5), make(lr=0.5)
    before = copy.deepcopy(one[0].state_dict())
    one[1]([whole])
    results = other[1](halves)
    assert [result.prediction.mask.shape[0] for result in results] == [2, 2]
    for name, weight in one[0].state_dict().items():
        torch.testing.assert_close(weight, other[0].state_dict()[name])
        assert not torch.equal(weight, before[name])


def test_a_gradient_alone_moves_no_weight_and_is_forgotten() -> None:
    model, step = make()
    before = copy.deepcopy(model.state_dict())
    step.gradient(synthetic(2, 16))
    assert any(parameter.grad is not None for parameter in model.parameters())
    step.clear_gradients()
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name])


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda:0", torch.float32), ("cuda:1", torch.bfloat16)]
)
def test_bf16_is_chosen_where_the_gpu_at_hand_has_it(monkeypatch, device, dtype) -> None:
    capability = {torch.device("cuda:0"): (7, 5), torch.device("cuda:1"): (8, 0)}
    monkeypatch.setattr("torch.cuda.get_device_capability", capability.__getitem__)
    assert choose_precision("auto", torch.device(device)) == dtype


def test_no_algorithm_is_looked_for_for_a_last_short_batch(monkeypatch) -> None:
    searched: list[bool] = []
    model = TinyNet("resunet").eval()
    model.register_forward_pre_hook(lambda *_: searched.append(torch.backends.cudnn.benchmark))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    step = EvalStep(model, Criterion(), FP32)
    for samples, res in ((4, 16), (4, 16), (3, 16), (2, 32), (4, 16)):
        step(synthetic(samples, res))
    assert searched == [True, True, False, True, True]
    assert torch.backends.cudnn.benchmark
