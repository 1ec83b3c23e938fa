import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.blocks import Prediction
from model.losses import KINDS, Criterion, bce, dice_loss, l1, ssim


def pictures(seed: int, batch: int = 3, height: int = 17, width: int = 23) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    pred, target = rng.random((2, batch, 1, height, width), dtype=np.float32)
    return torch.from_numpy(pred), torch.from_numpy(target)


def naive_dice(pred: Tensor, target: Tensor, smooth: float) -> float:
    values = []
    for p, t in zip(pred.double().numpy(), target.double().numpy(), strict=True):
        values.append(1 - (2 * (p * t).sum() + smooth) / ((p**2).sum() + (t**2).sum() + smooth))
    return float(np.mean(values))


def gaussian_window() -> np.ndarray:
    """(11, 11) weights; their sum is 1."""
    place = np.arange(11) - 5
    line = np.exp(-(place**2) / (2 * 1.5**2))
    return np.outer(line, line) / line.sum() ** 2


def window_ssim(a: np.ndarray, b: np.ndarray, window: np.ndarray) -> float:
    ma, mb = (window * a).sum(), (window * b).sum()
    va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
    cov = (window * (a - ma) * (b - mb)).sum()
    luminance = (2 * ma * mb + 0.01**2) / (ma**2 + mb**2 + 0.01**2)
    return luminance * (2 * cov + 0.03**2) / (va + vb + 0.03**2)


def naive_ssim(pred: Tensor, target: Tensor) -> float:
    """Window by window, in float64, from deviations rather than from differences of squares."""
    window = gaussian_window()
    values = []
    for x, y in zip(pred[:, 0].double().numpy(), target[:, 0].double().numpy(), strict=True):
        for top, left in itertools.product(range(x.shape[0] - 10), range(x.shape[1] - 10)):
            a, b = x[top : top + 11, left : left + 11], y[top : top + 11, left : left + 11]
            values.append(window_ssim(a, b, window))
    return float(np.mean(values))


def test_l1_is_the_mean_absolute_difference() -> None:
    pred, target = pictures(0)
    assert l1(pred, target).item() == pytest.approx(np.abs(pred.numpy() - target.numpy()).mean())


@pytest.mark.parametrize("smooth", [0.0, 1.0, 50.0])
def test_dice_is_taken_a_sample_with_squared_denominators(smooth: float) -> None:
    pred, target = pictures(1)
    expected = naive_dice(pred, target, smooth)
    assert dice_loss(pred, target, smooth=smooth).item() == pytest.approx(expected, rel=1e-5)


def test_dice_of_an_empty_mask_is_defined_and_rewards_an_empty_answer() -> None:
    empty = torch.zeros(1, 1, 16, 16)
    assert dice_loss(empty, empty).item() == 0
    assert 0.9 < dice_loss(torch.ones_like(empty), empty).item() < 1


def test_dice_of_soft_targets_is_least_at_the_target() -> None:
    _, target = pictures(2)
    at, below, above = (dice_loss(target * k, target, smooth=0).item() for k in (1, 0.9, 1.1))
    assert at == pytest.approx(0, abs=1e-6)
    assert min(below, above) > 1e-3


def test_bce_takes_raw_outputs_and_survives_large_ones() -> None:
    pred, target = pictures(3)
    p, t = pred.double(), (target > 0.5).double()
    expected = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
    assert bce(torch.logit(p), t).item() == pytest.approx(expected.item(), rel=1e-5)
    assert bce(torch.full_like(pred, 1e4), torch.zeros_like(pred)).item() == pytest.approx(1e4)


def test_ssim_agrees_with_the_definition_window_by_window() -> None:
    pred, target = pictures(4)
    mixed = 0.3 * pred + 0.7 * target
    for x, y in ((pred, target), (mixed, target), (pred * 0.1, target * 0.1)):
        assert ssim(x, y).item() == pytest.approx(naive_ssim(x, y), abs=1e-5)


def test_ssim_of_a_picture_with_itself_is_one_and_with_its_negative_is_low() -> None:
    pred, _ = pictures(5)
    assert ssim(pred, pred).item() == pytest.approx(1, abs=1e-5)
    assert ssim(pred, 1 - pred).item() < 0
    flat = torch.full_like(pred, 0.4)
    assert ssim(flat, flat).item() == pytest.approx(1, abs=1e-5)


def test_ssim_gradients_are_exact() -> None:
    pred, target = pictures(6, 1, 12, 12)
    pred.requires_grad_()
    (grad,) = torch.autograd.grad(ssim(pred, target), pred)
    step = torch.from_numpy(np.random.default_rng(7).standard_normal(pred.shape)).float()
    with torch.no_grad():
        plus, minus = (ssim(pred + k * step, target).item() for k in (5e-3, -5e-3))
    assert (grad * step).sum().item() == pytest.approx((plus - minus) / 1e-2, rel=2e-2, abs=1e-4)


def test_ssim_refuses_what_the_window_does_not_fit() -> None:
    with pytest.raises(ValueError, match="10x64 is smaller than the 11x11 window"):
        ssim(torch.zeros(1, 1, 10, 64), torch.zeros(1, 1, 10, 64))


@pytest.mark.parametrize("loss", [l1, dice_loss, bce, ssim])
def test_shapes_that_would_broadcast_are_refused(loss) -> None:
    with pytest.raises(ValueError, match="shapes of prediction and target disagree"):
        loss(torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 1, 16))


@given(kind=st.sampled_from(KINDS), cut=st.integers(0, 5), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_a_batch_costs_the_average_of_its_parts_however_it_is_cut(
    kind: str, cut: int, seed: int
) -> None:
    criterion = Criterion(kind=kind)
    raw, mask = pictures(seed, 5, 16, 16)
    depth = mask.flip(0)
    whole = criterion(Prediction(raw, raw * 3), mask, depth)
    parts = [
        criterion(Prediction(raw[part], raw[part] * 3), mask[part], depth[part])
        for part in (slice(0, cut), slice(cut, 5))
    ]
    for all_, first, second in zip(whole, *parts, strict=True):
        mean = (cut * first.item() + (5 - cut) * second.item()) / 5
        assert all_.item() == pytest.approx(mean, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_costs_nothing_and_backpropagates(kind: str) -> None:
    raw = torch.empty(0, 1, 16, 16, requires_grad=True)
    loss = Criterion(kind=kind)(Prediction(raw, raw), raw.detach(), raw.detach())
    loss.total.backward()
    assert loss.total.item() == 0


def test_total_is_twice_the_mask_plus_the_depth_by_default() -> None:
    raw, target = pictures(8)
    loss = Criterion()(Prediction(depth=raw, mask=-raw), target.round(), target)
    assert loss.total.item() == pytest.approx(2 * loss.mask.item() + loss.depth.item())
    pred = torch.sigmoid(-raw)
    expected = (dice_loss(pred, target.round()) + l1(pred, target.round())) / 2
    assert loss.mask.item() == pytest.approx(expected.item())
    pred = torch.sigmoid(raw)
    expected = (dice_loss(pred, target) + l1(pred, target)) / 2
    assert loss.depth.item() == pytest.approx(expected.item())


def test_weights_weigh_and_do_not_scale() -> None:
    raw, target = pictures(9)
    criterion = Criterion(dice_weight=3, l1_weight=1, mask_weight=5, depth_weight=0.5)
    loss = criterion(Prediction(raw, raw), target, target)
    pred = torch.sigmoid(raw)
    expected = 0.75 * dice_loss(pred, target).item() + 0.25 * l1(pred, target).item()
    assert loss.mask.item() == pytest.approx(expected)
    assert loss.total.item() == pytest.approx(5.5 * expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dice", dice_loss),
        ("l1", l1),
        ("ssim", lambda pred, target: 1 - ssim(pred, target)),
        ("bce", lambda pred, target: bce(torch.logit(pred), target)),
    ],
)
def test_each_kind_is_its_loss_of_the_activated_output(kind: str, expected) -> None:
    raw, target = pictures(10)
    loss = Criterion(kind=kind)(Prediction(raw, raw), target, target)
    assert loss.depth.item() == pytest.approx(expected(torch.sigmoid(raw), target).item(), rel=1e-5)


def test_without_activation_the_loss_sees_raw_outputs_and_pictures_are_clamped() -> None:
    raw = torch.tensor([-1.0, 0.25, 2.0]).view(1, 1, 1, 3)
    target = torch.tensor([0.0, 0.25, 1.0]).view(1, 1, 1, 3)
    criterion = Criterion(kind="l1", activation="none")
    assert criterion(Prediction(raw, raw), target, target).mask.item() == pytest.approx(2 / 3)
    shown = criterion.activate(Prediction(raw, raw))
    assert torch.equal(shown.mask, target)
    assert torch.equal(shown.depth, target)


def test_activation_is_the_sigmoid_in_float32() -> None:
    raw = torch.linspace(-20, 20, 9, dtype=torch.bfloat16).view(1, 1, 3, 3)
    shown = Criterion().activate(Prediction(raw, raw))
    assert shown.mask.dtype == torch.float32
    assert torch.equal(shown.depth, torch.sigmoid(raw.float()))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_float32_under_autocast_and_equal_those_without(kind: str) -> None:
    raw, target = pictures(11)
    low = raw.bfloat16()
    expected = Criterion(kind=kind)(Prediction(low.float(), low.float()), target, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Criterion(kind=kind)(Prediction(low, low), target, target)
    for part, reference in zip(loss, expected, strict=True):
        assert part.dtype == torch.float32
        assert torch.equal(part, reference)


@pytest.mark.parametrize("kind", KINDS)
def test_descending_the_loss_reaches_the_target(kind: str) -> None:
    _, target = pictures(12, 2, 16, 16)
    mask = (target > 0.5).float()
    raw = torch.zeros_like(mask).requires_grad_()
    optimiser = torch.optim.Adam([raw], lr=0.3)
    for _ in range(60):
        optimiser.zero_grad()
        Criterion(kind=kind)(Prediction(raw, raw), mask, mask).total.backward()
        optimiser.step()
    assert ((raw > 0).float() == mask).float().mean().item() > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "focal"}, "'focal': unknown; use one of dice"),
        ({"activation": "tanh"}, "'tanh': unknown; use one of sigmoid, none"),
        ({"kind": "bce", "activation": "none"}, "use activation 'sigmoid'"),
    ],
)
def test_a_criterion_that_cannot_be_meant_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Criterion(**options)


def holes(seed: int, batch: int = 3, height: int = 17, width: int = 23) -> Tensor:
    """A large hole and single ones; the last sample has no valid pixel."""
    valid = torch.from_numpy(np.random.default_rng(seed).random((batch, 1, height, width)) > 0.1)
    valid[0, :, 4:9, 3:12] = False
    valid[-1] = False
    return valid


def naive_valid_ssim(pred: Tensor, target: Tensor, valid: Tensor) -> float:
    """As ``naive_ssim``, with the weights of the valid pixels of each window."""
    whole = gaussian_window()
    samples = []
    for x, y, known in zip(*(t[:, 0].double().numpy() for t in (pred, target, valid)), strict=True):
        values = []
        for top, left in itertools.product(range(x.shape[0] - 10), range(x.shape[1] - 10)):
            place = slice(top, top + 11), slice(left, left + 11)
            a, b, window = x[place], y[place], whole * known[place]
            if window.sum() <= 0.5:
                continue
            window = window / window.sum()
            values.append(window_ssim(a, b, window))
        samples.append(1 - np.mean(values) if values else 0.0)
    return float(1 - np.mean(samples))


def test_losses_over_valid_pixels_are_means_over_samples_of_their_valid_pixels() -> None:
    pred, target = pictures(5)
    valid = holes(5)
    kept = [
        (pred[n][valid[n]].double().numpy(), target[n][valid[n]].double().numpy()) for n in (0, 1)
    ]
    expected = sum(np.abs(p - t).mean() for p, t in kept) / 3
    assert l1(pred, target, valid).item() == pytest.approx(expected, rel=1e-5)
    expected = sum((-t * np.log(p) - (1 - t) * np.log(1 - p)).mean() for p, t in kept) / 3
    assert bce(torch.logit(pred), target, valid).item() == pytest.approx(expected, rel=1e-4)
    for smooth in (0.0, 1.0):
        values = [
            1 - (2 * (p * t).sum() + smooth) / ((p**2).sum() + (t**2).sum() + smooth)
            for p, t in kept
        ]
        found = dice_loss(pred, target, valid, smooth=smooth)
        assert found.item() == pytest.approx(sum(values) / 3, rel=1e-5)
    expected = naive_valid_ssim(pred, target, valid)
    assert ssim(pred, target, valid).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_where_all_is_valid_the_loss_is_that_without_validity(kind: str) -> None:
    raw, depth = pictures(6)
    prediction, criterion = Prediction(depth=raw, mask=raw), Criterion(kind=kind)
    mask = depth.round()
    plain = criterion(prediction, mask, depth)
    valid = criterion(prediction, mask, depth, {"depth": torch.ones_like(depth, dtype=torch.bool)})
    for one, other in zip(plain, valid, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_invalid_pixels_have_no_influence_and_no_gradient(kind: str) -> None:
    raw, depth = pictures(7)
    valid = holes(7)
    found = []
    for value in (0.0, 1.0):
        outputs = torch.where(valid, raw, 40 * value - 20).requires_grad_()
        truth = torch.where(valid, depth, value)
        parts = Criterion(kind=kind, mask_weight=1.0)(
            Prediction(depth=outputs, mask=raw), depth.round(), truth, {"depth": valid}
        )
        parts.total.backward()
        assert outputs.grad is not None and torch.isfinite(outputs.grad).all()
        assert (outputs.grad[~valid] == 0).all()
        assert outputs.grad[:2][valid[:2]].abs().max() > 0
        found.append((parts.depth.item(), outputs.grad))
    assert found[0][0] == found[1][0] > 0
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_a_valid_pixel_has_a_depth_loss_of_0(kind: str) -> None:
    raw, depth = pictures(8)
    raw.requires_grad_()
    valid = {"depth": torch.zeros_like(depth, dtype=torch.bool)}
    parts = Criterion(kind=kind, targets=("depth",), smooth=0.0)(
        Prediction(depth=raw, mask=raw), depth, depth, valid
    )
    parts.total.backward()
    assert parts.depth.item() == 0
    assert raw.grad is not None and not raw.grad.any()
