"""Measure the available memory, within the limits of this process's control groups."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def available_memory() -> int:
    """Return the memory that can be used without evicting anything but cached files.

    Returns:
        Bytes of the machine, or less where this process's control groups (of a container or a
        cluster job) have a limit; 0 where the system does not tell (it is not Linux).

    Source: proc(5), MemAvailable; Linux, admin-guide/cgroup-v2 and cgroup-v1/memory.
    """
    available = 0
    with suppress(OSError, KeyError, ValueError):
        available = 1024 * _fields(_PROC / "meminfo")["MemAvailable:"]
    for folder, limit_file, usage_file, cache_key in _memory_groups():
        with suppress(OSError, KeyError, ValueError):
            limit = int((folder / limit_file).read_text())
            usage = int((folder / usage_file).read_text())
            statistics = _fields(folder / "memory.stat")
            cached = statistics[cache_key] - statistics.get("shmem", 0)
            available = min(available, max(0, limit - usage + cached))
    return available


def _memory_groups() -> Iterator[tuple[Path, str, str, str]]:
    """Yield each control group's folder, limit file, usage file and key of the cached bytes."""
    lines: list[str] = []
    with suppress(OSError):
        lines = (_PROC / "self/cgroup").read_text().splitlines()
    for line in lines:
        _, controllers, inside = line.split(":", 2)
        if not controllers:  # cgroup v2.
            top, names = _CGROUPS, ("memory.max", "memory.current", "file")
        elif "memory" in controllers.split(","):
            top = _CGROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "cache")
        else:
            continue
        # In a container the groups outside are not visible: then its own group is the top.
        below = Path(inside.lstrip("/"))
        for part in (below, *below.parents):
            yield top / part, *names


def _fields(path: Path) -> dict[str, int]:
    """Parse a file that has a name and a number in each line."""
    words = [line.split() for line in path.read_text().splitlines()]
    return {line[0]: int(line[1]) for line in words if len(line) > 1 and line[1].isdecimal()}
