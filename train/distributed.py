"""Connect the ranks of a run, and exchange tensors, decisions and short messages.

A single process is a `World` of size 1: there is no process group, and all functions return at
once. ``torchrun`` sets the environment for several ranks.

`RankMessages` uses the store of ``torchrun``'s agent over its own connection, so that any thread
can use it at any time, even when the process group has failed.
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

PEER_LOST = re.compile(
    r"gloo|connection (closed|reset|refused)|broken pipe|timed? ?out", re.IGNORECASE
)
"""Texts of RuntimeErrors that the backends raise when a peer is gone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Rank of this process and number of ranks."""

    rank: int = 0
    """Number of this process, from 0."""

    size: int = 1
    local_rank: int = 0
    """Number of this process on its machine, from 0, which is also the number of its GPU."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> "World":
        """Return the world that ``torchrun`` defined; without torchrun, a world of size 1.

        Raises:
            ConfigError: RANK, WORLD_SIZE or LOCAL_RANK is not a valid number.
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
        """Whether this rank writes the files and prints to the console."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks, in place; any shape, the same on every rank."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values of the first rank to all ranks, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def same(self, number: int) -> bool:
        """Return whether all ranks passed the same number."""
        if self.size == 1:
            return True
        box = torch.tensor([number, -number])
        if dist.get_backend() == "nccl":
            box = box.cuda(self.local_rank)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box[0]) == -int(box[1])

    def barrier(self) -> None:
        """Wait until all ranks call this method."""
        if self.size > 1:
            dist.barrier()


class RankAgreement:
    """Tells all ranks what at least one rank requests, without waiting.

    All ranks call `ask` at the same points. The answer covers the requests of the previous call:
    the message is sent while the ranks compute, on the CPU, so neither ranks nor GPUs wait. A
    single rank gets the answer at once. Numbers to sum can be sent with the requests.
    """

    def __init__(self, world: World) -> None:
        """Create it; a collective call of all ranks."""
        self._single = world.size == 1
        # A separate group on the CPU: its messages never wait for gradients.
        self._group = None if self._single else dist.new_group(backend="gloo")
        # A single tuple, so that other threads never see the parts of two messages mixed.
        self._sent: tuple[dist.Work, Tensor, int] | None = None

    def ask(self, *requests: bool, numbers: Tensor | None = None) -> tuple[bool, ...]:
        """Send the requests of this rank; return those of any rank at the previous call.

        Args:
            requests: The same number of values at every call.
            numbers: (n,) float64 on the CPU, to sum; the same n on every rank.
        """
        if self._single:
            return requests
        answer = (False,) * len(requests)
        if self._sent is not None:
            work, box, length = self._sent
            work.wait()
            answer = tuple(count > 0 for count in box[:length].tolist())
        box = torch.tensor(requests, dtype=torch.float64)
        if numbers is not None:
            box = torch.cat((box, numbers))
        work = dist.all_reduce(box, group=self._group, async_op=True)
        self._sent = work, box, len(requests)
        return answer

    def sums(self) -> Tensor:
        """Wait for and return the summed numbers of the last call; any thread may call this.

        (n,) float64; (0,) before the first call.
        """
        if self._sent is None:
            return torch.zeros(0, dtype=torch.float64)
        work, box, length = self._sent
        work.wait()
        return box[length:].clone()

    def settle(self) -> None:
        """Wait for the last message; all ranks call this at the end.

        This frees its tensors here. Otherwise a thread of the backend could free them after the
        interpreter has shut down.
        """
        if self._sent is not None:
            self._sent[0].wait()
            self._sent = None


def exit_rank() -> NoReturn:
    """End the process of a distributed run with exit code 0.

    A normal exit of the interpreter can abort if threads of the backend are still running.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


@contextmanager
def connected(world: World, device: torch.device) -> Iterator[World]:
    """Create the process group for the length of the block: nccl on a GPU, gloo on a CPU.

    All waiting for other ranks ends after ten minutes.

    Raises:
        PeerError: Another rank ended or does not respond.
    """
    if world.size == 1:
        yield world
        return
    timeout = timedelta(minutes=10)
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
        if not isinstance(error, dist.DistError) and not PEER_LOST.search(str(error)):
            raise
        # Messages of gloo begin with a source location and end with advice.
        reason = re.sub(r"\[/\S+\] ", "", " ".join(str(error).split())).partition(". ")[0][:160]
        raise PeerError(
            f"rank {world.rank} of {world.size}: another rank ended or does not respond "
            f"({reason}); see the error of that rank; --resume continues from the last checkpoint"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _store(world: World, timeout: timedelta) -> Store:
    """Connect to the key-value store of all ranks: that of torchrun, or one on the first rank."""
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(f"MASTER_ADDR, MASTER_PORT: {error}; use torchrun") from error
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(host, port, world.size, is_master=world.first and not hosted, timeout=timeout)


def _meet(store: Store, world: World, timeout: timedelta) -> Store:
    """Return a part of the store that only the running processes use.

    torchrun keeps its store when it restarts ranks, and a process group that finds addresses of
    dead processes in it waits for them forever. So every process writes a unique name. The first
    rank lists the names until all ranks confirm that the list contains their own name; the hash of
    the list is the prefix of the new part.

    Raises:
        PeerError: Not all ranks started in time.
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
    raise PeerError(
        f"rank {world.rank} of {world.size}: not all ranks started in time; start them together"
    )


REPORT_TIMEOUT = 3.0
"""How long a rank waits for another one to print the same error. Seconds."""

SAVED = "saved"
"""Message: the state that all ranks agreed on is saved."""

ANY = "any"
"""Message: some rank has printed an error."""


class RankMessages:
    """Short messages between the ranks of one start, through the store of torchrun."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def connect(
        cls, world: World, environ: Mapping[str, str] = os.environ
    ) -> "RankMessages | None":
        """Connect to the store; return None for a single rank or without a store of torchrun."""
        if world.size == 1 or environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return None
        try:
            address = environ["MASTER_ADDR"], int(environ["MASTER_PORT"])
            store = TCPStore(*address, is_master=False, timeout=timedelta(seconds=10))
        except (KeyError, ValueError, RuntimeError):
            return None
        # Messages of a start must not be read after a restart.
        names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
        return cls(PrefixStore("messages/" + "/".join(environ.get(n, "") for n in names), store))

    def post(self, name: str) -> None:
        """Post a message; it cannot be removed."""
        self._store.set(name, "1")

    def posted(self, name: str) -> bool:
        """Return whether a rank posted the message."""
        return bool(self._store.check([name]))

    def wait(self, name: str, seconds: float) -> bool:
        """Wait for a message; return whether it was posted in time."""
        deadline = time.monotonic() + seconds
        while not self.posted(name):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def claim(self, name: str) -> bool:
        """Return whether this is the first call with this name on any rank."""
        return int(self._store.add(name, 1)) == 1


class ErrorReport:
    """Makes the ranks print each error once: by the lowest rank that has it in time."""

    def __init__(self, text: str, error: BaseException | None, world: World) -> None:
        """Create a report.

        A `PeerError` is printed only if no rank prints another error.
        """
        self._world = world
        self._messages = RankMessages.connect(world)
        self._lost = isinstance(error, PeerError)
        # The texts of PeerErrors differ, because each contains its rank.
        self._name = "lost" if self._lost else hashlib.sha256(text.encode()).hexdigest()[:16]

    def should_print(self) -> bool:
        """Return whether this rank must print the error; if not, another rank has printed it."""
        if self._messages is None:
            return True
        try:
            if self._lost and self._messages.wait(ANY, REPORT_TIMEOUT):
                return False
            printed = f"printed {self._name}"
            if self._world.rank:
                self._messages.wait(printed, REPORT_TIMEOUT)
            if self._messages.claim(self._name):
                return True
            self._messages.wait(printed, REPORT_TIMEOUT)
        except RuntimeError:  # The store is gone: print the error twice rather than never.
            return True
        return False

    def mark_printed(self) -> None:
        """Tell the other ranks that the error was printed."""
        if self._messages is not None:
            try:
                self._messages.post(ANY)
                self._messages.post(f"printed {self._name}")
            except RuntimeError:
                pass
