"""What the import contracts of pyproject.toml (``make lint``) cannot say."""

import subprocess
import sys
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


@pytest.mark.parametrize("package", [shardify, train], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert getattr(package, name).__name__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # type: ignore[attr-defined]  # noqa: B018
