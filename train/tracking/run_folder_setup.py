"""Taking a folder for a run: held, refused where another's work would be lost, made, and swept.

What a killed process left half written is deleted, and nothing else. This module reads no
checkpoint and writes nothing but the run's settings.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardify.storage.atomic_write import TEMPORARY, write_text
from train.config import Config
from train.errors import RunError
from train.settings import to_toml
from train.tracking.metrics_log import MetricsLog

__all__ = ["CONFIG", "prepare", "readable", "refuse_again", "refuse_other", "run_lock", "writable"]


@contextmanager
def writable(out: Path) -> Iterator[None]:
    """What the block fails to write there becomes one line.

    Raises:
        RunError: No room, no permission, or it is no folder.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{out}: cannot be written ({error}); choose another --out") from error


CONFIG = "config.toml"
"""Name of the file with the settings of a run, in its folder."""


@contextmanager
def run_lock(out: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it for the length of the block.

    A folder that was made here and is still empty at the end is removed again. The lock lies on the
    folder itself and ends with the process, however that ends. On a file system without locks
    there is none.

    Raises:
        RunError: Another process holds it, it is no folder, or it cannot be made.
    """
    made: list[Path] = []
    lock = -1
    try:
        with readable(out):
            if out.is_file():
                raise RunError(
                    f"{out}: is a file; expected a folder for the run; choose another --out"
                )
            made = [folder for folder in (out, *out.parents) if not folder.exists()]
        with writable(out):
            out.mkdir(parents=True, exist_ok=True)
        with readable(out):
            lock = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            made = []  # The other one's to remove.
            raise RunError(
                f"{out}: another run is at work in it; wait for it to end, or choose another --out"
            ) from None
        except OSError:
            pass  # No locks here.
        yield
    finally:
        try:
            for folder in made:
                folder.rmdir()
        except OSError:
            pass  # Not empty, as it should be.
        if lock >= 0:
            os.close(lock)


@contextmanager
def readable(out: Path) -> Iterator[None]:
    """What the block fails to find out about the folder becomes one line.

    Raises:
        RunError: No permission, a name that is too long.
    """
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{out}: cannot be read ({error.strerror or error}); choose another --out"
        ) from error


def refuse_other(out: Path) -> None:
    """A new run takes an empty folder or makes one.

    Raises:
        RunError: The folder holds something, or cannot be read.
    """
    with readable(out):
        if (out / CONFIG).exists():
            raise RunError(f"{out}: holds a run; go on with --resume, or choose another --out")
        if out.is_dir() and any(out.iterdir()):
            raise RunError(f"{out}: holds something else; expected an empty folder; choose --out")


def refuse_again(out: Path) -> None:
    """Without a checkpoint a run may begin again only where nothing of it would be lost.

    A kill before the first checkpoint leaves settings, but neither figures nor weights: these are
    written only when a checkpoint stands. Where they are, checkpoints were deleted.

    Raises:
        RunError: Something would be lost, or the folder cannot be read.
    """
    with readable(out):
        _refuse_lost(out, out / "checkpoints")


def prepare(out: Path, config: Config, epoch: int) -> None:
    """Make the folder, write the settings, and drop records of epochs that will run again.

    Raises:
        RunError: The folder cannot be made or written, or its records are damaged: then nothing
            is changed.
    """
    metrics = MetricsLog(out / "metrics.jsonl")
    metrics.read()
    with writable(out):
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / CONFIG, to_toml(config))
        for half in _halves(out):
            half.unlink()
        if metrics.path.exists():
            metrics.keep_before(epoch)


def _refuse_lost(out: Path, checkpoints: Path) -> None:
    remedy = f"put one back into {checkpoints}, or start a new run with another --out"
    epochs = len(MetricsLog(out / "metrics.jsonl").read())
    weights = sorted(out.glob("*.safetensors"))
    if epochs or (weights and (out / CONFIG).is_file()):
        what = f"{epochs} epoch{'s' * (epochs > 1)} of a run" if epochs else weights[0].name
        raise RunError(f"{out}: holds {what}, but no checkpoint to go on from; {remedy}")
    if (out / CONFIG).is_file() or not out.is_dir():
        return
    found = {path for path in out.iterdir() if path not in _halves(out)} - {checkpoints}
    if found:
        raise RunError(
            f"{out}: holds {min(found).name}, but neither {CONFIG} nor a checkpoint to go on from; "
            f"{remedy}"
        )


def _halves(out: Path) -> list[Path]:
    """Files that a kill left half written, ours and those of safetensors."""
    names = (f".*{TEMPORARY}", f"{TEMPORARY}??????")
    found = [
        path for folder in (".", "checkpoints", "panels") for name in names
        for path in (out / folder).glob(name)
    ]  # fmt: skip
    return [path for path in found if path.is_file() and not path.is_symlink()]
