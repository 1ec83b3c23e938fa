"""Exit codes, one clear line, help in every command."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from shardify.cli import cli, main
from shardify.synth.generate import generate


def run(*words: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "x.zip"
    generate(path, samples=40, backgrounds=4, size=32, seed=0)
    return path


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(name, "--help", capsys=capsys)
    assert code == 0
    assert f"shardify {name} " in out.partition("Options:")[0].partition("\n")[2]
    for parameter in cli.commands[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.show_default, parameter.name


def test_inspect_build_and_verify_go_through(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run("inspect", source, capsys=capsys)
    assert (code, err) == (0, "")
    assert "40" in out
    code, out, _ = run("inspect", source, "--json", capsys=capsys)
    assert json.loads(out)["splits"]["train"]["samples"] == 30
    code, out, err = run("build", source, tmp_path / "out", "--val", "0.25", capsys=capsys)
    assert (code, err) == (0, "")
    assert "30 train" in out
    code, out, _ = run("build", source, tmp_path / "out", "--val", "0.25", "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["already"]
    code, out, _ = run("verify", tmp_path / "out", "--json", capsys=capsys)
    assert code == 0
    assert json.loads(out)["problems"] == []
    assert run("verify", tmp_path / "out", capsys=capsys)[0] == 0
    assert run("verify", tmp_path / "out" / "manifest.json", capsys=capsys)[0] == 0
    assert run("stats", tmp_path / "out" / "manifest.json", capsys=capsys)[0] == 0


def test_verify_names_the_fault_and_exits_1(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("build", source, tmp_path / "out", "--workers", "1", capsys=capsys)
    (tmp_path / "out" / "train-00000.tar").write_bytes(b"")
    (tmp_path / "out" / "backgrounds.tar").unlink()
    code, _, err = run("verify", tmp_path / "out", capsys=capsys)
    assert code == 1
    assert "train-00000.tar: 0 bytes" in err
    assert "backgrounds.tar: missing" in err
    assert err.splitlines()[-1].startswith("Error: ")
    assert "(2 faults in all)" in err


@pytest.mark.parametrize("data", [None, b"", b"text", b"PK\x05\x06" + bytes(18)])
def test_a_source_that_is_no_zip_is_one_line_and_exit_1(
    tmp_path: Path, data: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if data is not None:
        (tmp_path / "bad.zip").write_bytes(data)
    code, out, err = run("build", tmp_path / "bad.zip", tmp_path / "out", capsys=capsys)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert "bad.zip" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["build"], ["build", "x.zip"], ["build", "x.zip", "out", "--val", "1"],
        ["build", "x.zip", "out", "--codec", "mp3"], ["build", "x.zip", "out", "--workers", "0"],
        ["nothing"], ["inspect", "x.zip", "--seed", "-1"], ["verify"],
        ["build", "x.zip", "out", "--val", "nan"], ["build", "x.zip", "out", "--max-bad", "nan"],
        ["build", "x.zip", "out", "--val", "x%"], ["build", "x.zip", "out", "--val", "100%"],
    ],
)  # fmt: skip
def test_wrong_usage_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(*words, capsys=capsys)
    assert (code, out) == (2, "")
    assert "Error: " in err


def test_a_forgotten_out_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run("build", "x.zip", capsys=capsys)
    assert code == 2
    assert err.endswith("Error: OUT is missing; expected: shardify build x.zip OUT\n")


def test_a_share_is_a_fraction_or_a_percentage(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, share in (("one", "0.25"), ("two", "25%")):
        assert run("build", source, tmp_path / name, "--val", share, capsys=capsys)[0] == 0
    one, two = ((tmp_path / name / "manifest.json").read_bytes() for name in ("one", "two"))
    assert one == two


def test_synth_names_the_zip_that_was_meant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run("synth", tmp_path / "demo", capsys=capsys)
    assert code == 2 and err.endswith(f"pass {tmp_path / 'demo'}.zip\n")
    assert not (tmp_path / "demo").exists()


def test_the_report_names_options_as_a_user_gives_them(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("build", source, tmp_path / "out", "--res", "8", "--res", "16", capsys=capsys)
    run("report", tmp_path / "out", "-o", tmp_path / "x.html", capsys=capsys)
    page = (tmp_path / "x.html").read_text()
    assert "res 8 16, codec keep, seed 0" in page
    assert "1 shard<" in page and "None" not in page


def test_an_interrupt_exits_130(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shardify.conversion.build.build", interrupted)
    code, _, err = run("build", source, tmp_path / "out", capsys=capsys)
    assert code == 130
    assert "run it again" in err


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "shardify", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "shardify" in done.stdout


@pytest.mark.parametrize("command", ["shardify", "train"])
def test_the_version_is_told_where_nothing_was_installed(command: str) -> None:
    code = (
        "import importlib.metadata as metadata\n"
        "real = metadata.version\n"
        "def version(name):\n"
        "    if name == 'shardline':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "metadata.version = version\n"
        f"from {command}.cli import main\n"
        "main(['--version'])\n"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"version {project['version']}\n")


def test_a_command_keeps_no_threads_for_algebra() -> None:
    program = (
        "import sys, pathlib\n"
        "from shardify.__main__ import main\n"
        "sys.argv[1:] = ['--version']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "import numpy\n"
        "print(len(list(pathlib.Path('/proc/self/task').iterdir())))\n"
    )
    settings = {name: each for name, each in os.environ.items() if "NUM_THREADS" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], env=settings, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "1"


def test_synth_writes_the_published_zips_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    words = ["synth", out, "--released", "--samples", 3, "--backgrounds", 2, "--size", 32]
    code, said, err = run(*words, capsys=capsys)
    assert (code, err) == (0, "")
    assert said.startswith(f"{out}: 3 samples on 2 backgrounds, 11 entries in 6 zips, ")
    assert sorted(file.name for file in out.iterdir()) == [
        "bg.zip", "dataset_fg_bg_Mask_final", "depth_1.zip", "depth_2.zip", "depth_3.zip",
        "fg_bg_correct",
    ]  # fmt: skip
    code, _, err = run(*words, capsys=capsys)
    assert (code, "exists already; expected a new folder" in err) == (1, True)


def test_synth_takes_every_number_that_its_help_names_and_refuses_the_next(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = [
        (parameter.opts[0], parameter.type)
        for parameter in cli.commands["synth"].params
        if isinstance(parameter.type, click.IntRange)
    ]
    assert len(numbers) == 4
    for option, allowed in numbers:
        assert allowed.min is not None and allowed.max is not None
        for number in (allowed.min, allowed.max):
            code, _, err = run("synth", source, option, number, capsys=capsys)
            # Refused for the file alone, which is looked at after the numbers.
            assert (code, "exists already" in err) == (1, True), (option, number, err)
        for number in (allowed.min - 1, allowed.max + 1):
            code, _, err = run("synth", source, option, number, capsys=capsys)
            assert (code, "is not in the range" in err) == (2, True), (option, number, err)


def test_resolutions_are_a_list_or_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "x.zip", tmp_path / "out"
    small = ["--samples", 12, "--backgrounds", 2, "--size", 32]
    assert run("synth", source, *small, capsys=capsys)[0] == 0
    sizes = ["--res", "8x16,8", "--res", "16"]
    code, said, _ = run("build", source, out, *sizes, "--workers", 1, capsys=capsys)
    assert code == 0 and "at 8 px and 8x16 px and 16 px" in said
    assert sorted(path.name for path in out.glob("res-*")) == ["res-008", "res-016", "res-8x16"]
    for wrong in ("0", "8x", "9000"):
        code, _, said = run("build", source, out, "--res", wrong, capsys=capsys)
        assert code == 2 and f"resolution {wrong}: expected a side in pixels, 1 to 8192" in said
