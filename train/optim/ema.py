"""A running average of a network's weights, which is judged and kept in their place.

Costs one pass over the weights a step, on the device that holds them; reads nothing back.
"""

import copy

import torch
from torch import Tensor, nn

__all__ = ["WeightAverage"]


class WeightAverage:
    """The exponential moving average of a network.

    Batch norm's running statistics are averaged with the weights they belong to; counters are
    copied. The first steps are averaged over fewer, or a short run would still hold the weights it
    began with: after ``n`` steps the decay is at most ``(1 + n) / (10 + n)``.

    Source: Polyak and Juditsky 1992; the decay of the first steps: TensorFlow's
    ``ExponentialMovingAverage``.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Begin with the weights as they are.

        Args:
            model: Where its weights live, they stay: on their device, in their memory format.
            decay: What a step leaves of the average, in (0, 1).
        """
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay
        # Copies keep every tensor's strides, so both lists are walked in the same order.
        self._mine, self._counts = _parts(self.model)
        self._theirs, self._their_counts = _parts(model)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step ``step``, counted from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mine, self._theirs, 1 - decay)
        for mine, theirs in zip(self._counts, self._their_counts, strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged network's weights and statistics."""
        return dict(self.model.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from an average; its tensors' values are copied, whatever their memory format."""
        self.model.load_state_dict(state)


def _parts(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """What is averaged, and what is copied."""
    tensors = [*(p.detach() for p in model.parameters()), *model.buffers()]
    return (
        [tensor for tensor in tensors if tensor.is_floating_point()],
        [tensor for tensor in tensors if not tensor.is_floating_point()],
    )
