import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import (
    BinaryF1Score,
    BinaryJaccardIndex,
    BinaryPrecision,
    BinaryRecall,
)

from model.blocks import Prediction
from model.losses import LossParts
from shardify.loader.batch import Batch
from train.distributed import World
from train.evaluation.metrics import (
    FIGURES,
    AbsoluteRelativeError,
    DepthAccuracy,
    Metrics,
    describe,
)
from train.optim.step import StepResult

CPU = torch.device("cpu")
ALONE = World()


def example(samples: int, seed: int = 0) -> tuple[StepResult, Batch]:
    generator = torch.Generator().manual_seed(seed)

    def plane() -> torch.Tensor:
        return torch.rand(samples, 1, 8, 8, generator=generator)

    batch = Batch(
        torch.zeros(samples, 3, 8, 8), torch.zeros(samples, 3, 8, 8), plane().round(), plane()
    )
    batch.depth[:, :, :2] = 0
    parts = LossParts(*torch.rand(3, generator=generator))
    return StepResult(parts, Prediction(depth=plane(), mask=plane())), batch


def scored(examples: list[tuple[StepResult, Batch]]) -> dict[str, float]:
    scores = Metrics(CPU)
    for result, batch in examples:
        scores.update(result, batch)
    return scores.compute(ALONE)


def test_mask_figures_are_those_of_torchmetrics() -> None:
    examples = [example(3, 1), example(2, 2)]
    figures = scored(examples)
    reference = {
        "mask_iou": BinaryJaccardIndex(),
        "mask_dice": BinaryF1Score(),
        "mask_precision": BinaryPrecision(),
        "mask_recall": BinaryRecall(),
    }
    for name, metric in reference.items():
        for result, batch in examples:
            metric.update(result.prediction.mask, batch.mask.long())
        assert figures[name] == pytest.approx(float(metric.compute()), rel=1e-6), name


def test_depth_figures_are_those_of_their_definitions() -> None:
    examples = [example(3, 1), example(2, 2)]
    figures = scored(examples)
    pred = np.concatenate([r.prediction.depth.double().numpy().ravel() for r, _ in examples])
    true = np.concatenate([b.depth.double().numpy().ravel() for _, b in examples])
    assert figures["depth_mae"] == pytest.approx(np.abs(pred - true).mean(), rel=1e-6)
    assert figures["depth_rmse"] == pytest.approx(np.sqrt(((pred - true) ** 2).mean()), rel=1e-6)
    known = true > 0
    assert 0 < known.sum() < known.size
    p, t = pred[known], true[known]
    assert figures["depth_absrel"] == pytest.approx((np.abs(p - t) / t).mean(), rel=1e-5)
    near = np.maximum(p / t, t / p) < 1.25
    assert figures["depth_delta1"] == pytest.approx(near.mean(), rel=1e-9)


def test_a_loss_is_the_mean_over_samples_not_over_batches() -> None:
    large, small = example(3, 1), example(1, 2)
    expected = (3 * float(large[0].parts.total) + float(small[0].parts.total)) / 4
    assert scored([large, small])["loss"] == pytest.approx(expected, rel=1e-6)


def test_pixels_without_depth_count_in_neither_ratio() -> None:
    target = torch.tensor([0.0, 0.5])
    preds = torch.tensor([0.9, 0.55])
    absrel, near = AbsoluteRelativeError(), DepthAccuracy()
    absrel.update(preds, target)
    near.update(preds, target)
    assert float(absrel.compute()) == pytest.approx(0.1, rel=1e-5)
    assert float(near.compute()) == 1.0


def test_a_prediction_of_zero_is_a_miss_not_a_division() -> None:
    near = DepthAccuracy()
    near.update(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 0.0]))
    assert float(near.compute()) == 0.0


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.integers(0, 5))
def test_a_pass_that_stopped_and_went_on_gives_the_figures_of_one_that_did_not(
    sizes: list[int], cut: int
) -> None:
    examples = [example(size, seed) for seed, size in enumerate(sizes)]
    first, second = Metrics(CPU), Metrics(CPU)
    for result, batch in examples[:cut]:
        first.update(result, batch)
    second.load_state_dict(first.state_dict(ALONE))
    for result, batch in examples[cut:]:
        second.update(result, batch)
    whole, resumed = scored(examples), second.compute(ALONE)
    for name in FIGURES:
        assert whole[name] == resumed[name] or (
            math.isnan(whole[name]) and math.isnan(resumed[name])
        )


def test_nothing_counted_gives_no_figure_and_no_error() -> None:
    figures = scored([example(0)])
    assert list(figures) == list(FIGURES)
    assert all(math.isnan(value) for name, value in figures.items() if name.startswith("mask"))


def test_reset_forgets() -> None:
    scores = Metrics(CPU)
    scores.update(*example(2, 1))
    scores.reset()
    scores.update(*example(2, 2))
    assert scores.compute(ALONE) == scored([example(2, 2)])


def test_a_description_names_every_figure() -> None:
    text = describe({**scored([example(2)]), "samples": 2})
    assert [line.split()[0] for line in text.splitlines()] == [*FIGURES, "samples"]


def holed(samples: int, seed: int) -> tuple[StepResult, Batch]:
    """An example whose first rows have a depth of 0, and with holes everywhere."""
    result, batch = example(samples, seed)
    valid = torch.rand(batch.depth.shape, generator=torch.Generator().manual_seed(seed)) > 0.3
    valid[0] = False
    depth = torch.where(valid, batch.depth, 0.77)
    return result, Batch(*batch[:3], depth, valid={"depth": valid})


def test_depth_figures_are_over_valid_pixels_of_all_batches() -> None:
    examples = [holed(3, 1), example(1, 5), holed(2, 2)]
    figures = scored(examples)
    valid = np.concatenate(
        [
            b.valid.get("depth", torch.ones_like(b.depth, dtype=torch.bool)).numpy().ravel()
            for _, b in examples
        ]
    )
    pred = np.concatenate([r.prediction.depth.double().numpy().ravel() for r, _ in examples])[valid]
    true = np.concatenate([b.depth.double().numpy().ravel() for _, b in examples])[valid]
    assert figures["depth_mae"] == pytest.approx(np.abs(pred - true).mean(), rel=1e-6)
    assert figures["depth_rmse"] == pytest.approx(np.sqrt(((pred - true) ** 2).mean()), rel=1e-6)
    p, t = pred[true > 0], true[true > 0]
    assert figures["depth_absrel"] == pytest.approx((np.abs(p - t) / t).mean(), rel=1e-5)
    near = np.maximum(p / t, t / p) < 1.25
    assert figures["depth_delta1"] == pytest.approx(near.mean(), rel=1e-9)


def test_sums_over_valid_pixels_of_two_halves_are_those_of_the_whole() -> None:
    """As ranks are combined, and as an interrupted pass goes on."""
    examples = [holed(3, 1), holed(2, 2), holed(4, 3)]
    whole = scored(examples)
    first, second = Metrics(CPU), Metrics(CPU)
    first.update(*examples[0])
    for each in examples[1:]:
        second.update(*each)
    states = second.unpacked(first.packed() + second.packed())
    second.load_state_dict(states)
    assert second.compute(ALONE) == pytest.approx(whole, rel=1e-12)


def test_without_any_valid_depth_its_figures_are_not_a_number_and_others_are() -> None:
    result, batch = example(2)
    batch = Batch(*batch, valid={"depth": torch.zeros_like(batch.depth, dtype=torch.bool)})
    figures = scored([(result, batch)])
    missing = {name for name, value in figures.items() if math.isnan(value)}
    assert missing == {"depth_mae", "depth_rmse", "depth_absrel", "depth_delta1"}
