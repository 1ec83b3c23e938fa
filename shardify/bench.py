"""Measure the speed of ``shardify build`` beside ``zipfile`` with tarfile or webdataset.

    python -m shardify.bench data.zip --json docs/benchmarks/conversion_cpu_202611.json \
        --page docs/benchmarks/conversion_cpu_202611.md
    python -m shardify.bench data.zip --phases

Question: how many samples a second does ``shardify build`` convert, with its default checks and
with ``--verify none``, and how many do ``zipfile`` + ``tarfile`` and ``zipfile`` +
``webdataset.ShardWriter``? Each run is a separate process. The programs take turns, so that a slow
minute of the machine affects all of them. In its turn each runs twice, and the second run counts.
The zip is read once before, so that it is cached.
The other programs only copy: they check only the CRC of the zip, which ``zipfile`` does itself.
``--page FILE`` writes a Markdown page from the JSON; without a zip it does only that, from
``--json``. ``--phases`` measures each phase of our own conversion.
"""

import argparse
import datetime
import io
import json
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shardify.process_cost import Run, conditions, run_measured

_DESCRIPTIONS = {
    "shardify build": "every check of the default: directory, local headers, CRC-32, every "
    "image's structure up to its end marker, backgrounds by pixels; shards, indexes, "
    "SHA-256 of each file, statistics, manifest; flushed to disk",
    "shardify build --verify none": "the same without the check of the images",
    "zipfile + tarfile": "copies payloads (zipfile checks the CRC-32) into plain tars; no "
    "check, no index, no digest, nothing flushed",
    "zipfile + webdataset.ShardWriter": "the same through webdataset's writer with its defaults",
}


def page(found: dict[str, Any]) -> str:
    """Return the benchmark page as Markdown.

    ``found`` is the content of the file that ``--json`` wrote.
    """
    machine, versions = found["machine"], found["versions"]
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    table = found["table"]
    reference = list(table)[-1]
    lines = [
        "# Conversion of a zip to shards",
        "",
        "**Question.** How many samples per second does `shardify build` convert, compared with "
        f"the usual `{reference}`?",
        "",
        f"**Answer.** {_answer(table)}",
        "",
        f"`{found['command']}`, {found['date'][:10]}: {found['samples']:,} samples, "
        f"{found['bytes'] / 1e6:.0f} MB, in the page cache. {machine['cores']} cores "
        f"({machine['processor']}), Python {machine['python']}, {listed}; load before the start "
        f"{machine['load_before']:.1f}. Each run is a separate process. The programs alternate; "
        "in each round, each runs twice and the second run counts. Ratios compare runs of the same "
        "round.",
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
    lines += ["", "What each program does:", ""]
    lines += [f"- `{name}`: {_DESCRIPTIONS[name]}." for name in table if name in _DESCRIPTIONS]
    if found.get("phases"):
        lines += ["", "## Where the time goes", "", *_phases(found["phases"], found["samples"])]
    return "\n".join(lines) + "\n"


def _answer(table: dict[str, Any]) -> str:
    parts_text = [
        f"`{name}` {row['samples_per_second']:,.0f} samples/s, {row['times_median']:.1f} times"
        for name, row in table.items()
        if name.startswith("shardify")
    ]
    return "; ".join(parts_text) + "."


def _phases(found: list[dict[str, Any]], samples: int) -> list[str]:
    lines = [
        "CPU time of each phase, measured alone in one process (`--phases`), minimum of three. "
        "`parent`: before the workers start. `beside`: in the parent, while the workers run. "
        "`workers`: divided among the workers.",
        "",
        "| where | phase | CPU-s in total | µs per sample |",
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


_SHARD_SAMPLES = 1000


def _samples(source: zipfile.ZipFile) -> Iterator[tuple[str, list[tuple[str, zipfile.ZipInfo]]]]:
    """Yield the samples of a synthetic zip: key, and (extension, entry) of each member."""
    entries = {info.filename: info for info in source.infolist()}
    for name, info in entries.items():
        if not name.startswith("data_all/fg_bg/"):
            continue
        key = name.rpartition("/")[2].partition(".")[0]
        stem, _, number = key.rpartition("_")
        depth = f"data_all/fg_bg_depth/mask_fg_bg/fg_bg/mask_{key}.png"
        yield (
            key,
            [
                ("fg_bg.jpg", info),
                ("mask.jpg", entries[f"data_all/fg_bg_mask/{stem}_mask_{number}.jpg"]),
                ("depth.png", entries[depth]),
            ],
        )


def _tarfile(source: Path, out: Path) -> None:
    """Convert with ``zipfile`` and ``tarfile`` (USTAR)."""
    tar: tarfile.TarFile | None = None
    with zipfile.ZipFile(source) as file:
        for number, (key, members) in enumerate(_samples(file)):
            if number % _SHARD_SAMPLES == 0:
                if tar:
                    tar.close()
                name = out / f"train-{number // _SHARD_SAMPLES:05d}.tar"
                tar = tarfile.open(name, "w", format=tarfile.USTAR_FORMAT)
            assert tar is not None
            for extension, info in members:
                data = file.read(info)
                head = tarfile.TarInfo(f"{key}.{extension}")
                head.size = len(data)
                tar.addfile(head, io.BytesIO(data))
            cls = key.partition("_bg_")[2][:3].encode()
            head = tarfile.TarInfo(f"{key}.bg.cls")
            head.size = len(cls)
            tar.addfile(head, io.BytesIO(cls))
    if tar:
        tar.close()


def _shardwriter(source: Path, out: Path) -> None:
    """Convert with ``zipfile`` and ``webdataset.ShardWriter`` with its defaults."""
    import webdataset

    writer = webdataset.ShardWriter(f"{out}/train-%05d.tar", maxcount=_SHARD_SAMPLES, verbose=0)
    with zipfile.ZipFile(source) as file, writer:
        for key, members in _samples(file):
            sample: dict[str, Any] = {"__key__": key}
            for extension, info in members:
                sample[extension] = file.read(info)
            sample["bg.cls"] = int(key.partition("_bg_")[2][:3])
            writer.write(sample)


_OTHER_PROGRAMS: dict[str, Callable[[Path, Path], None]] = {
    "zipfile + tarfile": _tarfile,
    "zipfile + webdataset.ShardWriter": _shardwriter,
}

CONTENDERS: dict[str, list[str]] = {
    "shardify build": ["-m", "shardify", "build", "{source}", "{out}"],
    "shardify build --verify none": [
        "-m", "shardify", "build", "{source}", "{out}", "--verify", "none",
    ],
    **{
        name: ["-m", "shardify.bench", "--peer", name, "{source}", "{out}"]
        for name in _OTHER_PROGRAMS
    },
}  # fmt: skip
"""Name -> arguments to the interpreter."""


def measure(name: str, source: Path, folder: Path) -> Run:
    """Run one program with a new output folder inside ``folder``, and delete its output.

    Raises:
        RuntimeError: The program failed.
    """
    out = folder / "out"
    words = [word.format(source=source, out=out) for word in CONTENDERS[name]]
    found = run_measured(words)
    shutil.rmtree(out)
    return found


def summarise(runs: dict[str, list[Run]], samples: int) -> dict[str, dict[str, float]]:
    """Compute median, minimum and maximum of each program, and its speed relative to the last.

    ``runs`` are in the order of ``CONTENDERS``; each list is in order of time.
    """
    reference = list(runs)[-1]
    table = {}
    for name, each in runs.items():
        walls = [run.wall for run in each]
        # Runs of one round meet the same load, so their ratio is more stable than a speed.
        ratios = [other.wall / run.wall for run, other in zip(each, runs[reference], strict=True)]
        table[name] = {
            "samples_per_second": samples / statistics.median(walls),
            "wall_median": statistics.median(walls),
            "wall_min": min(walls),
            "wall_max": max(walls),
            "cpu_median": statistics.median(run.cpu for run in each),
            "memory_max": max(run.memory for run in each),
            "times_median": statistics.median(ratios),
            "times_min": min(ratios),
            "times_max": max(ratios),
        }
    return table


def main(arguments: list[str] | None = None) -> None:
    """Measure all programs and print a table; ``--json`` saves the results."""
    parser = argparse.ArgumentParser(prog="python -m shardify.bench", description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="a zip that `shardify synth` made")
    parser.add_argument("out", type=Path, nargs="?", help="output folder of --peer")
    parser.add_argument(
        "--peer", choices=list(_OTHER_PROGRAMS), help="run one other program, without measuring"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument(
        "--page", type=Path, default=None, help="Markdown page to write from the JSON"
    )
    parser.add_argument(
        "--phases", action="store_true", help="measure each phase of shardify build"
    )
    parser.add_argument("--folder", type=Path, default=None, help="folder for temporary shards")
    chosen = parser.parse_args(arguments)
    if chosen.peer:
        chosen.out.mkdir(parents=True)
        _OTHER_PROGRAMS[chosen.peer](chosen.source, chosen.out)
        return
    if chosen.source is None:
        if not (chosen.json and chosen.page):
            parser.error("expected a zip, or --json and --page to make the page anew")
        chosen.page.write_text(page(json.loads(chosen.json.read_text())))
        return
    with zipfile.ZipFile(chosen.source) as file:
        samples = sum(1 for _ in _samples(file))
    if chosen.phases:
        from shardify.bench_phases import phases

        print("\n".join(_phases([asdict(part) for part in phases(chosen.source)], samples)))
        return
    with chosen.source.open("rb") as file_:
        while file_.read(1 << 24):
            pass
    load = os.getloadavg()[0]
    runs: dict[str, list[Run]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        for _ in range(chosen.repeats):
            for name, done in runs.items():
                # The first run is not counted: it pays for files, libraries and memory that the
                # system has dropped since, and for data that the program before left to be written.
                measure(name, chosen.source, Path(folder))
                done.append(measure(name, chosen.source, Path(folder)))
    table = summarise(runs, samples)
    print(
        f"{samples} samples, {chosen.source.stat().st_size / 1e6:.0f} MB; {chosen.repeats} rounds"
    )
    print(f"{'':34}{'samples/s':>10}{'wall s (min to max)':>24}{'CPU s':>8}{'MB':>6}{'times':>20}")
    for name, row in table.items():
        wall = f"{row['wall_median']:.2f} ({row['wall_min']:.2f} to {row['wall_max']:.2f})"
        times = f"{row['times_median']:.1f} ({row['times_min']:.1f} to {row['times_max']:.1f})"
        print(
            f"{name:34}{row['samples_per_second']:10,.0f}{wall:>24}{row['cpu_median']:8.1f}"
            f"{row['memory_max'] / 1e6:6.0f}{times:>20}"
        )
    # Imported only now: memory of this process counts for its children until they start.
    from shardify.bench_phases import phases

    parts = phases(chosen.source) if chosen.page or chosen.json else []
    words = [word.rpartition("/")[2] for word in arguments or sys.argv[1:]]
    found = {
        "command": " ".join(["python -m shardify.bench", *words]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "samples": samples,
        "bytes": chosen.source.stat().st_size,
        **conditions(load),
        "table": table,
        "phases": [asdict(part) for part in parts],
        "runs": {name: [asdict(run) for run in each] for name, each in runs.items()},
    }
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    if chosen.page:
        chosen.page.write_text(page(found))


if __name__ == "__main__":
    main()
