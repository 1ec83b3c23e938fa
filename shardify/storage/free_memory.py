"""How much memory can be had."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

__all__ = ["spare_memory"]

_PROC = Path("/proc")
_GROUPS = Path("/sys/fs/cgroup")


def spare_memory() -> int:
    """Memory that can be had without pushing out anything but files.

    Returns:
        Bytes: the machine's, or less where this process's control groups (a container's, a
        cluster's job's) have a limit; 0 where the system does not say (it is not Linux).

    Source: proc(5), MemAvailable; Linux, admin-guide/cgroup-v2 and cgroup-v1/memory.
    """
    spare = 0
    with suppress(OSError, KeyError, ValueError):
        spare = 1024 * _fields(_PROC / "meminfo")["MemAvailable:"]
    for folder, limit, use, cached in _limits():
        with suppress(OSError, KeyError, ValueError):
            most = int((folder / limit).read_text())
            held = _fields(folder / "memory.stat")
            files = held[cached] - held.get("shmem", 0)
            spare = min(spare, max(0, most - int((folder / use).read_text()) + files))
    return spare


def _limits() -> Iterator[tuple[Path, str, str, str]]:
    """Folders of all groups that may limit, and the names in them: limit, use, what are files."""
    for line in _lines(_PROC / "self/cgroup"):
        _, kind, inside = line.split(":", 2)
        if not kind:
            top, names = _GROUPS, ("memory.max", "memory.current", "file")
        elif "memory" in kind.split(","):
            top = _GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "cache")
        else:
            continue
        # In a container the groups outside are not to be seen: then its own is the top.
        below = Path(inside.lstrip("/"))
        for part in (below, *below.parents):
            yield top / part, *names


def _lines(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text().splitlines()
    return []


def _fields(path: Path) -> dict[str, int]:
    """A file with a name and a number in each line."""
    words = [line.split() for line in path.read_text().splitlines()]
    return {each[0]: int(each[1]) for each in words if len(each) > 1 and each[1].isdecimal()}
