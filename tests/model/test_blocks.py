import pytest
import torch

from model.blocks import DoubleConv, Down, Residual, Up, check_input, check_size, init_conv
from model.resunet import ResUNet


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (224, 224), (1088, 1920)])
def test_multiples_of_16_pass(size: tuple[int, int]) -> None:
    check_size(*size)


@pytest.mark.parametrize(
    ("size", "advice"),
    [
        ((100, 100), "use 96 or 112"),
        ((64, 250), "250 is not a positive multiple of 16; use 240 or 256"),
        ((250, 64), "size 250x64"),
        ((8, 64), "use 16"),
        ((0, 64), "use 16"),
        ((-16, 64), "use 16"),
        ((17, 64), "use 16 or 32"),
    ],
)
def test_other_sizes_get_one_line_with_the_nearest(size: tuple[int, int], advice: str) -> None:
    with pytest.raises(ValueError, match=advice) as caught:
        check_size(*size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(6, 64, 64), (2, 3, 64, 64), (1, 6, 64, 64, 1)])
def test_a_batch_of_another_shape_is_refused_by_its_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(B, 6, H, W\)"):
        check_input(torch.zeros(shape), 6)


def test_down_returns_the_maxima_of_what_it_keeps() -> None:
    pooled, kept = Down(4, 8)(torch.randn(2, 4, 8, 12))
    assert kept.shape == (2, 8, 8, 12)
    assert torch.equal(pooled, kept.unflatten(2, (4, 2)).unflatten(4, (6, 2)).amax((3, 5)))


def test_up_doubles_and_adds_skip_and_side_before_the_block() -> None:
    up = Up(8, 6, 4, 5).eval()
    x, skip, side = torch.randn(2, 8, 3, 5), torch.randn(2, 6, 6, 10), torch.randn(2, 5, 6, 10)
    expanded = torch.einsum("oc,bchw->bohw", up.expand.weight[..., 0, 0], x)
    total = torch.empty(2, 8, 6, 10)
    for place in range(4):
        total[:, :, place // 2 :: 2, place % 2 :: 2] = expanded[:, place::4]
    total += torch.einsum("oc,bchw->bohw", up.skip.weight[..., 0, 0], skip)
    assert up.side is not None
    total += torch.einsum("oc,bchw->bohw", up.side.weight[..., 0, 0], side)
    torch.testing.assert_close(up(x, skip, side), up.block(total), rtol=1e-4, atol=1e-5)


def test_residual_is_the_double_convolution_plus_the_normed_projection() -> None:
    block = Residual(4, 8).eval()
    block.norm.running_mean.uniform_()
    x = torch.randn(2, 4, 8, 8)
    expected = block.body(x.clone()) + block.norm(block.project(x))
    torch.testing.assert_close(block(x), expected)


def test_in_place_steps_leave_the_input_alone_and_gradients_exact() -> None:
    torch.manual_seed(0)
    up = Up(3, 2, 2, 2).double()
    inputs = (torch.randn(2, 3, 2, 2), torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4))
    inputs = tuple(t.double().requires_grad_() for t in inputs)
    before = [t.detach().clone() for t in inputs]
    assert torch.autograd.gradcheck(up, inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))


def test_double_convolution_starts_near_unit_variance() -> None:
    torch.manual_seed(0)
    block = DoubleConv(64, 64)
    init_conv(block)
    assert block(torch.randn(4, 64, 32, 32)).var().item() == pytest.approx(1, abs=0.2)


def test_fresh_upsampling_has_no_checkerboard() -> None:
    torch.manual_seed(0)
    net = ResUNet()
    for up in (*net.depth_up, *net.mask_up):
        x = torch.randn(1, up.expand.in_channels, 2, 2)
        cells = torch.nn.functional.pixel_shuffle(up.expand(x), 2)
        assert torch.allclose(cells[..., ::2, ::2], cells[..., 1::2, 1::2], atol=1e-6)
        assert cells.std() > 0.1


def test_both_ways_of_doubling_the_size_are_the_same_function() -> None:
    """A GPU takes the second: a transposed convolution of the same weights."""
    up = Up(8, 6, 4)
    grown, slopes = [], []
    for way in (
        lambda x: torch.nn.functional.pixel_shuffle(up.expand(x), 2),
        up._upsample_transposed,
    ):
        torch.manual_seed(0)
        up.zero_grad()
        x = torch.randn(2, 8, 5, 7, requires_grad=True)
        out = way(x)
        (out * torch.randn(out.shape)).sum().backward()
        grown.append(out)
        slopes.append((x.grad, up.expand.weight.grad))
    assert grown[0].shape == (2, 8, 10, 14)
    assert torch.allclose(*grown, atol=1e-6)
    for one, other in zip(*slopes, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
