import copy

import torch
from torch import nn

from train.optim.ema import WeightAverage


def make() -> nn.Module:
    torch.manual_seed(0)
    # A 3x3 convolution in channels_last: its strides differ from a contiguous copy's.
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).to(
        memory_format=torch.channels_last
    )


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    model.train()(torch.randn(2, 4, 5, 5))


def test_each_step_leaves_the_decays_share_of_what_was() -> None:
    model = make()
    average = WeightAverage(model, 0.9)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 200):
        move(model)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * value
            else:
                expected[name] = value.clone()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_the_network_that_trains_is_left_alone() -> None:
    model = make()
    before = copy.deepcopy(model.state_dict())
    average = WeightAverage(model, 0.5)
    average.update(1)
    assert model.training and not average.model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_an_average_loaded_from_contiguous_tensors_goes_on_bit_for_bit() -> None:
    model = make()
    average = WeightAverage(model, 0.9)
    move(model)
    average.update(1)
    stored = {name: value.contiguous().clone() for name, value in average.state_dict().items()}
    other_model = make()
    other_model.load_state_dict(model.state_dict())
    other = WeightAverage(other_model, 0.9)
    other.load_state_dict(stored)
    for each in (average, other):
        torch.manual_seed(1)
        move(model if each is average else other_model)
        each.update(2)
    for name, value in average.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
        assert value.stride() == other.state_dict()[name].stride()
