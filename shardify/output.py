"""OUT: whose it is, whether it is finished, and what a killed run left behind.

Refuses anything that it cannot tell to be this very build's. Writes no data of its own.
"""

import dataclasses
import fcntl
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardify.errors import OutputError
from shardify.files import TEMPORARY, write_atomic
from shardify.manifest import BACKGROUNDS, NAME, REJECTED, Manifest
from shardify.writer import STATE

__all__ = ["check_out", "claimed", "finished", "sweep"]

_OURS = re.compile(r"(train|val)-\d{5}\.(tar|idx)")


def check_out(out: Path) -> None:
    """Refuse what can be refused before any work."""
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: a file; expected a new folder; choose another OUT")
    if out.is_dir() and not (out / NAME).exists() and not (out / STATE).exists():
        other = next((each.name for each in out.iterdir()), None)
        if other is not None:
            raise OutputError(
                f"{out}: holds something else ({other}); expected a new or empty folder; choose "
                "another OUT"
            )


def finished(out: Path, identity: dict[str, Any]) -> Manifest | None:
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
    shutil.rmtree(out / STATE, ignore_errors=True)
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
def claimed(out: Path, identity: dict[str, Any]) -> Iterator[None]:
    """Hold OUT for one build at a time, of this identity only; clear what a kill left behind."""
    state = out / STATE
    state.mkdir(parents=True, exist_ok=True)
    with (state / "lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputError(f"{out}: another build is writing there; wait for it") from None
        stated = state / "build.json"
        wanted = json.dumps(identity, sort_keys=True)
        if stated.exists():
            text = stated.read_text()
            if text != wanted:
                raise OutputError(
                    f"{out}: holds an unfinished build of {_difference(json.loads(text), identity)}"
                    "; choose another OUT, or delete it"
                )
        else:
            write_atomic(stated, wanted.encode())
        for leftover in [*out.glob(f"*{TEMPORARY}"), *state.glob(f"*{TEMPORARY}")]:
            leftover.unlink()
        yield


def sweep(out: Path, manifest: Manifest) -> None:
    """Delete shards that are not in the manifest: an earlier program's, of the same build."""
    listed = {BACKGROUNDS, REJECTED}
    for split in manifest.splits.values():
        listed |= {name for shard in split.shards for name in (shard.name, shard.index)}
    for file in out.iterdir():
        if _OURS.fullmatch(file.name) and file.name not in listed:
            file.unlink()
