import importlib.metadata
import tomllib
from pathlib import Path

from shardify.version import version


def test_a_checkout_that_was_never_installed_knows_its_version(monkeypatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    said = tomllib.loads(project.read_text())["project"]["version"]
    monkeypatch.setattr("importlib.metadata.version", missing)
    assert version() == said


def test_what_is_installed_says_its_own_version(monkeypatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"{name} 7")
    assert version() == "shardline 7"
