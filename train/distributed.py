"""The place of this process among the others, and everything they exchange.

One process is a world of size 1: then no process group exists and every function here returns at
once. ``torchrun`` sets the environment for more. This module knows no models, files or metrics.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from train.errors import ConfigError

__all__ = ["World", "connected"]


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    """Number of this process among all, from 0."""

    size: int = 1
    """How many processes train together."""

    local_rank: int = 0
    """Number of this process on its machine, from 0: which GPU is its own."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "World":
        """The place that ``torchrun`` gave this process; a world of one without it.

        Raises:
            ConfigError: RANK, WORLD_SIZE or LOCAL_RANK is not a number that fits the others.
        """
        try:
            world = cls(
                rank=int(environ.get("RANK", "0")),
                size=int(environ.get("WORLD_SIZE", "1")),
                local_rank=int(environ.get("LOCAL_RANK", "0")),
            )
        except ValueError as error:
            raise ConfigError(f"RANK, WORLD_SIZE, LOCAL_RANK: {error}; use torchrun") from error
        if not 0 <= world.rank < world.size:
            raise ConfigError(f"RANK={world.rank}: expected 0 to WORLD_SIZE-1={world.size - 1}")
        return world

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and speaks to the user."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; any shape, the same on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether ``flag`` is true on some rank."""
        if self.size == 1:
            return flag
        box = torch.tensor([int(flag)])
        if dist.get_backend() == "nccl":
            box = box.cuda(self.local_rank)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return bool(box.item())

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def connected(world: World, device: torch.device, *, minutes: float = 10.0) -> Iterator[World]:
    """Join the other processes for the length of the block: nccl on a GPU, gloo on a CPU.

    Args:
        world: This process's place.
        device: Where it computes.
        minutes: How long a rank waits for the others before it gives up.
    """
    if world.size == 1:
        yield world
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(minutes=minutes),
    )
    try:
        yield world
    finally:
        dist.destroy_process_group()
