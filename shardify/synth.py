"""A stand-in for the real data set: a zip of made-up parks with made-up objects pasted on.

Same names, sizes and statistics as the data set that this project starts from; the same arguments
give the same bytes. Nothing is downloaded, and no file is ever overwritten.

Sample ``n`` of N stands on background ``n * B // N + 1``; within a background, foregrounds,
mirrored copies and places take turns. Outside its mask a composite is its background, squashed to
a square, but for JPEG's loss.
"""

import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from shardify.composites import compose, make_actor, make_stage
from shardify.errors import BuildError, OutputError
from shardify.files import TEMPORARY, publish
from shardify.textures import random_numbers
from shardify.workers import Workers
from shardify.zipwriter import MANY, WIDE, Packed, Section, finish, pack

__all__ = ["FOREGROUNDS", "SynthReport", "make"]

FOREGROUNDS = 100
"""How many different objects there are; each also mirrored."""

_PLACES = 3
_ROLES = ("fg_bg", "fg_bg_mask", "fg_bg_depth")
_CHUNK = 200
"""Most samples in one piece of work: all of one background."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthReport:
    """What was made."""

    path: Path
    samples: int
    backgrounds: int
    entries: int
    bytes: int
    """Of the zip."""
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.samples:,} samples on {self.backgrounds} backgrounds, "
            f"{self.entries:,} entries, {self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s "
            f"({self.samples / self.seconds:,.0f} samples/s)"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """Some samples of one background."""

    seed: int
    size: int
    background: int
    samples: tuple[tuple[int, int, bool], ...]
    """Number, foreground, mirrored."""
    picture: bool
    """Whether the background's own picture is wanted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A task's entries: the background's if wanted, then three for each sample."""

    picture: Packed | None
    entries: list[tuple[Packed, ...]]


def make(
    path: Path,
    *,
    samples: int,
    backgrounds: int,
    size: int,
    seed: int,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    wide: int = WIDE,
    many: int = MANY,
) -> SynthReport:
    """Write a zip of ``samples`` composites with masks and depth maps, and their backgrounds.

    Args:
        path: The zip to write. It appears whole or not at all.
        samples: At least 1.
        backgrounds: From 1 to 999; each is used as often as any other, give or take one.
        size: Height and width of composites and masks. Pixels, from 32 to 1024; depth maps have
            224/250 of it.
        seed: In [0, 2**64).
        workers: Processes; by default as many as this process may use cores.
        progress: Called with the samples done and ``samples``.
        wide: From which offset on zip64 is used. Bytes.
        many: From how many entries on zip64 is used.

    Raises:
        OutputError: ``path`` exists, its folder does not, or the disk is full.
        ValueError: A number is out of its range.
    """
    for name, value, low, high in (
        ("samples", samples, 1, 10_000_000),
        ("backgrounds", backgrounds, 1, 999),
        ("size", size, 32, 1024),
        ("seed", seed, 0, 2**64 - 1),
    ):
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; expected {low} to {high}")
    if os.path.lexists(path):
        raise OutputError(f"{path}: exists already; expected a new file; remove it or name another")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no folder {path.parent}; expected one to write in; create it")
    start = time.perf_counter()
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with ExitStack() as stack:
            out = stack.enter_context(temporary.open("wb"))
            spools = [
                stack.enter_context(tempfile.TemporaryFile(dir=path.parent)) for _ in range(4)
            ]
            sections = [Section(cast(BinaryIO, spool)) for spool in spools]
            tasks = list(_tasks(samples, backgrounds, size, seed))
            # Closed whatever happens, so that no worker is left behind.
            parts = stack.enter_context(closing(_run(tasks, workers)))
            done = 0
            for task, part in zip(tasks, parts, strict=True):
                _add(sections, task, part)
                done += len(task.samples)
                if progress:
                    progress(done, samples)
            total = finish(out, sections, wide=wide, many=many)
            out.flush()
            os.fsync(out.fileno())
        publish(temporary, path)
    except BuildError as error:
        raise OutputError(f"{path}: a worker died; expected room in memory; try again") from error
    except OSError as error:
        what = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({what}); free the disk or name another"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return SynthReport(
        path=path,
        samples=samples,
        backgrounds=backgrounds,
        entries=backgrounds + 3 * samples,
        bytes=total,
        seconds=time.perf_counter() - start,
    )


def _tasks(samples: int, backgrounds: int, size: int, seed: int) -> Iterator[_Task]:
    """Every background at least once, and every sample on its background, in order."""
    for background in range(backgrounds):
        first = -(-background * samples // backgrounds)
        end = -(-(background + 1) * samples // backgrounds)
        count = end - first
        plan = []
        for turn in range(count):
            # With fewer samples than foregrounds, the next background starts one further on, so
            # that all are used alike.
            ahead = background if count < FOREGROUNDS else 0
            foreground = (turn * FOREGROUNDS // count + ahead) % FOREGROUNDS
            plan.append((first + turn, foreground + 1, bool((turn + background) & 1)))
        for begin in range(0, max(count, 1), _CHUNK):
            yield _Task(
                seed=seed,
                size=size,
                background=background + 1,
                samples=tuple(plan[begin : begin + _CHUNK]),
                picture=begin == 0,
            )


def _run(tasks: list[_Task], workers: int | None) -> Generator[_Part, None, None]:
    """The tasks' results, in order."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(tasks))
    if workers == 1:
        yield from map(_work, tasks)
        return
    waiting: dict[int, _Part] = {}
    following = 0
    with Workers("shardify.synth:_work", workers) as pool:
        for number, part in pool.map(tasks):
            waiting[number] = part
            while following in waiting:
                yield waiting.pop(following)
                following += 1


def _add(sections: list[Section], task: _Task, part: _Part) -> None:
    if part.picture:
        sections[0].add(f"data_all/bg/park{task.background}.jpg", part.picture)
    folder = f"bg_{task.background:03d}"
    for (number, foreground, _), entries in zip(task.samples, part.entries, strict=True):
        stem = f"fg_{foreground:03d}_{folder}_{number:06d}"
        for section, role, prefix, extension, entry in zip(
            sections[1:], _ROLES, ("", "mask_", "depth_"), ("jpg", "jpg", "png"), entries,
            strict=True,
        ):  # fmt: skip
            section.add(f"data_all/{role}/{folder}/{prefix}{stem}.{extension}", entry)


def _work(task: _Task) -> _Part:
    stage = make_stage(task.seed, task.background, task.size)
    entries: list[tuple[Packed, ...]] = []
    for number, foreground, mirrored in task.samples:
        actor = make_actor(task.seed, foreground, mirrored)
        rng = random_numbers(task.seed, _PLACES, number)
        entries.append(tuple(map(pack, compose(stage, actor, rng, task.size))))
    return _Part(picture=pack(stage.file) if task.picture else None, entries=entries)
