"""What a step takes from tables: each sample's background, and its piece of the noise.

The tables lie on the device that makes the batches; one operation a step takes from them what all
of its samples need. Knows neither files nor DALI.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["DeviceTables"]

Array = npt.NDArray[Any]


class DeviceTables:
    """The tables of one loader, on its device.

    Attributes:
        tables: How many there are: 0 to 2.
        stream: CUDA's, that what is picked is made on; None on a CPU.
    """

    def __init__(
        self, backgrounds: Array | None, noise: Array | None, *, res: int, device: torch.device
    ) -> None:
        """Bring the tables to the device.

        Args:
            backgrounds: (N, H, W, 3) uint8, N > 0; None: there are none.
            noise: (3, S, S) int8 with S > res; None: none is wanted.
            res: Width and height of a piece of the noise. Pixels.
            device: Where.
        """
        self._device = device
        self._backgrounds = (
            None if backgrounds is None else torch.from_numpy(backgrounds).to(device)
        )
        self._pieces = None if noise is None else _pieces(noise, res, device)
        self.tables = (backgrounds is not None) + (noise is not None)
        self.stream: Any = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            # Of high priority: what it does is short, and a batch waits for it.
            self.stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def __call__(self, wanted: Sequence[Array]) -> list[Tensor]:
        """Take a step's part.

        Args:
            wanted: With backgrounds, their numbers (n,); then, with noise, the row and column
                where each piece begins (n, 2), in [0, S - res).

        Returns:
            (n, H, W, 3) uint8 and (n, res, res, 3) int8, contiguous; of those that there are.
        """
        taken = []
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            numbers = [
                torch.from_numpy(one.astype(np.int64)).to(self._device, non_blocking=True)
                for one in wanted
            ]
            if self._backgrounds is not None:
                taken.append(self._backgrounds[numbers[0]])
            if self._pieces is not None:
                taken.append(self._pieces[numbers[-1][:, 0], numbers[-1][:, 1]])
        return taken


def _pieces(noise: Array, res: int, device: torch.device) -> Tensor:
    """Every piece that there is, as views of one table: (row, column, res, res, 3)."""
    whole = torch.from_numpy(np.ascontiguousarray(noise.transpose(1, 2, 0))).to(device)
    places = whole.shape[0] - res
    down, right, channel = whole.stride()
    return whole.as_strided((places, places, res, res, 3), (down, right, down, right, channel))
