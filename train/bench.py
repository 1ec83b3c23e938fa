"""`train bench`: where the time goes, and how other loaders do with the same samples.

Every contender runs in a process of its own and is asked for short windows, one contender after
the other, round after round, so that the machine's drift hits all alike. A window begins once what
was made ahead is used up. This module measures and tells; it changes nothing it measures.
"""

import dataclasses
import datetime
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from train.contenders import OWN, PEERS, available, begin, scratch
from train.errors import ConfigError, DataError
from train.machine import hardware, versions
from train.shelf import Job
from train.verdict import EPOCH, Report, Result
from train.window import tree, window

__all__ = ["EPOCH", "Report", "Result", "bench", "hardware", "versions", "window"]


def bench(
    shards: str,
    *,
    res: int,
    batch: int = 16,
    threads: int = 2,
    device: str = "cpu",
    model: str = "resunet",
    split: str = "train",
    order: str | None = None,
    cache: str = "disk",
    windows: int = 5,
    seconds: float = 2.0,
    contenders: tuple[str, ...] | None = None,
    built: tuple[str, ...] = (),
    say: Callable[[str], None] = lambda _: None,
) -> Report:
    """Measure the loader's stages, the network and other loaders, interleaved.

    Args:
        shards: The data set.
        res: Pixels.
        batch: Samples a batch.
        threads: For each contender: its threads, or worker processes.
        device: Where batches go and the network lives.
        model: Name of the network.
        split: Measured on.
        order: See ``Loader``.
        cache: See ``Loader``.
        windows: For each contender.
        seconds: A window.
        contenders: Names from ``OWN`` and ``PEERS``; all that are installed if None.
        built: Folders of the same samples built otherwise (``--res``, ``--codec``): the loader
            takes turns on them too.
        say: Gets a line when a contender starts and when a round is done.

    Raises:
        ConfigError: There is no contender of that name.
        DataError: A contender failed: the message is its own.
    """
    wanted = contenders or tuple(
        name for name in (*OWN, *PEERS) if name != "to device" or device != "cpu"
    )
    for name in wanted:
        if name not in OWN and name not in PEERS:
            known = ", ".join([*OWN, *PEERS])
            raise ConfigError(f"bench: {name!r} is no contender; choose from: {known}")
    left_out = {name: "not installed, or not importable" for name in wanted if not available(name)}
    with scratch() as folder:
        job = Job(
            shards=shards,
            split=split,
            res=res,
            batch_size=batch,
            threads=threads,
            device=device,
            model=model,
            scratch=folder,
            order=order,
            cache=cache,
        )
        racers = []
        try:
            for name in wanted:
                if name not in left_out:
                    say(f"starting {name}")
                    racers.append(_Racer(name, job))
            for other in built:
                say(f"starting augment on {other}")
                racers.append(
                    _Racer("augment", dataclasses.replace(job, shards=other), f"augment, {other}")
                )
            for racer in racers:
                racer.wait()
            for window in range(windows):
                for racer in racers:
                    racer.run(seconds)
                say(f"round {window + 1} of {windows}")
        finally:
            for racer in racers:
                racer.close()
    settings = dataclasses.asdict(job)
    del settings["scratch"]
    return Report(
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=" ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        job=settings,
        windows=windows,
        seconds=seconds,
        hardware=hardware(device),
        versions=versions(),
        results=[racer.result() for racer in racers],
        left_out=left_out,
    )


class _Racer:
    """A contender in its own process, asked for windows through a pipe."""

    def __init__(self, name: str, job: Job, shown: str | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = shown or name
        self._pipe, theirs = context.Pipe()
        self._windows: list[dict[str, float]] = []
        self._process = context.Process(target=_serve, args=(theirs, name, job))
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Until it has finished its first batch."""
        self._answer()

    def run(self, seconds: float) -> None:
        """One window."""
        self._pipe.send(seconds)
        self._windows.append(self._answer())

    def result(self) -> Result:
        """Of all windows so far."""
        samples = sum(one["samples"] for one in self._windows)
        wall = sum(one["wall"] for one in self._windows)
        waits = [one["waited"] for one in self._windows if "waited" in one]
        return Result(
            name=self.name,
            rates=[one["samples"] / one["wall"] for one in self._windows],
            cpu_ms=sum(one["cpu"] for one in self._windows) / samples * 1e3,
            memory_mb=max(one["memory"] for one in self._windows) / 1e6,
            waited=sum(waits) / wall if waits else None,
        )

    def close(self) -> None:
        """End the process, its children too."""
        self._pipe.close()
        self._process.join(timeout=5)
        if self._process.is_alive():
            for pid in tree(self._process.pid or 0):
                os.kill(pid, signal.SIGKILL)
            self._process.join()

    def _answer(self) -> dict[str, float]:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise DataError(f"bench: {self.name}: its process died; see what it printed") from None
        if isinstance(answer, str):
            raise DataError(f"bench: {self.name}: {answer}")
        return dict(answer)


def _serve(pipe: Connection, name: str, job: Job) -> None:
    """The contender's process: a window for each number that arrives, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(job.threads)
    # The worker processes of other loaders start as they do for their users.
    multiprocessing.set_start_method("fork", force=True)
    try:
        work = begin(name, job)
        next(work.samples)
        pipe.send({})
        while True:
            pipe.send(window(work, pipe.recv()))
    except EOFError:
        pass
    except Exception as error:
        pipe.send(str(error).replace("\n", " ") or type(error).__name__)
    os._exit(0)
