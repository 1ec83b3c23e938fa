"""Predict mask, depth and pictures to look at of images, at the size of each image.

Images are resized to the network's resolution like validation samples: whatever their shape, by
bilinear interpolation with ``align_corners=False``, after sides much longer than it are reduced
with antialiasing.
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
from shardify.loader.reduction import reduced_sizes
from shardify.resolution import ResolutionLike, resolution
from shardify.storage.atomic_write import atomic_path
from train.checkpoint.trained_model import Trained, load_trained
from train.data import TargetFormat
from train.distributed import World
from train.errors import ConfigError
from train.inference.input_pairs import MARK, InputPair, find_pairs, is_prediction
from train.optim.compute import move_model, pick_device

COLORS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colours of the coloured depth, evenly spaced from its smallest to its largest value. RGB."""

OVERLAY = (255, 40, 40)
"""Colour of the object in the overlay. RGB."""


class PredictedMaps(NamedTuple):
    """Prediction for one image, at the size of the image.

    A map that is not in ``Predictor.targets`` has no meaning.
    """

    mask: NDArray[np.float32]
    """(H, W) probability of object, in [0, 1]."""

    depth: NDArray[np.float32]
    """(H, W) depth as a share of the full range, in [0, 1]."""


class Predictor:
    """Applies a trained network to images of any size."""

    def __init__(
        self,
        trained: Trained,
        *,
        device: torch.device | None = None,
        res: ResolutionLike | None = None,
    ) -> None:
        """Move the network to a device.

        By default the device is a GPU if there is one, and the resolution the last of the training.

        Raises:
            ConfigError: The network does not support this resolution.
        """
        self.res = resolution(trained.res if res is None else res)
        try:
            check_resolution(*self.res)
        except ValueError as error:
            raise ConfigError(f"--res {self.res}: {error}") from error
        device = device or pick_device("auto", World())
        self._device = device
        self._model = move_model(trained.model.eval(), device, channels_last=True)
        self._criterion = trained.criterion
        self.targets = trained.targets
        """Targets of the training: mask, depth or both."""
        self.background = trained.background
        """Whether the network uses backgrounds."""
        self.depth_format = trained.formats.get("depth")
        """How the training data stored depth; None if not known."""
        self._mean = {role: _channels(trained.mean[role], device) for role in ("bg", "fg_bg")}
        self._std = {role: _channels(trained.std[role], device) for role in ("bg", "fg_bg")}

    @torch.inference_mode()
    def __call__(
        self, pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    ) -> list[PredictedMaps]:
        """Predict a batch.

        Args:
            pairs: (background, image), each (H, W, 3) uint8 RGB of any size. If the network
                does not use backgrounds, the background can be any image.

        Returns:
            For each pair, maps of the size of the image.

        Raises:
            ValueError: An image has another shape or type.
        """
        pairs = [(_check_image(image), _check_image(like)) for image, like in pairs]
        if not pairs:
            return []
        # As in the loader: a background is first resized to the size of its image.
        bg = torch.cat([self._input(image, "bg", like.shape[:2]) for image, like in pairs])
        fg_bg = torch.cat([self._input(image, "fg_bg", image.shape[:2]) for _, image in pairs])
        raw = self._model(
            torch.cat((bg, fg_bg), dim=1).contiguous(memory_format=torch.channels_last)
        )
        prediction = self._criterion.activate(raw)
        return [
            PredictedMaps(
                _resize(prediction.mask[i : i + 1], image.shape[:2]),
                _resize(prediction.depth[i : i + 1], image.shape[:2]),
            )
            for i, (_, image) in enumerate(pairs)
        ]

    def _input(self, image: NDArray[np.uint8], role: str, size: tuple[int, ...]) -> Tensor:
        """Resize an image of (H, W) ``size`` and normalise it: (1, 3, *res)."""
        # torch warns of arrays that are not writable, as NumPy's views of Pillow images are.
        image = image if image.flags.writeable else image.copy()
        pixels = torch.from_numpy(image).to(self._device).permute(2, 0, 1)[None].float() / 255
        # The loader's steps: a background takes the size of its image, and a side much longer than
        # the network's is reduced with antialiasing; then comes the warp, here without rotation.
        smaller = tuple(reduced_sizes(size[::-1], self.res)[::-1].tolist())
        for antialiased in (size, smaller):
            if pixels.shape[2:] != antialiased:
                pixels = interpolate(pixels, antialiased, mode="bilinear", antialias=True)
        full = interpolate(pixels, tuple(self.res), mode="bilinear", align_corners=False)
        return (full - self._mean[role]) / self._std[role]


def predict_files(
    predictor: Predictor,
    pairs: Sequence[InputPair],
    out: Path,
    *,
    batch: int = 8,
    bits: int | None = None,
) -> list[Path]:
    """Write mask, depth, coloured depth and overlay of every image.

    The files are ``NAME_mask.png``, ``NAME_depth.png``, ``NAME_depth_color.png`` and
    ``NAME_overlay.png``. Only the targets of the network are written; the overlay shows the mask.
    The mask is 255 where the probability is above 0.5, else 0.

    The depth has the bits and the steps of the training data; a PNG text ``Depth`` says what a step
    is, if that is known. No pixel has the value that means "no depth" there. With other ``bits`` (8
    or 16), or if the training data are not known (then 8), the full range of the depth is the full
    range of the PNG. The coloured depth goes from the smallest to the largest value of the image.

    ``out`` is created if missing; existing predictions are replaced.

    Returns:
        The files: four per image, fewer if the network has one target.

    Raises:
        ConfigError: The network uses backgrounds, and a pair has none.
        DataError: An image cannot be read, ``out`` cannot be written, or it contains a file of the
            same name that is not a prediction.
    """
    if predictor.background and any(pair.bg is None for pair in pairs):
        raise ConfigError("--bg: missing; this network needs the background")
    for pair in pairs:
        for name in _file_names(pair, predictor.targets).values():
            if (out / name).exists() and not is_prediction(out / name):
                raise DataError(
                    f"{out / name}: was not written by `train predict`; choose another --out"
                )
    own = predictor.depth_format or TargetFormat()
    stored = own if bits in (None, own.bits) else TargetFormat(bits)
    origin, depth_about = PngImagePlugin.PngInfo(), PngImagePlugin.PngInfo()
    for about in (origin, depth_about):
        about.add_text("Software", MARK)
    if stored.step_text:
        depth_about.add_text("Depth", stored.step_text)
    written: list[Path] = []
    for first in range(0, len(pairs), batch):
        group = pairs[first : first + batch]
        images = [(read_image(pair.bg or pair.fg_bg), read_image(pair.fg_bg)) for pair in group]
        predicted = predictor(images)
        # Created only now, so that a failure before leaves no empty folder.
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{out}: cannot be created ({error.strerror})") from error
        for pair, (_, image), maps in zip(group, images, predicted, strict=True):
            for kind, name in _file_names(pair, predictor.targets).items():
                image_file = _render(kind, image, maps, stored)
                try:
                    with atomic_path(out / name) as temporary:
                        about = depth_about if kind == "depth" else origin
                        image_file.save(temporary, "PNG", pnginfo=about)
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
    res: ResolutionLike | None = None,
    batch: int = 8,
    bits: int | None = None,
    device: str = "auto",
) -> list[Path]:
    """Load a network, find the images and call `predict_files`.

    Raises:
        TrainError: The network or a setting cannot be used.
        DataError: See `find_pairs` and `predict_files`.
    """
    chosen = pick_device(device, World())
    pairs = find_pairs(bg, fg_bg)
    predictor = Predictor(load_trained(trained), device=chosen, res=res)
    return predict_files(predictor, pairs, out, batch=batch, bits=bits)


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Read an image as (H, W, 3) uint8 RGB, as `shardify build` stores it: rotated as EXIF says.

    Of 16 bits the upper 8 are used.

    Raises:
        DataError: Missing, not an image, or floating-point pixels of unknown range.
    """
    try:
        with Image.open(path) as image:
            image.load()
            rotated = ImageOps.exif_transpose(image)
            if rotated.mode == "I" or rotated.mode.startswith("I;16"):
                # Pillow would clip: every pixel that is not nearly black would be white.
                upper = (np.clip(np.asarray(rotated), 0, 65535) >> 8).astype(np.uint8)
                return np.repeat(upper[..., None], 3, axis=2)
            if rotated.mode != "F":
                return np.array(rotated.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected an image") from None
    # Pillow raises many types of errors for damaged files.
    except Exception as error:
        raise DataError(
            f"{path}: cannot be read as an image ({error}); save it again, or leave it out"
        ) from error
    raise DataError(
        f"{path}: has floating-point pixels of unknown range; expected 8 or 16 bits; convert it"
    )


def _check_image(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Check shape and type; copy if strides are negative (BGR to RGB), which torch refuses."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(
            f"an image of {image.dtype} and shape {image.shape}; expected uint8 (H, W, 3), RGB"
        )
    return np.ascontiguousarray(image)


def _channels(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(1, -1, 1, 1)


def _resize(plane: Tensor, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Resize (1, 1, *res) to (H, W)."""
    full = interpolate(plane, size, mode="bilinear", align_corners=False)
    return full[0, 0].cpu().numpy()


def _file_names(pair: InputPair, targets: Collection[str]) -> dict[str, str]:
    """Map each kind of output image to its file name."""
    kinds = ["mask"] if "mask" in targets else []
    kinds += ["depth", "depth_color"] if "depth" in targets else []
    kinds += ["overlay"] if "mask" in targets else []
    return {kind: f"{pair.fg_bg.stem}_{kind}.png" for kind in kinds}


def _render(
    kind: str, image: NDArray[np.uint8], maps: PredictedMaps, stored: TargetFormat
) -> Image.Image:
    if kind == "mask":
        return Image.fromarray(np.where(maps.mask > 0.5, np.uint8(255), np.uint8(0)))
    if kind == "depth":
        return _steps(maps.depth, stored)
    return _colored(maps.depth) if kind == "depth_color" else _overlay(image, maps.mask)


def _steps(depth: NDArray[np.float32], stored: TargetFormat) -> Image.Image:
    """Convert depth in [0, 1] to the steps of a data set."""
    steps = (depth.astype(np.float64) * (2**stored.bits - 1)).round()
    # Every pixel has a prediction.
    steps[steps == stored.invalid] += 1 if stored.invalid == 0 else -1
    return Image.fromarray(steps.astype(np.uint8 if stored.bits == 8 else np.uint16))


def _colored(depth: NDArray[np.float32]) -> Image.Image:
    """Colour depth by `COLORS`, from its smallest to its largest value."""
    low, high = float(depth.min()), float(depth.max())
    place = (depth - low) / (high - low) if high > low else np.zeros_like(depth)
    levels = np.linspace(0, 1, len(COLORS))
    channels = [np.interp(place, levels, channel) for channel in zip(*COLORS, strict=True)]
    return Image.fromarray(np.stack(channels, axis=2).round().astype(np.uint8))


def _overlay(image: NDArray[np.uint8], mask: NDArray[np.float32]) -> Image.Image:
    """Blend the image with the overlay colour, weighted by half the probability of object."""
    weight = 0.5 * mask[..., None]
    return Image.fromarray(
        (image * (1 - weight) + np.array(OVERLAY) * weight).round().astype(np.uint8)
    )
