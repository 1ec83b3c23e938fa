"""What DALI does: the graph of a loader, and decoding a few images for whoever asks.

One function, ``graph``, builds it for a CPU and for a GPU, and says in one place what differs.
What lies outside an image turned by the augmentation is that image's nearest edge pixel, for all
four roles alike. This is the only module that imports DALI; it opens no file and keeps no state.

Images that stop a graph: which of a batch does not decode, and why, in DALI's words.

Decodes by ``graph.decoder``, one by one, so that what fails here is what fails there. This module
opens no file.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, backend, fn, types
from nvidia.dali import math as dali_math

from shardify.loader.batch import ROLES
from shardify.loader.device_tables import DeviceTables
from shardify.loader.shards import Bytes

__all__ = ["AHEAD", "decode_faults", "decoder", "graph", "own_tensor", "reason_of"]


Array = npt.NDArray[Any]

# Any: its stubs lack arguments that it has.
_dali: Any = backend

AHEAD = {"cpu": 2, "cuda": 3}
"""Steps that DALI works on while an earlier one is finished; beside a network a GPU's take long."""

CPU_ONLY = frozenset({"bmp", "png", "webp"})
"""Extensions of files that no GPU decodes; asking it all the same costs a decoder's start."""


def graph(
    source: Callable[[int], list[Array]],
    *,
    shards: Sequence[Bytes],
    backgrounds: Bytes | None,
    noise: Array | None,
    device: torch.device,
    decode_only: bool,
    batch_size: int,
    threads: int,
    res: int,
    normal: npt.NDArray[np.float32],
    threshold: float,
    depth_bits: int,
    channels_last: bool,
    half: bool,
    hw_decoder_load: float,
    roles: Sequence[str],
    extensions: dict[str, frozenset[str]],
    sizes: dict[str, tuple[int, int] | None],
    raw: bool,
) -> Any:
    """The DALI graph, for both devices.

    Nothing in it is fed sample by sample: a step's inputs say where in whole shards to look.

    ``source(iteration)`` gives contiguous arrays of n <= batch_size rows: the number of the shard
    (n,); of each of ``roles`` (fg_bg, mask, depth or fewer) the first byte there (n, 1) int64, then
    of each the length (n, 1); then, unless ``decode_only``, the unit square's matrix (n, 2, 3);
    with ``noise`` (3, S, S), which is to say where augmented, the colour matrix (n, 3, 4) and the
    noise's strength (n,); last, with ``backgrounds`` (N, H, W, 3) the number of the background
    (n,), and with ``noise`` its place (n, 2). ``extensions`` are those of a role's files,
    ``sizes`` the width and height of its images, None where they differ. With ``raw``, a sample's
    bytes are no files but pixels as ``shardify.loader.raw_codec`` has them.

    Outputs: the decoded images; or bg, fg_bg, mask and depth as a batch has them, without those
    that there are not.
    """
    gpu = device.type == "cuda"
    # All that differs between the devices:
    place = "gpu" if gpu else "cpu"
    mixed: dict[str, Any] = {"device": "mixed", "hw_decoder_load": hw_decoder_load}

    def there(value: Any) -> Any:
        """What a CPU operator made, where the images are."""
        return value.gpu() if gpu else value

    def encoded(role: str, payload: Any) -> tuple[Any, Any]:
        """An image (H x W x C) from its file, and its matrix."""
        on_gpu = gpu and not extensions[role] <= CPU_ONLY
        image = fn.decoders.image(
            payload,
            output_type=types.RGB if role == "fg_bg" else types.GRAY,
            dtype=types.UINT16 if role == "depth" and depth_bits == 16 else types.UINT8,
            adjust_orientation=False,
            **(mixed if on_gpu else {"device": "cpu"}),
        )
        image = image if on_gpu else there(image)
        if decode_only:
            return image, None
        if known := sizes[role]:
            # Each look at a header is an instance of the decoding library of its own, which on a
            # GPU's machine takes a second to start.
            return image, scaled(known)
        shape = fn.peek_image_shape(payload, adjust_orientation=False)
        size = fn.cast(fn.stack(shape[1], shape[0]), dtype=types.FLOAT)
        return image, turn * fn.reshape(size, shape=[2, 1])

    def planes(role: str, payload: Any) -> tuple[Any, Any]:
        """An image from its pixels, and its matrix."""
        size = sizes[role]
        assert size is not None  # Raw images are of one size.
        width, height = size
        found = there(payload)
        if role == "mask":
            return _bits(found, width, height, place), scaled(size)
        if role == "depth":
            word = types.UINT16 if depth_bits == 16 else types.UINT8
            return fn.reinterpret(found, shape=[height, width, 1], dtype=word), scaled(size)
        colours = fn.reshape(found, shape=[3, height, width])
        return fn.transpose(colours, perm=[1, 2, 0], transpose_layout=False), scaled(size)

    @functools.cache
    def scaled(size: tuple[int, int]) -> Any:
        return turn * types.Constant(np.array(size, np.float32)[:, None], device="cpu")

    def warp(image: Any, matrix: Any) -> Any:
        """Resize and rotation in one interpolation; pixels outside repeat the edge."""
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
        prefetch_queue_depth=AHEAD[device.type],
        exec_dynamic=False,
    )
    with pipe:
        count = 1 + 2 * len(roles) + (not decode_only) + 2 * (noise is not None)
        inputs = _inputs(source, count, shards)
        picks = DeviceTables(backgrounds, noise, res=res, device=device)
        picked = _picked(source, count, picks)
        bytewise: dict[str, Any] = {"normalized_anchor": False, "normalized_shape": False}
        payloads = [
            fn.slice(inputs[0], inputs[1 + k], inputs[1 + len(roles) + k], axes=[0], **bytewise)
            for k in range(len(roles))
        ]
        turn, *drawn = inputs[1 + 2 * len(roles) :] or [None]
        found = {
            role: (planes if raw else encoded)(role, one)
            for role, one in zip(roles, payloads, strict=True)
        }
        if decode_only:
            pipe.set_outputs(*(image for image, _ in found.values()))
            pipe.build()
            return pipe
        if depth_bits == 16:
            # The warp knows no unsigned words.
            image, matrix = found["depth"]
            found["depth"] = fn.cast(image, dtype=types.FLOAT), matrix
        if backgrounds is not None:
            found["bg"] = picked[0], scaled((backgrounds.shape[2], backgrounds.shape[1]))
        made = {role: warp(*one) for role, one in found.items()}
        if noise is not None:
            colour, strength = drawn
            grain = picked[-1] * there(strength)
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


def _inputs(source: Callable[[int], list[Array]], count: int, shards: Sequence[Bytes]) -> list[Any]:
    """The arrays of ``source`` as a graph's inputs, and each row's shard in place of the first.

    DALI takes each as it is, without looking at single rows and without copying.
    """
    mapped = [_dali.TensorCPU(shard) for shard in shards]

    def lists(info: Any) -> list[Any]:
        numbers, *others = source(info.iteration)[:count]
        chosen = [mapped[number] for number in numbers.tolist()]
        return [_dali.TensorListCPU(chosen, contiguous=False), *map(_dali.TensorListCPU, others)]

    made = fn.external_source(
        lists, num_outputs=count, device="cpu", batch=True, batch_info=True, no_copy=True
    )
    return list(made)


def _picked(source: Callable[[int], list[Array]], count: int, picks: DeviceTables) -> list[Any]:
    """What ``picks`` takes for each row, as the arrays of ``source`` after ``count`` say.

    DALI would be handed a whole table for every sample, and on a GPU copy it as many times.
    """
    if not picks.tables:
        return []

    def pick(info: Any) -> list[Any]:
        taken = picks(source(info.iteration)[count:])
        # Of torch's own DALI asks which stream it is on, also where there is no GPU.
        return taken if picks.stream else [one.numpy() for one in taken]

    # Copied, unlike the inputs: on a GPU, DALI knows only of a copy when it is there.
    made = fn.external_source(
        pick,
        num_outputs=picks.tables,
        device="gpu" if picks.stream else "cpu",
        batch=True,
        batch_info=True,
        cuda_stream=picks.stream,
    )
    return list(made)


def _bits(packed: Any, width: int, height: int, place: str) -> Any:
    """A raw mask's bits as an image of 0 and 255, float (H x W x 1)."""
    octets = -(-width * height // 8)
    weights = types.Constant((128 >> np.arange(8)).astype(np.uint8)[None], device=place)
    seen = fn.reshape(packed, shape=[octets, 1]) & weights
    flat = fn.reshape(seen, shape=[8 * octets])
    if 8 * octets > width * height:
        flat = fn.slice(flat, start=[0], shape=[width * height], axes=[0])
    image = fn.reshape(flat, shape=[height, width, 1])
    return fn.cast(image > 0, dtype=types.FLOAT) * 255.0


def decoder(
    *, batch_size: int, threads: int, colour: bool, size: tuple[int, int] | None = None
) -> Callable[[Sequence[Bytes]], list[Bytes]]:
    """A function that decodes images on the CPU, now, for whoever needs a few of them.

    Args:
        batch_size: It is given that many files at most.
        threads: To decode with.
        colour: To RGB, else to gray.
        size: Width and height to squash them to with antialiasing; None: as they are. Pixels.

    Returns:
        Of files' bytes, (H, W, C) uint8 each; raises RuntimeError where one does not decode.
    """
    files: list[Bytes] = []
    pipe = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=None,
        prefetch_queue_depth=1,
        exec_pipelined=False,
        exec_async=False,
    )
    with pipe:
        image = fn.decoders.image(
            fn.external_source(lambda: files, batch=True, no_copy=True),
            output_type=types.RGB if colour else types.GRAY,
            adjust_orientation=False,
        )
        if size is not None:
            image = fn.resize(
                image, size=size[::-1], interp_type=types.INTERP_TRIANGULAR, antialias=True
            )
        pipe.set_outputs(image)
    pipe.build()

    def decode(payloads: Sequence[Bytes]) -> list[Bytes]:
        files[:] = payloads
        (images,) = pipe.run()
        return [np.array(image) for image in images]

    return decode


def own_tensor(output: Any, dtype: torch.dtype) -> torch.Tensor:
    """A copy of one of the graph's outputs, on its device: a tensor of its own."""
    shared: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
    return shared.to(dtype, copy=True)


_STATUS = {3: "its file is damaged", 4: "not an image of a kind that DALI reads"}
"""What nvImageCodec's numbers say (``nvimgcodecStatus_t``); DALI hands on nothing but them."""


def decode_faults(payloads: Sequence[Bytes], role: str) -> list[str | None]:
    """DALI's reason for each payload that it does not decode, None for the others."""
    decode = decoder(batch_size=1, threads=1, colour=role in ("bg", "fg_bg"))
    found: list[str | None] = []
    for payload in payloads:
        try:
            decode([payload])
            found.append(None)
        except RuntimeError as error:
            found.append(reason_of(error))
    return found


def reason_of(error: RuntimeError) -> str:
    """What went wrong, in one line, of DALI's message of many."""
    text = str(error)
    if "encountered:" in text:
        text = text.split("encountered:", 1)[1].split("Current pipeline object", 1)[0]
    lines = [line.strip() for line in text.splitlines()]
    found = next((line.split("] ")[-1] for line in lines if "rror" in line), None)
    reason = found or " ".join(filter(None, lines))[:200]
    for status, meaning in _STATUS.items():
        reason = reason.replace(f"nvImageCodec failure: '#{status}'", meaning)
    return reason
