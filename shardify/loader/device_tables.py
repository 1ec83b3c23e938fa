"""Background and noise tables on the device; gather each sample's background and noise crop.

One indexing operation a step and table serves all samples of the step.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shardify.resolution import ResolutionLike, resolution

Array = npt.NDArray[Any]


class DeviceTables:
    """The tables of one loader, on its device.

    Attributes:
        tables: Number of tables, 0 to 2.
        stream: CUDA stream of the gathering; None on a CPU.
    """

    def __init__(
        self,
        backgrounds: Array | None,
        noise: Array | None,
        *,
        res: ResolutionLike,
        device: torch.device,
    ) -> None:
        """Copy the tables to the device.

        Args:
            backgrounds: (N, H, W, 3) uint8, N > 0; None: no backgrounds.
            noise: (3, S, T) int8, larger than ``res``; None: no noise.
            res: Resolution of a noise crop. Pixels.
            device: Target device.
        """
        self._device = device
        self._backgrounds = (
            None if backgrounds is None else torch.from_numpy(backgrounds).to(device)
        )
        self._noise_crops = None if noise is None else _noise_crops(noise, res, device)
        self.tables = (backgrounds is not None) + (noise is not None)
        self.stream: Any = None
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            # High priority: the work is short, and a batch waits for it.
            self.stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def __call__(self, rows: Sequence[Array]) -> list[Tensor]:
        """Gather the rows of one step.

        Args:
            rows: With backgrounds, their numbers (n,); then, with noise, the row and column
                where each crop begins (n, 2), so that it ends before the table does.

        Returns:
            (n, H, W, 3) uint8 with backgrounds, then (n, *res, 3) int8 with noise; contiguous.
        """
        gathered = []
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            numbers = [
                torch.from_numpy(row.astype(np.int64)).to(self._device, non_blocking=True)
                for row in rows
            ]
            if self._backgrounds is not None:
                gathered.append(self._backgrounds[numbers[0]])
            if self._noise_crops is not None:
                gathered.append(self._noise_crops[numbers[-1][:, 0], numbers[-1][:, 1]])
        return gathered


def _noise_crops(noise: Array, res: ResolutionLike, device: torch.device) -> Tensor:
    """Return every crop as a view of one table: (row, column, *res, 3)."""
    table = torch.from_numpy(np.ascontiguousarray(noise.transpose(1, 2, 0))).to(device)
    height, width = resolution(res)
    rows, columns = table.shape[0] - height, table.shape[1] - width
    down, right, channel = table.stride()
    return table.as_strided((rows, columns, height, width, 3), (down, right, down, right, channel))
