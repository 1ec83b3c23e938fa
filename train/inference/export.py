"""Export a trained network as ONNX, TorchScript or weights.

The ONNX and TorchScript networks include normalisation and activation. Batch size and image size
are dynamic:

    bg, fg_bg   (B, 3, H, W) float32 in [0, 1]; H and W multiples of 16, at least 32
    mask, depth (B, 1, H, W) float32 in [0, 1]

A network trained without backgrounds has the input fg_bg only; one trained without masks or without
depth has the other output only. The JSON text ``shardline`` (ONNX: metadata; TorchScript: the extra
file ``shardline.json``) has ``res``, ``step`` and ``formats``: how the training data stored depth.
Depth times ``2 ** bits - 1`` is in stored steps, of which ``scale`` are one ``unit``.
"""

import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from model.registry import MakeModel, create
from shardify.storage.atomic_write import atomic_path
from train.checkpoint.checkpoint_file import save
from train.checkpoint.trained_model import Trained, load_trained, weights_metadata
from train.errors import ConfigError, RunError
from train.settings import to_toml

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors"}
"""Format → file extension."""

EXAMPLE = (2, 3, 32, 64)
"""Shape of the example batch. No dimension is 1, and dynamic ones are not equal: the exporters
would treat such sizes as fixed or as the same."""


class Deployed(nn.Module):
    """Network with normalisation and activation."""

    mean: Tensor
    std: Tensor
    inputs: tuple[str, ...] = ("bg", "fg_bg")

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
        """Map two (B, 3, H, W) float32 in [0, 1] to ``targets``, each (B, 1, H, W) in [0, 1]."""
        images = (torch.cat((bg, fg_bg), dim=1) - self.mean) / self.std
        raw = self.network(images)
        outputs = [getattr(raw, target) for target in self.targets]
        return tuple(torch.sigmoid(each) if self.sigmoid else each.clamp(0, 1) for each in outputs)


class DeployedWithoutBackground(Deployed):
    """Like `Deployed`, for a network that does not use the background."""

    inputs = ("fg_bg",)

    def forward(self, fg_bg: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Map (B, 3, H, W) float32 in [0, 1] to ``targets``, each (B, 1, H, W) in [0, 1]."""
        return super().forward(fg_bg, fg_bg)  # The first input is not used.


def export(
    path: Path, *, kind: str, out: Path | None = None, make_model: MakeModel = create
) -> Path:
    """Write a trained network in another format.

    ``kind`` is a key of ``FORMATS``. safetensors: weights and settings, for this package; the other
    formats do not need it. By default the file is next to the weights, like ``best.onnx``.

    Returns:
        The file written.

    Raises:
        CheckpointError: There are no weights.
        ConfigError: Unknown format, or a package that it needs is missing.
        RunError: The file cannot be written.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind}: expected one of {', '.join(FORMATS)}")
    trained = load_trained(path, make_model=make_model)
    target = out or trained.path.with_suffix(FORMATS[kind])
    if target.resolve() == trained.path.resolve():
        raise ConfigError(f"--out {target}: is the file to export; choose another --out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target, durable=True) as temporary:
            if kind == "safetensors":
                _weights(trained, temporary)
            elif kind == "torchscript":
                _torchscript(_deployed(trained), temporary, trained)
            else:
                _onnx(_deployed(trained), temporary, trained)
    except OSError as error:
        raise RunError(f"{target}: cannot be written ({error})") from error
    return target


def _deployed(trained: Trained) -> Deployed:
    network = Deployed if trained.background else DeployedWithoutBackground
    return network(trained).eval()


def _weights(trained: Trained, target: Path) -> None:
    about = {
        "config": to_toml(trained.config),
        "res": trained.res.to_json(),
        "step": trained.step,
        "mean": trained.mean,
        "std": trained.std,
        "roles": ["fg_bg", *trained.targets, *(["bg"] if trained.background else [])],
        "formats": _formats(trained),
    }
    save(target, dict(trained.model.state_dict()), weights_metadata(about))


def _formats(trained: Trained) -> dict[str, dict[str, Any]]:
    return {role: each._asdict() for role, each in trained.formats.items()}


def _description(trained: Trained) -> str:
    """Return the JSON text of an exported network."""
    return json.dumps(
        {"res": trained.res.to_json(), "step": trained.step, "formats": _formats(trained)}
    )


def _torchscript(network: Deployed, target: Path, trained: Trained) -> None:
    example = tuple(torch.rand(EXAMPLE) for _ in network.inputs)
    with warnings.catch_warnings():
        # Tracing warns about size checks, which hold for all sizes, and about deprecation.
        warnings.simplefilter("ignore")
        with torch.no_grad():
            traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        extra = {"shardline.json": _description(trained)}
        # When torch itself writes the file and the disk is full, the process aborts.
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files=extra)
    target.write_bytes(buffer.getbuffer())


def _onnx(network: Deployed, target: Path, trained: Trained) -> None:
    batch = Dim("batch", min=1, max=4096)
    # Multiples of 16: the exported graph refuses all other sizes.
    height, width = 16 * Dim("rows", min=2, max=512), 16 * Dim("columns", min=2, max=512)
    shape = {0: batch, 2: height, 3: width}
    example = tuple(torch.rand(EXAMPLE) for _ in network.inputs)
    # The exporter logs its own deprecations, and that torchvision is not installed.
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                network,
                example,
                input_names=list(network.inputs),
                output_names=list(network.targets),
                dynamic_shapes=(shape,) * len(example),
                dynamo=True,
                verbose=False,
            )
            assert program is not None  # Only the older exporter returns nothing.
            program.model.metadata_props["shardline"] = _description(trained)
            program.save(str(target), external_data=False)
    except ImportError as error:
        raise ConfigError(
            f"--format onnx: {error}; pip install onnx onnxscript, or use --format torchscript"
        ) from error
    finally:
        logger.setLevel(before)
