"""Workers answer, fail in one line, and are gone when their block ends."""

import itertools
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from shardify.errors import BuildError
from shardify.workers import process_pool
from shardify.workers.process_pool import Workers


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not (state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z")


def test_every_task_is_answered_under_its_number() -> None:
    with Workers("math:sqrt", 2) as pool:
        results = dict(pool.map(number * number for number in range(50)))
        assert results == {number: float(number) for number in range(50)}
        assert dict(pool.map([81])) == {0: 9.0}


def test_two_answers_of_a_worker_that_come_while_the_caller_is_busy_are_both_received() -> None:
    answered = set()
    with Workers("time:sleep", 2) as pool:
        # Who waits in vain is to fail, not to hang.
        guard = threading.Timer(60, os.kill, (pool.pids[1], signal.SIGKILL))
        guard.start()
        try:
            # The second worker holds tasks 1 and 3 while task 2's answer is looked at.
            for number, _ in pool.map([0, 0.3, 0, 0]):
                answered.add(number)
                if number == 2:
                    time.sleep(0.6)
            assert guard.is_alive()
        finally:
            guard.cancel()
    assert answered == {0, 1, 2, 3}


def test_more_workers_than_the_system_takes_are_refused_in_one_line() -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 40, hard))
    try:
        with pytest.raises(BuildError, match=r"^100 workers cannot be .*Too many open files.*;"):
            Workers("math:sqrt", 100)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(list(Path("/dev/fd").iterdir())) <= before


def test_an_interpreter_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BuildError, match="/nowhere/python"):
        Workers("math:sqrt", 2)


def test_a_system_without_more_processes_is_no_traceback() -> None:
    program = (
        "import errno, os\n"
        "from shardify.workers.worker_process import run_workers\n"
        "def fork(): raise BlockingIOError(errno.EAGAIN, 'no more')\n"
        "os.fork = fork\n"
        "run_workers('math:sqrt', os.getppid(), [os.pipe()])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (71, "", "")


@pytest.mark.parametrize("first", [1, 4088, 4096, 5000, 100_000, 500_001])
def test_two_tasks_that_are_said_to_fit_into_a_pipe_do(first: int) -> None:
    source, sink = os.pipe()
    room = process_pool._enlarge_pipe(sink)
    os.set_blocking(sink, False)  # So that one that does not fit is an error, not a hang.
    with os.fdopen(source, "rb", 0), Connection(sink, readable=False) as tasks:
        for size in (first, room - first) if room > 0 else ():
            tasks.send_bytes(bytes(size))


def test_a_module_is_prepared_once_for_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os\nwhere = []\n"
        "def prepare(): where.append(os.getpid())\n"
        "def task(_): return where, os.getpid()\n"
    )
    (tmp_path / "prepared_task.py").write_text(program)
    monkeypatch.syspath_prepend(tmp_path)
    with Workers("prepared_task:task", 2) as pool:
        found = [result for _, result in pool.map(range(8))]
        workers = set(pool.pids)
    assert len({tuple(where) for where, _ in found}) == 1
    assert len(found[0][0]) == 1
    assert not workers & set(found[0][0])
    assert {pid for _, pid in found} <= workers


def test_memory_settings_of_the_caller_are_the_workers_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    with Workers("os:getenv", 1) as pool:
        assert dict(pool.map(["MALLOC_TRIM_THRESHOLD_"])) == {0: "131072"}


def test_a_stray_print_does_not_disturb_the_answers() -> None:
    with Workers("builtins:print", 1) as pool:
        assert dict(pool.map(["hello"])) == {0: None}


def test_an_unforeseen_error_is_one_line() -> None:
    with Workers("math:sqrt", 1) as pool, pytest.raises(BuildError, match="TypeError") as error:
        list(pool.map(["text"]))
    assert "\n" not in str(error.value)


def test_a_worker_whose_task_failed_does_not_begin_the_next(tmp_path: Path) -> None:
    next_one = tmp_path / "next"
    with Workers("os:mkdir", 1) as pool:
        with pytest.raises(BuildError, match="FileExistsError"):
            list(pool.map([str(tmp_path), str(next_one)]))
        time.sleep(0.3)  # It holds the other task already.
        assert not next_one.exists()


def test_a_worker_that_dies_is_reported_not_waited_for() -> None:
    with Workers("os:_exit", 2) as pool, pytest.raises(BuildError, match="died with exit code 3"):
        list(pool.map([3]))


def test_a_killed_worker_is_reported() -> None:
    with Workers("time:sleep", 1) as pool, pytest.raises(BuildError, match="died by signal 9"):
        for _ in pool.map([0, 60]):
            os.kill(pool.pids[0], signal.SIGKILL)


def test_nothing_is_left_running() -> None:
    with Workers("time:sleep", 2) as pool:
        pids = pool.pids
        assert all(map(alive, pids))
        for _ in pool.map([0, 60]):
            break
    assert not any(map(alive, pids))


def test_workers_die_with_a_parent_that_is_killed() -> None:
    script = """
        from shardify.workers.process_pool import Workers
        with Workers("time:sleep", 2) as pool:
            for _ in pool.map([0, 0, 60, 60]):
                print(*pool.pids, flush=True)
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_what_is_no_task_yet_is_asked_for_again_and_has_no_number() -> None:
    with Workers("math:sqrt", 2) as pool:
        assert sorted(pool.map([None, 1, None, None, 4, None])) == [(0, 1.0), (1, 2.0)]
        assert not list(pool.map([None, None]))


def test_results_and_other_work_go_on_while_there_is_no_task_yet() -> None:
    steps: list[int] = []
    seen: list[tuple[int, float]] = []

    def tasks() -> Iterator[int | None]:
        yield 1
        while not seen:
            yield None
        for _ in range(3):
            before = len(steps)
            yield None
            assert len(steps) == before + 1
        yield 4

    with Workers("math:sqrt", 1) as pool:
        pool.idle_work = map(steps.append, itertools.count())
        for result in pool.map(tasks()):
            seen.append(result)
    assert seen == [(0, 1.0), (1, 2.0)]


def test_a_worker_that_dies_is_reported_while_there_is_no_task_yet() -> None:
    with Workers("os:_exit", 1) as pool, pytest.raises(BuildError, match="died with exit code 3"):
        list(pool.map(itertools.chain([3], itertools.repeat(None))))
