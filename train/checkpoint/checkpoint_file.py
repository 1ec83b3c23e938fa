"""Whole states of a run on disk: written so that a kill at any moment leaves a good one.

A checkpoint is one safetensors file: tensors by name, and in its metadata a JSON tree of
everything else and a SHA-256 over both. Nothing is pickled, so nothing is executed on reading.
Files are flushed to the disk before they take their place. What the state means, this module does
not know.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from shardify.storage.atomic_write import atomic_path
from train.errors import CheckpointError, DamagedError

__all__ = [
    "VERSION",
    "Checkpoints",
    "Stored",
    "load",
    "read",
    "save",
    "write",
]

VERSION = 1
"""Of the layout of a checkpoint; another one is refused."""

UMASK = os.umask(0)
os.umask(UMASK)

TENSOR = "$tensor"
ITEMS = "$items"
TUPLE = "$tuple"


class Stored(NamedTuple):
    """A checkpoint that was read and found whole."""

    path: Path
    """Its file."""

    state: dict[str, Any]
    """What `write` was given; tensors on the CPU."""


class Checkpoints:
    """The folder of a run's checkpoints: ``step-00000123.safetensors``, the newest few."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after ``step`` and delete what is older than the newest ``keep``.

        Raises:
            OSError: No room, no permission; older checkpoints stand as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.safetensors"
        write(path, state)
        for old in self.files()[self._keep :]:
            if old.is_file():
                old.unlink()
        return path

    def files(self) -> list[Path]:
        """All checkpoints, newest first."""
        return sorted(self.folder.glob("step-????????.safetensors"), reverse=True)

    def newest(self) -> Stored | None:
        """The newest checkpoint; None if there is none.

        Raises:
            CheckpointError: It is damaged, or no checkpoint that this program can read; the
                message names the one before it, if any.
        """
        files = self.files()
        if not files:
            return None
        try:
            return read(files[0])
        except DamagedError as error:
            if len(files) == 1:
                raise DamagedError(f"{error}; no earlier one: start again without it") from None
            raise DamagedError(
                f"{error}; the one before it is {files[1]}: "
                f"delete the damaged file to go on from there"
            ) from None
        except CheckpointError as error:
            if len(files) == 1:
                raise
            # It may be worth more than the one before it.
            raise CheckpointError(
                f"{error}; or move it out of {self.folder} to go on from {files[1]}"
            ) from None


def write(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` atomically.

    Args:
        path: The file; whatever is there is replaced only when the new one is on the disk.
        state: Dicts, lists, tuples, numbers, texts, None, and tensors of any device.

    Raises:
        OSError: No room, no permission.
        TypeError: ``state`` holds something else: it would be lost.
    """
    tensors: dict[str, Tensor] = {}
    tree = json.dumps(_strip(state, "", tensors))
    # Tensors that share memory would be refused; a checkpoint holds each as its own.
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"version": str(VERSION), "state": tree, "sha256": _digest(tree, tensors)}
    save(path, tensors, metadata)


def save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically: beside its place, to the disk, then renamed.

    Raises:
        OSError: No room, no permission.
    """
    with atomic_path(path, durable=True) as temporary:
        try:
            save_file(tensors, temporary, metadata)
        except SafetensorError as error:
            raise OSError(f"{path}: {error}") from error
        temporary.chmod(0o666 & ~UMASK)  # safetensors lets nobody else read it.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # The rename itself.
    finally:
        os.close(folder)


def read(path: Path) -> Stored:
    """Read a checkpoint and verify every byte of it.

    Raises:
        CheckpointError: Missing, no checkpoint, or of another version.
        DamagedError: Its bytes are not those that were written.
    """
    tensors, metadata = load(path)
    if "version" not in metadata or "state" not in metadata:
        raise CheckpointError(
            f"{path}: holds weights, not a whole state; expected a checkpoint; put one in its place"
        )
    if metadata["version"] != str(VERSION):
        raise CheckpointError(
            f"{path}: checkpoint version {metadata['version']}; this program reads {VERSION}; "
            "go on with the program that wrote it"
        )
    if metadata.get("sha256") != _digest(metadata["state"], tensors):
        raise DamagedError(f"{path}: damaged: its bytes are not those that were written")
    return Stored(path, _restore(json.loads(metadata["state"]), tensors))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: Missing, or no file.
        DamagedError: Cut, or no safetensors file.
    """
    if path.is_dir():
        raise CheckpointError(
            f"{path}: is a folder; expected a checkpoint or weights; put one in its place"
        )
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, dict(file.metadata() or {})
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; expected a checkpoint or weights") from None
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DamagedError(f"{path}: damaged or no safetensors file ({reason})") from error


def _strip(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON, its tensors moved to ``tensors``."""
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
    """What `_strip` took apart."""
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
    """SHA-256 over the JSON tree, and each tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(tree.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
