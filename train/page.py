"""The suite's page: what was measured on one machine, in Markdown that needs no other file.

Turns the suite's record into text; measures, reads and writes nothing.
"""

from collections.abc import Mapping
from typing import Any

__all__ = ["page"]

EPOCH = 400_000
"""Samples of the epoch whose time is told."""


def page(record: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        record: As in ``suite.json``.
    """
    parts = [
        "# Measured by `train bench --suite`",
        _machine(record),
        "## Steps",
        _steps(record["steps"]),
        "## Figures",
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
        ("Time", f"{record['seconds']:.0f} s"),
    ]
    return _table(("", ""), rows)


def _steps(steps: list[dict[str, Any]]) -> str:
    rows = [(one["name"], one["status"], f"{one['seconds']:.0f}", one["why"]) for one in steps]
    said = [_table(("Step", "", "s", ""), rows)]
    for one in steps:
        if one["last"]:
            said.append(
                f"Last lines of *{one['name']}*:\n\n```\n" + "\n".join(one["last"]) + "\n```"
            )
    return "\n\n".join(said)


def _figures(figures: list[dict[str, Any]]) -> str:
    if not figures:
        return "None was measured."
    rows = []
    for one in figures:
        job = one["job"]
        compiled = "" if job["compile"] == "no" else job["compile"]
        what = [one["label"], job["res"], job["batch_size"], one["name"], compiled]
        what.append(f"{job['hw_decoder_load']:g}" if one["name"] == "decode" else "")
        if "error" in one:
            rows.append((*what, f"failed: {one['error'][:80]}", "", "", "", "", "", ""))
            continue
        rate, busy = one["samples_per_s"], one["gpu_mean"]
        wait = "" if one["data_wait"] is None else f"{one['data_wait']:.1%}"
        whole = f"{EPOCH / rate['median']:,.0f}" if one["name"] == "end to end" else ""
        rows.append((
            *what, f"{rate['median']:,.0f}", f"{rate['min']:,.0f} to {rate['max']:,.0f}",
            f"{one['cpu_ms_a_sample']:.2f}", wait, _number(busy.get("compute")),
            _number(busy.get("jpeg")), whole,
        ))  # fmt: skip
    heads = (
        "Data", "px", "Batch", "What", "Compiled", "Engine", "Samples/s", "min to max",
        "CPU ms a sample", "Data wait", "GPU busy %", "JPEG engine %", f"{EPOCH:,} in s",
    )  # fmt: skip
    return _table(heads, rows)


def _training(records: list[dict[str, Any]]) -> str:
    if not records:
        return "None was done."
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
    return _table(("Test", ""), list(results.items())) if results else "None was run."


def _number(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _table(heads: tuple[str, ...], rows: list[Any]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += [
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows
    ]
    return "\n".join(lines)
