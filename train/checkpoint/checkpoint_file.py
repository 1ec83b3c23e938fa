"""Write and read checkpoints atomically.

A checkpoint is one safetensors file: tensors by name, and as metadata a JSON tree of all other
values and a SHA-256 of both. Nothing is pickled, so reading executes no code. A file is flushed to
disk before it is renamed to its final name, so a kill at any moment leaves a valid checkpoint.
"""

import errno
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shardify.storage.atomic_write import atomic_path
from train.errors import CheckpointError, DamagedError

VERSION = 1
"""Version of the checkpoint format; other versions are refused."""

UMASK = os.umask(0)
os.umask(UMASK)

TENSOR = "$tensor"
ITEMS = "$items"
TUPLE = "$tuple"


_OS_ERROR = re.compile(r"os error (\d+)")
"""Error number in the messages of safetensors."""


class Stored(NamedTuple):
    """A checkpoint whose digest was verified."""

    path: Path
    state: dict[str, Any]
    """The state passed to `write`; tensors on the CPU."""


class Checkpoints:
    """Folder with the newest checkpoints of a run, ``step-00000123.safetensors``."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after ``step``; keep only the newest ``keep`` checkpoints.

        Raises:
            OSError: No space or no permission; older checkpoints are unchanged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.safetensors"
        write(path, state)
        for old in self.files()[self._keep :]:
            if old.is_file():
                old.unlink()
        return path

    def files(self) -> list[Path]:
        """List all checkpoints, newest first."""
        return sorted(self.folder.glob("step-????????.safetensors"), reverse=True)

    def newest(self) -> Stored | None:
        """Read the newest checkpoint; return None if there is none.

        Raises:
            CheckpointError: It is damaged, or this program cannot read it; the message names the
                previous checkpoint, if any.
        """
        files = self.files()
        if not files:
            return None
        try:
            return read(files[0])
        except DamagedError as error:
            if len(files) == 1:
                raise DamagedError(f"{error}; there is no earlier one: start a new run") from None
            raise DamagedError(
                f"{error}; delete it to continue from the previous one, {files[1]}"
            ) from None
        except CheckpointError as error:
            if len(files) == 1:
                raise
            # It is not damaged: do not suggest to delete it.
            raise CheckpointError(
                f"{error}; or move it out of {self.folder} to continue from {files[1]}"
            ) from None


def write(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically.

    Args:
        path: The file; an existing file is replaced only when the new one is on disk.
        state: Dicts, lists, tuples, numbers, strings, None, and tensors on any device.

    Raises:
        OSError: No space or no permission.
        TypeError: ``state`` contains a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_strip(state, "", tensors))
    # save_file refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"version": str(VERSION), "state": tree, "sha256": _digest(tree, tensors)}
    save(path, tensors, metadata)


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically and flush it to disk.

    Raises:
        OSError: No space or no permission.
    """
    with atomic_path(path, durable=True) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            number = int(found[1]) if (found := _OS_ERROR.search(str(error))) else errno.EIO
            raise OSError(number, " ".join(str(error).split()), str(path)) from error
        temporary.chmod(0o666 & ~UMASK)  # safetensors makes it readable by the owner only.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # Makes the rename durable.
    finally:
        os.close(folder)


def read(path: Path) -> Stored:
    """Read a checkpoint and verify its digest.

    Raises:
        CheckpointError: Missing, not a checkpoint, or of another version.
        DamagedError: The digest does not match.
    """
    tensors, metadata = load(path)
    if "version" not in metadata or "state" not in metadata:
        raise CheckpointError(
            f"{path}: contains weights only; expected a checkpoint; replace it by one"
        )
    if metadata["version"] != str(VERSION):
        raise CheckpointError(
            f"{path}: checkpoint version {metadata['version']}; this program reads {VERSION}; "
            "continue with the version of the program that wrote it"
        )
    if metadata.get("sha256") != _digest(metadata["state"], tensors):
        raise DamagedError(f"{path}: damaged: the SHA-256 does not match")
    return Stored(path, _restore(json.loads(metadata["state"]), tensors))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: Missing, or a folder.
        DamagedError: Truncated, or not a safetensors file.
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path}: is a folder; expected a checkpoint or weights; replace it by one"
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a checkpoint or weights") from None
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(f"{path}: damaged, or not a safetensors file ({reason})") from error


def _strip(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Convert ``value`` to JSON values, and move its tensors to ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {TENSOR: name}
    if isinstance(value, dict):
        items = {key: _strip(item, f"{name}/{key}", tensors) for key, item in value.items()}
        if all(isinstance(key, str) and not key.startswith("$") for key in items):
            return items
        return {ITEMS: [[key, item] for key, item in items.items()]}
    if isinstance(value, list | tuple):
        items_ = [_strip(item, f"{name}/{i}", tensors) for i, item in enumerate(value)]
        return items_ if isinstance(value, list) else {TUPLE: items_}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"checkpoint: {name} is a {type(value).__name__}")


def _restore(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `_strip`."""
    if isinstance(value, list):
        return [_restore(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if TENSOR in value:
        return tensors[value[TENSOR]]
    if TUPLE in value:
        return tuple(_restore(item, tensors) for item in value[TUPLE])
    if ITEMS in value:
        return {key: _restore(item, tensors) for key, item in value[ITEMS]}
    return {key: _restore(item, tensors) for key, item in value.items()}


def _digest(tree: str, tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of the JSON tree and of each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
