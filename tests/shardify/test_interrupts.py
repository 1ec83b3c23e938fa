"""Ctrl-C ends a real process with 130 and without a traceback, whatever it is just importing."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shardline_sources import files_of, pack

from shardify import interrupts


def interrupt(words: list[str], after: int, *, wait: float = 0.0) -> tuple[int, list[str]]:
    """Start a command, and send SIGINT to its group when it has imported so many more modules.

    Counted from ``shardify.interrupts``: before that, the interpreter itself is starting.

    Returns:
        The exit code, and what was printed on stderr but for the imports; 0 and nothing where
        the command was done before.
    """
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    seen, said = -1, []
    for line in process.stderr:
        if not line.startswith("import time:"):
            said.append(line)
            continue
        if seen >= 0 or line.endswith("shardify.interrupts\n"):
            seen += 1
        if seen == after + 1:
            time.sleep(wait)
            try:
                os.killpg(process.pid, signal.SIGINT)
            except ProcessLookupError:
                break
    process.stderr.close()
    return process.wait(), said


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("source") / "x.zip", files_of())


@pytest.mark.parametrize("after", [0, 5, 40, 120, 200])
def test_shardify_is_stopped_at_any_import(source: Path, after: int) -> None:
    code, said = interrupt(["shardify", "inspect", str(source)], after)
    assert code == 130
    assert next(line for line in said if line.strip()).startswith("Interrupted")
    assert not any("Traceback" in line or "ignored" in line for line in said)


@pytest.mark.parametrize("wait", [0.0, 0.1, 0.3])
def test_a_build_is_stopped_at_any_time(source: Path, tmp_path: Path, wait: float) -> None:
    words = ["shardify", "build", str(source), str(tmp_path / "out"), "--workers", "1"]
    code, said = interrupt(words, 250, wait=wait)
    assert code in ((130, 0) if wait else (130,))
    assert not any("Traceback" in line or "ignored" in line for line in said)
    assert code or (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("form", [[], ["--released"]])
@pytest.mark.parametrize("wait", [0.05, 0.4])
def test_synth_is_stopped_while_its_workers_start(
    tmp_path: Path, wait: float, form: list[str]
) -> None:
    words = ["shardify", "synth", str(tmp_path / "x.zip"), "--samples", "400", *form]
    code, said = interrupt(words, 190, wait=wait)
    assert code == 130
    assert not any("Traceback" in line or "ignored" in line for line in said)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 60, 500])
def test_train_is_stopped_at_any_import(tmp_path: Path, after: int) -> None:
    code, said = interrupt(["train", "eval", str(tmp_path), "--shards", str(tmp_path)], after)
    assert code == 130
    assert not any("Traceback" in line or "ignored" in line for line in said)


def in_this_process(command: object, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Run a command with its own SIGINT, and give back what it exits with."""
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stop:
            interrupts.run(lambda: command)  # type: ignore[arg-type, return-value]
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook
    return stop.value.code, capsys.readouterr().err


def test_an_interrupt_that_comes_out_as_another_error_is_one_yet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise ImportError("a library that catches everything") from error

    assert in_this_process(command, capsys) == (130, "Interrupted.\n")


def test_an_interrupt_that_a_destructor_swallowed_comes_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Loud:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def command() -> None:
        loud = Loud()
        del loud
        threading.Event().wait(30)

    begun = time.monotonic()
    assert in_this_process(command, capsys) == (130, "Interrupted.\n")
    assert time.monotonic() - begun < 20


def test_an_interrupt_at_the_interpreters_end_changes_no_exit_code() -> None:
    program = (
        "import os, signal\n"
        "from shardify.interrupts import run\n"
        "class Last:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGINT):\n"
        "        kill(pid, number)\n"
        "run(lambda: lambda: print('done'))\n"
        "import sys; sys.kept = Last()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_an_interrupt_while_a_class_is_made_ends_with_the_same_exit_code(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "from shardify.interrupts import run\n"
        "inside = 'import signal; signal.raise_signal(signal.SIGINT)'\n"
        "run(lambda: lambda: exec(inside))\n"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "program"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


def test_other_errors_and_exits_pass_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_this_process(lambda: sys.exit(3), capsys) == (3, "")


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.run(lambda: lambda: signal.raise_signal(signal.SIGINT))
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_build_succeeds_where_standard_streams_are_closed(
    source: Path, tmp_path: Path, closed: str
) -> None:
    words = [sys.executable, "-m", "shardify", "build", str(source), str(tmp_path / "out")]
    done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *words], check=False)
    assert done.returncode == 0
    assert (tmp_path / "out" / "manifest.json").exists()


def test_the_commands_start_where_an_interrupt_is_heard() -> None:
    import tomllib

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    scripts = tomllib.loads(project.read_text())["project"]["scripts"]
    assert scripts == {"shardify": "shardify.__main__:main", "train": "train.__main__:main"}
