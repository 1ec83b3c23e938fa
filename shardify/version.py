"""Return the version of this program, from installed metadata or a checkout's pyproject.toml."""

from pathlib import Path


def version() -> str:
    """Return the version, or ``unknown`` if there is neither metadata nor a checkout."""
    import importlib.metadata  # Takes about 20 ms, so not at start.

    try:
        return importlib.metadata.version("shardline")
    except importlib.metadata.PackageNotFoundError:
        import tomllib  # Needed only without an installation.

        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        try:
            return str(tomllib.loads(project.read_text())["project"]["version"])
        except (OSError, KeyError, tomllib.TOMLDecodeError):
            return "unknown"
