"""Using a trained network on pictures: mask, depth and an overlay of each, at the picture's size.

Reads with Pillow; trains and judges nothing. Pictures are brought to the network's resolution as
validation samples are: squashed to a square by one bilinear interpolation, pixel centres in their
places.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor
from torch.nn.functional import interpolate

from model.registry import check_resolution
from shardify.errors import DataError
from shardify.storage.atomic_write import atomic_path
from train.checkpoint.trained_model import Trained, load_trained
from train.distributed import World
from train.errors import ConfigError
from train.inference.input_pairs import MARK, InputPair, find_pairs, is_prediction
from train.optim.compute import move_model, pick_device

__all__ = ["PredictedMaps", "Predictor", "predict", "predict_files", "read_image"]

OVERLAY = (255, 40, 40)
"""Colour that the overlay lays over the object. RGB."""


class PredictedMaps(NamedTuple):
    """What the network says of one picture, at that picture's size.

    What it was not trained to say (``Trained.targets``) means nothing.
    """

    mask: NDArray[np.float32]
    """(H, W) probability that a pixel is object, in [0, 1]."""

    depth: NDArray[np.float32]
    """(H, W) in [0, 1] of the depth maps' full range."""


class Predictor:
    """A trained network, ready for pictures of any size."""

    def __init__(
        self, trained: Trained, *, device: torch.device | None = None, res: int | None = None
    ) -> None:
        """Move the network to a device.

        Args:
            trained: From `train.checkpoint.trained_model.load_trained`.
            device: Where to compute; a GPU where there is one by default.
            res: Resolution to compute at; the one it was trained at last by default. Pixels.

        Raises:
            ConfigError: The network does not take this resolution.
        """
        self.res = trained.res if res is None else res
        try:
            check_resolution(self.res)
        except ValueError as error:
            raise ConfigError(f"--res {self.res}: {error}") from error
        device = device or pick_device("auto", World())
        self._device = device
        self._model = move_model(trained.model.eval(), device, channels_last=True)
        self._criterion = trained.criterion
        self.targets = trained.targets
        """Of mask and depth, what it was trained to say."""
        self.background = trained.background
        """Whether it looks at backgrounds."""
        self._mean = {role: _column(trained.mean[role], device) for role in ("bg", "fg_bg")}
        self._std = {role: _column(trained.std[role], device) for role in ("bg", "fg_bg")}

    @torch.inference_mode()
    def __call__(
        self, pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    ) -> list[PredictedMaps]:
        """Predict a batch.

        Args:
            pairs: (background, picture) each (H, W, 3) uint8 RGB, of any sizes. For a network that
                looks at no background, any picture will do.

        Returns:
            For each pair, maps of the picture's size.

        Raises:
            ValueError: A picture is of another shape or type.
        """
        pairs = [(_checked(image), _checked(like)) for image, like in pairs]
        if not pairs:
            return []
        # As in the loader: a background is squashed to its picture's size before anything else.
        bg = torch.cat([self._input(image, "bg", like.shape[:2]) for image, like in pairs])
        fg_bg = torch.cat([self._input(image, "fg_bg", image.shape[:2]) for _, image in pairs])
        raw = self._model(
            torch.cat((bg, fg_bg), dim=1).contiguous(memory_format=torch.channels_last)
        )
        prediction = self._criterion.activate(raw)
        return [
            PredictedMaps(
                _resized(prediction.mask[i : i + 1], image.shape[:2]),
                _resized(prediction.depth[i : i + 1], image.shape[:2]),
            )
            for i, (_, image) in enumerate(pairs)
        ]

    def _input(self, image: NDArray[np.uint8], role: str, size: tuple[int, ...]) -> Tensor:
        """(1, 3, R, R) normalised."""
        pixels = torch.from_numpy(image).to(self._device).permute(2, 0, 1)[None].float() / 255
        if image.shape[:2] != size:
            pixels = interpolate(pixels, size, mode="bilinear", antialias=True)
        square = interpolate(pixels, (self.res, self.res), mode="bilinear", align_corners=False)
        return (square - self._mean[role]) / self._std[role]


def predict_files(
    predictor: Predictor, jobs: Sequence[InputPair], out: Path, *, batch: int = 8, bits: int = 8
) -> list[Path]:
    """Write ``NAME_mask.png``, ``NAME_depth.png`` and ``NAME_overlay.png`` for every picture.

    Only what the network was trained to say is written; an overlay shows the mask. The mask is 255
    where the probability is above 0.5, else 0. The depth's full range is the PNG's.

    Args:
        predictor: The network.
        jobs: From `train.inference.input_pairs.find_pairs`.
        out: Folder to write to; made if missing; predictions that it holds are replaced.
        batch: Pictures a step.
        bits: Of the depth PNG: 8 or 16.

    Returns:
        The files, three a job; fewer from a network that says less.

    Raises:
        ConfigError: A job has no background, and the network looks at it.
        DataError: A picture cannot be read, ``out`` not written, or a file of such a name there is
            no prediction.
    """
    if predictor.background and any(job.bg is None for job in jobs):
        raise ConfigError("--bg: missing; this network looks at the background too")
    for job in jobs:
        for name in _named(job, predictor.targets).values():
            if (out / name).exists() and not is_prediction(out / name):
                raise DataError(f"{out / name}: is no prediction of ours; choose another --out")
    origin = PngImagePlugin.PngInfo()
    origin.add_text("Software", MARK)
    written: list[Path] = []
    for first in range(0, len(jobs), batch):
        group = jobs[first : first + batch]
        images = [(read_image(job.bg or job.fg_bg), read_image(job.fg_bg)) for job in group]
        predicted = predictor(images)
        # Only now is there something to write: a failure leaves no empty folder.
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out}: cannot be made a folder ({error.strerror})") from error
        for job, (_, image), maps in zip(group, images, predicted, strict=True):
            for kind, name in _named(job, predictor.targets).items():
                picture = _drawn(kind, image, maps, bits)
                try:
                    with atomic_path(out / name) as temporary:
                        picture.save(temporary, "PNG", pnginfo=origin)
                except OSError as error:
                    raise DataError(f"{out / name}: cannot be written ({error})") from error
                written.append(out / name)
    return written


def predict(
    trained: Path,
    *,
    bg: Path | None,
    fg_bg: Path,
    out: Path,
    res: int | None = None,
    batch: int = 8,
    bits: int = 8,
    device: str = "auto",
) -> list[Path]:
    """`predict_files` from paths alone: a run or weights, pictures or folders of them.

    Raises:
        TrainError: See the tree.
    """
    jobs = find_pairs(bg, fg_bg)
    where = pick_device(device, World())
    predictor = Predictor(load_trained(trained), device=where, res=res)
    return predict_files(predictor, jobs, out, batch=batch, bits=bits)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """A picture as (H, W, 3) uint8 RGB, as it would lie in a shard: turned as its EXIF asks.

    Of 16 bits the upper 8 are taken.

    Raises:
        DataError: Missing, no picture, or of numbers whose range cannot be told.
    """
    try:
        with Image.open(path) as image:
            image.load()
            turned = ImageOps.exif_transpose(image)
            if turned.mode == "I" or turned.mode.startswith("I;16"):
                # Pillow would clip instead: all that is not nearly black would be white.
                upper = (np.clip(np.asarray(turned), 0, 65535) >> 8).astype(np.uint8)
                return np.repeat(upper[..., None], 3, axis=2)
            if turned.mode != "F":
                return np.array(turned.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a picture") from None
    # Pillow raises nearly anything on damaged input.
    except Exception as error:
        unread = f"{path}: no picture that can be read ({error})"
        raise DataError(f"{unread}; save it again, or leave it out") from error
    raise DataError(
        f"{path}: a picture of floating-point numbers, whose white cannot be told; "
        "expected 8 or 16 bits; save it as such"
    )


def _checked(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture as torch takes it: without negative strides, as one turned from BGR has."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"a picture of {image.dtype} and shape {image.shape}; expected uint8 (H, W, 3), RGB"
        )
    return np.ascontiguousarray(image)


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _resized(plane: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """(H, W) from (1, 1, R, R)."""
    full = interpolate(plane, size, mode="bilinear", align_corners=False)
    return full[0, 0].cpu().numpy()


def _named(job: InputPair, targets: Collection[str]) -> dict[str, str]:
    """What is drawn of a picture → its file's name."""
    kinds = [kind for kind in ("mask", "depth") if kind in targets]
    kinds += ["overlay"] if "mask" in targets else []
    return {kind: f"{job.fg_bg.stem}_{kind}.png" for kind in kinds}


def _drawn(kind: str, image: NDArray[np.uint8], maps: PredictedMaps, bits: int) -> Image.Image:
    if kind == "mask":
        return _gray(maps.mask > 0.5, 8)
    return _gray(maps.depth, bits) if kind == "depth" else _overlay(image, maps.mask)


def _gray(plane: NDArray[np.float32] | NDArray[np.bool_], bits: int) -> Image.Image:
    """A gray picture whose white is 1."""
    top = 2**bits - 1
    kind = np.uint8 if bits == 8 else np.uint16
    return Image.fromarray((plane.astype(np.float64) * top).round().astype(kind))


def _overlay(image: NDArray[np.uint8], mask: NDArray[np.float32]) -> Image.Image:
    """The picture, its object tinted by how sure the network is."""
    weight = 0.5 * mask[..., None]
    return Image.fromarray(
        (image * (1 - weight) + np.array(OVERLAY) * weight).round().astype(np.uint8)
    )
