"""This program's version, also where it was never installed but lies on the path.

Asks the installed metadata first, then the checkout's own ``pyproject.toml``; guesses nothing.
"""

from pathlib import Path

__all__ = ["version"]


def version() -> str:
    """The version, or ``unknown`` where neither metadata nor checkout is there."""
    import importlib.metadata  # Some 20 ms, which no start has to wait for.

    try:
        return importlib.metadata.version("shardline")
    except importlib.metadata.PackageNotFoundError:
        import tomllib  # Where nothing is installed; else a start goes without.

        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        try:
            return str(tomllib.loads(project.read_text())["project"]["version"])
        except (OSError, KeyError, tomllib.TOMLDecodeError):
            return "unknown"
