import errno
import fcntl
import os
from pathlib import Path

import pytest

from shardify.conversion.build import build
from shardify.conversion.survey import BuildOptions
from shardify.errors import OutputError, ShardifyError
from shardify.storage.locks import lock
from shardify.synth.generate import generate
from train.errors import RunError
from train.tracking.run_folder_setup import run_lock

OPTIONS = BuildOptions(val=0.25, workers=1)
NO_LOCKS = [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK, errno.EINVAL]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "x.zip"
    generate(path, samples=12, backgrounds=3, size=32, seed=0)
    return path


def fail_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_disk_without_locks_is_used_without_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail_flock(monkeypatch, number)
    assert build([source], tmp_path / "out", OPTIONS).parts
    with run_lock(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES], ids=errno.errorcode.get)
def test_a_held_lock_is_another_build_or_run(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fail_flock(monkeypatch, number)
    with pytest.raises(OutputError, match="another build is writing there"):
        build([source], tmp_path / "out", OPTIONS)
    with pytest.raises(RunError, match="another run uses it"), run_lock(tmp_path / "run"):
        pass


def test_a_lock_is_held_until_its_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with path.open("wb") as one, path.open("wb") as other:
        assert lock(one.fileno())
        with pytest.raises(BlockingIOError):
            lock(other.fileno())
        one.close()
        assert lock(other.fileno())


def test_a_disk_that_cannot_flush_folders_is_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    assert build([source], tmp_path / "out", OPTIONS).parts


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV], ids=errno.errorcode.get)
def test_a_disk_that_cannot_rename_is_one_line_with_the_file_and_the_remedy(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def replace(_path: Path, _target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(ShardifyError) as caught:
        build([source], tmp_path / "out", OPTIONS)
    line = str(caught.value)
    assert "\n" not in line
    assert str(tmp_path / "out") in line and os.strerror(number) in line
    assert "write to another disk" in line
