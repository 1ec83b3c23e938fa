"""Results of `train bench`: a table, a chart, and the bottleneck."""

import dataclasses
import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from rich.table import Table

from shardify.storage.atomic_write import atomic_path, write_text
from train.bench.cases import PEERS
from train.tracking.run_folder_setup import writable


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """The measured windows of one case."""

    name: str
    rates: list[float]
    """Samples a second, one number a window."""

    cpu_ms: float
    """CPU time of all cores, child processes included. Milliseconds a sample."""

    memory_mb: float
    """Largest proportional set size of its processes after any window. MB."""

    waited: float | None = None
    """Share of the time that the network waited for data, in [0, 1]; where one trains."""

    @property
    def rate(self) -> float:
        """Median of the windows. Samples a second."""
        return statistics.median(self.rates)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """All results of a benchmark, and the conclusions from them."""

    date: str
    command: str
    job: dict[str, Any]
    samples: int
    """Training samples of the data set, of which ``epoch_seconds`` is the time."""
    windows: int
    seconds: float
    hardware: dict[str, Any]
    versions: dict[str, str]
    results: list[Result]
    left_out: dict[str, str] = field(default_factory=dict)
    """Case → reason why it was not measured."""

    def of(self, name: str) -> Result | None:
        """Return the result of a case; None if it was not measured."""
        return next((one for one in self.results if one.name == name), None)

    @property
    def bottleneck(self) -> str:
        """One sentence on what limits training, with a remedy to try."""
        spent = self._stage_seconds()
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
        """Time of an epoch of the data set, at the rate measured end to end."""
        whole = self.of("end to end") or self._loader
        return self.samples / whole.rate if whole else None

    @property
    def lead(self) -> tuple[str, float] | None:
        """The fastest other loader, and how many times as fast this one is."""
        own = self._loader
        return self._ratio_to_fastest(own) if own else None

    def to_json(self) -> str:
        """Return the report as one JSON object."""
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
        """Return the results as a table for the terminal."""
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
        """Return the conclusions, one line each."""
        found = [f"Bottleneck: {self.bottleneck}."]
        if self.epoch_seconds is not None:
            duration = _format_duration(self.epoch_seconds)
            found.append(f"An epoch of this data set ({self.samples:,} samples): {duration}.")
        if self.lead is not None:
            name, times = self.lead
            found.append(f"{times:.1f} times the samples/s of {name}, the fastest other loader.")
        for one in self.results:
            if one.name.startswith("augment, ") and (over := self._ratio_to_fastest(one)):
                shards = one.name.removeprefix("augment, ")
                found.append(f"From {shards}: {over[1]:.1f} times {over[0]}.")
        found += [f"Left out: {name} ({why})." for name, why in self.left_out.items()]
        return found

    def save(self, out: Path) -> None:
        """Write ``bench.json`` and ``bench.png`` into a folder, made if need be.

        Raises:
            RunError: They cannot be written.
        """
        with writable(out):
            out.mkdir(parents=True, exist_ok=True)
            write_text(out / "bench.json", self.to_json())
            with atomic_path(out / "bench.png") as path:
                _chart(self).save(path, "PNG")

    def _ratio_to_fastest(self, own: Result) -> tuple[str, float] | None:
        peers = [one for one in self.results if one.name in PEERS]
        if not peers:
            return None
        best = max(peers, key=lambda one: one.rate)
        return best.name, own.rate / best.rate

    @property
    def _loader(self) -> Result | None:
        """All of the loader, on the device that was asked for."""
        return self.of("to device") or self.of("augment")

    def _stage_seconds(self) -> dict[str, float]:
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


def _format_duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _chart(report: BenchReport) -> Image.Image:
    """Draw bars of the median rates with min and max: stages above, other loaders below."""
    width, row, top = 900, 34, 60
    left = max(220, 40 + 8 * max(len(result.name) for result in report.results))
    image = Image.new("RGB", (width, top + row * len(report.results) + 20), "white")
    pen = ImageDraw.Draw(image)
    job = report.job
    pen.text(
        (20, 18),
        f"samples/s at {job['res']} px, batch {job['batch_size']}, {job['threads']} threads "
        f"(bar: median; line: min to max of {report.windows} window{'s' * (report.windows > 1)})",
        fill="black",
        font_size=16,
    )
    # Reading alone is far faster than all other cases; its bar may be cut off, with a mark.
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
        if max(result.rates) * scale > width - 110 - left:
            for x in (bar - 40, bar - 32):
                pen.line((x, y + row - 8, x + 8, y - 2), fill="white", width=4)
        pen.text((max(bar, ends[1]) + 8, y + 4), f"{result.rate:,.0f}", fill="black", font_size=16)
    return image
