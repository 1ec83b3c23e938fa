"""Generate synthetic data sets: zips of drawn parks with drawn objects pasted on.

Names, sizes and statistics are those of the data set that this project starts from: either one zip
as its authors trained from, or the zips that they published, where the depth maps are called masks.
The same arguments give the same bytes. Existing files are not overwritten.

Sample ``n`` of N has background ``n * B // N + 1``; within a background, foregrounds, mirrored
copies and positions alternate. Outside its mask a composite is its background, resized to a square,
except for the JPEG loss.
"""

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from shardify.errors import BuildError, OutputError
from shardify.storage.atomic_write import TEMPORARY, publish, sync_folder
from shardify.synth.compose import compose, make_background, make_foreground
from shardify.synth.textures import random_numbers
from shardify.synth.zip_writer import (
    ZIP64_COUNT,
    ZIP64_SIZE,
    Packed,
    Section,
    compress_entry,
    write_directory,
)
from shardify.workers.process_pool import Workers

FOREGROUNDS = 100
"""Number of different objects; each is also used mirrored."""

_PLACES = 3
_RELEASED = ("bg.zip", "fg_bg_correct", "dataset_fg_bg_Mask_final")
"""Names of the published zips except those of the depth maps. Two have no extension."""
_DEPTH_ZIPS = 5
"""Published zips of depth maps, with a fifth of the samples each."""
_CHUNK = 200
"""Most samples in one task; all have the same background."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SynthReport:
    """Size of a generated data set, and the time it took."""

    path: Path
    samples: int
    backgrounds: int
    zips: int
    entries: int
    bytes: int
    """Of all zips."""
    seconds: float

    def __str__(self) -> str:
        zips = f" in {self.zips} zips" if self.zips > 1 else ""
        return (
            f"{self.path}: {self.samples:,} samples on {self.backgrounds} backgrounds, "
            f"{self.entries:,} entries{zips}, {self.bytes / 1e6:.1f} MB in {self.seconds:.1f} s "
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
    """Whether to return the background's own picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A task's entries: the background's picture if requested, and three for each sample."""

    picture: Packed | None
    entries: list[tuple[Packed, ...]]


def generate(
    path: Path,
    *,
    samples: int,
    backgrounds: int,
    size: int,
    seed: int,
    released: bool = False,
    workers: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    wide: int = ZIP64_SIZE,
    many: int = ZIP64_COUNT,
) -> SynthReport:
    """Write ``samples`` composites with masks and depth maps, and their backgrounds.

    Args:
        path: The zip to write, or the folder of zips. It appears whole or not at all.
        samples: At least 1.
        backgrounds: From 1 to 999; each is used as often as any other, give or take one.
        size: Height and width of composites and masks. Pixels, from 32 to 1024; depth maps have
            224/250 of it.
        seed: In [0, 2**64).
        released: Write the zips as the authors published them, with the depth maps in five (in
            fewer if there are fewer samples), instead of one zip.
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
        new = "a new folder" if released else "a new file"
        raise OutputError(f"{path}: exists already; expected {new}; remove it or name another")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no folder {path.parent}; expected one to write in; create it")
    start = time.perf_counter()
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{TEMPORARY}")
    try:
        with ExitStack() as stack:
            if released:
                temporary.mkdir()
            zips = open_zips(temporary, samples, released, stack)
            sections = [section for group in zips for section in group]
            tasks = list(_tasks(samples, backgrounds, size, seed))
            # Closed whatever happens, so that no worker is left behind.
            parts = stack.enter_context(closing(_run(tasks, workers)))
            done = 0
            for task, part in zip(tasks, parts, strict=True):
                _add(sections, task, part, samples, released)
                done += len(task.samples)
                if progress:
                    progress(done, samples)
            total = sum(write_directory(group, wide=wide, many=many) for group in zips)
            for file in [group[0].file for group in zips]:
                file.flush()
                os.fsync(file.fileno())
        if released:
            sync_folder(temporary)
        publish(temporary, path)
    except BuildError as error:
        raise OutputError(f"{path}: a worker died; expected room in memory; try again") from error
    except OSError as error:
        what = error.strerror or str(error)
        raise OutputError(
            f"{path}: cannot be written ({what}); free the disk or name another"
        ) from error
    finally:
        if released:
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
    return SynthReport(
        path=path,
        samples=samples,
        backgrounds=backgrounds,
        zips=len(zips),
        entries=backgrounds + 3 * samples,
        bytes=total,
        seconds=time.perf_counter() - start,
    )


def open_zips(
    where: Path, samples: int, released: bool, stack: ExitStack
) -> list[tuple[Section, ...]]:
    """Open each zip's sections: of backgrounds, composites, masks, then depth maps."""
    if released:
        depths = [f"depth_{number + 1}.zip" for number in range(min(_DEPTH_ZIPS, samples))]
        paths = [where / name for name in (*_RELEASED, *depths)]
        return [(Section(stack.enter_context(path.open("wb"))),) for path in paths]
    spools = [stack.enter_context(tempfile.TemporaryFile(dir=where.parent)) for _ in range(3)]
    files = [stack.enter_context(where.open("wb")), *(cast(BinaryIO, spool) for spool in spools)]
    return [tuple(map(Section, files))]


def _tasks(samples: int, backgrounds: int, size: int, seed: int) -> Iterator[_Task]:
    """Yield the tasks: every background at least once, every sample on its background, in order."""
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
    """Yield the tasks' results, in order."""
    workers = min(workers or len(os.sched_getaffinity(0)), len(tasks))
    if workers == 1:
        yield from map(_work, tasks)
        return
    waiting: dict[int, _Part] = {}
    following = 0
    with Workers("shardify.synth.generate:_work", workers) as pool:
        for number, part in pool.map(tasks):
            waiting[number] = part
            while following in waiting:
                yield waiting.pop(following)
                following += 1


def _add(sections: list[Section], task: _Task, part: _Part, samples: int, released: bool) -> None:
    """Append a task's pictures under the authors' names."""
    root, depth_root = ("", "") if released else ("data_all/", "data_all/fg_bg_depth/")
    backgrounds, composites, masks, *depths = sections
    if part.picture:
        backgrounds.add(f"{root}bg/park{task.background}.jpg", part.picture)
    for (number, foreground, _), (composite, mask, depth) in zip(
        task.samples, part.entries, strict=True
    ):
        stem, tail = f"fg_{foreground:03d}_bg_{task.background:03d}", f"{number:06d}"
        composites.add(f"{root}fg_bg/{stem}_{tail}.jpg", composite)
        masks.add(f"{root}fg_bg_mask/{stem}_mask_{tail}.jpg", mask)
        depths[number * len(depths) // samples].add(
            f"{depth_root}mask_fg_bg/fg_bg/mask_{stem}_{tail}.png", depth
        )


def _work(task: _Task) -> _Part:
    """Draw a task's pictures; runs in a worker."""
    background = make_background(task.seed, task.background, task.size)
    entries: list[tuple[Packed, ...]] = []
    for number, foreground, mirrored in task.samples:
        cutout = make_foreground(task.seed, foreground, mirrored)
        rng = random_numbers(task.seed, _PLACES, number)
        entries.append(tuple(map(compress_entry, compose(background, cutout, rng, task.size))))
    return _Part(picture=compress_entry(background.file) if task.picture else None, entries=entries)
