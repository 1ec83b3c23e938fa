import pytest
import torch
from torch import nn

from model.blocks import Prediction
from model.deep_supervision import Supervised, coarse_loss
from model.losses import Criterion
from model.registry import MODELS, create


@pytest.mark.parametrize("name", MODELS)
def test_heads_see_three_coarser_scales_and_the_network_says_what_it_always_says(name: str) -> None:
    torch.manual_seed(0)
    network = create(name).eval()
    supervised = Supervised(network)
    x = torch.randn(2, 6, 32, 48)
    with torch.no_grad():
        said, alone = supervised(x), network(x)
    assert [tuple(p.mask.shape[-2:]) for p in said.coarse] == [(4, 6), (8, 12), (16, 24)]
    assert all(p.depth.shape == p.mask.shape for p in said.coarse)
    for mine, own in zip(said.prediction, alone, strict=True):
        assert torch.equal(mine, own)
    assert all(p.data_ptr() in {q.data_ptr() for q in supervised.parameters()}
               for p in network.parameters())  # fmt: skip


def test_every_head_and_every_weight_learns() -> None:
    torch.manual_seed(0)
    supervised = Supervised(create("resunet"))
    said = supervised(torch.randn(2, 6, 32, 32))
    mask, depth = torch.rand(2, 1, 32, 32).round(), torch.rand(2, 1, 32, 32)
    criterion = Criterion()
    total = criterion(said.prediction, mask, depth).total
    (total + coarse_loss(criterion, said.coarse, mask, depth)).backward()
    assert all(p.grad is not None and p.grad.any() for p in supervised.parameters())


def test_a_perfect_answer_at_each_scale_costs_nothing() -> None:
    mask = torch.zeros(2, 1, 8, 8)
    mask[:, :, 2:6, 2:5] = 1
    depth = torch.rand(2, 1, 8, 8)
    criterion = Criterion(activation="none")
    pooled = [
        Prediction(
            depth=nn.functional.avg_pool2d(depth, cell), mask=nn.functional.avg_pool2d(mask, cell)
        )
        for cell in (4, 2)
    ]
    assert float(coarse_loss(criterion, pooled, mask, depth)) == pytest.approx(0, abs=1e-6)
    worse = [pooled[0], pooled[1]._replace(mask=1 - pooled[1].mask)]
    one = float(criterion(worse[1], pooled[1].mask, pooled[1].depth).total)
    assert float(coarse_loss(criterion, worse, mask, depth)) == pytest.approx(one / 2)


def test_a_network_that_shows_no_scales_is_refused() -> None:
    with pytest.raises(ValueError, match="Conv2d: shows no coarser scales"):
        Supervised(nn.Conv2d(6, 2, 1))


def test_coarse_targets_are_averages_of_valid_pixels() -> None:
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(2, 1, 8, 8, generator=generator)
    valid = torch.rand(2, 1, 8, 8, generator=generator) > 0.4
    raw = torch.rand(2, 1, 4, 4, generator=generator).requires_grad_()
    found = coarse_loss(
        Criterion(kind="l1", targets=("depth",), activation="none"),
        [Prediction(depth=raw, mask=raw)], depth, depth, {"depth": valid},
    )  # fmt: skip
    samples = []
    for n in range(2):
        errors = []
        for y in range(4):
            for x in range(4):
                place = n, 0, slice(2 * y, 2 * y + 2), slice(2 * x, 2 * x + 2)
                if valid[place].sum() > 2:
                    errors.append((raw[n, 0, y, x] - depth[place][valid[place]].mean()).abs())
        samples.append(torch.stack(errors).mean())
    assert found.item() == pytest.approx(torch.stack(samples).mean().item(), rel=1e-5)
    hidden = torch.where(valid, depth, 7.0)
    again = coarse_loss(
        Criterion(kind="l1", targets=("depth",), activation="none"),
        [Prediction(depth=raw, mask=raw)], depth, hidden, {"depth": valid},
    )  # fmt: skip
    assert again.item() == found.item()
