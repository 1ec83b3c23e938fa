"""The suite's page: what was measured on one machine, in Markdown that needs no other file.

Turns the suite's record into text; measures, reads and writes nothing.
"""

from collections.abc import Mapping
from typing import Any

_EPOCH = 400_000
"""Samples of the full-size data set, for which the time of an epoch is projected."""


def page(record: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [
        "# Measured by `train bench --suite`",
        _machine(record),
        "## Steps",
        _steps(record["steps"]),
        "## Does training wait for data?",
        _data_wait(record["figures"]),
        "## What bounds each stage",
        _profiles(record["profiles"]),
        "## The network, compiled",
        _compiled(record["figures"]),
        "## All figures",
        _figures(record["figures"]),
        "## Training",
        _training(record["training"]),
        "## Tests",
        _tests(record["tests"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(record: Mapping[str, Any]) -> str:
    hardware, size = record["hardware"], record["size"]
    driver = f"{record['driver']} (CUDA {record['driver_cuda']})" if record["driver"] else "none"
    rows = [
        ("Device", record["device"]),
        ("Driver", driver),
        ("Processor", f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gb']} GB"),
        ("Versions", ", ".join(f"{name} {what}" for name, what in record["versions"].items())),
        ("Date", record["date"]),
        ("Command", f"`{record['command']}`"),
        ("Data", f"synthetic, {size['samples']:,} samples, {size['backgrounds']} backgrounds"),
        ("Training run", f"on {record['trained_on']:,} samples"),
        ("Time", f"{record['seconds']:.0f} s"),
    ]
    return _table(("", ""), rows)


def _steps(steps: list[dict[str, Any]]) -> str:
    rows = [(one["name"], one["status"], f"{one['seconds']:.0f}", one["why"]) for one in steps]
    said = [_table(("Step", "", "s", ""), rows)]
    bad = [one["name"] for one in steps if one["status"] != "done"]
    said.append(f"Not done: {', '.join(bad)}." if bad else "All steps were done.")
    for one in steps:
        if one["last"]:
            said.append(
                f"Last lines of *{one['name']}*:\n\n```\n" + "\n".join(one["last"]) + "\n```"
            )
    return "\n\n".join(said)


Key = tuple[int, int, str]
"""Resolution, batch size, compilation: what a network's speed depends on."""


def _rates(figures: list[dict[str, Any]], name: str) -> dict[tuple[str, Key], float]:
    """Medians of one contender, by data and key."""
    found = {}
    for one in figures:
        if one["name"] == name and "error" not in one:
            job = one["job"]
            key = (job["res"], job["batch_size"], job["compile"])
            found[one["label"], key] = one["samples_per_s"]["median"]
    return found


def _data_wait(figures: list[dict[str, Any]]) -> str:
    """Training beside the network on a resident batch, and beside the loader alone."""
    # The network knows nothing of the shards: one measurement serves all of them.
    alone = {key: rate for (_, key), rate in _rates(figures, "model alone").items()}
    loader, rows = _rates(figures, "to device"), []
    for one in figures:
        if one["name"] != "end to end" or "error" in one:
            continue
        job, rate, data = one["job"], one["samples_per_s"]["median"], one["label"]
        key = (job["res"], job["batch_size"], job["compile"])
        network = alone.get(key)
        fed = loader.get((data, (key[0], key[1], "no")))
        rows.append((
            data, *key[:2], _compile_label(key[2]), f"{rate:,.0f}",
            f"{network:,.0f}" if network else "",
            f"{rate / network:.1%}" if network else "", f"{one['data_wait']:.1%}",
            f"{fed:,.0f}" if fed else "", f"{fed / network:.1f}" if fed and network else "",
        ))  # fmt: skip
    heads = (
        "Data", "px", "Batch", "Compiled", "End to end", "Model alone", "Share reached",
        "Data wait", "Loader alone", "Loader over model",
    )  # fmt: skip
    return _table(heads, rows) if rows else "No measurements."


def _compiled(figures: list[dict[str, Any]]) -> str:
    """The network alone: as it is, compiled, and as a CUDA graph."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for (_, (res, batch, way)), rate in _rates(figures, "model alone").items():
        found.setdefault((res, batch), {})[way] = rate
    ways = sorted({way for rates in found.values() for way in rates}, key="no yes graphs".find)
    rows = []
    for key, rates in sorted(found.items()):
        cells = [f"{rates[way]:,.0f}" if way in rates else "" for way in ways]
        gain = max(rates.values()) / rates["no"] if len(rates) > 1 and "no" in rates else None
        rows.append((*key, *cells, _number(gain, 2)))
    heads = ("px", "Batch", *(_compile_label(way) or "eager" for way in ways), "best over eager")
    return _table(heads, rows) if rows else "No measurements."


def _profiles(profiles: list[dict[str, Any]]) -> str:
    """What each stage's time goes into, and its heaviest operators."""
    if not profiles:
        return "No profiles."
    rows, lists = [], []
    for one in profiles:
        job = one["job"]
        what = (one["name"], job["res"], job["batch_size"])
        if "error" in one:
            rows.append((*what, "", "", "", "", "", f"failed: {one['error'][:80]}"))
            continue
        wait = "" if one["data_wait"] is None else f"{one['data_wait']:.1%}"
        rows.append((
            *what, f"{one['wall_ms']:.2f}", f"{one['device_ms']:.2f}", f"{one['host_ms']:.2f}",
            f"{one['cores']:.1f}", wait, one["bound"],
        ))  # fmt: skip
        for place in ("device", "host"):
            heaviest = [
                (f"`{each['name'][:90]}`", f"{each['ms']:.3f}", f"{each['share']:.1%}",
                 each["calls"] // one["batches"])
                for each in one[f"{place}_operators"]
            ]  # fmt: skip
            if heaviest:
                lists.append(f"Heaviest of *{one['name']}* on the {place}:")
                lists.append(_table(("", "ms a batch", "share", "calls a batch"), heaviest))
    heads = (
        "Stage", "px", "Batch", "ms a batch", "GPU busy, ms", "Host busy, ms", "Cores",
        "Data wait", "Bound by",
    )  # fmt: skip
    return "\n\n".join([_table(heads, rows), *lists])


def _compile_label(compiled: str) -> str:
    return "" if compiled == "no" else compiled


def _figures(figures: list[dict[str, Any]]) -> str:
    if not figures:
        return "No measurements."
    rows = []
    for one in figures:
        job = one["job"]
        what = [
            one["label"],
            job["res"],
            job["batch_size"],
            one["name"],
            _compile_label(job["compile"]),
        ]
        what.append(f"{job['hw_decoder_load']:g}" if one["name"] == "decode" else "")
        if "error" in one:
            rows.append((*what, f"failed: {one['error'][:80]}", "", "", "", "", "", ""))
            continue
        rate, busy = one["samples_per_s"], one["gpu_mean"]
        wait = "" if one["data_wait"] is None else f"{one['data_wait']:.1%}"
        whole = f"{_EPOCH / rate['median']:,.0f}" if one["name"] == "end to end" else ""
        rows.append((
            *what, f"{rate['median']:,.0f}", f"{rate['min']:,.0f} to {rate['max']:,.0f}",
            f"{one['cpu_ms_a_sample']:.2f}", wait, _number(busy.get("compute")),
            _number(busy.get("jpeg")), whole,
        ))  # fmt: skip
    heads = (
        "Data", "px", "Batch", "What", "Compiled", "Engine", "Samples/s", "min to max",
        "CPU ms a sample", "Data wait", "GPU busy %", "JPEG engine %", f"{_EPOCH:,} in s",
    )  # fmt: skip
    return _table(heads, rows)


def _training(records: list[dict[str, Any]]) -> str:
    if not records:
        return "No training."
    rows = []
    for one in records:
        val = one["val"] or {}
        rows.append((
            one["epoch"], one["res"], one["step"], f"{one['train']['loss']:.4f}",
            *(_number(val.get(name), 4) for name in ("loss", "mask_iou", "depth_rmse")),
            f"{one['samples_per_s']:,.0f}", f"{one['data_wait']:.1%}", f"{one['seconds']:.1f}",
        ))  # fmt: skip
    heads = (
        "Epoch", "px", "Step", "Loss", "Val loss", "Mask IoU", "Depth RMSE", "Samples/s",
        "Data wait", "s",
    )  # fmt: skip
    return _table(heads, rows)


def _tests(results: Mapping[str, str]) -> str:
    return _table(("Test", ""), list(results.items())) if results else "No tests."


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += [
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    ]
    return "\n".join(lines)
