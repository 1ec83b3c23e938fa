import pytest
import torch

from model.unet import PairUNet, UNet


@pytest.mark.parametrize(
    ("inputs", "outputs", "published"), [(3, 1, 17_267_393), (6, 2, 17_269_186)]
)
def test_unet_has_the_published_number_of_parameters(
    inputs: int, outputs: int, published: int
) -> None:
    assert sum(p.numel() for p in UNet(inputs, outputs).parameters()) == published


def test_the_two_figures_differ_by_three_input_channels_and_one_head() -> None:
    assert 17_269_186 - 17_267_393 == 3 * 64 * 3 * 3 + 64 + 1


def test_pair_is_the_unet_with_its_channels_named() -> None:
    torch.manual_seed(0)
    pair = PairUNet().eval()
    x = torch.randn(2, 6, 32, 48)
    with torch.no_grad():
        prediction, stacked = pair(x), pair.net(x)
    assert prediction.depth.shape == prediction.mask.shape == (2, 1, 32, 48)
    assert torch.equal(torch.cat((prediction.depth, prediction.mask), 1), stacked)


def test_an_indivisible_size_is_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="100 is not a positive multiple of 16; use 96 or 112"):
        UNet(3, 1).to("meta")(torch.empty(1, 3, 100, 64, device="meta"))


def test_every_parameter_is_used() -> None:
    torch.manual_seed(0)
    net = UNet(3, 1)
    net(torch.randn(2, 3, 32, 32)).square().mean().backward()
    # A convolution's bias right before batch norm cancels; it is there because it was published.
    idle = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(name.endswith(".bias") for name in idle)


def test_channels_last_survives_to_the_output() -> None:
    torch.manual_seed(0)
    net = UNet().eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 6, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert net(x).is_contiguous(memory_format=torch.channels_last)
