"""What the import contracts of pyproject.toml (``make lint``) cannot say."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import shardify
import train

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [
    path
    for package in ("shardify", "train", "model")
    for path in sorted((ROOT / package).rglob("__init__.py"))
    if path.parent.name not in ("shardify", "train")
]


def imported(statement: str) -> set[str]:
    """Every module that a fresh interpreter holds after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("path", PACKAGES, ids=lambda path: path.parent.name)
def test_a_package_holds_nothing_but_its_docstring(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""') and text.endswith('"""\n') and text.count('"""') == 2


def test_a_worker_process_starts_without_what_its_tasks_need() -> None:
    ours = {
        name
        for name in imported("import shardify.workers.worker_process")
        if name.split(".")[0] == "shardify"
    }
    assert ours == {
        "shardify",
        "shardify.errors",
        "shardify.workers",
        "shardify.workers.worker_process",
    }


@pytest.mark.parametrize("command", ["shardify.cli", "train.cli"])
def test_a_command_line_starts_without_torch_and_dali(command: str) -> None:
    assert not imported(f"import {command}") & {"torch", "nvidia", "numba", "PIL"}


def test_shardify_help_does_not_import_torch() -> None:
    run = "from shardify.__main__ import main\ntry: main()\nexcept SystemExit: pass"
    code = f"import sys\nsys.argv = ['shardify', '--help']\n{run}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *text, modules = done.stdout.splitlines()
    assert text[0].startswith("Usage: shardify")
    assert not set(modules.split()) & {"torch", "nvidia", "numba", "PIL"}


def test_all_three_packages_are_marked_as_typed_also_when_built(tmp_path: Path) -> None:
    packages = ("shardify", "model", "train")
    for package in packages:
        shutil.copytree(
            ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    code = "import setuptools.build_meta as build; print(build.build_wheel('.'))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    wheel = tmp_path / done.stdout.splitlines()[-1]
    assert {f"{package}/py.typed" for package in packages} <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.parametrize("package", [shardify, train], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name).__name__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018
