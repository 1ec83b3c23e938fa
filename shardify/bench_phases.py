"""Measure the CPU time of each phase of a conversion, in one process.

The phases of the workers are separated by running fewer and fewer of them on the same samples; the
phases of the parent are run again one by one.
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
from shardify.writer.tasks import STATE_FOLDER, ShardTask, staging_folder

_SHARDS = 4
_REPEATS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One phase of a conversion."""

    who: str
    """``parent``: once, before the workers can start; ``beside``: in the parent, while they work;
    ``workers``: for every sample."""
    what: str
    seconds: float
    """CPU time for the whole source. Seconds."""
    each: float
    """CPU time per sample. Microseconds."""


def phases(source: Path) -> list[Phase]:
    """Measure every phase of ``shardify build`` on a zip.

    ``source`` has at least a few thousand samples.
    """
    found = survey([source], BuildOptions())
    samples = int(found.usable.sum())
    result: list[Phase] = []

    def add_phase(who: str, what: str, seconds: float) -> None:
        seconds = max(0.0, seconds)
        each = seconds / samples * 1e6
        result.append(Phase(who=who, what=what, seconds=seconds, each=each))

    add_phase(
        "parent",
        "interpreter and imports",
        _interpreter_cpu_time("import shardify.cli, shardify.conversion.build"),
    )
    prepare()
    loaded = _interpreter_cpu_time("from shardify.writer.fast_worker import prepare; prepare()")
    add_phase("beside", "interpreter, imports and compiled code of the workers", loaded)
    catalog = found.catalog
    with UnpackCache() as work:
        add_phase(
            "parent", "the zip's directory", _min_cpu_time(lambda: open_sources([source], work))
        )
    names = _min_cpu_time(lambda: detect(catalog.names, where="x"))
    add_phase("parent", "samples and backgrounds from names", names)
    index = {name: number for number, name in enumerate(found.layout.background_ids)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        staging_folder(out, "").mkdir(parents=True)
        plans = [plan for split in ("train", "val") for plan in found.shards[split]]
        variants = found.options.variants()
        backgrounds = _min_cpu_time(lambda: write_backgrounds(found, out, variants, STANDARD))
        add_phase("parent", "backgrounds checked and written", backgrounds)
        creating_tasks = _min_cpu_time(
            lambda: list(shard_tasks(found, out, plans, index, STANDARD))
        )
        add_phase("beside", "plans for the workers", creating_tasks)
        whole = _min_cpu_time(lambda: survey([source], BuildOptions()))
        with UnpackCache() as work:
            less = _min_cpu_time(
                lambda: (open_sources([source], work), detect(catalog.names, where="x"))
            )
        add_phase("beside", "backgrounds checked by pixels", whole - less)
        tasks = list(islice(shard_tasks(found, out, plans, index, STANDARD), _SHARDS))
        jobs = list(background_tasks(found))
        share = samples / sum(len(task.keys) for task in tasks)
        with OpenSources(tasks[0].sources) as handles:
            read = share * _min_cpu_time(lambda: _read(tasks, handles))
            # Measured directly: a small difference of large times would be too noisy.
            measured = share * _min_cpu_time(
                lambda: [
                    measure_samples(each, handles, FastCopier(each, handles)) for each in tasks
                ]
            )
        unmeasured = [
            dataclasses.replace(each, measured=[False] * len(each.keys)) for each in tasks
        ]
        trusted = [dataclasses.replace(each, verify="none") for each in unmeasured]
        whole = share * _min_cpu_time(lambda: _write(trusted, out))
        checked = share * _min_cpu_time(lambda: _write(unmeasured, out))
        tars = _shard_bytes(unmeasured, out)
        hashed = share * _min_cpu_time(lambda: [hashlib.sha256(tar) for tar in tars])
        writing = share * _min_cpu_time(lambda: [(out / "tar").write_bytes(tar) for tar in tars])
        add_phase("workers", "reading", read)
        add_phase("workers", "SHA-256", hashed)
        add_phase("workers", "writing", writing)
        rest = whole - read - hashed - writing
        add_phase("workers", "unpacking, CRC-32, headers of zip and tar, index", rest)
        add_phase("workers", "images' structure (not with --verify none)", checked - whole)
        add_phase("workers", "statistics: some samples decoded", measured)
        add_phase(
            "workers",
            "statistics: backgrounds decoded",
            _min_cpu_time(lambda: list(map(run_task, jobs))),
        )
    return result


def _min_cpu_time(work: Callable[[], object]) -> float:
    """Return the smallest CPU time of ``_REPEATS`` calls. Seconds."""
    smallest = float("inf")
    for _ in range(_REPEATS):
        started = time.process_time()
        work()
        smallest = min(smallest, time.process_time() - started)
    return smallest


def _interpreter_cpu_time(code: str) -> float:
    """Return the smallest CPU time of an interpreter that runs ``code``. Seconds."""
    smallest = float("inf")
    for _ in range(_REPEATS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", code]
        # The same environment as the command itself.
        subprocess.run(command, check=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        smallest = min(
            smallest,
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        )
    return smallest


def _read(tasks: list[ShardTask], handles: list[ReadHandle]) -> None:
    for task in tasks:
        for rows in task.rows.tolist():
            for source, offset, limit, packed, *_ in rows:
                pread(handles[source], min(limit - offset, packed + 160), offset)


def _shard_bytes(tasks: list[ShardTask], out: Path) -> list[bytes]:
    """Write the shards and return their bytes."""
    tars = []
    for task in tasks:
        run_task(task)
        tars.append((staging_folder(out, "") / f"{task.name}.tar").read_bytes())
        _remove(task, out)
    return tars


def _write(tasks: list[ShardTask], out: Path) -> None:
    for task in tasks:
        run_task(task)
        _remove(task, out)


def _remove(task: ShardTask, out: Path) -> None:
    for suffix in (".tar", ".idx"):
        Path(f"{staging_folder(out, '')}/{task.name}{suffix}").unlink()
    (out / STATE_FOLDER / f"{task.name}.json").unlink()
