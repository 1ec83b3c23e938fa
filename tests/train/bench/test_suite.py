import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from shardline_offline import offline

from shardify.errors import DataError
from train.bench.suite import run, suite
from train.bench.suite_page import page
from train.bench.suite_steps import FULL, TENTH, Step, steps
from train.cli import main
from train.errors import ConfigError, RunError

ROOT = Path(__file__).resolve().parents[3]
STEPS = [
    "data", "build keep", "tests", "256 px", "build raw", "compiled", "few", "build trained",
    "training", "what bounds", "raw", "decoder engine", "64 and 128 px",
]  # fmt: skip


def step(code: str, **more) -> Step:
    return Step(**{"name": "one", "command": [sys.executable, "-c", code], "limit": 20, **more})


def agenda(size) -> list[Step]:
    return steps(size, device="cuda", out=Path("out"), scratch=Path("scratch"))


def sweeps(size) -> list[dict]:
    """Everything that is swept through."""
    return [
        json.loads(word)
        for one in agenda(size)
        if one.command[2] == "train.bench.sweep"
        for word in one.command[3:]
        if word != "--group"
    ]


# The whole, as on a GPU


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tenth_of_the_suite_runs_here_without_what_a_gpu_machine_may_lack(tmp_path) -> None:
    """The command as it is typed, where nothing but the packages of docs/gpu.md can be imported."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "train", "bench", "--suite", "--device", "cpu", "--out", str(out)],
        env=offline(tmp_path), cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    record = json.loads((out / "suite.json").read_text())
    assert done.returncode == 0, record["steps"]
    assert [one["name"] for one in record["steps"]] == STEPS
    assert [one["status"] for one in record["steps"]] == ["done"] * len(STEPS)
    assert record["size"]["samples"] == 2000
    assert done.stderr.count("\n") == len(STEPS)

    figures = record["figures"]
    assert len(list((out / "figures").glob("*.json"))) == len(figures)
    for one in [record, *figures, *record["profiles"]]:
        assert one["device"] == "cpu"
        assert "driver" in one
        assert one["date"]
        assert one["versions"]["torch"]
        assert one["hardware"]["cores"]
    for one in figures:
        assert one["samples_per_s"]["min"] > 0
        assert one["command"].startswith("python -m train.bench.sweep")
    loader = {
        (one["label"], one["job"]["res"], one["job"]["batch_size"])
        for one in figures if one["name"] == "to device"
    }  # fmt: skip
    assert {("keep", res, 64) for res in (64, 128, 256)} <= loader
    assert {("raw", res, 64) for res in (64, 128, 256)} <= loader
    assert {("keep", 256, batch) for batch in (16, 64, 256)} <= loader
    network = [one for one in figures if one["name"] == "end to end"]
    assert {one["job"]["res"] for one in network} == {64, 128, 256}
    assert {one["job"]["compile"] for one in network} == {"no", "trace"}
    assert all(0 <= one["data_wait"] <= 1 for one in network)
    loads = [one["job"]["hw_decoder_load"] for one in figures if one["name"] == "decode"]
    assert loads == [0.0, 0.65, 0.9, 1.0]

    stages = {one["name"]: one for one in record["profiles"]}
    assert set(stages) == {"to device", "model alone", "end to end"}
    assert stages["model alone"]["host_operators"][0]["name"] == "aten::convolution_backward"
    assert len(list((out / "profiles").glob("*.trace.json.gz"))) == 3

    assert [one["res"] for one in record["training"]] == [64, 256]
    assert [one["step"] for one in record["training"]] == [7, 9]
    assert len(list((out / "run" / "panels").glob("*.png"))) == 2
    assert not list((out / "run").rglob("*.safetensors"))

    assert record["tests"]
    assert set(record["tests"].values()) == {"skipped: needs an NVIDIA GPU; none here"}
    text = (out / "suite.md").read_text()
    assert "All steps were done." in text
    assert "| keep | 256 | 1 | end to end |" in text
    assert "Heaviest of *model alone* on the host:" in text


def test_no_time_is_spent_on_what_no_longer_fits(tmp_path) -> None:
    with pytest.raises(DataError, match=r"13 of 13 steps: data \(not run\)"):
        suite(tmp_path / "out", device="cpu", size=replace(TENTH, budget=0))
    record = json.loads((tmp_path / "out" / "suite.json").read_text())
    assert {one["why"] for one in record["steps"]} <= {
        "no time left", "needs data", "needs few", "needs build keep", "needs build raw",
        "needs build trained", "needs build keep, build raw", "needs build raw, build keep",
    }  # fmt: skip
    assert "no time left" in (tmp_path / "out" / "suite.md").read_text()


# A run cut short

FIGURE = """
import json, pathlib
out = pathlib.Path({out!r}) / "figures"
out.mkdir()
job = dict(res=64, batch_size=16, compile="no", hw_decoder_load=0.65)
rate = dict(median=123456.0, min=1.0, max=2.0)
(out / "one.json").write_text(json.dumps(dict(
    label="keep", name="to device", job=job, samples_per_s=rate, cpu_ms_a_sample=1.0,
    data_wait=None, gpu_mean={{}})))
"""

SUITE = """
import sys
from train.bench import suite
from train.bench.suite_steps import Step
from train.cli import main

code = [{figure!r}, "import os, pathlib, time; "
        "pathlib.Path({pid!r}).write_text(str(os.getpid())); time.sleep(60)", "pass"]
suite.steps = lambda *_, **__: [
    Step(name=name, command=[sys.executable, "-c", each], limit=50)
    for name, each in zip(["first", "second", "third"], code)
]
main(["bench", "--suite", "--device", "cpu", "--out", {out!r}])
"""


@pytest.mark.parametrize(("number", "code", "status"), [
    (signal.SIGTERM, 130, "stopped"), (signal.SIGINT, 130, "stopped"),
    (signal.SIGKILL, -signal.SIGKILL, "running"),
])  # fmt: skip
def test_a_run_cut_short_leaves_what_it_measured_and_no_process(
    tmp_path, number, code, status
) -> None:
    out, pid = tmp_path / "out", tmp_path / "pid"
    program = SUITE.format(figure=FIGURE.format(out=str(out)), pid=str(pid), out=str(out))
    going = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        _until(lambda: pid.is_file() and pid.read_text())
        going.send_signal(number)
        _, said = going.communicate(timeout=60)
    finally:
        going.kill()
    assert going.returncode == code
    _until(lambda: not _alive(int(pid.read_text())))
    record = json.loads((out / "suite.json").read_text())
    assert [one["status"] for one in record["steps"]] == ["done", status, "pending"]
    assert [one["label"] for one in record["figures"]] == ["keep"]
    text = (out / "suite.md").read_text()
    assert "123,456" in text
    assert "Not done: second, third." in text
    if number != signal.SIGKILL:
        assert "stopped in second; suite.md has what was measured until then" in said
        assert not list(tmp_path.glob("shardline-suite-*"))


def _until(true) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


# What is the user's


def rehearse(out: Path) -> int:
    arguments = ["bench", "--suite", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(main, arguments)
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.exit_code


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def fill(folder: Path, *names: str) -> dict[str, bytes | None]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"the user's {name}")
    return tree(folder)


@pytest.mark.parametrize(
    "names",
    [
        ("run/best.safetensors", "run/config.toml"),
        ("figures/one.png", "profiles/mine", "logs/x.log", "tests.xml"),
        ("notes.txt",),
        ("suite.json", "run/best.safetensors"),
        ("suite.json/inside", "run/best.safetensors"),
    ],
)
def test_a_folder_that_no_suite_made_is_refused_untouched(tmp_path, monkeypatch, names) -> None:
    monkeypatch.setattr("train.bench.suite.steps", lambda *_, **__: [step("print('fine')")])
    before = fill(tmp_path, *names)
    with pytest.raises(ConfigError, match="is not empty, and no suite made what it holds"):
        suite(tmp_path, device="cpu")
    assert rehearse(tmp_path) == 2
    assert tree(tmp_path) == before


def test_a_suite_takes_its_own_folder_again_and_an_empty_one(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("train.bench.suite.steps", lambda *_, **__: [step("print('fine')")])
    suite(tmp_path, device="cpu")
    left = fill(tmp_path, "figures/old.png", "logs/old.log", "tests.xml", "mine.txt")
    assert left.keys() > {"suite.json", "suite.md", "logs/00-one.log"}
    (tmp_path / "figures" / "old.json").write_text("{}")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(
        '[data]\nshards = "/tmp/shardline-suite-abc/trained"\n'
    )
    suite(tmp_path, device="cpu")
    left = tree(tmp_path)
    assert set(left) == {"suite.json", "suite.md", "logs", "logs/00-one.log", "mine.txt"}
    assert json.loads(left["suite.json"])["figures"] == []


def test_the_record_is_what_a_suite_writes_first(tmp_path, monkeypatch) -> None:
    """Whenever it is killed, the next one knows the folder."""
    monkeypatch.setattr("train.bench.suite.steps", lambda *_, **__: [step("print('fine')")])
    seen: list[set[str]] = []
    make = Path.mkdir

    def killed(self: Path, *words, **options) -> None:
        if self.name == "logs":
            seen.append({path.name for path in self.parent.iterdir()})
            raise KeyboardInterrupt
        make(self, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", killed)
        with pytest.raises(KeyboardInterrupt):
            suite(tmp_path / "out", device="cpu")
    assert seen == [{"suite.json", "suite.md"}]
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / ".suite.json.tmp").write_text("{")
    for name in ("out", "bare"):
        assert [one.status for one in suite(tmp_path / name, device="cpu")] == ["done"]


def test_a_users_run_in_a_suites_folder_is_refused_untouched(tmp_path, monkeypatch) -> None:
    """`run` is also where `train run` writes if it is not told otherwise."""
    monkeypatch.setattr("train.bench.suite.steps", lambda *_, **__: [step("print('fine')")])
    suite(tmp_path / "out", device="cpu")
    before = fill(tmp_path / "out", "run/best.safetensors")
    (tmp_path / "other").mkdir()
    for text in ('[data]\nshards = "/data/mine"\n', "no TOML", "[data]\nshards = 3\n", ""):
        if text:
            (tmp_path / "out" / "run" / "config.toml").write_text(text)
            before = tree(tmp_path / "out")
        with pytest.raises(ConfigError, match="run: is no suite's training run; move it"):
            suite(tmp_path / "out", device="cpu")
        assert tree(tmp_path / "out") == before


def test_a_users_run_that_begins_during_a_suite_keeps_its_weights(tmp_path, monkeypatch) -> None:
    out = tmp_path / "out"
    code = (
        "import pathlib, sys; run = pathlib.Path(sys.argv[1]); run.mkdir()\n"
        "(run / 'config.toml').write_text(f'[data]\\nshards = \"{sys.argv[2]}\"')\n"
        "(run / 'best.safetensors').touch()"
    )
    for shards, kept in (("/data/mine", True), ("/x/shardline-suite-1/trained", False)):
        one = step("")
        one.command[-1:] = [code, str(out / "run"), shards]
        monkeypatch.setattr("train.bench.suite.steps", lambda *_, one=one, **__: [one])
        suite(out, device="cpu")
        assert (out / "run" / "best.safetensors").exists() == kept
        assert (out / "run" / "config.toml").exists()
        if kept:
            (out / "run").rename(tmp_path / "mine")


def test_what_a_link_leads_to_is_left_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("train.bench.suite.steps", lambda *_, **__: [step("print('fine')")])
    suite(tmp_path / "out", device="cpu")
    before = fill(tmp_path / "mine", "best.safetensors")
    for name, error in (("run", ConfigError), ("figures", RunError)):
        (tmp_path / "out" / name).symlink_to(tmp_path / "mine")
        with pytest.raises(error):
            suite(tmp_path / "out", device="cpu")
        (tmp_path / "out" / name).unlink()
    assert tree(tmp_path / "mine") == before


def test_a_file_for_a_folder_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="file: is a file; expected a folder"):
        suite(tmp_path / "file", device="cpu")
    with pytest.raises(RunError, match=r"cannot be written .*Not a directory"):
        suite(tmp_path / "file" / "deeper", device="cpu")
    assert rehearse(tmp_path / "file") == 2
    assert rehearse(tmp_path / "file" / "deeper") == 1
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_up_ends_a_suite_in_one_line(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.bench.suite.steps", lambda *_, **__: [step("print('fine')")])
    monkeypatch.setattr("train.bench.suite.write_text", full)
    with pytest.raises(RunError, match=r"cannot be written .*No space left"):
        suite(tmp_path / "out", device="cpu")


def test_a_step_over_its_limit_is_cut_and_the_others_go_on(tmp_path, monkeypatch) -> None:
    three = [
        step("import time; time.sleep(60)", name="slow", limit=1),
        step("print('fine')", name="next"),
        step("print('fine')", name="last", limit=None),
    ]
    monkeypatch.setattr("train.bench.suite.steps", lambda *_, **__: three)
    with pytest.raises(DataError, match=r"1 of 3 steps: slow \(timed out\); see logs/"):
        suite(tmp_path / "out", device="cpu")
    text = (tmp_path / "out" / "suite.md").read_text()
    assert "| slow | timed out | 1 | still running after 1 s |" in text
    assert "Not done: slow." in text
    assert "| last | done |" in text


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
    assert time.monotonic() - began < 30
    assert found.status == "timed out"
    assert found.why == "still running after 2 s"
    assert found.last == ["started"]
    time.sleep(max(0.0, 5 - (time.monotonic() - began)))
    assert not (tmp_path / "late").exists()


def test_steps_see_the_packages_wherever_they_are_started(tmp_path) -> None:
    code = "import train, shardify, model, os; print(os.getcwd())"
    found = run(step(code), limit=60, log=tmp_path / "log")
    assert found.status == "done"
    assert (tmp_path / "log").read_text().strip() == str(tmp_path)


# What is asked for


def test_the_most_valuable_steps_come_first() -> None:
    order = agenda(FULL)
    names = [one.name for one in order]
    assert names == STEPS
    for place, one in enumerate(order):
        assert set(one.needs) <= set(names[:place])


def test_the_tests_see_the_gpu_that_was_asked_for(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    out = Path("out")
    for device, prefix in (("cuda", []), ("cuda:1", ["env", "CUDA_VISIBLE_DEVICES=7"])):
        (one,) = [
            one for one in steps(FULL, device=device, out=out, scratch=out) if one.name == "tests"
        ]
        assert one.command[: len(prefix)] == prefix
        assert one.command[len(prefix)] == sys.executable


def test_all_limits_together_are_nine_minutes() -> None:
    limits = [one.limit for one in agenda(FULL)]
    assert limits.count(None) == 1
    assert limits[-1] is None
    assert all(limit >= 10 for limit in limits[:-1])
    assert sum(limits[:-1]) <= 540
    assert FULL.budget <= 540


def test_every_step_of_a_tenth_has_its_own_limit_too() -> None:
    order = agenda(TENTH)
    assert [one.name for one in order] == STEPS
    assert sum(one.limit is None for one in order) == 1
    assert TENTH.samples * 10 == FULL.samples
    assert TENTH.res == FULL.res


def test_what_the_measurements_are_wanted_for_is_all_asked_for() -> None:
    wanted = sweeps(FULL)
    asked = {
        (one["label"], one["res"], batch, name, one.get("compile", "no"))
        for one in wanted for batch in one["batches"] for name in one["contenders"]
    }  # fmt: skip
    for data in ("keep", "raw"):
        for res in (64, 128, 256):
            assert (data, res, 64, "to device", "no") in asked
    for name in ("to device", "model alone", "end to end"):
        for batch in (16, 64, 256):
            assert ("keep", 256, batch, name, "no") in asked
            assert ("keep", 128, batch, name, "no") in asked
            assert ("raw", 64, batch, name, "no") in asked
            if name != "to device":
                assert ("keep", 256, batch, name, "yes") in asked
                assert ("keep", 128, batch, name, "yes") in asked
                assert ("raw", 64, batch, name, "yes") in asked
    assert ("raw", 64, 64, "end to end", "graphs") in asked
    assert [0.0, 0.65, 0.9, 1.0] in [one.get("loads") for one in wanted]
    assert len(asked) == sum(len(one["batches"]) * len(one["contenders"]) for one in wanted)
    profile = next(one for one in agenda(FULL) if one.name == "what bounds")
    assert json.loads(profile.command[-1])["stages"] == ["to device", "model alone", "end to end"]


def test_a_gpu_that_is_not_there_is_said_before_anything_starts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch finds no GPU; use --device cpu"):
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
    monkeypatch.setattr("train.bench.suite.steps", lambda *_, **__: two)
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["bench", "--suite", "--device", "cpu", "--out", str(out)])
    assert result.exit_code == 1
    assert "1 of 2 steps: two (failed); see logs/" in result.output
    assert "exit 3" in (out / "suite.md").read_text()


# The page


def record(**more) -> dict:
    return {
        "device": "Some GPU", "driver": "580.1", "driver_cuda": "13.0", "date": "", "command": "",
        "hardware": {"cpu": "c", "cores": 16, "memory_gb": 1}, "versions": {}, "seconds": 1.0,
        "size": {"samples": 10, "backgrounds": 2}, "trained_on": 10, "steps": [], "figures": [],
        "profiles": [], "training": [], "tests": {}, **more,
    }  # fmt: skip


def figure(name: str, rate: float, **more) -> dict:
    job = {"res": 256, "batch_size": 64, "compile": more.pop("compile", "no"),
           "hw_decoder_load": 0.9}  # fmt: skip
    return {
        "label": "keep", "name": name, "job": job, "cpu_ms_a_sample": 0.5,
        "samples_per_s": {"median": rate, "min": rate - 100, "max": rate + 100},
        "data_wait": 0.01 if name == "end to end" else None,
        "gpu_mean": {"compute": 97.0, "jpeg": 12.0}, **more,
    }  # fmt: skip


def test_the_page_tells_of_figures_and_of_those_that_failed() -> None:
    bad = {"label": "keep", "name": "decode", "job": figure("", 0)["job"], "error": "no | decoder"}
    text = page(record(figures=[figure("end to end", 2000.0), bad]))
    row = "| keep | 256 | 64 | end to end |  |  | 2,000 | 1,900 to 2,100 | 0.50 | 1.0% |"
    assert f"{row} 97 | 12 | 200 |" in text
    assert "| 0.9 | failed: no \\| decoder |" in text


def test_the_page_holds_training_against_the_network_alone_and_the_loader() -> None:
    figures = [
        figure("to device", 6000.0, label="raw"), figure("model alone", 2000.0),
        figure("end to end", 1900.0), figure("end to end", 1980.0, label="raw"),
        figure("model alone", 3000.0, compile="yes"), figure("model alone", 3300.0,
        compile="graphs"),
    ]  # fmt: skip
    text = page(record(figures=figures))
    assert "| keep | 256 | 64 |  | 1,900 | 2,000 | 95.0% | 1.0% |  |  |" in text
    assert "| raw | 256 | 64 |  | 1,980 | 2,000 | 99.0% | 1.0% | 6,000 | 3.0 |" in text
    assert "| px | Batch | eager | yes | graphs | best over eager |" in text
    assert "| 256 | 64 | 2,000 | 3,000 | 3,300 | 1.65 |" in text


def test_the_page_names_what_bounds_a_stage_and_its_heaviest_operators() -> None:
    operator = {"name": "conv | x", "ms": 3.25, "share": 0.5, "calls": 12}
    good = {
        "name": "end to end", "job": {"res": 256, "batch_size": 64}, "batches": 6, "wall_ms": 40.0,
        "device_ms": 38.0, "host_ms": 12.0, "cores": 3.0, "data_wait": 0.0, "bound": "the GPU",
        "device_operators": [operator], "host_operators": [],
    }  # fmt: skip
    bad = {"name": "to device", "job": good["job"], "error": "broken"}
    text = page(record(profiles=[good, bad]))
    assert "| end to end | 256 | 64 | 40.00 | 38.00 | 12.00 | 3.0 | 0.0% | the GPU |" in text
    assert "| `conv \\| x` | 3.250 | 50.0% | 2 |" in text
    assert "failed: broken" in text
