"""`train bench --suite`: everything worth knowing about one machine, in one command.

Makes its own data, tests the loader on the GPU, measures loader, network and both together at
several sizes, profiles, and trains. Each step is a process of its own with a limit of its own; what
it found is on disk before the next begins, so that a run cut short leaves what it measured. A step
that fails is named and the others go on. The most valuable come first. Nothing is measured in here.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from shardify.errors import DataError
from shardify.storage.atomic_write import TEMPORARY, write_text
from train.bench.hardware import conditions
from train.bench.suite_page import page
from train.bench.suite_steps import FULL, ROOT, TENTH, Step, SuiteSize, steps
from train.distributed import World
from train.errors import ConfigError, Interrupted
from train.optim.compute import pick_device
from train.tracking.run_folder_setup import writable

_LOG_LINES_KEPT = 12
"""Lines of a failed step's output that are kept in the record."""

_RECORD = "suite.json"
"""The first file that a suite writes: a folder without it is none of a suite's."""

_RECORD_KEYS = {"size", "trained_on", "steps", "figures", "profiles", "training", "tests"}
"""What a record has from its first writing on."""

_FOLDERS = ("figures", "profiles", "logs", "run")
"""What a suite and its steps make beside the record."""

_SCRATCH_PREFIX = "shardline-suite-"
"""How the folder of the data that a suite makes for itself is called."""

_DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)
"""Python that becomes a step: Linux ends it when the suite is killed and cannot do so itself."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of a step."""

    name: str
    status: str
    """pending, running, done, failed, timed out, stopped, or not run."""

    seconds: float = 0.0
    why: str = ""
    last: list[str] = field(default_factory=list)
    """The end of what a failed step printed."""

    command: list[str] = field(default_factory=list)


def suite(
    out: Path,
    *,
    device: str = "cuda",
    size: SuiteSize | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> list[Outcome]:
    """Go through all steps; everything they find is in ``out``.

    Args:
        out: Folder, made if need be; a new or an empty one, or one that an earlier suite made:
            what that left in it is replaced, and nothing else is.
        device: cuda, cuda:N or cpu.
        size: ``FULL`` on a GPU and ``TENTH`` on a CPU by default.
        say: Gets a line as each step ends.

    Returns:
        What became of each step.

    Raises:
        ConfigError: The device is not there, or ``out`` holds something else.
        RunError: ``out`` cannot be written.
        Interrupted: SIGINT or SIGTERM; what was measured until then is on the page.
        DataError: A step failed, or there was no time for it; the message names them all.
    """
    pick_device(device, World())
    size = size or (TENTH if device == "cpu" else FULL)
    out = out.resolve()
    with writable(out):
        _refuse_other_folder(out)
    began = time.monotonic()
    about = {**conditions(device), "size": asdict(size), "seconds": 0.0}
    with (
        _sigterm_as_interrupt(),
        tempfile.TemporaryDirectory(prefix=_SCRATCH_PREFIX) as scratch,
        writable(out),
    ):
        todo = steps(size, device=device, out=out, scratch=Path(scratch))
        outcomes = [Outcome(name=one.name, status="pending", command=one.command) for one in todo]
        out.mkdir(parents=True, exist_ok=True)
        _clear(out)
        _record(out, about, outcomes)
        (out / "logs").mkdir()
        try:
            for place, step in enumerate(todo):
                about["seconds"] = time.monotonic() - began
                outcomes[place].status = "running"
                _record(out, about, outcomes)
                left = size.budget - (time.monotonic() - began)
                outcomes[place] = outcome = _outcome(step, outcomes[:place], left, out)
                say(f"{outcome.status:>9} {outcome.seconds:6.1f} s  {step.name}")
        except KeyboardInterrupt:
            outcomes[place].status = "stopped"
            raise Interrupted(
                f"{out}: stopped in {step.name}; suite.md has what was measured until then"
            ) from None
        finally:
            if _is_suite_run(out / "run"):
                _remove_large_files(out / "run")
            about["seconds"] = time.monotonic() - began
            _record(out, about, outcomes)
    bad = [f"{one.name} ({one.status})" for one in outcomes if one.status != "done"]
    if bad:
        raise DataError(f"{out}: {len(bad)} of {len(outcomes)} steps: {', '.join(bad)}; see logs/")
    return outcomes


def _refuse_other_folder(out: Path) -> None:
    """A suite takes a new folder, an empty one, or one that a suite made.

    Raises:
        ConfigError: It is something else; nothing was touched.
        OSError: It cannot be looked into.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a folder; choose another --out")
    # A kill within the first writing leaves no more than the draft.
    if all(path.name == f".{_RECORD}{TEMPORARY}" for path in out.iterdir()):
        return
    try:
        document = json.loads((out / _RECORD).read_bytes())
    except (FileNotFoundError, IsADirectoryError, ValueError):
        document = None
    if not isinstance(document, dict) or not document.keys() >= _RECORD_KEYS:
        raise ConfigError(
            f"--out {out}: is not empty, and no suite made what it holds; expected a new folder, "
            "or an earlier suite's; choose another --out"
        )
    run = out / "run"
    if os.path.lexists(run) and not _is_suite_run(run):
        raise ConfigError(f"--out {run}: is no suite's training run; move it, or choose another")


def _is_suite_run(run: Path) -> bool:
    """Whether a suite's step made a folder of a training run: of data that only a suite has."""
    if run.is_symlink() or not run.is_dir():
        return False
    settings = run / "config.toml"
    if not settings.is_file():  # It is the first file; only its draft may be there before.
        return all(path.name == f".{settings.name}{TEMPORARY}" for path in run.iterdir())
    try:
        shards = Path(tomllib.loads(settings.read_text(encoding="utf-8"))["data"]["shards"])
    except (ValueError, KeyError, TypeError):
        return False
    return shards.parent.name.startswith(_SCRATCH_PREFIX)


def _clear(out: Path) -> None:
    """Remove what an earlier suite left, but for its record, which is replaced.

    Raises:
        OSError: It cannot be removed.
    """
    for old in _FOLDERS:
        if os.path.lexists(out / old):
            shutil.rmtree(out / old)
    (out / "tests.xml").unlink(missing_ok=True)


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does: a cluster that takes a job back sends it first."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread may handle signals; whoever runs us here decides.
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(step: Step, *, limit: float, log: Path) -> Outcome:
    """One step, with all it starts, to its end or its limit.

    Stop it after ``limit`` seconds; what it prints goes to the file ``log``.
    """
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        # The tests need none of what a machine's pytest may be dressed with.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    tied = [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *step.command]
    began, status = time.monotonic(), "done"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            tied, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
            cwd=log.parent, env=environment, start_new_session=True,
        )  # fmt: skip
        try:
            if process.wait(limit):
                status = "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            # Also what a step left behind: it would disturb those after it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    lines = log.read_text(errors="replace").splitlines()
    why = {
        "done": "",
        "failed": f"exit {process.returncode}",
        "timed out": f"still running after {limit:.0f} s",
    }
    return Outcome(
        name=step.name, status=status, seconds=time.monotonic() - began, why=why[status],
        last=[] if status == "done" else lines[-_LOG_LINES_KEPT:], command=step.command,
    )  # fmt: skip


def _outcome(step: Step, before: list[Outcome], left: float, out: Path) -> Outcome:
    """Run a step, if what it needs was done and there is time."""
    done = {one.name for one in before if one.status == "done"}
    why = ""
    if missing := [name for name in step.needs if name not in done]:
        why = f"needs {', '.join(missing)}"
    elif left < step.least:
        why = "no time left"
    if why:
        return Outcome(name=step.name, status="not run", why=why, command=step.command)
    name = step.name.replace(",", "").replace(" ", "-")
    log = out / "logs" / f"{len(before):02d}-{name}.log"
    limit = left if step.limit is None else min(step.limit, left)
    return run(step, limit=limit, log=log)


def _remove_large_files(run: Path) -> None:
    """Keep what is small of a training run: figures and panels, not weights."""
    for path in list(run.rglob("*")):
        if path.is_file() and path.suffix not in (".jsonl", ".toml", ".html", ".png"):
            path.unlink()


def _record(out: Path, about: dict[str, Any], outcomes: list[Outcome]) -> None:
    """Everything so far, as one JSON file and as a page."""
    document: dict[str, Any] = {**about, "steps": [asdict(one) for one in outcomes]}
    for kind in ("figures", "profiles"):
        found = sorted((out / kind).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        document[kind] = [json.loads(path.read_text()) for path in found]
    document["tests"] = _tests(out / "tests.xml")
    metrics = out / "run" / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    document["training"] = [json.loads(line) for line in lines]
    document["trained_on"] = document["size"]["trained"]
    for name, text in (
        (_RECORD, json.dumps(document, indent=1) + "\n"),
        ("suite.md", page(document)),
    ):
        write_text(out / name, text)


def _tests(path: Path) -> dict[str, str]:
    """Every test's name → passed, skipped or failed, and why."""
    found: dict[str, str] = {}
    if not path.is_file():
        return found
    for case in ElementTree.parse(path).iter("testcase"):
        result = "passed"
        for child in case:
            if child.tag in ("failure", "error", "skipped"):
                kind = "skipped" if child.tag == "skipped" else "failed"
                result = " ".join(f"{kind}: {child.get('message', '')}".split())[:200]
        found[case.get("name", "?")] = result
    return found
