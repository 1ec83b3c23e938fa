"""A trained network for use without this package: ONNX, TorchScript, or plain weights.

What is exported takes pictures as they are and gives mask and depth: normalisation and activation
are part of it. Batch size and picture size stay open. It trains and judges nothing.

    bg, fg_bg   (B, 3, H, W) float32 in [0, 1]; H and W multiples of 16, at least 32
    mask, depth (B, 1, H, W) float32 in [0, 1]

A network trained without backgrounds takes fg_bg alone; one trained without masks, or without
depth, gives the other alone.
"""

import io
import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from model.registry import MakeModel, create
from shardify.storage.atomic_write import atomic_path
from train.checkpoint.checkpoint_file import save
from train.checkpoint.trained_model import Trained, load_trained, weights_metadata
from train.errors import ConfigError, RunError
from train.settings import to_toml

__all__ = ["FORMATS", "Deployed", "export"]

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
"""Name of a format → how its files end."""

EXAMPLE = (2, 3, 32, 64)
"""A batch to trace with: no side is 1, none equals another where it may differ."""


class Deployed(nn.Module):
    """Pictures in, mask and depth out."""

    mean: Tensor
    std: Tensor
    inputs: tuple[str, ...] = ("bg", "fg_bg")
    """Names of the pictures it takes."""

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.network = trained.model
        self.sigmoid = trained.criterion.activation == "sigmoid"
        self.targets = trained.targets
        for name in ("mean", "std"):
            values = getattr(trained, name)
            both = torch.tensor([*values["bg"], *values["fg_bg"]])
            self.register_buffer(name, both.view(1, 6, 1, 1))

    def forward(self, bg: Tensor, fg_bg: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) twice, float32 in [0, 1] → ``targets``, (B, 1, H, W) in [0, 1] each."""
        images = (torch.cat((bg, fg_bg), dim=1) - self.mean) / self.std
        raw = self.network(images)
        said = [getattr(raw, target) for target in self.targets]
        return tuple(torch.sigmoid(one) if self.sigmoid else one.clamp(0, 1) for one in said)


class DeployedAlone(Deployed):
    """As `Deployed`, for a network that looks at no background."""

    inputs = ("fg_bg",)

    def forward(self, fg_bg: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(B, 3, H, W) float32 in [0, 1] → ``targets``, (B, 1, H, W) in [0, 1] each."""
        return super().forward(fg_bg, fg_bg)  # It looks at the second one only.


def export(
    path: Path, *, kind: str, out: Path | None = None, make_model: MakeModel = create
) -> Path:
    """Write a trained network in another format.

    Args:
        path: A run's folder, weights, or a checkpoint.
        kind: A key of ``FORMATS``. safetensors holds the weights with their settings, for this
            package; the others run without it.
        out: The file; ``best.onnx`` and so on beside the weights by default.
        make_model: Makes the network that the weights name.

    Returns:
        The file written.

    Raises:
        CheckpointError: No weights there.
        ConfigError: No such format, or a package that it needs is missing.
        RunError: The file cannot be written.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind}: expected one of {', '.join(FORMATS)}")
    trained = load_trained(path, make_model=make_model)
    target = out or trained.path.with_suffix(FORMATS[kind])
    if target.resolve() == trained.path.resolve():
        raise ConfigError(f"--out {target}: is what would be exported; choose another --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target, durable=True) as temporary:
            if kind == "safetensors":
                _weights(trained, temporary)
            elif kind == "torchscript":
                _torchscript(_deployed(trained), temporary, trained)
            else:
                _onnx(_deployed(trained), temporary)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error})") from error
    return target


def _deployed(trained: Trained) -> Deployed:
    kind = Deployed if trained.background else DeployedAlone
    return kind(trained).eval()


def _weights(trained: Trained, target: Path) -> None:
    about = {
        "config": to_toml(trained.config),
        "res": trained.res,
        "step": trained.step,
        "mean": trained.mean,
        "std": trained.std,
        "roles": ["fg_bg", *trained.targets, *(["bg"] if trained.background else [])],
    }
    save(target, dict(trained.model.state_dict()), weights_metadata(about))


def _torchscript(network: Deployed, target: Path, trained: Trained) -> None:
    example = tuple(torch.rand(EXAMPLE) for _ in network.inputs)
    with warnings.catch_warnings():
        # A trace's checks of sizes are for the traced size; TorchScript is asked for by the user.
        warnings.simplefilter("ignore")
        with torch.no_grad():
            traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        extra = {"shardline.json": json.dumps({"res": trained.res, "step": trained.step})}
        # Torch's own writing to a file ends the process where the disk is full.
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files=extra)
    target.write_bytes(buffer.getbuffer())


def _onnx(network: Deployed, target: Path) -> None:
    batch = Dim("batch", min=1, max=4096)
    # Sizes are 16 times something: the graph itself then refuses all others.
    height, width = 16 * Dim("rows", min=2, max=512), 16 * Dim("columns", min=2, max=512)
    shape = {0: batch, 2: height, 3: width}
    example = tuple(torch.rand(EXAMPLE) for _ in network.inputs)
    # What the exporter says of itself: its own deprecations, and that torchvision is not there.
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                example,
                str(target),
                input_names=list(network.inputs),
                output_names=list(network.targets),
                dynamic_shapes=(shape,) * len(example),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise ConfigError(
            f"--format onnx: {error}; pip install onnx onnxscript, or use --format torchscript"
        ) from error
    finally:
        logger.setLevel(before)
