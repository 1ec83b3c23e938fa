"""Decode JPEGs that are much larger than the batch at a half, a quarter or an eighth of their size.

The decoder leaves out the frequencies that the smaller picture cannot show, which is several times
faster than decoding them and averaging. DALI's decoders cannot, so Pillow does it, on a CPU only.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from shardify.dataset.manifest import Role
from shardify.loader.shards import Bytes
from shardify.resolution import Resolution

_MARGIN = 2
"""Decoded sides are at least this many times the batch's; the rest is left to the triangle filter,
whose result then differs by less than a level (RMSE) from that of the whole picture."""


def is_much_larger(role: Role, res: Resolution) -> bool:
    """Whether the images of a role are all JPEGs, and most can be decoded at half their size."""
    if not set(role.extensions) <= {"jpg"} or not role.sizes:
        return False
    width, height, _ = max(role.sizes, key=lambda size: size[2])
    return min(width // res.width, height // res.height) >= 2 * _MARGIN


class ScaledDecoder:
    """Decodes JPEGs in colour for batches of one resolution, in several threads."""

    def __init__(self, res: Resolution, threads: int) -> None:
        self._size = (_MARGIN * res.width, _MARGIN * res.height)
        self._pool = ThreadPoolExecutor(threads, "shardline-decode")

    def __call__(self, payloads: Sequence[Bytes]) -> list[npt.NDArray[np.uint8] | str]:
        """Return (H, W, 3) images, in the order of the files; for a damaged one the reason."""
        return list(self._pool.map(self._decode, payloads))

    def _decode(self, payload: Bytes) -> npt.NDArray[np.uint8] | str:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(payload.tobytes()), formats=["JPEG"]) as image:
                image.draft("RGB", self._size)
                return np.asarray(image.convert("RGB"))
        except Exception as error:
            # Pillow raises nearly anything on damaged input.
            return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
