"""Check, lock, resume and clean the output folder of a build.

A folder that does not belong to this build is refused.
"""

import dataclasses
import fcntl
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from shardify.dataset.manifest import BACKGROUNDS, NAME, REJECTED, Manifest
from shardify.errors import OutputError
from shardify.storage.atomic_write import TEMPORARY, write_atomic
from shardify.storage.paths import PathOrUrl, Url
from shardify.writer.tasks import STATE_FOLDER

__all__ = [
    "check_out",
    "load_finished",
    "locked_output",
    "remove_stale",
    "remove_state",
    "roll_back",
]

_TEMPORARY_SUFFIX = re.escape(TEMPORARY)
_BUILD_FILE = re.compile(
    rf"(train|val)-\d{{5}}\.(tar|idx)|(train|val)-\d{{5}}\.idx{_TEMPORARY_SUFFIX}|.+\.tar\.[0-9a-f]{{8}}{_TEMPORARY_SUFFIX}"
)
"""A shard or index of a build, or the temporary file that a killed worker leaves."""
_STATE_FILE = re.compile(r"build\.json|(train|val)-\d{5}\.json")


def check_out(out: PathOrUrl, sources: Sequence[PathOrUrl]) -> None:
    """Refuse an unusable OUT before any work is done.

    Raises:
        OutputError: OUT is a file, holds other files, lies in a source or contains one. (The last
            two are allowed if OUT holds a finished data set.)
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: a file; expected a new folder; choose another OUT")
    for source in sources if not (out / NAME).exists() else ():
        if _is_inside(out, source):
            raise OutputError(
                f"{out}: lies in the source {source}, and would be taken for a part of it; "
                "expected a folder outside; choose another OUT"
            )
        if _is_inside(source, out):
            raise OutputError(
                f"{out}: holds the source {source}; expected a new or empty folder; choose "
                "another OUT"
            )
    if out.is_dir() and not (out / NAME).exists() and not (out / STATE_FOLDER).exists():
        other = next((each.name for each in out.iterdir()), None)
        if other is not None:
            raise OutputError(
                f"{out}: holds something else ({other}); expected a new or empty folder; choose "
                "another OUT"
            )


def _is_inside(one: PathOrUrl, other: PathOrUrl) -> bool:
    """Return whether a path equals another or lies inside it, with links resolved."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve().is_relative_to(other.resolve())
    return f"{one}/".startswith(f"{other}/")


def load_finished(out: PathOrUrl, identity: dict[str, Any]) -> Manifest | None:
    """Return the manifest if OUT holds this data set, finished; None if OUT has no manifest.

    Raises:
        OutputError: OUT holds another data set.
    """
    if not (out / NAME).exists():
        return None
    manifest = Manifest.load(out)
    existing = {
        "source": [dataclasses.asdict(each) for each in manifest.source],
        "options": manifest.options,
        "samples": manifest.layout.get("digest"),
    }
    if existing != identity:
        raise OutputError(
            f"{out}: holds a finished data set built from "
            f"{_describe_difference(existing, identity)}; choose another OUT, or delete it"
        )
    remove_state(out)
    return manifest


def _describe_difference(existing: dict[str, Any], wanted: dict[str, Any]) -> str:
    if existing["source"] != wanted["source"]:
        return (
            "another source (" + ", ".join(str(each["name"]) for each in existing["source"]) + ")"
        )
    names = sorted(
        name
        for name in {*existing["options"], *wanted["options"]}
        if existing["options"].get(name) != wanted["options"].get(name)
    )
    if not names:
        return "the same source, read with another layout"
    return "the same source with other options (" + ", ".join(names) + ")"


@contextmanager
def locked_output(out: PathOrUrl, identity: dict[str, Any]) -> Iterator[None]:
    """Lock OUT for one build of this identity, and delete temporary files of a killed run.

    An object store has no locks. Two builds of the same identity write the same bytes there; a
    build of another identity finds ``build.json`` and is refused.
    """
    state = out / STATE_FOLDER
    if isinstance(state, Url):
        _check_identity(out, state / "build.json", identity)
        yield
        return
    assert isinstance(out, Path)
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"{out}: another build is writing there; wait for it") from None
        _check_identity(out, state / "build.json", identity)
        for folder in (out, state, *out.glob("res-*")):
            for leftover in folder.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        yield


def remove_state(out: PathOrUrl) -> None:
    """Delete the files that only a rerun needs."""
    state = out / STATE_FOLDER
    if not isinstance(state, Url):
        shutil.rmtree(state, ignore_errors=True)
    elif state.is_dir():
        for each in state.iterdir():
            if _STATE_FILE.fullmatch(each.name):
                each.unlink(missing_ok=True)


def _check_identity(out: PathOrUrl, file: PathOrUrl, identity: dict[str, Any]) -> None:
    wanted = json.dumps(identity, sort_keys=True)
    if not file.exists():
        write_atomic(file, wanted.encode())
        return
    text = file.read_text()
    if text != wanted:
        raise OutputError(
            f"{out}: holds an unfinished build of "
            f"{_describe_difference(json.loads(text), identity)}; choose another OUT, or delete it"
        )


def remove_stale(out: PathOrUrl, manifest: Manifest) -> None:
    """Delete shards that the manifest does not list, and temporary files of dead workers.

    Nothing is deleted in an object store: it has no partial files, and an object may belong to
    another build.
    """
    if isinstance(out, Url):
        return
    listed = {BACKGROUNDS, REJECTED}
    for split in manifest.splits.values():
        listed |= {name for shard in split.shards for name in (shard.name, shard.index)}
    for file in out.iterdir():
        if _BUILD_FILE.fullmatch(file.name) and file.name not in listed:
            file.unlink(missing_ok=True)


def roll_back(out: Path, folders: Sequence[str], *, whole: bool) -> None:
    """Delete the shards, backgrounds and state of a refused build, which has no manifest yet.

    Args:
        out: Folder of the build. No process may still write to it.
        folders: Names of the folders inside it that hold shards.
        whole: Whether the build created ``out`` itself; it is deleted then.
    """
    remove_state(out)
    for folder in [out / name for name in folders]:
        for file in folder.iterdir() if folder.is_dir() else ():
            if _BUILD_FILE.fullmatch(file.name) or file.name in (BACKGROUNDS, REJECTED):
                file.unlink(missing_ok=True)
        if folder != out or whole:
            with suppress(OSError):
                folder.rmdir()
    if whole:
        with suppress(OSError):
            out.rmdir()
