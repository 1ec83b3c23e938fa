import pytest
import torch

from model.registry import MODELS, check_resolution, create


@pytest.mark.parametrize(("name", "parameters"), [("resunet", 15_855_712), ("unet", 17_269_186)])
def test_each_name_makes_its_network(name: str, parameters: int) -> None:
    net = create(name)
    assert sum(p.numel() for p in net.parameters()) == parameters
    with torch.no_grad():
        prediction = net(torch.randn(2, 6, 16, 32))
    assert prediction.depth.shape == prediction.mask.shape == (2, 1, 16, 32)


@pytest.mark.parametrize("name", MODELS)
def test_other_input_channels_are_taken_at_their_word(name: str) -> None:
    with torch.no_grad():
        assert create(name, in_channels=3)(torch.randn(2, 3, 16, 16)).mask.shape == (2, 1, 16, 16)


def test_the_same_seed_makes_the_same_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in create("resunet").parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_unknown_name_gets_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'vgg': unknown; use one of resunet, unet"):
        create("vgg")


def test_no_input_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="in_channels 0"):
        create("unet", in_channels=0)


def test_resolutions_are_checked_without_a_network() -> None:
    check_resolution(64, 128)
    with pytest.raises(ValueError, match="100 is not a positive multiple of 16; use 96 or 112"):
        check_resolution(64, 100)


@pytest.mark.parametrize("name", MODELS)
def test_a_dozen_batches_are_enough_for_evaluation_to_catch_up_with_training(name: str) -> None:
    torch.manual_seed(0)
    net = create(name)
    x = torch.randn(4, 6, 32, 32) * 3 + 2
    with torch.no_grad():
        for _ in range(12):
            trained = net(x).mask
        net.eval()
        gap = (net(x).mask - trained).abs().mean() / trained.std()
    assert gap < 0.3
