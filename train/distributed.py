"""The place of this process among the others, and everything they exchange.

One process is a world of size 1: then no process group exists and every function here returns at
once. ``torchrun`` sets the environment for more. This module knows no models, files or metrics.

Short words between ranks beside the training: who speaks for all, and that a state is saved.

They go through the store of ``torchrun``'s agent, over a connection of their own, so that any
thread may use it at any time and a process that ends has nothing to take down. Without such a store
every rank is on its own. This module knows no tensors and starts no process group.
"""

import hashlib
import os
import re
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from train.errors import ConfigError, PeerError

__all__ = [
    "SAVED",
    "ErrorReport",
    "RankAgreement",
    "RankMessages",
    "World",
    "connected",
    "exit_rank",
]


LOST = re.compile(r"gloo|connection (closed|reset|refused)|broken pipe|timed? ?out", re.IGNORECASE)
"""How the backends' plain RuntimeErrors speak of a peer that is gone."""


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

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Give every rank the first one's values, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def same(self, number: int) -> bool:
        """Whether every rank passed the same number."""
        if self.size == 1:
            return True
        box = torch.tensor([number, -number])
        if dist.get_backend() == "nccl":
            box = box.cuda(self.local_rank)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box[0]) == -int(box[1])

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


class RankAgreement:
    """What at least one rank wishes, known to all ranks at the same point of the program.

    Every rank asks at the same points. The answer covers the wishes of the point before: it has
    travelled while the ranks computed, so nobody waits for it, and no GPU's queue is touched.
    Alone, a rank is answered at once. Numbers may travel along, to be summed.
    """

    def __init__(self, world: World) -> None:
        """All ranks together make one."""
        self._alone = world.size == 1
        # A group of its own, on the CPU: its messages never queue behind gradients.
        self._group = None if self._alone else dist.new_group(backend="gloo")
        # One value, so that another thread never sees one message's work with another's box.
        self._sent: tuple[dist.Work, Tensor, int] | None = None

    def ask(self, *wishes: bool, numbers: Tensor | None = None) -> tuple[bool, ...]:
        """Say what this rank wishes; hear what any rank wished at the last point.

        Args:
            wishes: As many at every point.
            numbers: (n,) float64 on the CPU; the same n on every rank.
        """
        if self._alone:
            return wishes
        answer = (False,) * len(wishes)
        if self._sent is not None:
            work, box, count = self._sent
            work.wait()
            answer = tuple(wish > 0 for wish in box[:count].tolist())
        box = torch.tensor(wishes, dtype=torch.float64)
        if numbers is not None:
            box = torch.cat((box, numbers))
        work = dist.all_reduce(box, group=self._group, async_op=True)
        self._sent = work, box, len(wishes)
        return answer

    def sums(self) -> Tensor:
        """The sums of all ranks' numbers at the last point, waiting for them; any thread may ask.

        (n,) float64; (0,) before the first point.
        """
        if self._sent is None:
            return torch.zeros(0, dtype=torch.float64)
        work, box, count = self._sent
        work.wait()
        return box[count:].clone()

    def settle(self) -> None:
        """Wait for the last message, at the end: all ranks do.

        Its tensors are then let go of here, not by a thread of the backend, which may come to it
        when the interpreter is gone.
        """
        if self._sent is not None:
            self._sent[0].wait()
            self._sent = None


def exit_rank() -> NoReturn:
    """End a process that trained with others and has nothing left to do, with exit code 0.

    Not by the interpreter's own end: the backend's threads, if still at work, can abort that.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def connected(world: World, device: torch.device, *, minutes: float = 10.0) -> Iterator[World]:
    """Join the other processes for the length of the block: nccl on a GPU, gloo on a CPU.

    Args:
        world: This process's place.
        device: Where it computes.
        minutes: How long a rank waits for the others before it gives up.

    Raises:
        PeerError: Another rank ended, or cannot be reached.
    """
    if world.size == 1:
        yield world
        return
    timeout = timedelta(minutes=minutes)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=_meet(_store(world, timeout), world, timeout),
            rank=world.rank,
            world_size=world.size,
            timeout=timeout,
        )
        yield world
    except (dist.DistError, RuntimeError) as error:
        if not isinstance(error, dist.DistError) and not LOST.search(str(error)):
            raise
        # gloo begins with a line of its source and ends with advice.
        reason = re.sub(r"\[/\S+\] ", "", " ".join(str(error).split())).partition(". ")[0][:160]
        raise PeerError(
            f"rank {world.rank} of {world.size}: another rank ended or does not answer ({reason}); "
            "see what that rank said; --resume goes on from the last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store(world: World, timeout: timedelta) -> Store:
    """The key-value store of all ranks; torchrun's own where there is one."""
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"MASTER_ADDR, MASTER_PORT: {error}; use torchrun") from error
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(host, port, world.size, is_master=world.first and not hosted, timeout=timeout)


def _meet(store: Store, world: World, timeout: timedelta) -> Store:
    """A part of the store that only the processes alive now know.

    torchrun keeps one store when it starts dead ranks again, and a process group that finds the
    addresses of the dead in it waits for them for ever. So every process brings a name that no
    other ever had; the first rank lists the names until all ranks agree that theirs is among them.

    Raises:
        PeerError: Not all ranks came in time.
    """
    me = uuid.uuid4().hex
    deadline = time.monotonic() + timeout.total_seconds()
    store.set(f"here/{world.rank}", me)
    while time.monotonic() < deadline:
        if world.first:
            names = [store.get(f"here/{rank}").decode() for rank in range(world.size)]
            store.set("names", ",".join(names))
        names = store.get("names").decode().split(",")
        if len(names) == world.size and names[world.rank] == me:
            agreed = ",".join(names)
            store.set(f"agreed/{world.rank}", agreed)
            if world.first and all(
                store.get(f"agreed/{rank}").decode() == agreed for rank in range(world.size)
            ):
                store.set("complete", agreed)
            if store.check(["complete"]) and store.get("complete").decode() == agreed:
                return PrefixStore(hashlib.sha256(agreed.encode()).hexdigest()[:16], store)
        time.sleep(0.02)
    raise PeerError(f"rank {world.rank} of {world.size}: not all ranks came; start them together")


PATIENCE = 3.0
"""How long a rank waits for a lower one to say the same. Seconds."""

SAVED = "saved"
"""Left when the state that the ranks agree on is on the disk."""

ANY = "any"


class RankMessages:
    """The notes of one start of all ranks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def of(cls, world: World, environ: Mapping[str, str] = os.environ) -> "RankMessages | None":
        """Those of this process's ranks; None where there is no store to leave them in."""
        if world.size == 1 or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        try:
            address = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
            store = TCPStore(*address, is_master=False, timeout=timedelta(seconds=10))
        except (KeyError, ValueError, RuntimeError):
            return None
        # Ranks that torchrun starts again have other things to say.
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        return cls(PrefixStore("notes/" + "/".join(environ.get(n, "") for n in names), store))

    def leave(self, name: str) -> None:
        """Leave a note for good."""
        self._store.set(name, "1")

    def left(self, name: str) -> bool:
        """Whether somebody left it."""
        return bool(self._store.check([name]))

    def wait(self, name: str, seconds: float) -> bool:
        """Whether somebody leaves it in time."""
        deadline = time.monotonic() + seconds
        while not self.left(name):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def first(self, name: str) -> bool:
        """Whether no rank asked this before."""
        return int(self._store.add(name, 1)) == 1


class ErrorReport:
    """What a rank has to say at its end: each thing is said once, by the lowest rank in time."""

    def __init__(self, text: str, error: BaseException | None, world: World) -> None:
        """Prepare it.

        Args:
            text: What would be printed.
            error: Why; ranks that lost others say so only where nobody knows better.
            world: Place among other processes.
        """
        self._world = world
        self._notes = RankMessages.of(world)
        self._lost = isinstance(error, PeerError)
        # Every rank names itself in what it says of lost others.
        self._name = "lost" if self._lost else hashlib.sha256(text.encode()).hexdigest()[:16]

    def mine(self) -> bool:
        """Whether this rank is to say it; if not, it has been said when this returns."""
        if self._notes is None:
            return True
        try:
            if self._lost and self._notes.wait(ANY, PATIENCE):
                return False
            said = f"said {self._name}"
            if self._world.rank:
                self._notes.wait(said, PATIENCE)
            if self._notes.first(self._name):
                return True
            self._notes.wait(said, PATIENCE)
        except RuntimeError:  # The store is gone: better twice than never.
            return True
        return False

    def said(self) -> None:
        """Let the other ranks know."""
        if self._notes is not None:
            try:
                self._notes.leave(ANY)
                self._notes.leave(f"said {self._name}")
            except RuntimeError:
                pass
