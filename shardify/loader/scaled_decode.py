"""Decode JPEGs that are much larger than the batch at a half, a quarter or an eighth of their size.

The decoder leaves out the frequencies that the smaller picture cannot show, which takes about half
the time of decoding them and averaging. DALI's decoders cannot, so Pillow does it, on a CPU only.
"""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from shardify.dataset.manifest import Role
from shardify.loader.reduction import reduced_sizes
from shardify.loader.shards import Bytes
from shardify.resolution import Resolution

_MARGIN = 2
"""Decoded sides are at least this many times the batch's; the rest is averaged. The result differs
by about one level of 255 (RMSE) from that of the whole picture, of noise as of photographs."""
_MIN_SIDE = 512
"""Smaller images are decoded as fast by DALI, whole. Pixels."""


class ScaledImage(NamedTuple):
    """A decoded image."""

    pixels: npt.NDArray[np.uint8]
    """(H, W, 3), of the size that ``reduction.reduced_sizes`` gives."""
    width: int
    """Of the file. Pixels."""
    height: int
    """Of the file. Pixels."""


def is_much_larger(role: Role, res: Resolution) -> bool:
    """Return whether a role has JPEGs only, and most can be decoded at half their size."""
    if not set(role.extensions) <= {"jpg"} or not role.sizes:
        return False
    width, height, _ = max(role.sizes, key=lambda size: size[2])
    scale = min(width // res.width, height // res.height)
    return scale >= 2 * _MARGIN and min(width, height) >= _MIN_SIDE


class ScaledDecoder:
    """Decodes JPEGs in colour for batches of one resolution, in several threads."""

    def __init__(self, res: Resolution, threads: int) -> None:
        self._res = res
        self._pool = ThreadPoolExecutor(threads, "shardline-decode")

    def __call__(self, payloads: Sequence[Bytes]) -> list[ScaledImage | str]:
        """Return the images, in the order of the files; for a damaged one the reason."""
        return list(self._pool.map(self._decode, payloads))

    def _decode(self, payload: Bytes) -> ScaledImage | str:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(payload.tobytes()), formats=["JPEG"]) as image:
                width, height = image.size
                image.draft("RGB", (_MARGIN * self._res.width, _MARGIN * self._res.height))
                # The last row and column may stand for a part of a pixel.
                scale = round(width / image.width)
                box = min(image.width, width / scale), min(image.height, height / scale)
                size = tuple(reduced_sizes((width, height), self._res).tolist())
                colours = image.convert("RGB")
                smaller = colours.resize(size, Image.Resampling.BILINEAR, (0, 0, *box))
                return ScaledImage(np.asarray(smaller), width, height)
        except Exception as error:
            # Pillow raises nearly anything on damaged input.
            return f"{type(error).__name__}: {error}"

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
