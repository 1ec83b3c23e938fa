"""How much memory can be had."""

from contextlib import suppress
from pathlib import Path

__all__ = ["spare_memory"]

_MEMINFO = Path("/proc/meminfo")
_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "file"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "cache"),
)
"""Of a container: versions 2 and 1 of control groups. Limit, use, and what of it are files."""


def spare_memory() -> int:
    """Memory that can be had without pushing out anything but files.

    Returns:
        Bytes: the machine's, or less where a container may not use all of it; 0 where the system
        does not say (it is not Linux).

    Source: proc(5), MemAvailable; Linux, admin-guide/cgroup-v2 and cgroup-v1/memory.
    """
    spare = 0
    with suppress(OSError, ValueError):
        spare = 1024 * _field(_MEMINFO, "MemAvailable:")
    for folder, limit, use, cached in _GROUPS:
        with suppress(OSError, ValueError):
            held = int((folder / use).read_text()) - _field(folder / "memory.stat", cached)
            spare = min(spare, max(0, int((folder / limit).read_text()) - held))
    return spare


def _field(path: Path, name: str) -> int:
    """A number of a file with a name and a number a line. Raises ValueError if it is not there."""
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] == [name]:
            return int(words[1])
    raise ValueError(name)
