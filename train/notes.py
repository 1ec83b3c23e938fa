"""Short words between ranks beside the training: who speaks for all, and that a state is saved.

They go through the store of ``torchrun``'s agent, over a connection of their own, so that any
thread may use it at any time and a process that ends has nothing to take down. Without such a store
every rank is on its own. This module knows no tensors and starts no process group.
"""

import hashlib
import os
import time
from collections.abc import Mapping
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from train.distributed import World
from train.errors import PeerError

__all__ = ["SAVED", "Notes", "Word"]

PATIENCE = 3.0
"""How long a rank waits for a lower one to say the same. Seconds."""

SAVED = "saved"
"""Left when the state that the ranks agree on is on the disk."""

ANY = "any"


class Notes:
    """The notes of one start of all ranks."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @classmethod
    def of(cls, world: World, environ: Mapping[str, str] = os.environ) -> "Notes | None":
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


class Word:
    """What a rank has to say at its end: each thing is said once, by the lowest rank in time."""

    def __init__(self, text: str, error: BaseException | None, world: World) -> None:
        """Prepare it.

        Args:
            text: What would be printed.
            error: Why; ranks that lost others say so only where nobody knows better.
            world: Place among other processes.
        """
        self._world = world
        self._notes = Notes.of(world)
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
