"""The keys that samples and backgrounds have in a shard, made of their names.

Names in, keys out: unique, and the same whatever the order of the names.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shardify.layout import filenames
from shardify.sources.entry_names import take

__all__ = ["unique_keys"]

_SAFE = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-\n"

IntArray = npt.NDArray[np.int32]


def unique_keys(names: Sequence[str], members: IntArray, shared: int) -> list[str]:
    """A safe key for each file: its stem, or its path where stems repeat.

    Paths that are alike once made safe are told apart by digits of their SHA-256.
    """
    stems = [name.rpartition("/")[2].rpartition(".")[0] for name in take(names, members)]
    keys = stems if _all_safe(stems) else list(map(filenames.safe_key, stems))
    if len(set(keys)) == len(keys):
        return keys
    paths = [
        "/".join(names[index].split("/")[shared:]).rpartition(".")[0] for index in members.tolist()
    ]
    keys = [filenames.safe_key(path) for path in paths]
    often = {key for key, count in Counter(keys).items() if count > 1}
    return [
        filenames.safe_key(key, of=names[index]) if key in often else key
        for key, index in zip(keys, members.tolist(), strict=True)
    ]


def _all_safe(stems: list[str]) -> bool:
    """Whether every stem is a safe key as it is; quick, and False where in doubt."""
    lines = "\n" + "\n".join(stems) + "\n"
    return (
        all(stems)
        and max(map(len, stems)) <= filenames.KEY_LIMIT
        and lines.isascii()
        and not lines.encode().translate(None, _SAFE)
        and lines.count("\n") == len(stems) + 1
        and not any(edge in lines for edge in ("\n_", "\n-", "_\n", "-\n"))
    )
