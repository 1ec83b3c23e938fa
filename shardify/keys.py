"""The keys that samples and backgrounds have in a shard, made of their names.

Names in, keys out: unique, and the same whatever the order of the names.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shardify import naming

__all__ = ["unique_keys"]

IntArray = npt.NDArray[np.int32]


def unique_keys(names: Sequence[str], members: IntArray, shared: int) -> list[str]:
    """A safe key for each file: its stem, or its path where stems repeat.

    Paths that are alike once made safe are told apart by digits of their SHA-256.
    """
    keys = [
        naming.safe_key(names[index].rpartition("/")[2].rpartition(".")[0])
        for index in members.tolist()
    ]
    if len(set(keys)) == len(keys):
        return keys
    paths = [
        "/".join(names[index].split("/")[shared:]).rpartition(".")[0] for index in members.tolist()
    ]
    keys = [naming.safe_key(path) for path in paths]
    often = {key for key, count in Counter(keys).items() if count > 1}
    return [
        naming.safe_key(key, of=names[index]) if key in often else key
        for key, index in zip(keys, members.tolist(), strict=True)
    ]
