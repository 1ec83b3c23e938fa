"""The data set at full size: measure every step on 400,000 samples and write the page.

    shardify synth s40k.zip --samples 40000
    python docs/make_full_size.py --run s40k.zip --folder build/full [--steps inspect,verify]
    python docs/make_full_size.py

The first command creates 40,000 samples. The second copies each ten times (``shardify.enlarge``),
as one zip and as the eight published zips, and measures. The third only writes the page from the
stored results. Each step is a process and can be repeated alone if the machine was disturbed. The
folder needs 25 GB and is not removed.
"""

import argparse
import datetime
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

from shardify.bench import measure
from shardify.process_cost import Run, conditions, run_measured

FIGURES = Path(__file__).parent / "benchmarks" / "full_size_cpu_202611.json"
PAGE = FIGURES.with_suffix(".md")

TIMES = 10
OURS, PEER = "shardify build", "zipfile + webdataset.ShardWriter"
STEPS = {
    "enlarge": "-m shardify.enlarge {source} {folder}/big.zip --times 10",
    "inspect": "-m shardify inspect {folder}/big.zip --json",
    "build": "-m shardify build {folder}/big.zip {folder}/out --val 0.01",
    "verify": "-m shardify verify {folder}/out",
    "train": "-m train run --shards {folder}/out --res 64 --max-steps 200 --device cpu "
    "--out {folder}/run",
    "released": "-m shardify.enlarge {source} {folder}/downloads --times 10 --released",
    "inspect released": "-m shardify inspect {folder}/downloads --json",
}
"""Step -> arguments to the interpreter."""
ROLES = {"roles": "big.zip", "roles released": "downloads"}
"""Step -> what is surveyed, in a process of its own, with the time of each part taken."""
WRITTEN = {"enlarge": "big.zip", "build": "out", "train": "run", "released": "downloads"}

LIMIT_MEMORY, LIMIT_TIMES, LIMIT_ROLES = 400e6, 8.0, 0.10


def run(source: Path, folder: Path, steps: list[str]) -> None:
    """Measure steps, and put each one's figures into the JSON as soon as they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        if step in WRITTEN:
            _remove(folder / WRITTEN[step])
        found = _convert(folder) if step == "convert" else _one(step, source, folder)
        figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"steps": {}}
        if step == "convert":  # Every round counts.
            found["runs"] = figures["steps"].get(step, {"runs": []})["runs"] + found["runs"]
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        figures["steps"][step] = {"date": date, **found}
        figures |= conditions(os.getloadavg()[0])
        figures["versions"] |= {name: version(name) for name in ("torch", "nvidia-dali-cuda130")}
        del figures["machine"]["load_before"]  # What others did meanwhile says more.
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
        print(step, json.dumps(found), flush=True)


def _one(step: str, source: Path, folder: Path) -> dict[str, Any]:
    words = STEPS.get(step, f"{__file__} --roles {{folder}}/{ROLES.get(step)}").split(" ")
    words = [word.format(source=source, folder=folder) for word in words]
    with tempfile.TemporaryFile() as output:
        found = _beside(lambda: run_measured(words, output))
        output.seek(0)
        text = output.read().decode()
    if step.startswith("inspect"):
        result = json.loads(text)
        found["samples"] = result["samples"]
        found["rejected"] = result["rejected"]["count"]
        found["source"] = sum(each["bytes"] for each in result["source"])
        found["entries"] = sum(each["entries"] for each in result["source"])
        found["rule"] = result["layout"]["join"]
    elif step.startswith("roles"):
        found |= json.loads(text)
    elif step == "train":
        record = json.loads((folder / "run" / "metrics.jsonl").read_text().splitlines()[-1])
        names = ("step", "samples_per_s", "data_wait", "seconds", "val_seconds")
        found |= {name: record[name] for name in names}
    elif step == "build":
        found["bytes"] = sum(each.stat().st_size for each in (folder / "out").iterdir())
    return found


def _convert(folder: Path) -> dict[str, Any]:
    """Build, peer, build: each a fresh folder, one after another."""
    source = folder / "big.zip"
    with source.open("rb") as file:
        while file.read(1 << 24):
            pass
    _remove(folder / "convert")
    (folder / "convert").mkdir()
    runs = []
    for name in (OURS, PEER, OURS):
        found = _beside(lambda name=name: measure(name, source, folder / "convert"))
        runs.append({"name": name, **found})
    return {"runs": runs}


def _beside(work: Callable[[], Run]) -> dict[str, Any]:
    """A run's figures, and how many cores were busy with anything else meanwhile."""
    before, begun = _busy(), time.perf_counter()
    run = work()
    busy, passed = _busy() - before, time.perf_counter() - begun
    return {**asdict(run), "others": max(0.0, busy - run.cpu) / passed}


def _busy() -> float:
    """CPU seconds of all processes since the machine was started."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def survey_parts(source: Path) -> dict[str, float]:
    """CPU seconds of a survey, of the assignment of roles in it, and of the joining in that."""
    from shardify.conversion.survey import BuildOptions, survey
    from shardify.layout import roles

    spent = {"assign_roles": 0.0, "join_by_name": 0.0}

    def timed(name: str) -> Callable[..., Any]:
        function = getattr(roles, name)

        def call(*values: Any, **named: Any) -> Any:
            begun = time.process_time()
            try:
                return function(*values, **named)
            finally:
                spent[name] += time.process_time() - begun

        return call

    with ExitStack() as stack:
        for name in spent:
            stack.enter_context(patch.object(roles, name, timed(name)))
        begun = time.process_time()
        survey([source], BuildOptions())
        total = time.process_time() - begun
    assign, join = spent.values()
    return {"survey": total, "assign_roles": assign, "join": join}


def render(figures: dict[str, Any]) -> str:
    """The page as Markdown, of the figures alone."""
    steps, machine = figures["steps"], figures["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    inspected, built, train = steps["inspect"], steps["build"], steps["train"]
    eight = steps["inspect released"]
    runs = steps["convert"]["runs"]
    ours = [each for each in runs if not _is_peer(each)]
    peers = [each for each in runs if _is_peer(each)]
    pairs = [sorted(pair, key=_is_peer) for pair in pairwise(runs)]
    times = sorted(
        peer["wall"] / own["wall"] for own, peer in pairs if _is_peer(own) < _is_peer(peer)
    )
    middle = statistics.median(times)
    wall, cpu = (
        statistics.mean(each[what] for each in peers) / statistics.mean(each[what] for each in ours)
        for what in ("wall", "cpu")
    )
    dates = sorted({each["date"][:10] for each in steps.values()})
    memory = max(each["memory"] for each in (*ours, built))
    share = {name: _roles_share(steps[name]) for name in ROLES}
    samples = inspected["samples"]
    lines = [
        "# The data set at full size",
        "",
        f"**Question.** How much time and memory do {samples:,} samples with the data set's own "
        "names need, from the zip to the first training steps, on two cores?",
        "",
        f"**Answer.** `shardify build` takes {min(e['wall'] for e in ours):.0f} to "
        f"{max(e['wall'] for e in ours):.0f} s. That is {times[0]:.1f} to {times[-1]:.1f} times as "
        f"fast as `{PEER}` (median {middle:.1f}, ratio "
        f"of the means {wall:.1f}). The largest process needs {memory / 1e6:.0f} MB.",
        "",
        "| Limit | Measured | |",
        "|---|---|---|",
        _limit(
            f"under {LIMIT_MEMORY / 1e6:.0f} MB for any process of the build",
            f"{memory / 1e6:.0f} MB",
            memory < LIMIT_MEMORY,
        ),
        _limit(
            f"build at least {LIMIT_TIMES:.0f} times as fast as `webdataset.ShardWriter`",
            f"wall time: {', '.join(f'{each:.1f}' for each in times)} in {len(times)} pairs, "
            f"ratio of the means {wall:.1f}; CPU time: {cpu:.1f}",
            min(*times, wall) >= LIMIT_TIMES,
            settled=min(*times, wall) >= LIMIT_TIMES or max(*times, wall) < LIMIT_TIMES,
        ),
        _limit(
            f"role assignment, without joining files, at most {LIMIT_ROLES:.0%} of the survey's "
            "CPU time",
            f"{share['roles']:.1%} for one zip; {share['roles released']:.1%} for eight zips",
            max(share.values()) <= LIMIT_ROLES,
        ),
        "",
        f"**Source.** 40,000 samples of `shardify synth`, each copied ten times with new numbers: "
        f"{inspected['entries']:,} entries, {inspected['source'] / 1e6:,.0f} MB in one zip. The "
        "names are those of the data set (`data_all/fg_bg/fg_015_bg_085_340600.jpg`, …); the "
        f"images repeat. The shards have {built['bytes'] / 1e6:,.0f} MB.",
        "",
        f"**Machine.** {machine['cores']} cores ({machine['processor']}), "
        f"Python {machine['python']}, {versions}.",
        "",
        f"**Measured** {' to '.join(dict.fromkeys((dates[0], dates[-1])))} by "
        "`python docs/make_full_size.py --run s40k.zip --folder FOLDER`. Builds and "
        f"`{PEER}` ran alternately, in two rounds of `--steps convert`. All results: "
        f"[{FIGURES.name}]({FIGURES.name}).",
        "",
        "## Each step",
        "",
        "| | wall time, s | CPU time, s | peak MB of a process | cores busy with other work |",
        "|---|---|---|---|---|",
    ]
    for step, words in STEPS.items():
        command = words.replace("{folder}/", "").replace("{source}", "s40k.zip")
        command = command.replace("-m shardify.enlarge", "python -m shardify.enlarge")
        lines.append(_row(f"`{command.removeprefix('-m ')}`", steps[step]))
        if step == "build":
            for each in steps["convert"]["runs"]:
                lines.append(_row(f"{each['name']}, alternating", each))
    lines += [
        "",
        "- CPU time and memory include child processes. Memory is the largest resident size of one "
        "process (`ru_maxrss` of `wait4`, which covers children that were waited for, such as "
        "workers). Values below the size of the measuring process, about 39 MB, do not show.",
        f"- One zip has {samples:,} complete samples, the eight zips {eight['samples']:,}; "
        f"{inspected['rejected']} and {eight['rejected']} are rejected. Files are joined by "
        f"{inspected['rule']} in one zip and by {eight['rule']} in the eight zips.",
        "- The shards of the steps after `build` have a validation split of 1 % instead of 5 %, "
        "because training ends with one pass over it.",
        f"- Training: {train['step']} steps of 16 samples in {train['seconds']:.0f} s "
        f"({train['samples_per_s']:.1f} samples/s, {train['data_wait']:.1%} of it waiting for "
        f"data), then validation in {train['val_seconds']:.0f} s, and "
        f"{train['wall'] - train['seconds'] - train['val_seconds']:.0f} s for the rest, from the "
        "start of the interpreter to the last checkpoint.",
        "- Other work on the machine makes wall time too long, and CPU time less so. A pair is a "
        f"build and a run of `{PEER}`, one directly after the other. A build uses both cores, the "
        "other one core, so other work slows down the build more. If the load differs between "
        "runs, so do the ratios. For wall time see [40,000 samples on a quiet "
        "machine](conversion_cpu_202611.md).",
        "",
        "## Where the survey's CPU time goes",
        "",
        "| CPU time, s | survey | role assignment | joining files (part of it) | role assignment "
        "without joining |",
        "|---|---|---|---|---|",
    ]
    for name, label in (("roles", "one zip"), ("roles released", "eight zips")):
        each = steps[name]
        lines.append(
            f"| {label} | {each['survey']:.1f} | {each['assign_roles']:.2f} | {each['join']:.2f} "
            f"| {each['assign_roles'] - each['join']:.2f} ({_roles_share(each):.1%}) |"
        )
    lines += [
        "",
        "Rules that cannot give files of all roles the same key are skipped; one name of each name "
        "pattern is enough to find them. In the eight zips these are the first two rules: same "
        "path, and same folder and name.",
    ]
    return "\n".join(lines) + "\n"


def _is_peer(run: dict[str, Any]) -> bool:
    return bool(run["name"] == PEER)


def _limit(what: str, measured: str, met: bool, settled: bool = True) -> str:
    status = ("met" if met else "**not met**") if settled else "**open: results differ**"
    return f"| {what} | {measured} | {status} |"


def _row(label: str, found: dict[str, Any]) -> str:
    return (
        f"| {label} | {found['wall']:.1f} | {found['cpu']:.1f} | {found['memory'] / 1e6:.0f} | "
        f"{found['others']:.1f} |"
    )


def _roles_share(found: dict[str, Any]) -> float:
    return float((found["assign_roles"] - found["join"]) / found["survey"])


def main() -> None:
    """Measure if asked, and write the page."""
    every = [*STEPS, *ROLES, "convert"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, metavar="ZIP", help="a zip that `shardify synth` made")
    parser.add_argument("--folder", type=Path, help="where to write meanwhile")
    parser.add_argument("--steps", default=",".join(every), help="which steps, comma-separated")
    parser.add_argument("--roles", type=Path, metavar="SRC", help="take one survey apart")
    chosen = parser.parse_args()
    if chosen.roles:
        print(json.dumps(survey_parts(chosen.roles)))
        return
    if chosen.run:
        steps = chosen.steps.split(",")
        if not set(steps) <= set(every) or chosen.folder is None:
            parser.error(f"--run takes --folder, and steps among {','.join(every)}")
        run(chosen.run, chosen.folder, steps)
    figures = json.loads(FIGURES.read_text())
    if missing := set(every) - figures["steps"].keys():
        print(f"no page yet: not measured: {', '.join(sorted(missing))}")
        return
    PAGE.write_text(render(figures))


if __name__ == "__main__":
    main()
