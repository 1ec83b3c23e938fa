import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from train import nvml
from train.agenda import FULL, TENTH, Step, steps
from train.cli import main
from train.errors import ConfigError, DataError
from train.page import page
from train.suite import run, suite

SMALL = replace(
    TENTH, samples=24, backgrounds=6, res=(16, 32, 48), batches=(2, 2, 2), windows=1, seconds=0.05
)


def step(code: str, **more) -> Step:
    return Step(name="one", command=[sys.executable, "-c", code], limit=20, **more)


# The whole, as on a GPU


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_step_of_the_suite_runs_and_leaves_its_figures(tmp_path) -> None:
    out, said = tmp_path / "out", []
    outcomes = suite(out, device="cpu", size=SMALL, say=said.append)
    assert [one.status for one in outcomes] == ["done"] * len(outcomes)
    assert len(said) == len(outcomes) == 15
    record = json.loads((out / "suite.json").read_text())
    figures = record["figures"]
    measured = {(one["label"], one["job"]["res"], one["job"]["batch_size"]) for one in figures}
    for res in (16, 32, 48):
        assert ("keep", res, 2) in measured
    assert {("raw", 16, 2), ("raw", 48, 2)} <= measured
    for one in figures:
        assert one["samples_per_s"]["min"] > 0
        assert one["date"]
        assert one["command"].startswith("python -m train.sweep")
        assert one["versions"]["torch"]
        assert one["hardware"]["cores"]
        assert "driver" in one
    loads = [one["job"]["hw_decoder_load"] for one in figures if one["name"] == "decode"]
    assert loads == [0.0, 0.65, 0.9, 1.0]
    assert {one["job"]["compile"] for one in figures} == {"no", "trace"}
    assert all(one["data_wait"] is not None for one in figures if one["name"] == "end to end")
    assert [one["res"] for one in record["training"]] == [16, 48]
    assert len(list((out / "run" / "panels").glob("*.png"))) == 2
    assert record["tests"]
    assert not any(result.startswith("failed") for result in record["tests"].values())
    text = (out / "suite.md").read_text()
    assert "| keep | 48 | 2 | end to end |" in text
    assert len(list((out / "figures").glob("*.json"))) == len(figures)


def test_no_time_is_spent_on_what_no_longer_fits(tmp_path) -> None:
    with pytest.raises(DataError, match=r"15 of 15 steps: data \(not run\)"):
        suite(tmp_path / "out", device="cpu", size=replace(SMALL, budget=0))
    record = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert {one["why"] for one in record["steps"]} <= {
        "no time left", "needs data", "needs build keep", "needs build raw"
    }  # fmt: skip
    assert "no time left" in (tmp_path / "out" / "suite.md").read_text()


# What a step may do to the others


def test_a_step_that_fails_is_recorded_with_its_last_lines(tmp_path) -> None:
    code = "import sys\nfor n in range(99): print(n, flush=True)\nsys.exit('Error: no')"
    found = run(step(code), limit=20, log=tmp_path / "log")
    assert (found.status, found.why) == ("failed", "exit 1")
    assert found.last[-2:] == ["98", "Error: no"]
    assert len(found.last) < 20


def test_a_step_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path) -> None:
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    began = time.monotonic()
    found = run(step(code), limit=2, log=tmp_path / "log")
    assert time.monotonic() - began < 10
    assert found.status == "timed out"
    assert found.why == "still at work after 2 s"
    assert found.last == ["started"]
    time.sleep(max(0.0, 5 - (time.monotonic() - began)))
    assert not (tmp_path / "late").exists()


def test_steps_see_the_packages_wherever_they_are_started(tmp_path) -> None:
    code = "import train, shardify, model, os; print(os.getcwd())"
    found = run(step(code), limit=60, log=tmp_path / "log")
    assert found.status == "done"
    assert (tmp_path / "log").read_text().strip() == str(tmp_path)


# What is asked for


def test_the_most_valuable_steps_come_first_and_each_has_a_limit() -> None:
    order = steps(FULL, device="cuda", out=Path("out"), scratch=Path("scratch"))
    names = [one.name for one in order]
    assert names[:4] == ["data", "build keep", "tests", "256 px"]
    assert names.index("training") < names.index("128 px")
    assert all(5 <= one.limit <= 150 for one in order)
    assert len(set(names)) == len(names)
    for place, one in enumerate(order):
        assert set(one.needs) <= set(names[:place])
    wanted = [json.loads(one.command[-1]) for one in order if "train.sweep" in one.command]
    assert {one["res"] for one in wanted} == {64, 128, 256}
    for res in (64, 128, 256):
        plain = {
            batch for one in wanted for batch in one["batches"]
            if one["res"] == res and "compile" not in one
        }  # fmt: skip
        assert plain == {16, 64, 256}
        assert any(one["res"] == res and one.get("compile") == "yes" for one in wanted)
    assert [0.0, 0.65, 0.9, 1.0] in [one.get("loads") for one in wanted]


def test_a_gpu_that_is_not_there_is_said_before_anything_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU here; use --device cpu"):
        suite(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite"], "--out: missing"),
        (["--res", "64"], "--shards: missing"),
        (["--shards", "x"], "--res: missing"),
    ],
)
def test_the_command_says_what_is_missing(arguments, message) -> None:
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_the_command_ends_with_1_and_names_what_failed(tmp_path, monkeypatch) -> None:
    two = [step("print('fine')"), replace(step("raise SystemExit(3)"), name="two")]
    monkeypatch.setattr("train.suite.steps", lambda *_, **__: two)
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["bench", "--suite", "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 1
    assert "1 of 2 steps: two (failed); see logs/" in result.output
    assert "exit 3" in (out / "suite.md").read_text()


# The page, and the driver


def test_the_page_tells_of_figures_and_of_those_that_failed() -> None:
    job = {"res": 256, "batch_size": 64, "compile": "no", "hw_decoder_load": 0.9}
    good = {
        "label": "keep", "name": "end to end", "job": job, "cpu_ms_a_sample": 0.5,
        "samples_per_s": {"median": 2000.0, "min": 1900.0, "max": 2100.0}, "data_wait": 0.01,
        "gpu_mean": {"compute": 97.0, "jpeg": 12.0},
    }  # fmt: skip
    bad = {"label": "keep", "name": "decode", "job": job, "error": "no | decoder"}
    text = page({
        "device": "Some GPU", "driver": "580.1", "driver_cuda": "13.0", "date": "", "command": "",
        "hardware": {"cpu": "c", "cores": 16, "memory_gb": 1}, "versions": {}, "seconds": 1.0,
        "size": {"samples": 10, "backgrounds": 2}, "steps": [], "figures": [good, bad],
        "training": [], "tests": {},
    })  # fmt: skip
    row = "| keep | 256 | 64 | end to end |  |  | 2,000 | 1,900 to 2,100 | 0.50 | 1.0% |"
    assert f"{row} 97 | 12 | 200 |" in text
    assert "| 0.9 | failed: no \\| decoder |" in text


def test_a_watch_tells_means_and_peaks_of_all_that_was_seen() -> None:
    values = iter([{"jpeg": 0.0}, {"jpeg": 30.0, "compute": 50.0}] + [{}] * 1000)
    with nvml.Watch(every=0.01, look=lambda: next(values)) as watch:
        time.sleep(0.1)
    assert watch.means() == {"jpeg": 15.0, "compute": 50.0}
    assert watch.peaks() == {"jpeg": 30.0, "compute": 50.0}


@pytest.mark.skipif(nvml.driver() is not None, reason="there is a driver")
def test_without_a_driver_every_answer_is_none() -> None:
    assert nvml.name() is None
    assert nvml.cuda_version() is None
    assert nvml.parts() == {}
