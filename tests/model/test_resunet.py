import pytest
import torch
from torch import nn

from model.resunet import ResUNet


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel * kernel


def norm(channels: int) -> int:
    return 2 * channels


def double(inputs: int, outputs: int) -> int:
    first = norm(inputs) + conv(inputs, outputs, 3)
    return first + norm(outputs) + conv(outputs, outputs, 3)


def residual(inputs: int, outputs: int) -> int:
    return double(inputs, outputs) + conv(inputs, outputs, 1) + norm(outputs)


def up(inputs: int, skip: int, outputs: int, side: int = 0) -> int:
    added = conv(inputs, 4 * inputs, 1) + conv(skip, inputs, 1) + conv(side, inputs, 1)
    return added + residual(inputs, outputs)


BLOCKS = {
    "init": (4_800, conv(6, 32, 5)),
    "down.0": (57_664, residual(32, 64)),
    "down.1": (230_016, residual(64, 128)),
    "down.2": (918_784, residual(128, 256)),
    "down.3": (3_672_576, residual(256, 512)),
    "bridge": (4_720_640, double(512, 512)),
    "depth_up.0": (3_213_312, up(512, 512, 256)),
    "depth_up.1": (803_840, up(256, 256, 128)),
    "depth_up.2": (201_216, up(128, 128, 64)),
    "depth_up.3": (33_216, up(64, 64, 16)),
    "mask_up.0": (1_807_616, up(512, 512, 64, 256)),
    "mask_up.1": (119_168, up(64, 256, 64, 128)),
    "mask_up.2": (58_624, up(64, 128, 32, 64)),
    "mask_up.3": (14_208, up(32, 64, 16, 16)),
    "depth_head": (16, conv(16, 1, 1)),
    "mask_head": (16, conv(16, 1, 1)),
}


@pytest.fixture(scope="module")
def net() -> ResUNet:
    torch.manual_seed(0)
    return ResUNet()


@pytest.mark.parametrize("name", BLOCKS)
def test_each_block_has_the_published_number_of_parameters_and_its_layers_explain_it(
    net: ResUNet, name: str
) -> None:
    published, explained = BLOCKS[name]
    assert count(net.get_submodule(name)) == published == explained


def test_the_blocks_are_the_whole_network(net: ResUNet) -> None:
    assert count(net) == 15_855_712 == sum(published for published, _ in BLOCKS.values())


@pytest.mark.parametrize("size", [(16, 16), (64, 64), (32, 96), (240, 16)])
def test_depth_and_mask_have_the_size_of_the_input(net: ResUNet, size: tuple[int, int]) -> None:
    prediction = net(torch.randn(2, 6, *size))
    assert prediction._fields == ("depth", "mask")
    assert prediction.depth.shape == prediction.mask.shape == (2, 1, *size)
    assert not torch.equal(prediction.depth, prediction.mask)


@pytest.mark.parametrize("size", [(64, 100), (250, 250), (8, 8)])
def test_an_indivisible_size_is_refused_before_any_work(
    net: ResUNet, size: tuple[int, int]
) -> None:
    with pytest.raises(ValueError, match="not a positive multiple of 16"):
        net(torch.empty(1, 6, *size, device="meta"))


def test_every_parameter_and_every_input_channel_is_used(net: ResUNet) -> None:
    x = torch.randn(2, 6, 32, 32, requires_grad=True)
    prediction = net(x)
    (prediction.depth.square().mean() + prediction.mask.square().mean()).backward()
    unused = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []
    assert x.grad is not None
    assert x.grad.abs().amax((0, 2, 3)).min() > 0
    net.zero_grad()


def test_mask_sees_the_depth_decoder_and_not_the_other_way_round(net: ResUNet) -> None:
    prediction = net(torch.randn(1, 6, 32, 32))
    parameters = [net.depth_up[1].expand.weight, net.mask_up[1].expand.weight]
    for output, seen in ((prediction.mask, (True, True)), (prediction.depth, (True, False))):
        grads = torch.autograd.grad(output.sum(), parameters, retain_graph=True, allow_unused=True)
        assert tuple(grad is not None for grad in grads) == seen


def test_raw_outputs_start_small_enough_for_a_sigmoid_to_pass_gradients(net: ResUNet) -> None:
    prediction = net(torch.randn(4, 6, 64, 64))
    for raw in prediction:
        assert 0.1 < raw.std().item() < 4


def test_channels_last_gives_the_same_answer_in_channels_last() -> None:
    torch.manual_seed(0)
    net = ResUNet().eval()
    x = torch.randn(2, 6, 32, 32)
    with torch.no_grad():
        expected = net(x)
        net.to(memory_format=torch.channels_last)
        formats = []
        for up in (*net.depth_up, *net.mask_up):
            up.register_forward_hook(
                lambda _, __, out: formats.append(
                    out.is_contiguous(memory_format=torch.channels_last)
                )
            )
        actual = net(x.contiguous(memory_format=torch.channels_last))
    assert formats == [True] * 8
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_an_empty_batch_passes_in_evaluation(net: ResUNet) -> None:
    net.eval()
    with torch.no_grad():
        assert net(torch.empty(0, 6, 32, 32)).mask.shape == (0, 1, 32, 32)
    net.train()
