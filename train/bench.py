"""`train bench`: where the time goes, and how other loaders do with the same samples.

Every contender runs in a process of its own and is asked for short windows, one contender after
the other, round after round, so that the machine's drift hits all alike. A window begins once what
was made ahead is used up. This module measures and tells; it changes nothing it measures.
"""

import dataclasses
import datetime
import json
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from rich.table import Table

from train.contenders import OWN, PEERS, Job, Work, available, begin, scratch
from train.errors import ConfigError, DataError

__all__ = ["EPOCH", "Report", "Result", "bench", "hardware", "versions", "window"]

EPOCH = 400_000
"""Samples of the epoch whose time is projected."""

_TICK = os.sysconf("SC_CLK_TCK")
_AHEAD = 0.4
"""Seconds of work that are thrown away before each window: what had been made ahead."""

_LIBRARIES = (
    "torch", "nvidia-dali-cuda130", "webdataset", "litdata", "mosaicml-streaming", "ffcv", "numba",
    "numpy", "pillow",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One contender's windows."""

    name: str
    rates: list[float]
    """Samples a second, a number a window."""

    cpu_ms: float
    """Of all cores together, its children's too. Milliseconds a sample."""

    memory_mb: float
    """Largest proportional set size of its processes after any window. MB."""

    waited: float | None = None
    """Share of the time that the network waited for data, in [0, 1]; where one trains."""

    @property
    def rate(self) -> float:
        """Median of the windows. Samples a second."""
        return statistics.median(self.rates)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that was measured, and what follows from it."""

    date: str
    command: str
    job: dict[str, Any]
    windows: int
    seconds: float
    hardware: dict[str, Any]
    versions: dict[str, str]
    results: list[Result]
    left_out: dict[str, str] = field(default_factory=dict)
    """Contender → why it was not measured."""

    def of(self, name: str) -> Result | None:
        """The contender of that name, if it was measured."""
        return next((one for one in self.results if one.name == name), None)

    @property
    def bottleneck(self) -> str:
        """What limits training, in a sentence, and what to try next in another."""
        spent = self._spent()
        if not spent:
            return "too few stages were measured to tell"
        slowest = max(spent, key=lambda name: spent[name])
        share = spent[slowest] / sum(spent.values())
        said = f"{slowest} takes {spent[slowest] * 1e3:.2f} ms a sample, {share:.0%} of the loader"
        model, loader = self.of("model alone"), self._loader
        if model and loader and model.rate < loader.rate:
            return (
                f"the network: it takes {model.rate:,.0f} samples/s and the loader gives "
                f"{loader.rate:,.0f}; try a GPU, a smaller --res first, or --threads 1 to leave "
                f"it more of the CPU (within the loader, {said})"
            )
        return f"the loader: {said}; try {_ADVICE[slowest]}"

    @property
    def epoch_seconds(self) -> float | None:
        """Time of an epoch of ``EPOCH`` samples, at the rate measured end to end."""
        whole = self.of("end to end") or self._loader
        return EPOCH / whole.rate if whole else None

    @property
    def lead(self) -> tuple[str, float] | None:
        """The fastest other loader, and how many times as fast this one is."""
        own = self._loader
        return self._over(own) if own else None

    def to_json(self) -> str:
        """All of it as one JSON object."""
        document = dataclasses.asdict(self)
        for entry, result in zip(document["results"], self.results, strict=True):
            entry["rate"] = {
                "median": result.rate,
                "min": min(result.rates),
                "max": max(result.rates),
            }
        document["bottleneck"] = self.bottleneck
        document["epoch_seconds"] = self.epoch_seconds
        lead = self.lead
        document["lead"] = {"over": lead[0], "times": lead[1]} if lead else None
        return json.dumps(document, indent=1) + "\n"

    def table(self) -> Table:
        """For the screen."""
        job = self.job
        table = Table(
            title=f"{job['shards']} at {job['res']} px, batch {job['batch_size']}, "
            f"{job['threads']} threads, {self.windows} windows of {self.seconds:g} s"
        )
        for heading in ("", "samples/s", "min to max", "CPU ms a sample", "MB", "data wait"):
            table.add_column(heading, justify="right" if heading else "left")
        for result in self.results:
            if result.name == next(iter(PEERS)):
                table.add_section()
            table.add_row(
                result.name,
                f"{result.rate:,.0f}",
                f"{min(result.rates):,.0f} to {max(result.rates):,.0f}",
                f"{result.cpu_ms:.2f}",
                f"{result.memory_mb:,.0f}",
                "" if result.waited is None else f"{result.waited:.1%}",
            )
        return table

    def lines(self) -> list[str]:
        """What follows from the figures."""
        found = [f"Bottleneck: {self.bottleneck}."]
        if self.epoch_seconds is not None:
            found.append(f"An epoch of {EPOCH:,} samples: {_span(self.epoch_seconds)}.")
        if self.lead is not None:
            name, times = self.lead
            found.append(f"{times:.1f} times the samples/s of {name}, the fastest other loader.")
        for one in self.results:
            if one.name.startswith("augment, ") and (over := self._over(one)):
                shards = one.name.removeprefix("augment, ")
                found.append(f"From {shards}: {over[1]:.1f} times {over[0]}.")
        found += [f"Left out: {name} ({why})." for name, why in self.left_out.items()]
        return found

    def save(self, out: Path) -> None:
        """Write ``bench.json`` and ``bench.png`` into a folder, made if need be."""
        out.mkdir(parents=True, exist_ok=True)
        (out / "bench.json").write_text(self.to_json())
        _chart(self).save(out / "bench.png")

    def _over(self, own: Result) -> tuple[str, float] | None:
        peers = [one for one in self.results if one.name in PEERS]
        if not peers:
            return None
        best = max(peers, key=lambda one: one.rate)
        return best.name, own.rate / best.rate

    @property
    def _loader(self) -> Result | None:
        """All of the loader, on the device that was asked for."""
        return self.of("to device") or self.of("augment")

    def _spent(self) -> dict[str, float]:
        """Seconds a sample that each stage of the loader adds to the one before it."""
        spent: dict[str, float] = {}
        before = 0.0
        # "augment" is the CPU's way, which a GPU's does not contain.
        last = "to device" if self.of("to device") else "augment"
        for name in ("read", "decode", last):
            if found := self.of(name):
                spent[name] = max(1 / found.rate - before, 0.0)
                before = max(before, 1 / found.rate)
        return spent


_ADVICE = {
    "read": "--cache ram, or a faster disk",
    "decode": "shards built at this size (`shardify build --res`) or decoded (`--codec raw`)",
    "augment": "more --threads, or a GPU",
    "to device": "bf16, or larger batches",
}


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
            for pid in _tree(self._process.pid or 0):
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


def window(work: Work, seconds: float) -> dict[str, float]:
    """Let a contender work for some seconds, once what was made ahead is used up.

    Returns:
        ``samples``, ``wall`` and ``cpu`` (seconds), ``memory`` (bytes), and ``waited`` (seconds)
        where a network trains.
    """
    begun = time.perf_counter()
    while time.perf_counter() - begun < min(_AHEAD, seconds):
        next(work.samples)
    work.waited.clear()
    tree = _tree(os.getpid())
    cpu, begun, samples = _cpu(tree), time.perf_counter(), 0
    while (wall := time.perf_counter() - begun) < seconds:
        samples += next(work.samples)
    found = {
        "samples": float(samples),
        "wall": wall,
        "cpu": _cpu(tree) - cpu,
        "memory": _memory(tree),
    }
    if work.waited:
        found["waited"] = sum(work.waited)
    return found


def _tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(entry.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _cpu(pids: list[int]) -> float:
    """Seconds of CPU that processes have used."""
    total = 0
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(words[11]) + int(words[12])
    return total / _TICK


def _memory(pids: list[int]) -> float:
    """Bytes that processes hold, what they share counted once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total * 1024.0


def hardware(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "gpu": torch.cuda.get_device_name(device) if device.startswith("cuda") else None,
        "load_1_min": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Of Python and the libraries that matter for speed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _span(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _chart(report: Report) -> Image.Image:
    """Bars of median rates with their min and max, stages above, other loaders below."""
    width, row, top = 900, 34, 60
    left = max(220, 40 + 8 * max(len(result.name) for result in report.results))
    image = Image.new("RGB", (width, top + row * len(report.results) + 20), "white")
    pen = ImageDraw.Draw(image)
    job = report.job
    pen.text(
        (20, 18),
        f"samples/s at {job['res']} px, batch {job['batch_size']}, {job['threads']} threads "
        f"(bar: median; line: min to max of {report.windows} windows)",
        fill="black",
        font_size=16,
    )
    # Reading alone is far off the scale of all else: it may run out of the picture.
    shown = [result for result in report.results if result.name != "read"] or report.results
    scale = (width - left - 130) / max(max(result.rates) for result in shown)
    for place, result in enumerate(report.results):
        y = top + row * place
        ends = [
            min(left + rate * scale, width - 110) for rate in (min(result.rates), max(result.rates))
        ]
        bar = min(left + result.rate * scale, width - 110)
        colour = "#b0b7c3" if result.name in PEERS else "#2f6fb7"
        pen.text((20, y + 4), result.name, fill="black", font_size=16)
        pen.rectangle((left, y, bar, y + row - 10), fill=colour)
        pen.line((ends[0], y + 12, ends[1], y + 12), fill="black", width=2)
        pen.text((max(bar, ends[1]) + 8, y + 4), f"{result.rate:,.0f}", fill="black", font_size=16)
    return image
