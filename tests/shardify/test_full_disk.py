"""A disk that is really full: one line, nothing published; with room, as if nothing had been."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shardline_sources import DEFLATED, content, files_of, pack, zipped

SHARDIFY = f"{shlex.quote(sys.executable)} -m shardify"


def private_mounts() -> list[str] | None:
    """A command that runs another where it may mount what it likes, seen by nobody else."""
    if shutil.which("unshare") is None:
        return None
    for options in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        command = ["unshare", *options]
        trial = "mount -t tmpfs -o size=64k none /mnt"
        if subprocess.run([*command, "sh", "-c", trial], capture_output=True).returncode == 0:
            return command
    return None


@pytest.fixture(scope="module")
def unshare() -> list[str]:
    found = private_mounts()
    if found is None:
        pytest.skip("needs unshare and the right to mount a tmpfs in a namespace of its own")
    return found


def on_a_small_disk(unshare: list[str], folder: Path, size: str, command: str) -> Path:
    """Run a command with ``folder/disk`` of a size, then again with room.

    Returns:
        A folder with ``first.code``, ``first.err``, ``first`` (what the disk held then), and the
        same for ``second``.
    """
    disk, log = folder / "disk", folder / "log"
    disk.mkdir()
    log.mkdir()
    script = f"""
        cd {shlex.quote(str(folder))}
        mount -t tmpfs -o size={size} none disk
        run() {{
            {command} > log/$1.out 2> log/$1.err
            echo $? > log/$1.code
            cp -a disk log/$1
        }}
        run first
        mount -o remount,size=64m disk
        run second
    """
    subprocess.run([*unshare, "sh", "-c", script], check=True, timeout=120, env=_environment())
    return log


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}


def check_first(log: Path) -> None:
    """It failed with one line that says why."""
    said = (log / "first.err").read_text()
    assert (log / "first.code").read_text() == "1\n", said
    assert said.startswith("Error: ")
    assert said.count("\n") == 1
    assert "o space left" in said or "no room to unpack" in said


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tmp_path_factory.mktemp("source") / "x.zip", files_of(60))


@pytest.fixture(scope="module")
def whole(source: Path) -> dict[str, bytes]:
    out = source.parent / "out"
    command = [*shlex.split(SHARDIFY), "build", str(source), str(out), *_OPTIONS]
    subprocess.run(command, check=True, capture_output=True)
    return content(out)


_OPTIONS = ["--val", "0.25", "--shard-samples", "12", "--workers", "1"]


# Where it gets full: at the backgrounds, in a shard, near the end.
@pytest.mark.parametrize("size", ["8k", "160k", "300k"])
def test_a_build_on_a_full_disk_goes_on_when_there_is_room(
    tmp_path: Path, unshare: list[str], source: Path, whole: dict[str, bytes], size: str
) -> None:
    command = f"{SHARDIFY} build {shlex.quote(str(source))} disk/out {' '.join(_OPTIONS)}"
    log = on_a_small_disk(unshare, tmp_path, size, command)
    check_first(log)
    there = content(log / "first")
    assert "out/manifest.json" not in there
    assert not [name for name in there if name.endswith(".tmp")]
    assert (log / "second.code").read_text() == "0\n", (log / "second.err").read_text()
    assert content(log / "second" / "out") == whole


def test_a_zip_in_a_zip_that_does_not_fit_is_said_before_it_is_unpacked(
    tmp_path: Path, unshare: list[str], source: Path
) -> None:
    nested = tmp_path / "all.zip"
    nested.write_bytes(zipped({"x.zip": source.read_bytes()}, DEFLATED))
    log = on_a_small_disk(
        unshare, tmp_path, "64k", f"{SHARDIFY} build all.zip disk/out {' '.join(_OPTIONS)}"
    )
    check_first(log)
    assert content(log / "first") == {}
    assert (log / "second.code").read_text() == "0\n", (log / "second.err").read_text()


# Where it gets full: at the backgrounds, near the end.
@pytest.mark.parametrize("size", ["32k", "344k"])
@pytest.mark.parametrize("form", ["", "--released"])
def test_synth_on_a_full_disk_leaves_nothing(
    tmp_path: Path, unshare: list[str], form: str, size: str
) -> None:
    command = f"{SHARDIFY} synth disk/x.zip --samples 12 --backgrounds 3 --size 64 {form}"
    log = on_a_small_disk(unshare, tmp_path, size, command)
    check_first(log)
    assert not list((log / "first").iterdir())
    assert (log / "second.code").read_text() == "0\n", (log / "second.err").read_text()
    again = shlex.split(command.replace("disk/x.zip", str(tmp_path / "x.zip")))
    subprocess.run(again, check=True, capture_output=True)
    (tmp_path / "without").mkdir()
    (tmp_path / "x.zip").rename(tmp_path / "without" / "x.zip")
    assert content(log / "second") == content(tmp_path / "without")


def test_report_on_a_full_disk_leaves_nothing(
    tmp_path: Path, unshare: list[str], source: Path, whole: dict[str, bytes]
) -> None:
    assert whole
    out = shlex.quote(str(source.parent / "out"))
    log = on_a_small_disk(unshare, tmp_path, "8k", f"{SHARDIFY} report {out} -o disk/page.html")
    check_first(log)
    assert content(log / "first") == {}
    assert (log / "second.code").read_text() == "0\n", (log / "second.err").read_text()
    assert content(log / "second").keys() == {"page.html"}
