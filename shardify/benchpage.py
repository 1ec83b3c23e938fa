"""The benchmark's page, from its JSON alone: what was measured, how, and where the time goes.

Text in, text out; it measures nothing.
"""

from typing import Any

__all__ = ["page"]

_DOES = {
    "shardify build": "every check of the default: directory, local headers, CRC-32, every "
    "picture's structure to its end marker, backgrounds proven by pixels; shards, indexes, "
    "SHA-256 of each file, statistics, manifest; flushed to disk",
    "shardify build --verify none": "the same without a look into the pictures",
    "zipfile + tarfile": "copies payloads (zipfile checks the CRC-32) into plain tars; no "
    "check, no index, no digest, nothing flushed",
    "zipfile + webdataset.ShardWriter": "the same through webdataset's writer with its defaults",
}


def page(found: dict[str, Any]) -> str:
    """The page as Markdown.

    Args:
        found: What ``python -m shardify.bench --json`` wrote.
    """
    machine, versions = found["machine"], found["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    table = found["table"]
    reference = list(table)[-1]
    lines = [
        "# A zip to shards: how fast",
        "",
        f"**Question.** How many samples a second become shards, beside `{reference}`, the usual "
        "way?",
        "",
        f"**Answer.** {_answer(table)}",
        "",
        f"`{found['command']}`, {found['date'][:10]}: {found['samples']:,} samples, "
        f"{found['bytes'] / 1e6:.0f} MB, in the page cache. {machine['cores']} cores "
        f"({machine['processor']}), Python {machine['python']}, {listed}; load before the start "
        f"{machine['load_before']:.1f}. Each run is a process of its own; contenders take turns, "
        "in its turn each runs twice and the second run counts, and a ratio compares runs of the "
        "same round.",
        "",
        "| | samples/s | wall s, median (min to max) | CPU-s | peak MB of a process | "
        f"times {reference.rpartition(' ')[2]} (min to max) |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in table.items():
        lines.append(
            f"| {name} | {row['samples_per_second']:,.0f} | {row['wall_median']:.2f} "
            f"({row['wall_min']:.2f} to {row['wall_max']:.2f}) | {row['cpu_median']:.1f} | "
            f"{row['memory_max'] / 1e6:.0f} | {row['times_median']:.1f} "
            f"({row['times_min']:.1f} to {row['times_max']:.1f}) |"
        )
    lines += ["", "What each does:", ""]
    lines += [f"- `{name}`: {_DOES[name]}." for name in table if name in _DOES]
    if found.get("phases"):
        lines += ["", "## Where the time goes", "", *_phases(found["phases"], found["samples"])]
    return "\n".join(lines) + "\n"


def _answer(table: dict[str, Any]) -> str:
    told = [
        f"`{name}` {row['samples_per_second']:,.0f} samples/s, {row['times_median']:.1f} times"
        for name, row in table.items()
        if name.startswith("shardify")
    ]
    return "; ".join(told) + "."


def _phases(found: list[dict[str, Any]], samples: int) -> list[str]:
    lines = [
        "CPU time of each phase by itself, in one process (`--phases`), least of three; workers "
        "share theirs among the cores, the parent's first part comes before they can begin.",
        "",
        "| who | what | CPU-s in all | µs a sample |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {each['who']} | {each['what']} | {each['seconds']:.2f} | "
        f"{each['seconds'] / samples * 1e6:.1f} |"
        for each in found
    ]
    total = sum(each["seconds"] for each in found)
    lines.append(f"| | **all** | **{total:.2f}** | **{total / samples * 1e6:.1f}** |")
    return lines
