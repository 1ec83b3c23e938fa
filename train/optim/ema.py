"""Exponential moving average (EMA) of a network's weights, which is evaluated and saved.

Each step costs one pass over the weights on their device; nothing is copied to the CPU.
"""

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a network.

    The running statistics of batch norms are averaged too; counters are copied. After ``n`` steps
    the decay is at most ``(1 + n) / (10 + n)``: otherwise the average of a short run would still
    be close to the initial weights.

    Source: Polyak and Juditsky 1992; the decay of the first steps: TensorFlow's
    ``ExponentialMovingAverage``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start the average at the current weights.

        ``decay`` is the weight of the old average in each step, in (0, 1). The average has the
        device and memory format of the model.
        """
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        # deepcopy keeps all strides, so both lists have the same order.
        self._averaged, self._counters = _split_tensors(self.model)
        self._model_tensors, self._model_counters = _split_tensors(model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after optimiser step ``step``, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._model_tensors, 1 - decay)
        for counter, model_counter in zip(self._counters, self._model_counters, strict=True):
            counter.copy_(model_counter)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights and statistics."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the values of ``state`` into the average; memory formats may differ."""
        self.model.load_state_dict(state)


def _split_tensors(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the tensors to average, and those to copy."""
    tensors = [*(p.detach() for p in model.parameters()), *model.buffers()]
    return (
        [tensor for tensor in tensors if tensor.is_floating_point()],
        [tensor for tensor in tensors if not tensor.is_floating_point()],
    )
