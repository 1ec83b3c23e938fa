"""Both networks leave Python: traced, and exported with sizes left open."""

import pytest
import torch
from torch.export import Dim

from model.blocks import Prediction
from model.registry import MODELS, create


@pytest.fixture(scope="module", params=list(MODELS))
def net(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    return create(request.param).eval()


def agree(actual: tuple[torch.Tensor, ...], expected: Prediction) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_trace_answers_like_the_network_at_other_sizes(net: torch.nn.Module) -> None:
    traced = torch.jit.trace(net, torch.randn(1, 6, 32, 32), check_trace=False)
    x = torch.randn(2, 6, 16, 48)
    with torch.no_grad():
        agree(traced(x), net(x))


def test_an_export_answers_like_the_network_at_other_sizes_and_keeps_its_rule(
    net: torch.nn.Module,
) -> None:
    # From 32 up: at 16 the innermost features are 1x1, which an exported graph tells apart.
    rows, columns = Dim("rows", min=2), Dim("columns", min=2)
    sizes = {0: Dim("batch", min=1), 2: 16 * rows, 3: 16 * columns}
    program = torch.export.export(net, (torch.randn(2, 6, 32, 32),), dynamic_shapes=(sizes,))
    exported = program.module()
    for shape in ((1, 6, 32, 48), (3, 6, 64, 32)):
        x = torch.randn(shape)
        with torch.no_grad():
            agree(exported(x), net(x))
    with pytest.raises(AssertionError, match="% 16"):
        exported(torch.randn(1, 6, 64, 40))
