"""`train bench`: measure the loader's stages, the network, and other loaders on the same samples.

Every case runs in its own process. Short windows are measured in turn, case after case and round
after round, so that drift of the machine affects all cases equally. A window begins after
prefetched batches are used up.
"""

import dataclasses
import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from shardify.errors import DataError
from shardify.loader.shards import load_manifest
from train.bench.cases import OWN, PEERS, available, begin
from train.bench.fixtures import BenchConfig
from train.bench.hardware import conditions
from train.bench.results import BenchReport, Result
from train.bench.timing import summary, tree, window
from train.distributed import World
from train.errors import ConfigError
from train.optim.compute import pick_device
from train.tracking.run_folder_setup import writable

_POLL_SECONDS = 1.0
"""Seconds between two checks that a case that does not answer is still alive."""


def bench(
    job: BenchConfig,
    *,
    windows: int = 5,
    seconds: float = 2.0,
    contenders: tuple[str, ...] | None = None,
    built: tuple[str, ...] = (),
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> BenchReport:
    """Measure the loader's stages, the network and other loaders, interleaved.

    Args:
        job: Settings of all cases.
        windows: Number of windows per case.
        seconds: Length of a window.
        contenders: Names from ``OWN`` and ``PEERS``; all that are installed if None.
        built: Folders of the same samples built otherwise (``--res``, ``--codec``), to measure the
            loader on too.
        out: Folder that the report will be saved to; created, and tried, before anything is
            measured.
        say: Gets a line when a case starts and when a round is done.

    Raises:
        ConfigError: There is no case of that name, or a window has no length.
        RunError: ``out`` cannot be written.
        ConfigError: A setting is wrong, or the device is not there.
        DataError: A case failed: the message is its own.
    """
    device = pick_device(job.device, World())
    job = dataclasses.replace(job, device=device.type if job.device == "auto" else job.device)
    wanted = contenders or tuple(
        name for name in (*OWN, *PEERS) if name != "to device" or job.device != "cpu"
    )
    for name in wanted:
        if name not in OWN and name not in PEERS:
            known = ", ".join([*OWN, *PEERS])
            raise ConfigError(f"bench: {name!r} is no contender; choose from: {known}")
    if not 0 < seconds < math.inf:
        raise ConfigError(f"--seconds {seconds:g}: expected a number above 0")
    if out is not None:
        with writable(out):
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out) as file:
                file.write(bytes(4096))
    samples = load_manifest(Path(job.shards), res=job.res)[1].splits["train"].samples
    left_out = {name: "not installed, or not importable" for name in wanted if not available(name)}
    with tempfile.TemporaryDirectory(prefix="shardline-bench-") as folder:
        job = dataclasses.replace(job, scratch=folder)
        processes = []
        try:
            for name in wanted:
                if name not in left_out:
                    say(f"starting {name}")
                    with _block_interrupts():
                        processes.append(_CaseProcess(name, job))
            for other in built:
                say(f"starting augment on {other}")
                again = dataclasses.replace(job, shards=other)
                with _block_interrupts():
                    processes.append(_CaseProcess("augment", again, f"augment, {other}"))
            for process in processes:
                process.wait()
            for window in range(windows):
                for process in processes:
                    process.run(seconds)
                say(f"round {window + 1} of {windows}")
        finally:
            for process in processes:
                process.close()
    settings = dataclasses.asdict(job)
    del settings["scratch"]
    about = conditions(job.device)
    return BenchReport(
        date=about["date"],
        command=about["command"],
        job=settings,
        samples=samples,
        windows=windows,
        seconds=seconds,
        hardware=about["hardware"],
        versions=about["versions"],
        results=[process.result() for process in processes],
        left_out=left_out,
    )


@contextmanager
def _block_interrupts() -> Iterator[None]:
    """Ctrl-C waits for the end of the block, and processes that start in it never hear of it.

    It is this process that ends them; what they import would answer it with tracebacks.
    """
    resource_tracker.ensure_running()  # To start it lifts the block, so it has to be there.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _CaseProcess:
    """A case in its own process, controlled through a pipe."""

    def __init__(self, name: str, job: BenchConfig, shown: str | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = shown or name
        self._pipe, theirs = context.Pipe()
        self._windows: list[dict[str, float]] = []
        self._process = context.Process(target=_serve, args=(theirs, name, job))
        self._process.start()
        theirs.close()

    def wait(self) -> None:
        """Wait until the case has finished its first batch."""
        self._answer()

    def run(self, seconds: float) -> None:
        """Measure one window."""
        with suppress(BrokenPipeError, ConnectionResetError):  # Its answer says what became of it.
            self._pipe.send(seconds)
        self._windows.append(self._answer())

    def result(self) -> Result:
        """Return the result of all windows so far."""
        rates, cpu_ms, waited = summary(self._windows)
        memory_mb = max(one["memory"] for one in self._windows) / 1e6
        return Result(
            name=self.name, rates=rates, cpu_ms=cpu_ms, memory_mb=memory_mb, waited=waited
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
            # Its workers may outlive it and hold its end of the pipe open.
            while not self._pipe.poll(_POLL_SECONDS):
                if not self._process.is_alive() and not self._pipe.poll():
                    raise EOFError
            answer = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise DataError(f"bench: {self.name}: {self._exit_reason()}") from None
        if isinstance(answer, str):
            raise DataError(f"bench: {self.name}: {answer}")
        return dict(answer)

    def _exit_reason(self) -> str:
        """Return how the process ended without an answer, and a remedy."""
        self._process.join(timeout=5)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return (
                "its process was killed (out of memory?); try a smaller --batch, fewer --threads, "
                "or --only for the others"
            )
        how = f"signal {-code}" if code and code < 0 else f"exit {code}"
        return f"its process died ({how}); see what it printed, or use --only for the others"


def _serve(pipe: Connection, name: str, job: BenchConfig) -> None:
    """Serve one case: measure a window for each number received, until the pipe closes."""
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
    except Exception as error:
        with suppress(OSError):  # Nobody listens any more: that is how it is told to end.
            pipe.send(str(error).replace("\n", " ") or type(error).__name__)
    os._exit(0)
