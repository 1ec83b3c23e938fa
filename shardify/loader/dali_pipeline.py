"""The DALI graph of a loader, a small image decoder, and the reasons of decoding errors.

``build_graph`` builds the graph for a CPU or a GPU; all that differs between them is in one place.
Outside a rotated image, its nearest edge pixel is used, for all four roles. This is the only
module that imports DALI.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline, backend, fn, types
from nvidia.dali import math as dali_math

from shardify.loader.batch import ROLES, RenderSettings
from shardify.loader.device_tables import DeviceTables
from shardify.loader.reduction import HALF, LIMIT, reduced_sizes
from shardify.loader.shards import Bytes

Array = npt.NDArray[Any]

# Any: its stubs lack arguments that it has.
_dali: Any = backend

QUEUE_DEPTH = {"cpu": 2, "cuda": 3}
"""Steps that DALI works on at once; on a GPU they take longer while a network trains."""

CPU_ONLY = frozenset({"bmp", "png", "webp"})
"""Extensions of files that no GPU decodes; a GPU decoder would only cost its start."""


def build_graph(
    source: Callable[[int], list[Array]],
    settings: RenderSettings,
    *,
    shards: Sequence[Bytes],
    backgrounds: Bytes | None,
    noise: Array | None,
    decode_only: bool,
    hw_decoder_load: float,
    roles: Sequence[str],
    extensions: dict[str, frozenset[str]],
    sizes: dict[str, tuple[int, int] | None],
    raw: bool,
) -> Any:
    """Build the DALI graph for either device.

    Its inputs are whole shards and the byte ranges in them, not single samples.

    ``source(iteration)`` returns contiguous arrays of n <= batch_size rows, in this order:

    - the shard number (n,);
    - for each of ``roles`` (fg_bg, mask, depth or fewer) the first byte (n, 1) int64;
    - for each of ``roles`` the length (n, 1);
    - unless ``decode_only``, the matrix on the unit square (n, 2, 3): of the rotation in pixels of
      fg_bg, or, if its images have several sizes, of the rotation of a square picture;
    - with ``noise`` (3, S, T), the colour matrix (n, 3, 4) and the noise strength (n,);
    - with ``backgrounds`` (N, H, W, 3), the background number (n,);
    - with ``noise``, the row and column of its crop (n, 2).

    ``noise`` is None without augmentation. ``extensions`` are those of a role's files; ``sizes``
    are the width and height of its images, None if they differ. With ``raw``, a payload is pixels
    in the layout of ``shardify.images.raw_pixels``, not a file.

    Outputs: the decoded images if ``decode_only``; else bg, fg_bg, mask and depth as in a batch,
    without missing roles, then the validity (H, W, 1) of each role in ``settings.invalid``.
    """
    device, res, depth_bits = settings.device, settings.res, settings.depth_bits
    gpu = device.type == "cuda"
    # All that differs between the devices:
    place = "gpu" if gpu else "cpu"
    mixed: dict[str, Any] = {"device": "mixed", "hw_decoder_load": hw_decoder_load}

    def to_device(value: Any) -> Any:
        """Move a CPU operator's output to the device of the images."""
        return value.gpu() if gpu else value

    def decoded_image(role: str, payload: Any) -> tuple[Any, Any]:
        """Decode an image (H x W x C) from its file; return it and its width and height."""
        on_gpu = gpu and not extensions[role] <= CPU_ONLY
        image = fn.decoders.image(
            payload,
            output_type=types.RGB if role == "fg_bg" else types.GRAY,
            dtype=types.UINT16 if role == "depth" and depth_bits == 16 else types.UINT8,
            adjust_orientation=False,
            **(mixed if on_gpu else {"device": "cpu"}),
        )
        image = image if on_gpu else to_device(image)
        if decode_only:
            return image, None
        if (size := sizes[role]) is not None:
            # Reading the size from the header needs another instance of the decoding library,
            # which takes a second to start on a machine with a GPU.
            return image, size
        shape = fn.peek_image_shape(payload, adjust_orientation=False)
        return image, fn.cast(fn.stack(shape[1], shape[0]), dtype=types.FLOAT)

    def raw_image(role: str, payload: Any) -> tuple[Any, Any]:
        """Reshape raw pixels to an image; return it and its width and height."""
        size = sizes[role]
        assert size is not None  # Raw images have one size.
        width, height = size
        found = to_device(payload)
        if role == "mask":
            return _unpack_mask(found, width, height, place), size
        if role == "depth":
            word = types.UINT16 if depth_bits == 16 else types.UINT8
            return fn.reinterpret(found, shape=[height, width, 1], dtype=word), size
        colours = fn.reshape(found, shape=[3, height, width])
        return fn.transpose(colours, perm=[1, 2, 0], transpose_layout=False), size

    @functools.cache
    def scaled(size: tuple[int, int]) -> Any:
        return unit_matrix * types.Constant(np.array(size, np.float32)[:, None], device="cpu")

    def in_pixels(matrix: Any, size: Any) -> Any:
        """Return the map to the unit square that turns an image in its own pixels.

        ``size`` is its width and height. The output is stretched to its aspect before, the image
        to a square afterwards.
        """
        one, aspect = types.Constant(1.0, device="cpu"), size[0] / size[1]
        middle = [side / 2 for side in res[::-1]]
        return fn.transforms.combine(
            fn.transforms.scale(scale=fn.stack(aspect, one), center=middle),
            matrix,
            fn.transforms.scale(scale=fn.stack(1.0 / aspect, one), center=[0.5, 0.5]),
        )

    def reduced(role: str, image: Any, size: Any) -> tuple[Any, Any]:
        """Reduce an image that is much larger than the batch; return it and its matrix.

        ``size`` is its width and height: numbers, or a tensor of one sample's. A mask's levels are
        moved so that `HALF`, of an averaged mask, is the threshold of all.
        """
        if isinstance(size, tuple):
            new = tuple(reduced_sizes(size, res).tolist())
            if new == size:
                return image, scaled(size)
            if role == "mask":
                image = fn.cast(image >= settings.threshold, dtype=types.FLOAT) * 255.0
                image = image + (settings.threshold - HALF)
            return resized(role, image, [new[1], new[0]]), scaled(new)
        target = types.Constant(np.array(res[::-1], np.float32), device="cpu")
        large = fn.cast(size > LIMIT * target, dtype=types.FLOAT)
        new = size + large * (target - size)
        if role == "mask":
            any_large = to_device(fn.reductions.max(large))
            binary = fn.cast(image >= settings.threshold, dtype=types.FLOAT) * 255.0 + (
                settings.threshold - HALF
            )
            image = image + any_large * (binary - image)
        image = resized(role, image, fn.stack(new[1], new[0]))
        return image, unit_matrix * fn.reshape(new, shape=[2, 1])

    def resized(role: str, image: Any, size: Any) -> Any:
        smaller = fn.resize(
            fn.reinterpret(image, layout="HWC"), size=size, dtype=types.FLOAT,
            interp_type=types.INTERP_TRIANGULAR, antialias=True,
        )  # fmt: skip
        return fn.cat(*valid_levels(smaller), axis=2) if role in settings.invalid else smaller

    def valid_levels(image: Any) -> tuple[Any, Any]:
        """Return levels and validity of an image of two planes.

        The planes are interpolated: levels, 0 where invalid, and validity, which thus is the weight
        of the valid pixels. A pixel is valid if it is more than half.
        """
        weight = image[:, :, 1:2]
        valid = fn.cast(weight > 0.5, dtype=types.FLOAT)
        return image[:, :, 0:1] / dali_math.max(weight, 0.5) * valid, valid

    def warp(image: Any, matrix: Any) -> Any:
        """Resize and rotate in one interpolation; pixels outside repeat the edge."""
        return fn.warp_affine(
            image,
            matrix=matrix,
            size=list(res),
            interp_type=types.INTERP_LINEAR,
            dtype=types.FLOAT,
        )

    def normalise(image: Any, mean: list[float], std: list[float]) -> Any:
        return fn.crop_mirror_normalize(
            fn.reinterpret(image, layout="HWC"),
            mean=mean,
            std=std,
            dtype=types.FLOAT if settings.dtype == torch.float32 else types.FLOAT16,
            output_layout="HWC" if settings.channels_last else "CHW",
        )

    pipe = Pipeline(
        batch_size=settings.batch_size,
        num_threads=settings.threads,
        device_id=(device.index or 0) if gpu else None,
        prefetch_queue_depth=QUEUE_DEPTH[device.type],
        exec_dynamic=False,
    )
    with pipe:
        count = 1 + 2 * len(roles) + (not decode_only) + 2 * (noise is not None)
        inputs = _shard_inputs(source, count, shards)
        tables = DeviceTables(backgrounds, noise, res=res, device=device)
        table_rows = _table_inputs(source, count, tables)
        in_bytes: dict[str, Any] = {"normalized_anchor": False, "normalized_shape": False}
        payloads = [
            fn.slice(inputs[0], inputs[1 + k], inputs[1 + len(roles) + k], axes=[0], **in_bytes)
            for k in range(len(roles))
        ]
        unit_matrix, *colour_inputs = inputs[1 + 2 * len(roles) :] or [None]
        found = {
            role: (raw_image if raw else decoded_image)(role, one)
            for role, one in zip(roles, payloads, strict=True)
        }
        if decode_only:
            pipe.set_outputs(*(image for image, _ in found.values()))
            pipe.build()
            return pipe
        if not isinstance(size := found["fg_bg"][1], tuple):
            unit_matrix = in_pixels(unit_matrix, size)
        if depth_bits == 16:
            # The warp does not take uint16.
            image, size = found["depth"]
            found["depth"] = fn.cast(image, dtype=types.FLOAT), size
        for role, value in settings.invalid.items():
            image, size = found[role]
            valid = fn.cast(image != value, dtype=types.FLOAT)
            found[role] = fn.cat(image * valid, valid, axis=2), size
        if backgrounds is not None:
            found["bg"] = table_rows[0], (backgrounds.shape[2], backgrounds.shape[1])
        outputs = {role: warp(*reduced(role, *one)) for role, one in found.items()}
        valid_planes = []
        for role in settings.invalid:
            outputs[role], valid = valid_levels(outputs[role])
            valid_planes.append(fn.cast(valid, dtype=types.UINT8))
        if noise is not None:
            colour, strength = colour_inputs
            grain = table_rows[-1] * to_device(strength)
            for role in ("bg", "fg_bg"):
                if role in outputs:
                    coloured = fn.coord_transform(outputs[role], M=colour[:, :3], T=colour[:, 3])
                    outputs[role] = dali_math.clamp(coloured + grain, 0, 255)
        if "mask" in outputs:
            outputs["mask"] = fn.cast(outputs["mask"] >= settings.threshold, dtype=types.FLOAT)
        scale, shift = settings.normal[:, 0], settings.normal[:, 1]
        means, stds = (-shift / scale).tolist(), (1 / scale).tolist()
        scales = {
            "bg": (means[0], stds[0]),
            "fg_bg": (means[1], stds[1]),
            "mask": ([0.0], [1.0]),
            "depth": ([0.0], [float(2**depth_bits - 1)]),
        }
        pipe.set_outputs(
            *(normalise(outputs[role], *scales[role]) for role in ROLES if role in outputs),
            *valid_planes,
        )
    pipe.build()
    return pipe


def _shard_inputs(
    source: Callable[[int], list[Array]], count: int, shards: Sequence[Bytes]
) -> list[Any]:
    """Return the arrays of ``source`` as graph inputs; the first becomes each row's shard bytes.

    DALI uses the arrays in place: no copy, no work a row.
    """
    mapped = [_dali.TensorCPU(shard) for shard in shards]

    def lists(info: Any) -> list[Any]:
        numbers, *others = source(info.iteration)[:count]
        chosen = [mapped[number] for number in numbers.tolist()]
        return [_dali.TensorListCPU(chosen, contiguous=False), *map(_dali.TensorListCPU, others)]

    outputs = fn.external_source(
        lists, num_outputs=count, device="cpu", batch=True, batch_info=True, no_copy=True
    )
    return list(outputs)


def _table_inputs(
    source: Callable[[int], list[Array]], count: int, tables: DeviceTables
) -> list[Any]:
    """Return graph inputs with each row's background and noise, gathered from ``tables``.

    The rows to gather are the arrays of ``source`` after ``count``. As an ordinary input, DALI
    would take a whole table for every sample, and on a GPU copy it as many times.
    """
    if not tables.tables:
        return []

    def pick(info: Any) -> list[Any]:
        rows = tables(source(info.iteration)[count:])
        # For torch tensors DALI asks for the CUDA stream, even without a GPU.
        return rows if tables.stream else [one.numpy() for one in rows]

    # Copied, unlike the other inputs: on a GPU, DALI can only wait for a copy to be complete.
    outputs = fn.external_source(
        pick,
        num_outputs=tables.tables,
        device="gpu" if tables.stream else "cpu",
        batch=True,
        batch_info=True,
        cuda_stream=tables.stream,
    )
    return list(outputs)


def _unpack_mask(packed: Any, width: int, height: int, place: str) -> Any:
    """Unpack a raw mask's bits to an image of 0 and 255, float (H x W x 1)."""
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
    """Return a function that decodes a few images on the CPU.

    ``batch_size`` is the largest number of files a call. Images are RGB if ``colour``, else gray,
    and resized with antialiasing to ``size`` (width and height, pixels) if it is given.

    Returns:
        A function from files' bytes to (H, W, C) uint8 images; it raises RuntimeError if one does
        not decode.
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


def copy_output(output: Any, dtype: torch.dtype) -> torch.Tensor:
    """Copy one of the graph's outputs, on its device, to a tensor that owns its memory."""
    shared: torch.Tensor = torch.utils.dlpack.from_dlpack(output.as_tensor())
    return shared.to(dtype, copy=True)


_STATUS = {3: "its file is damaged", 4: "not an image of a kind that DALI reads"}
"""Meaning of nvImageCodec's status numbers (``nvimgcodecStatus_t``), which DALI passes on."""


def decode_faults(payloads: Sequence[Bytes], role: str) -> list[str | None]:
    """Return DALI's reason for each payload that it does not decode, None for the others.

    Decodes them one by one with ``decoder``.
    """
    decode = decoder(batch_size=1, threads=1, colour=role in ("bg", "fg_bg"))
    found: list[str | None] = []
    for payload in payloads:
        try:
            decode([payload])
            found.append(None)
        except RuntimeError as error:
            found.append(error_reason(error))
    return found


def error_reason(error: RuntimeError) -> str:
    """Return the reason of a DALI error in one line."""
    text = str(error)
    if "encountered:" in text:
        text = text.split("encountered:", 1)[1].split("Current pipeline object", 1)[0]
    lines = [line.strip() for line in text.splitlines()]
    found = next((line.split("] ")[-1] for line in lines if "rror" in line), None)
    reason = found or " ".join(filter(None, lines))[:200]
    for status, meaning in _STATUS.items():
        reason = reason.replace(f"nvImageCodec failure: '#{status}'", meaning)
    return reason
