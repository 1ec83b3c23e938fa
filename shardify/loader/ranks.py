"""Rank of this process and number of ranks, where the caller does not give them.

They are those of ``torch.distributed`` if its process group exists, else those that ``torchrun`` or
``accelerate launch`` put into the environment, else 0 of 1.
"""

import os
from collections.abc import Mapping

from torch import distributed


def find_rank(
    rank: int | None = None, world_size: int | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Return (rank, number of ranks); those of this process where both are None.

    Raises:
        ValueError: One of the two is missing, here or in the environment, or ``rank`` is not below
            the number of ranks.
    """
    if (rank is None) != (world_size is None):
        raise ValueError(f"rank {rank}, world_size {world_size}: expected both or neither of them")
    if rank is None or world_size is None:
        if group := group_rank():
            return group
        rank, world_size = _from_environ(environ)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank}: expected 0 or more, below world_size {world_size}")
    return rank, world_size


def group_rank() -> tuple[int, int] | None:
    """Return (rank, number of ranks) of the process group; None if there is none."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return None


def _from_environ(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return what ``torchrun`` set; without it (0, 1).

    Raises:
        ValueError: RANK or WORLD_SIZE is no number, or only one of them is set.
    """
    rank, size = environ.get("RANK"), environ.get("WORLD_SIZE")
    if rank is None and size in (None, "1"):
        return 0, 1
    try:
        return int(rank or ""), int(size or "")
    except ValueError:
        raise ValueError(
            f"environment: RANK is {rank!r} and WORLD_SIZE is {size!r}; expected "
            "both, as torchrun sets them; start with torchrun, open the loader after the process "
            "group was created, or pass rank and world_size"
        ) from None
