"""What DALI does: the graph of a loader, the table of backgrounds, the fault of an image.

One function, ``graph``, builds it for a CPU and for a GPU, and says in one place what differs.
What lies outside an image turned by the augmentation is that image's nearest edge pixel, for all
four roles alike. This is the only module that imports DALI; it opens no file and keeps no state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.plugin.pytorch.torch_utils import to_torch_tensor

from train.batch import ROLES
from train.errors import DataError
from train.shards import Bytes

__all__ = ["AHEAD", "background_table", "decode_faults", "graph", "own_tensor", "reason_of"]

AHEAD = 2
"""Steps that DALI works on while an earlier one is finished."""
_ONE_BY_ONE = {"prefetch_queue_depth": 1, "exec_pipelined": False, "exec_async": False}
"""A pipeline that asks for a batch when it is run, and not before."""
_TABLE_BATCH = 8
"""Backgrounds decoded at a time: a large one takes tens of megabytes until it is squashed."""


def graph(
    source: Callable[[int], list[list[Any]]],
    *,
    device: torch.device,
    decode_only: bool,
    batch_size: int,
    threads: int,
    res: int,
    normal: npt.NDArray[np.float32],
    threshold: float,
    depth_bits: int,
    augment: bool,
    channels_last: bool,
    half: bool,
    hw_decoder_load: float,
    roles: Sequence[str],
    bg_size: tuple[int, int] | None,
    raw: dict[str, tuple[int, int]] | None,
) -> Any:
    """The DALI graph, for both devices.

    ``source(iteration)`` gives a list of n <= batch_size arrays for each input: the encoded images
    of ``roles`` (fg_bg, mask, depth or fewer); then, unless ``decode_only``, the unit square's
    matrix (2 x 3); if ``augment``, the colour matrix (3 x 4), the noise's strength and its place
    (2); then, on the device, with a ``bg_size`` the background (H x W x 3 uint8) and, if
    ``augment``, the noise table (S x S x 3 int8).
    With ``raw``, the sizes of raw images, the first inputs are no files but pixels (H x W x C).
    Outputs: the decoded images; or bg, fg_bg, mask and depth as a batch has them, without those
    that there are not.
    """
    gpu = device.type == "cuda"
    # All that differs between the devices:
    place = "gpu" if gpu else "cpu"
    decoder: dict[str, Any] = (
        {"device": "mixed", "hw_decoder_load": hw_decoder_load} if gpu else {"device": "cpu"}
    )

    def images(role: str, encoded: Any) -> Any:
        return fn.decoders.image(
            encoded,
            output_type=types.RGB if role == "fg_bg" else types.GRAY,
            dtype=types.UINT16 if role == "depth" and depth_bits == 16 else types.UINT8,
            adjust_orientation=False,
            **decoder,
        )

    def inputs(first: int, last: int, where: str) -> list[Any]:
        if first == last:
            return []
        return list(
            fn.external_source(
                lambda info: source(info.iteration)[first:last],
                num_outputs=last - first,
                device=where,
                batch=True,
                batch_info=True,
                no_copy=True,
            )
        )

    def constant(size: tuple[int, int]) -> Any:
        """A shape as ``peek_image_shape`` gives it."""
        return types.Constant([size[1], size[0], 3], dtype=types.INT64, device="cpu")

    def warp(image: Any, shape: Any, turn: Any) -> Any:
        """Resize and rotation in one interpolation; pixels outside repeat the edge."""
        size = fn.stack(shape[1], shape[0])
        matrix = turn * fn.reshape(fn.cast(size, dtype=types.FLOAT), shape=[2, 1])
        return fn.warp_affine(
            image,
            matrix=matrix,
            size=[res, res],
            interp_type=types.INTERP_LINEAR,
            dtype=types.FLOAT,
        )

    def dress(image: Any, mean: list[float], std: list[float]) -> Any:
        return fn.crop_mirror_normalize(
            fn.reinterpret(image, layout="HWC"),
            mean=mean,
            std=std,
            dtype=types.FLOAT16 if half else types.FLOAT,
            output_layout="HWC" if channels_last else "CHW",
        )

    pipe = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=AHEAD,
        exec_dynamic=False,
    )
    with pipe:
        encoded = inputs(0, len(roles), "cpu")
        if raw is None:
            decoded = [images(role, one) for role, one in zip(roles, encoded, strict=True)]
            shapes = [fn.peek_image_shape(one, adjust_orientation=False) for one in encoded]
        else:
            decoded = [one.gpu() if gpu else one for one in encoded]
            shapes = [constant(raw[role]) for role in roles]
        if decode_only:
            pipe.set_outputs(*decoded)
            pipe.build()
            return pipe
        if depth_bits == 16:
            # The warp knows no unsigned words.
            decoded[-1] = fn.cast(decoded[-1], dtype=types.FLOAT)
        first = len(roles) + (4 if augment else 1)
        turn, *drawn = inputs(len(roles), first, "cpu")
        tables = inputs(first, first + (bg_size is not None) + augment, place)
        made = {
            role: warp(image, shape, turn)
            for role, image, shape in zip(roles, decoded, shapes, strict=True)
        }
        if bg_size is not None:
            made["bg"] = warp(tables[0], constant(bg_size), turn)
        if augment:
            colour, strength, corner = drawn
            # By name: a GPU's operator would take a place given as an input from the GPU.
            noise = fn.slice(tables[-1], start=corner, shape=[res, res], axes=(0, 1))
            grain = noise * (strength.gpu() if gpu else strength)
            for role in ("bg", "fg_bg"):
                if role in made:
                    coloured = fn.coord_transform(made[role], M=colour[:, :3], T=colour[:, 3])
                    made[role] = dali_math.clamp(coloured + grain, 0, 255)
        if "mask" in made:
            made["mask"] = fn.cast(made["mask"] >= threshold, dtype=types.FLOAT)
        means, stds = (-normal[:, 1] / normal[:, 0]).tolist(), (1 / normal[:, 0]).tolist()
        scales = {
            "bg": (means[0], stds[0]),
            "fg_bg": (means[1], stds[1]),
            "mask": ([0.0], [1.0]),
            "depth": ([0.0], [float(2**depth_bits - 1)]),
        }
        pipe.set_outputs(*(dress(made[role], *scales[role]) for role in ROLES if role in made))
    pipe.build()
    return pipe


def background_table(
    payloads: Sequence[Bytes], names: Sequence[str], *, size: tuple[int, int], threads: int
) -> Bytes:
    """Every background, decoded and squashed to one size with antialiasing.

    Returns:
        (n, height, width, 3) uint8, contiguous.

    Raises:
        DataError: One does not decode.
    """
    width, height = size
    table = np.empty((len(payloads), height, width, 3), np.uint8)
    queue: list[Bytes] = []
    pipe = Pipeline(batch_size=_TABLE_BATCH, num_threads=threads, device_id=None, **_ONE_BY_ONE)
    with pipe:
        encoded = fn.external_source(lambda: queue, batch=True, no_copy=True)
        image = fn.decoders.image(encoded, output_type=types.RGB, adjust_orientation=False)
        pipe.set_outputs(
            fn.resize(
                image, size=[height, width], interp_type=types.INTERP_TRIANGULAR, antialias=True
            )
        )
    pipe.build()
    for first in range(0, len(payloads), _TABLE_BATCH):
        queue = list(payloads[first : first + _TABLE_BATCH])
        try:
            (images,) = pipe.run()
        except RuntimeError as error:
            faults = decode_faults(queue, "bg")
            at = next((place for place, fault in enumerate(faults) if fault), 0)
            raise DataError(
                f"{names[first + at]}: does not decode ({faults[at] or reason_of(error)}); "
                "build the data set again without it"
            ) from error
        for place, one in enumerate(images):
            table[first + place] = np.asarray(one)
    return table


def decode_faults(payloads: Sequence[Bytes], role: str) -> list[str | None]:
    """DALI's reason for each payload that it does not decode, None for the others."""
    current: list[Bytes] = []
    pipe = Pipeline(batch_size=1, num_threads=1, device_id=None, **_ONE_BY_ONE)
    with pipe:
        encoded = fn.external_source(lambda: current, batch=True, no_copy=True)
        kind = types.RGB if role in ("bg", "fg_bg") else types.GRAY
        pipe.set_outputs(fn.decoders.image(encoded, output_type=kind))
    pipe.build()
    found: list[str | None] = []
    for payload in payloads:
        current = [payload]
        try:
            pipe.run()
            found.append(None)
        except RuntimeError as error:
            found.append(reason_of(error))
    return found


def reason_of(error: RuntimeError) -> str:
    """The one line of DALI's message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    for line in lines:
        if "rror" in line and "Critical error" not in line and "Error in" not in line:
            return line.split("] ")[-1]
    return " ".join(filter(None, lines))[:200]


def own_tensor(output: Any) -> torch.Tensor:
    """A copy of one of the graph's outputs, on its device: a tensor of its own."""
    tensor: torch.Tensor = to_torch_tensor(output.as_tensor(), copy=True)
    return tensor
