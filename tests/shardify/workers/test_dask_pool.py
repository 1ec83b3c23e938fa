"""A Dask cluster gives the bytes of a local build, whichever of its workers dies meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from shardline_bucket import BUCKET, Store, content, serve, small_zip
from shardline_sources import files_of, spread

from shardify.cli import main
from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.errors import BuildError, StoreError
from shardify.storage.paths import Url, as_path
from shardify.workers import dask_pool
from shardify.workers.dask_pool import DaskPool
from shardify.workers.factory import create_pool
from shardify.workers.pool import InlinePool
from shardify.workers.process_pool import Workers


@dataclass(frozen=True)
class Started:
    """A scheduler with two workers, each a process of its own that nobody starts again."""

    address: str
    workers: list["subprocess.Popen[bytes]"]


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def running(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    del store  # Its address is in the environment, which the workers shall have.
    folder = tmp_path_factory.mktemp("cluster")
    told = folder / "scheduler.json"
    common = ["--scheduler-file", str(told)]
    commands = [
        ["dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *common],
        *[
            ["dask_worker", "--no-nanny", "--no-dashboard", "--nthreads", "1", "--host",
             "127.0.0.1", "--local-directory", str(folder), *common]
        ] * 2,
    ]  # fmt: skip
    log = (folder / "log").open("wb")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{command[0]}", *command[1:]],
            stdout=log,
            stderr=log,
        )
        for command in commands
    ]
    try:
        deadline = time.monotonic() + 60
        while not told.exists():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        address = json.loads(told.read_text())["address"]
        distributed = pytest.importorskip("distributed")
        with distributed.Client(address, set_as_default=False, timeout=30) as client:
            client.wait_for_workers(2, timeout=60)
        yield Started(address, processes[1:])
    finally:
        for process in reversed(processes):
            process.kill()
            process.wait()
        log.close()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_zip(tmp_path_factory.mktemp("source") / "x.zip", samples=60)


@pytest.fixture(scope="module")
def local(packed: Path) -> dict[str, bytes]:
    out = packed.parent / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "shardify.workers.factory.create_pool", lambda target, **_: InlinePool(target)
        )
        build([packed], out, BuildOptions(val=0.25, shard_samples=1))
    return content(out)


def test_from_bucket_to_bucket_on_a_cluster(
    running: Started, store: Store, packed: Path, local: dict[str, bytes]
) -> None:
    source = store.put("in/x.zip", packed.read_bytes())
    out = as_path(f"s3://{BUCKET}/out")
    build(
        [as_path(source)], out, BuildOptions(val=0.25, shard_samples=1, scheduler=running.address)
    )
    assert store.content("out") == local


def test_a_folder_and_a_prefix_give_on_a_cluster_what_they_give_here(
    running: Started, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of()
    folder = spread(tmp_path / "data", files)
    options = BuildOptions(val=0.25, shard_samples=3, scheduler=running.address)
    build([folder], tmp_path / "far", options)
    for name, data in files.items():
        store.client.put_object(Bucket=BUCKET, Key=f"set/data/{name}", Body=data)
    build([as_path(f"s3://{BUCKET}/set/data/")], as_path(f"s3://{BUCKET}/far"), options)
    monkeypatch.setattr(
        "shardify.workers.factory.create_pool", lambda target, **_: InlinePool(target)
    )
    build([folder], tmp_path / "near", options)
    assert content(tmp_path / "far") == content(tmp_path / "near")
    assert store.content("far") == content(tmp_path / "near")


def test_what_a_task_raises_is_raised_here(running: Started) -> None:
    with (
        create_pool("shardify.cli:_fail", scheduler=running.address) as pool,
        pytest.raises(BuildError, match=r"a worker failed: .*; see its log"),
    ):
        list(pool.map([1]))
    with (
        create_pool("shardify.dataset.manifest:Manifest.load", scheduler=running.address) as pool,
        pytest.raises(BuildError, match="a worker failed: AttributeError"),
    ):
        list(pool.map([1]))
    with (
        create_pool("shardify.storage.readers:open_source", scheduler=running.address) as pool,
        pytest.raises(StoreError, match="nosuch://x: Protocol not known"),
    ):
        list(pool.map(["nosuch://x"]))


def test_a_path_that_workers_do_not_see_is_told_before_any_work(
    running: Started, packed: Path
) -> None:
    with packed.open("rb") as file:
        os.dup2(file.fileno(), 900)
    try:
        with pytest.raises(BuildError, match="does not see it; expected a folder that all share"):
            DaskPool("x:y", running.address, [Path("/dev/fd/900")])
    finally:
        os.close(900)


def test_workers_of_another_version_are_refused(
    running: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_pool, "_version", lambda: "9.9.9")
    with pytest.raises(BuildError, match=r"has shardline .*; expected 9\.9\.9, as here"):
        DaskPool("x:y", running.address)


def test_a_worker_killed_in_the_middle_changes_nothing(
    running: Started, packed: Path, local: dict[str, bytes], tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    victim = running.workers[0]
    done: list[int] = []
    lost: list[object] = []
    with distributed.Client(running.address, set_as_default=False) as watcher:
        pids = watcher.run(os.getpid)
        address = next(each for each, pid in pids.items() if pid == victim.pid)

        def kill() -> None:
            """Kill it with work in its hands: stopped, it cannot finish what it has."""
            while not lost and not over.is_set():
                if watcher.processing().get(address):
                    victim.send_signal(signal.SIGSTOP)
                    over.wait(0.3)  # What it had finished before is told by then.
                    lost.extend(watcher.processing().get(address, ()))
                    victim.send_signal(signal.SIGKILL if lost else signal.SIGCONT)

        def progress(samples: int, total: int) -> None:
            assert total == 60
            done.append(samples)

        over = threading.Event()
        killer = threading.Thread(target=kill)
        killer.start()
        try:
            options = BuildOptions(val=0.25, shard_samples=1, scheduler=running.address)
            build([packed], tmp_path / "out", options, progress=progress)
        finally:
            over.set()
            killer.join()
    assert lost
    assert victim.wait(10) == -signal.SIGKILL
    assert running.workers[1].poll() is None
    assert done[-1] == 60
    assert content(tmp_path / "out") == local


def test_a_cluster_without_workers_is_given_up(
    running: Started, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_pool, "_WORKER_TIMEOUT", 1)

    def progress(samples: int, total: int) -> None:
        del samples, total
        for worker in running.workers:
            worker.kill()

    options = BuildOptions(val=0.25, shard_samples=1, scheduler=running.address)
    with pytest.raises(
        BuildError,
        match="no worker was left for 1 s; what is finished is kept",
    ):
        build([packed], tmp_path / "out", options, progress=progress)
    assert not (tmp_path / "out" / "manifest.json").exists()
    with pytest.raises(BuildError, match="no worker came within 1 s"):
        DaskPool("x:y", running.address)


def test_no_scheduler_is_one_line(
    packed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dask_pool, "_CONNECT_TIMEOUT", 1)
    words = ["build", str(packed), str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:9"]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: tcp://127.0.0.1:9: no Dask scheduler answers; expected tcp://")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BuildError, match="not installed; pip install distributed"):
        create_pool("x:y", scheduler="tcp://127.0.0.1:9")


def test_what_lives_in_one_process_stays_in_it() -> None:
    private = Url("memory://x.zip")
    assert isinstance(
        create_pool("shardify.dataset.index:parse_index", places=[private]), InlinePool
    )
    with pytest.raises(StoreError, match=r"memory://x\.zip: lives in one process"):
        create_pool("x:y", scheduler="tcp://127.0.0.1:9", places=[private])
    with create_pool(
        "shardify.dataset.index:parse_index", workers=1, places=[Path("x.zip")]
    ) as pool:
        assert isinstance(pool, Workers)


def test_what_is_no_address_is_refused_at_once_and_for_good() -> None:
    code = (
        "from shardify.workers.dask_pool import DaskPool\n"
        "try: DaskPool('shardify.writer.shard_writer:run_task', 'foo')\n"
        "except Exception as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("foo: no address of a Dask scheduler; expected tcp://HOST:PORT")
    assert not done.stderr
