"""Check, lock, resume and clean the output folder of a build; move its files to their final names.

A folder that does not belong to this build is refused. Files are written below ``OUT/.shardify``
and moved when all of them are complete. A run that is stopped while it moves them moves them back;
after a kill, the next run does. In an object store they are copied, and then deleted.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from shardify.dataset.manifest import BACKGROUNDS, NAME, REJECTED, Manifest
from shardify.errors import OutputError
from shardify.storage import locks
from shardify.storage.atomic_write import TEMPORARY, rename, sync_folder, write_atomic
from shardify.storage.paths import PathOrUrl, Url, copy_many, delete_many
from shardify.writer.tasks import STAGING_FOLDER, STATE_FOLDER, staging_folder

_BUILD_FILE = re.compile(
    rf"(train|val)-\d{{5}}\.(tar|idx)|{re.escape(BACKGROUNDS)}|{re.escape(REJECTED)}"
)
"""A file of a build under its final name, except the manifest."""
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
    with ExitStack() as stack:
        if isinstance(state, Path):
            state.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((state / "lock").open("wb"))
            try:
                locks.lock(lock.fileno())
            except BlockingIOError:
                raise OutputError(f"{out}: another build is writing there; wait for it") from None
        _check_identity(out, state / "build.json", identity)
        _move_back(out)
        if isinstance(out, Path) and isinstance(state, Path):
            for leftover in (*out.glob(f"*{TEMPORARY}"), *state.rglob(f"*{TEMPORARY}")):
                leftover.unlink()
        try:
            yield
        except BaseException:
            if not (out / NAME).exists():
                _move_back(out)
            raise


def _move_back(out: PathOrUrl) -> None:
    """Undo the moves of a run that was stopped before it wrote the manifest of ``out``."""
    variants = [each for each in out.iterdir() if re.fullmatch(r"res-\d+", each.name)]
    for folder in (out, *variants):
        names = [each.name for each in folder.iterdir() if _BUILD_FILE.fullmatch(each.name)]
        staged = staging_folder(out, "" if folder == out else folder.name)
        if isinstance(folder, Url):
            # The originals are still there.
            delete_many(folder, [name for name in names if (staged / name).exists()])
            continue
        assert isinstance(staged, Path)
        if folder != out:
            for file in (folder / NAME, folder / f"{NAME}{TEMPORARY}"):
                file.unlink(missing_ok=True)
        for name in names:
            staged.mkdir(parents=True, exist_ok=True)
            rename(folder / name, staged / name)


def move_to_final_names(out: PathOrUrl, folder: str, names: Iterable[str]) -> None:
    """Move complete files from the staging folder to ``out / folder``, durably.

    In an object store they are copied; ``remove_state`` deletes the originals.

    Raises:
        OSError: A file is missing, or the folder is not writable.
        StoreError: The object store refuses it.
    """
    final, staged = out / folder, staging_folder(out, folder)
    if isinstance(final, Url):
        assert isinstance(staged, Url)
        copy_many(staged, final, list(names))
        return
    assert isinstance(staged, Path)
    final.mkdir(exist_ok=True)
    for name in names:
        rename(staged / name, final / name)
    sync_folder(final)


def remove_state(out: PathOrUrl) -> None:
    """Delete the files that only a rerun needs."""
    state = out / STATE_FOLDER
    if not isinstance(state, Url):
        shutil.rmtree(state, ignore_errors=True)
    elif state.is_dir():
        staging = state / STAGING_FOLDER
        staged = list(staging.iterdir()) if staging.is_dir() else []
        variants = [each for each in staged if re.fullmatch(r"res-\d+", each.name)]
        for folder in (state, staging, *variants):
            own = _STATE_FILE if folder == state else _BUILD_FILE
            names = [each.name for each in folder.iterdir() if own.fullmatch(each.name)]
            delete_many(folder, names)


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


def roll_back(out: Path, *, whole: bool) -> None:
    """Delete the files and state of a refused build; nothing has its final name yet.

    Args:
        out: Folder of the build. No process may still write to it.
        whole: Whether the build created ``out`` itself; it is deleted then.
    """
    remove_state(out)
    for folder in (*out.glob("res-*"), *([out] if whole else [])):
        with suppress(OSError):
            folder.rmdir()
