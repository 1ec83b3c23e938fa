"""Lock, check, create and clean the folder of a run.

Cleaning deletes only the partial files that a killed process left.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from shardify.storage import locks
from shardify.storage.atomic_write import TEMPORARY, write_text
from train.config import Config
from train.errors import RunError
from train.settings import to_toml
from train.tracking.metrics_log import MetricsLog


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a `RunError` that says ``out`` cannot be written.

    Raises:
        RunError: No space, no permission, or ``out`` is not a folder.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error}); choose another --out") from error


CONFIG = "config.toml"
"""File with the settings of a run, in its folder."""

TENSORBOARD = "tensorboard"
"""Folder with the TensorBoard log, in the folder of a run."""

TRACE = "trace.json"
"""Profiler trace, in the folder of a run."""


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Create the folder and lock it against other runs for the length of the block.

    If this call created the folder and it is empty at the end, it is removed. The lock is on the
    folder itself and ends with the process. A file system without locks is used without one.

    Raises:
        RunError: Another process holds the lock, ``out`` is not a folder, or it cannot be created.
    """
    created: list[Path] = []
    lock = -1
    try:
        with readable(out):
            if out.is_file():
                raise RunError(
                    f"{out}: is a file; expected a folder for the run; choose another --out"
                )
            created = [folder for folder in (out, *out.parents) if not folder.exists()]
        with writable(out):
            out.mkdir(parents=True, exist_ok=True)
        with readable(out):
            lock = os.open(out, os.O_RDONLY)
        try:
            locks.lock(lock)
        except BlockingIOError:
            created = []  # The other process removes it.
            raise RunError(
                f"{out}: another run uses it; wait until that run ends, or choose another --out"
            ) from None
        yield
    finally:
        try:
            for folder in created:
                folder.rmdir()
        except OSError:
            pass  # Not empty: the run wrote to it.
        if lock >= 0:
            os.close(lock)


@contextmanager
def readable(out: Path) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a `RunError` that says ``out`` cannot be read.

    Raises:
        RunError: No permission, or a name that is too long.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{out}: cannot be read ({error.strerror or error}); choose another --out"
        ) from error


def check_new_folder(out: Path) -> None:
    """Check that the folder of a new run is empty or does not exist.

    Raises:
        RunError: The folder is not empty, or cannot be read.
    """
    with readable(out):
        if (out / CONFIG).exists():
            raise RunError(
                f"{out}: contains a run; continue it with --resume, or choose another --out"
            )
        if out.is_dir() and any(out.iterdir()):
            raise RunError(f"{out}: is not empty; expected an empty folder; choose another --out")


def check_nothing_lost(out: Path) -> None:
    """Check that a run without a checkpoint can start from step 0 and lose nothing.

    A kill before the first checkpoint leaves settings, but no metrics and no weights: these are
    written only after a checkpoint. If they exist, somebody deleted the checkpoints.

    Raises:
        RunError: Something would be lost, or the folder cannot be read.
    """
    checkpoints = out / "checkpoints"
    with readable(out):
        remedy = f"restore one in {checkpoints}, or start a new run with another --out"
        epochs = len(MetricsLog(out / "metrics.jsonl").read())
        weights = sorted(out.glob("*.safetensors"))
        if epochs or (weights and (out / CONFIG).is_file()):
            content = f"{epochs} epoch{'s' * (epochs > 1)} of a run" if epochs else weights[0].name
            raise RunError(f"{out}: contains {content}, but no checkpoint; {remedy}")
        if (out / CONFIG).is_file() or not out.is_dir():
            return
        others = {path for path in out.iterdir() if path not in _partial_files(out)} - {checkpoints}
        if others:
            raise RunError(
                f"{out}: contains {min(others).name}, but no {CONFIG} and no checkpoint; {remedy}"
            )


def prepare(out: Path, config: Config, epoch: int) -> None:
    """Create the folder, write the settings, and remove the records from ``epoch`` on.

    Raises:
        RunError: The folder cannot be created or written, or its records are damaged; in that
            case nothing is changed.
    """
    metrics = MetricsLog(out / "metrics.jsonl")
    metrics.read()
    with writable(out):
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / CONFIG, to_toml(config))
        for path in _partial_files(out):
            path.unlink()
        if metrics.path.exists():
            metrics.keep_before(epoch)


@contextmanager
def removed_unless(started: Callable[[], bool], out: Path) -> Iterator[None]:
    """Remove what a run wrote into ``out``, if the block fails before the run has ``started``.

    Files that were there before, and those of others, stay.
    """
    names = (CONFIG, TENSORBOARD, TRACE)
    ours = [path for path in (out / name for name in names) if not path.exists()]
    try:
        yield
    except BaseException:
        if not started():
            for path in ours:
                with suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        raise


def _partial_files(out: Path) -> list[Path]:
    """List the partial files that a killed process left, ours and those of safetensors."""
    names = (f".*{TEMPORARY}", f"{TEMPORARY}??????")
    paths = [
        path for folder in (".", "checkpoints", "panels") for name in names
        for path in (out / folder).glob(name)
    ]  # fmt: skip
    return [path for path in paths if path.is_file() and not path.is_symlink()]
