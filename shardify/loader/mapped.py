"""A shard's bytes in memory: mapped from its file, or read and held.

Refuses a file that is not as long as the manifest says; reads no index and knows no sample.
"""

import contextlib
import hashlib
import mmap
import resource
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shardify.dataset.manifest import Shard
from shardify.errors import DataError

__all__ = ["Bytes", "allow_open_files", "bytes_of", "digest_of"]

Bytes = npt.NDArray[np.uint8]


def bytes_of(path: Path, shard: Shard, cache: str) -> Bytes:
    """Map or read a shard, once its length is what the manifest says.

    Args:
        path: Its file.
        shard: As the manifest has it.
        cache: ``ram``: read and held; ``disk``: mapped.

    Raises:
        DataError: It is missing, of another length, or cannot be read.
    """
    try:
        found = path.stat().st_size
        if found != shard.bytes:
            raise DataError(
                f"{path}: {found} bytes; the manifest says {shard.bytes}: it was cut or changed; "
                f"run `shardify verify {path.parent}`, then build it again"
            )
        if cache == "ram":
            return np.fromfile(path, np.uint8)
        with path.open("rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise DataError(
            f"{path}: missing; the manifest lists it with {shard.samples} samples; "
            "restore it, or build the data set again"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); check the disk") from error


def digest_of(buffer: Bytes) -> str:
    """SHA-256, lower-case hex."""
    return hashlib.sha256(buffer.data).hexdigest()


def allow_open_files(count: int) -> None:
    """Every mapped shard keeps a descriptor: lift this process's soft limit where it is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
