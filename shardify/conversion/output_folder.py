"""OUT: whose it is, whether it is finished, and what a killed run left behind.

Refuses anything that it cannot tell to be this very build's. Writes no data of its own.
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

__all__ = ["check_out", "finished", "locked_output", "remove_stale", "remove_state", "roll_back"]

_HALF = re.escape(TEMPORARY)
_OURS = re.compile(
    rf"(train|val)-\d{{5}}\.(tar|idx)|(train|val)-\d{{5}}\.idx{_HALF}|.+\.tar\.[0-9a-f]{{8}}{_HALF}"
)
"""Also what a worker leaves that is killed before it can rename it: an index, a tar."""
_STATES = re.compile(r"build\.json|(train|val)-\d{5}\.json")


def check_out(out: PathOrUrl, sources: Sequence[PathOrUrl]) -> None:
    """Refuse what can be refused before any work.

    Raises:
        OutputError: OUT is a file, holds something else, or it and a source lie in each other
            (but what is finished there may be asked for again).
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: a file; expected a new folder; choose another OUT")
    for source in sources if not (out / NAME).exists() else ():
        if _lies_in(out, source):
            raise OutputError(
                f"{out}: lies in the source {source}, and would be taken for a part of it; "
                "expected a folder outside; choose another OUT"
            )
        if _lies_in(source, out):
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


def _lies_in(one: PathOrUrl, other: PathOrUrl) -> bool:
    """Whether a place is another, or is somewhere inside it, links followed."""
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve().is_relative_to(other.resolve())
    return f"{one}/".startswith(f"{other}/")


def finished(out: PathOrUrl, identity: dict[str, Any]) -> Manifest | None:
    """The manifest, if OUT is this very data set. Raises OutputError if it is another."""
    if not (out / NAME).exists():
        return None
    manifest = Manifest.load(out)
    there = {
        "source": [dataclasses.asdict(each) for each in manifest.source],
        "options": manifest.options,
        "samples": manifest.layout.get("digest"),
    }
    if there != identity:
        raise OutputError(
            f"{out}: holds a finished data set built from {_difference(there, identity)}; choose "
            "another OUT, or delete it"
        )
    remove_state(out)
    return manifest


def _difference(there: dict[str, Any], here: dict[str, Any]) -> str:
    if there["source"] != here["source"]:
        return "another source (" + ", ".join(str(each["name"]) for each in there["source"]) + ")"
    names = sorted(
        name
        for name in {*there["options"], *here["options"]}
        if there["options"].get(name) != here["options"].get(name)
    )
    if not names:
        return "the same source, read with another layout"
    return "the same source with other options (" + ", ".join(names) + ")"


@contextmanager
def locked_output(out: PathOrUrl, identity: dict[str, Any]) -> Iterator[None]:
    """Hold OUT for one build at a time, of this identity only; clear what a kill left behind.

    A store has no locks: two builds of one identity at once put the same bytes twice, no harm
    done, and one of another identity finds the first one's statement.
    """
    state = out / STATE_FOLDER
    if isinstance(state, Url):
        _state_identity(out, state / "build.json", identity)
        yield
        return
    assert isinstance(out, Path)
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"{out}: another build is writing there; wait for it") from None
        _state_identity(out, state / "build.json", identity)
        for folder in (out, state, *out.glob("res-*")):
            for leftover in folder.glob(f"*{TEMPORARY}"):
                leftover.unlink()
        yield


def remove_state(out: PathOrUrl) -> None:
    """Delete what only a rerun needs."""
    state = out / STATE_FOLDER
    if not isinstance(state, Url):
        shutil.rmtree(state, ignore_errors=True)
    elif state.is_dir():
        for each in state.iterdir():
            if _STATES.fullmatch(each.name):
                each.unlink(missing_ok=True)


def _state_identity(out: PathOrUrl, stated: PathOrUrl, identity: dict[str, Any]) -> None:
    wanted = json.dumps(identity, sort_keys=True)
    if not stated.exists():
        write_atomic(stated, wanted.encode())
        return
    text = stated.read_text()
    if text != wanted:
        raise OutputError(
            f"{out}: holds an unfinished build of {_difference(json.loads(text), identity)}"
            "; choose another OUT, or delete it"
        )


def remove_stale(out: PathOrUrl, manifest: Manifest) -> None:
    """Delete an earlier program's shards of the same build, and what a dead worker left behind.

    In a store nothing is deleted: there are no halves, and what is there may be another's.
    """
    if isinstance(out, Url):
        return
    listed = {BACKGROUNDS, REJECTED}
    for split in manifest.splits.values():
        listed |= {name for shard in split.shards for name in (shard.name, shard.index)}
    for file in out.iterdir():
        if _OURS.fullmatch(file.name) and file.name not in listed:
            file.unlink(missing_ok=True)


def roll_back(out: Path, folders: Sequence[str], *, whole: bool) -> None:
    """Delete what a refused build wrote: shards, backgrounds, state. No manifest is there yet.

    Args:
        out: Folder of the build, which no process writes to any more.
        folders: Inside it, that have shards.
        whole: Whether the build made ``out`` itself.
    """
    remove_state(out)
    for folder in [out / name for name in folders]:
        for file in folder.iterdir() if folder.is_dir() else ():
            if _OURS.fullmatch(file.name) or file.name in (BACKGROUNDS, REJECTED):
                file.unlink(missing_ok=True)
        if folder != out or whole:
            with suppress(OSError):
                folder.rmdir()
    if whole:
        with suppress(OSError):
            out.rmdir()
