import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from shardline_samples import write_data_set

from shardify.errors import DataError
from shardify.loader.loader import Loader
from train.bench.cases import OWN, PEERS, begin
from train.bench.fixtures import BenchConfig
from train.bench.results import BenchReport, Result
from train.bench.runner import _CaseProcess, bench
from train.bench.sweep import Sweep, measure_group, sweep
from train.errors import ConfigError, RunError
from train.optim.compute import set_cudnn_algorithms


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data_set(tmp_path_factory.mktemp("bench") / "data", train=64)


def job(shards: Path) -> BenchConfig:
    return BenchConfig(shards=str(shards), res=32, batch_size=8, threads=1, device="cpu")


def report(rates: dict[str, list[float]], **extra) -> BenchReport:
    results = [
        Result(name=name, rates=found, cpu_ms=1.0, memory_mb=100.0) for name, found in rates.items()
    ]
    return BenchReport(
        date="", command="train bench", job={"shards": "x", "res": 64, "batch_size": 16,
        "threads": 2}, samples=400_000, windows=1, seconds=1.0, hardware={}, versions={},
        results=results, **extra,
    )  # fmt: skip


def test_bench_measures_each_contender_and_keeps_the_figures(data, tmp_path) -> None:
    chosen = ("augment", "zip + Pillow")
    found = bench(
        job(data),
        windows=2,
        seconds=0.2,
        contenders=chosen,
        built=(str(data),),
    )
    assert [one.name for one in found.results] == [*chosen, f"augment, {data}"]
    assert any(line.startswith(f"From {data}: ") for line in found.lines())
    assert found.samples == 64
    for one in found.results:
        assert len(one.rates) == 2
        assert min(one.rates) > 0
        assert one.memory_mb > 30
    own = found.of("augment")
    assert own is not None
    # Work that is done takes CPU time: at least a hundredth of a millisecond a sample.
    assert own.cpu_ms > 0.01
    found.save(tmp_path / "out")
    kept = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert kept["results"][0]["rate"]["median"] == own.rate
    assert kept["lead"]["over"] in PEERS
    assert kept["versions"]["torch"]
    assert kept["hardware"]["cores"] >= 1
    with Image.open(tmp_path / "out" / "bench.png") as chart:
        assert chart.size[0] == 900
        assert len(chart.getcolors(100_000) or []) > 2


def test_a_contender_that_fails_says_why(tmp_path) -> None:
    data = write_data_set(tmp_path / "data", train=8)
    (data / "train-00000.tar").unlink()
    with pytest.raises(DataError, match=r"bench: augment: .*train-00000\.tar"):
        bench(job(data), windows=1, seconds=0.1, contenders=("augment",))


def test_an_unknown_contender_is_refused_before_anything_starts(data) -> None:
    with pytest.raises(ConfigError, match="'ffcv' is no contender; choose from: read"):
        bench(job(data), contenders=("augment", "ffcv"))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_window_without_a_length_is_refused(data, seconds) -> None:
    with pytest.raises(ConfigError, match=f"--seconds {seconds:g}: expected a number above 0"):
        bench(job(data), seconds=seconds)


def test_a_folder_that_cannot_be_written_is_said_before_anything_starts(
    data, tmp_path, monkeypatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("train.bench.runner._CaseProcess", lambda *words: started.append(words))
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(RunError, match=r"cannot be written .*choose another --out"):
            bench(job(data), contenders=("augment",), out=out)
    assert not started
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_can_be_written_holds_nothing_until_the_report(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no manifest\.json"):
        bench(job(tmp_path), contenders=("augment",), out=tmp_path / "new" / "out")
    assert not list((tmp_path / "new" / "out").iterdir())


def test_a_report_that_cannot_be_saved_is_one_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file: cannot be written"):
        report({"augment": [900.0]}).save(tmp_path / "file")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.bench.results.write_text", full)
    with pytest.raises(RunError, match=r"out: cannot be written .*No space left on device"):
        report({"augment": [900.0]}).save(tmp_path / "out")


@pytest.mark.parametrize("when", ["round 1 of 3", "starting decode"])
def test_a_contender_that_is_killed_is_named(data, when) -> None:
    def kill(line: str) -> None:
        if line == when:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
                child.join()

    expected = r"bench: augment: its process was killed \(out of memory\?\); try a smaller --batch"
    with pytest.raises(DataError, match=expected):
        bench(
            job(data), windows=3, seconds=0.1,
            contenders=("augment", "decode"), say=kill,
        )  # fmt: skip
    assert not multiprocessing.active_children()


def test_a_contender_is_known_to_be_dead_while_its_workers_hold_the_pipe(monkeypatch) -> None:
    monkeypatch.setattr("train.bench.runner._POLL_SECONDS", 0.1)
    racer = _CaseProcess.__new__(_CaseProcess)
    racer.name = "one"
    racer._pipe, held = multiprocessing.Pipe()
    racer._process = multiprocessing.get_context("spawn").Process(target=os._exit, args=(3,))
    racer._process.start()
    with pytest.raises(DataError, match=r"bench: one: its process died \(exit 3\)"):
        racer.wait()
    held.close()
    racer.close()


STOPPED = """
import os, signal, sys, threading, time
from train.bench.fixtures import BenchConfig
from train.bench.runner import bench

def say(line):
    if line.startswith({when!r}):
        threading.Timer({later}, os.killpg, (0, signal.SIGINT)).start()

if __name__ == "__main__":
    try:
        job = BenchConfig(shards={shards!r}, res=32, batch_size=8, threads=1, device="cpu")
        bench(job, contenders=("augment", "decode"), say=say)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize(("when", "later"), [("starting decode", 0.3), ("starting decode", 1.0)])
def test_ctrl_c_while_contenders_start_prints_no_traceback(data, tmp_path, when, later) -> None:
    program = tmp_path / "stopped.py"
    program.write_text(STOPPED.format(when=when, later=later, shards=str(data)))
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, str(program)], env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, "")


def test_the_slowest_stage_of_the_loader_is_named() -> None:
    found = report({"read": [9000.0], "decode": [1000.0], "augment": [900.0]})
    assert found.bottleneck.startswith("the loader: decode takes 0.89 ms a sample, 80%")
    assert "--res" in found.bottleneck
    found = report({"read": [9000.0], "decode": [1000.0], "augment": [100.0]})
    assert found.bottleneck.startswith("the loader: augment takes 9.00 ms")


def test_a_network_slower_than_the_loader_is_the_bottleneck() -> None:
    found = report({"decode": [1000.0], "augment": [900.0], "model alone": [10.0]})
    assert found.bottleneck.startswith("the network: it takes 10 samples/s")


def test_the_lead_is_over_the_fastest_other_loader() -> None:
    first, second = list(PEERS)[:2]
    found = report({"augment": [900.0, 1000.0, 1100.0], first: [100.0], second: [250.0]})
    assert found.lead == (second, 4.0)
    assert found.epoch_seconds == 400.0
    assert "An epoch of this data set (400,000 samples): 6.7 min." in found.lines()
    assert any(line.startswith("4.0 times") for line in found.lines())


def test_what_was_left_out_is_said() -> None:
    found = report({"augment": [900.0]}, left_out={"LitData + Pillow": "not installed"})
    assert found.lead is None
    assert "Left out: LitData + Pillow (not installed)." in found.lines()


def test_no_name_is_both_a_stage_and_a_peer() -> None:
    assert not set(OWN) & set(PEERS)


def test_a_contender_works_on_the_gpu_that_was_asked_for(monkeypatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr("torch.cuda.set_device", chosen.append)
    options = {"shards": "", "split": "train", "res": 64, "batch_size": 8, "threads": 1,
               "model": "resunet", "scratch": ""}  # fmt: skip
    for device in ("cpu", "cuda", "cuda:3"):
        begin("to device", BenchConfig(device=device, **options))
    assert chosen == [3]


# Quick sweeps


def wanted(shards: Path, out: Path, **more) -> Sweep:
    options = {
        "label": "keep", "res": 32, "batches": [4], "device": "cpu", "threads": 1, "windows": 2,
        "seconds": 0.01, "contenders": ["to device", "model alone", "end to end"], **more,
    }  # fmt: skip
    return Sweep(shards=str(shards), out=str(out), **options)


def test_contenders_of_one_setting_share_a_loader_and_a_network(
    data, tmp_path, monkeypatch
) -> None:
    opened, closed, networks = [], [], []
    start, stop = Loader.__init__, Loader.close

    def counted(self: Loader, *words, **options) -> None:
        opened.append(options["batch_size"])
        start(self, *words, **options)

    def counted_too(self: Loader) -> None:
        closed.append(self.batch_size)
        stop(self)

    monkeypatch.setattr(Loader, "__init__", counted)
    monkeypatch.setattr(Loader, "close", counted_too)
    monkeypatch.setattr(
        "train.bench.fixtures.create",
        lambda name: networks.append(name) or torch.nn.Conv2d(6, 1, 1),
    )
    monkeypatch.setattr("train.bench.fixtures.TrainStep", lambda *_, **__: lambda _: None)
    assert sweep(wanted(data, tmp_path / "out", batches=[4, 8]))
    assert opened == [4, 8]
    assert closed == [4, 8]
    assert len(networks) == 2
    figures = [json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()]
    assert [one.get("error") for one in figures] == [None] * 6
    assert all(len(one["windows"]) == 2 for one in figures)


@pytest.mark.slow
def test_a_group_of_sweeps_measures_each_by_itself_and_names_what_failed(data, tmp_path) -> None:
    out = tmp_path / "out"
    sweeps = [
        wanted(data, out, label="first", contenders=["to device"], seconds=0.5),
        wanted(tmp_path / "nothing", out, label="bad", contenders=["to device"]),
        wanted(data, out, label="last", contenders=["to device"], seconds=0.5),
    ]
    assert measure_group(sweeps) == [0, 1, 0]
    figures = {path.name[:4]: json.loads(path.read_text()) for path in out.glob("*.json")}
    assert "no manifest.json" in figures["bad-"]["error"]
    assert figures["firs"]["samples_per_s"]["min"] > 0
    # The date is that of the beginning; each waits for the one before it to end.
    assert figures["firs"]["date"] < figures["last"]["date"]


def test_a_gpu_is_chosen_by_its_number_alone(monkeypatch) -> None:
    """Torch refuses a device without one, and takes the first."""
    chosen: list[int] = []

    def choose(device: torch.device) -> None:
        if device.index is None:
            raise ValueError(f"expected a device with a number, but got {device}")
        chosen.append(device.index)

    monkeypatch.setattr("torch.cuda.set_device", choose)
    monkeypatch.setattr("torch.backends.cudnn.benchmark", False)
    monkeypatch.setattr("torch.backends.cudnn.deterministic", False)
    before = torch.get_float32_matmul_precision()
    try:
        for device in ("cpu", "cuda", "cuda:1"):
            set_cudnn_algorithms(torch.device(device))
            assert torch.backends.cudnn.benchmark == (device != "cpu")
        set_cudnn_algorithms(torch.device("cuda"), deterministic=True)
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before)
    assert chosen == [1]
