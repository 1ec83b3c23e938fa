"""Where a conversion's time goes: each phase by itself, in CPU time of one process.

What workers do is taken apart by doing less and less of it to the same samples; what the parent
does is done once more, step by step. It measures and prints; nothing of it is part of a build.
"""

import dataclasses
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from shardify.conversion.backgrounds import write_backgrounds
from shardify.conversion.survey import BuildOptions, survey
from shardify.conversion.task_list import background_tasks, shard_tasks
from shardify.images.pixels import STANDARD
from shardify.layout.detect import detect
from shardify.sources.catalog import OpenSources
from shardify.sources.nested_zips import UnpackCache
from shardify.sources.open_sources import open_sources
from shardify.storage.readers import ReadHandle, pread
from shardify.writer.fast_copy import FastCopier
from shardify.writer.fast_worker import prepare
from shardify.writer.sample_check import measure_samples
from shardify.writer.shard_writer import run_task
from shardify.writer.tasks import STATE_FOLDER, ShardTask

__all__ = ["Phase", "phases", "table"]

_SHARDS = 4
_REPEATS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One part of the work."""

    who: str
    """``parent``: once, before the workers can begin; ``beside``: the parent, while they work;
    ``workers``: for every sample."""
    what: str
    seconds: float
    """CPU time for the whole source."""
    each: float
    """The same for one sample. Microseconds."""


def phases(source: Path) -> list[Phase]:
    """Measure every phase of ``shardify build`` on a zip.

    Args:
        source: A zip with at least some thousand samples.
    """
    found = survey([source], BuildOptions())
    samples = int(found.usable.sum())
    result: list[Phase] = []

    def told(who: str, what: str, seconds: float) -> None:
        seconds = max(0.0, seconds)
        each = seconds / samples * 1e6
        result.append(Phase(who=who, what=what, seconds=seconds, each=each))

    told(
        "parent",
        "interpreter and imports",
        _start("import shardify.cli, shardify.conversion.build"),
    )
    prepare()
    loaded = _start("from shardify.writer.fast_worker import prepare; prepare()")
    told("beside", "interpreter, imports and compiled part of the workers", loaded)
    catalog = found.catalog
    with UnpackCache() as work:
        told("parent", "the zip's directory", _best(lambda: open_sources([source], work)))
    names = _best(lambda: detect(catalog.names, where="x"))
    told("parent", "samples and backgrounds from names", names)
    index = {name: number for number, name in enumerate(found.layout.background_ids)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / STATE_FOLDER).mkdir()
        plans = [plan for split in ("train", "val") for plan in found.shards[split]]
        variants = found.options.variants()
        backgrounds = _best(lambda: write_backgrounds(found, out, variants, STANDARD))
        told("parent", "backgrounds checked and written", backgrounds)
        handing = _best(lambda: list(shard_tasks(found, out, plans, index, STANDARD)))
        told("beside", "plans for the workers", handing)
        whole = _best(lambda: survey([source], BuildOptions()))
        with UnpackCache() as work:
            less = _best(lambda: (open_sources([source], work), detect(catalog.names, where="x")))
        told("beside", "proof by pixels", whole - less)
        tasks = list(islice(shard_tasks(found, out, plans, index, STANDARD), _SHARDS))
        jobs = list(background_tasks(found))
        share = samples / sum(len(task.keys) for task in tasks)
        with OpenSources(tasks[0].sources) as handles:
            read = share * _best(lambda: _read(tasks, handles))
            # By itself: a small difference of large times would tell little.
            measured = share * _best(
                lambda: [
                    measure_samples(each, handles, FastCopier(each, handles)) for each in tasks
                ]
            )
        bare = [dataclasses.replace(each, measured=[False] * len(each.keys)) for each in tasks]
        trusted = [dataclasses.replace(each, verify="none") for each in bare]
        whole = share * _best(lambda: _write(trusted, out))
        checked = share * _best(lambda: _write(bare, out))
        tars = _tars_of(bare, out)
        hashed = share * _best(lambda: [hashlib.sha256(tar) for tar in tars])
        put = share * _best(lambda: [(out / "tar").write_bytes(tar) for tar in tars])
        told("workers", "reading", read)
        told("workers", "SHA-256", hashed)
        told("workers", "writing", put)
        rest = whole - read - hashed - put
        told("workers", "unpacking, CRC-32, headers of zip and tar, index", rest)
        told("workers", "pictures' structure (not with --verify none)", checked - whole)
        told("workers", "statistics: some samples decoded", measured)
        told("workers", "statistics: backgrounds decoded", _best(lambda: list(map(run_task, jobs))))
    return result


def table(found: list[Phase]) -> str:
    """The phases as a Markdown table."""
    lines = ["| who | what | CPU-s in all | µs a sample |", "|---|---|---|---|"]
    lines += [
        f"| {phase.who} | {phase.what} | {phase.seconds:.2f} | {phase.each:.1f} |"
        for phase in found
    ]
    lines.append(
        f"| | **all** | {sum(each.seconds for each in found):.2f} | "
        f"{sum(each.each for each in found):.1f} |"
    )
    return "\n".join(lines)


def _best(work: Callable[[], object]) -> float:
    """Least CPU time of a few tries. Seconds."""
    least = float("inf")
    for _ in range(_REPEATS):
        begun = time.process_time()
        work()
        least = min(least, time.process_time() - begun)
    return least


def _start(code: str) -> float:
    """Least CPU time of an interpreter that does so much. Seconds."""
    least = float("inf")
    for _ in range(_REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", code]
        # As the command itself has it.
        subprocess.run(command, check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(
            least,
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        )
    return least


def _read(tasks: list[ShardTask], handles: list[ReadHandle]) -> None:
    for task in tasks:
        for rows in task.rows.tolist():
            for source, offset, limit, packed, *_ in rows:
                pread(handles[source], min(limit - offset, packed + 160), offset)


def _tars_of(tasks: list[ShardTask], out: Path) -> list[bytes]:
    """The shards as they are written."""
    tars = []
    for task in tasks:
        run_task(task)
        tars.append((out / f"{task.name}.tar").read_bytes())
        _remove(task, out)
    return tars


def _write(tasks: list[ShardTask], out: Path) -> None:
    for task in tasks:
        run_task(task)
        _remove(task, out)


def _remove(task: ShardTask, out: Path) -> None:
    for name in (f"{task.name}.tar", f"{task.name}.idx", f"{STATE_FOLDER}/{task.name}.json"):
        (out / name).unlink()
