"""The settings of a run: frozen dataclasses that check ranges and contradictions.

Each field is one setting. Its name is the key in the TOML file and the flag on the command line;
its docstring is the help of the flag (``train.settings`` reads both).
"""

import re
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from shardify.resolution import Resolution, ResolutionLike, resolution
from train.errors import ConfigError

MOST = 1 << 20
"""Samples a batch, or batches a step: a number beyond is a slip."""

THREADS = 1024
"""More end the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Samples, resolutions and epochs."""

    shards: str = ""
    """Data set: a folder that `shardify build` wrote."""

    res: tuple[Resolution, ...] = (Resolution(64, 64),)
    """Resolution of the images in each stage, comma-separated: the side of squares, or
    HEIGHTxWIDTH like 128x224; sides divisible by 16. Pixels."""

    epochs: tuple[int, ...] = (10,)
    """Number of epochs of each stage, comma-separated; one number applies to all stages."""

    batch: int = 16
    """Batch size per rank. Samples."""

    augment: bool = True
    """Random rotation, colour shift and noise on training samples."""

    order: Literal["permuted", "block", "sequential"] = "permuted"
    """Order of training samples. permuted: a random permutation of all samples each epoch; block: a
    random permutation of blocks of neighbouring samples, for data sets much larger than memory;
    sequential: as stored."""

    cache: Literal["disk", "ram"] = "disk"
    """disk: memory-map the shards; ram: read them into memory once."""

    exclude: str = ""
    """Keys of training samples to leave out, comma-separated. Validation is not affected."""

    def __post_init__(self) -> None:
        _check(bool(self.res), "res", self.res, "one resolution at least")
        # Frozen: callers may give sides, pairs or texts.
        object.__setattr__(self, "res", tuple(map(_resolution, self.res)))
        for epochs in self.epochs:
            _check(epochs > 0, "epochs", epochs, "a positive number a stage")
        _check(
            len(self.epochs) in (1, len(self.res)),
            "epochs",
            ",".join(map(str, self.epochs)),
            f"one number, or one for each of the {len(self.res)} resolutions of --res",
        )
        _check(0 < self.batch <= MOST, "batch", self.batch, f"1 to {MOST}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """The network."""

    model: Literal["resunet", "unet"] = "resunet"
    """Architecture."""

    init: str = ""
    """Start from the weights of another run, its folder or a weights file; optimiser, learning
    rate schedule, EMA and steps begin anew. Data, resolutions and targets may differ."""

    init_sha256: str = ""
    """SHA-256 digest that the weights file of --init must have; a run records it."""

    init_partial: bool = False
    """With --init, begin output heads anew if they are missing, have another shape or were not
    trained."""

    freeze: Literal["none", "encoder"] = "none"
    """Part of the weights of --init that is not trained; its batch norm statistics stay fixed."""

    unfreeze_stage: int = 0
    """Train the part of --freeze too, from this stage on, counted from 1; 0: never."""

    def __post_init__(self) -> None:
        if not self.init:
            _check(not self.init_sha256, "init_sha256", self.init_sha256, "--init with it")
            _check(not self.init_partial, "init_partial", "yes", "--init with it")
            expected = "--init with it, because new weights must be trained"
            _check(self.freeze == "none", "freeze", self.freeze, expected)
        stage = self.unfreeze_stage
        _check(stage == 0 or stage > 1, "unfreeze_stage", stage, "2 or more; 0: never")
        frozen = self.freeze != "none"
        _check(stage == 0 or frozen, "unfreeze_stage", stage, "--freeze encoder with it")


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Loss functions and their weights."""

    loss: Literal["dice+l1", "dice", "l1", "bce", "ssim"] = "dice+l1"
    """Loss function of mask and depth."""

    activation: Literal["sigmoid", "none"] = "sigmoid"
    """Activation of the outputs before the loss."""

    dice_weight: float = 1.0
    """Weight of the Dice loss in dice+l1."""

    l1_weight: float = 1.0
    """Weight of the L1 loss in dice+l1."""

    mask_weight: float = 2.0
    """Weight of the mask loss in the total loss."""

    depth_weight: float = 1.0
    """Weight of the depth loss in the total loss."""

    deep_supervision: float = 0.0
    """Weight of auxiliary losses at the coarser scales of the decoders, in training; 0: off."""

    def __post_init__(self) -> None:
        for name in ("dice_weight", "l1_weight", "mask_weight", "depth_weight"):
            _check(0 <= getattr(self, name) < inf, name, getattr(self, name), "0 or more")
        _check(self.dice_weight + self.l1_weight > 0, "dice_weight", 0, "--l1-weight above 0")
        _check(self.mask_weight + self.depth_weight > 0, "mask_weight", 0, "--depth-weight above 0")
        bce_of_raw = self.loss == "bce" and self.activation == "none"
        _check(not bce_of_raw, "activation", "none", "sigmoid with --loss bce")
        deep = self.deep_supervision
        _check(0 <= deep < inf, "deep_supervision", deep, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """Optimiser and learning rate."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""

    lr: float = 0.1
    """Initial learning rate."""

    momentum: float = 0.9
    """Momentum of SGD."""

    weight_decay: float = 1e-3
    """Weight decay."""

    grad_accum: int = 1
    """Number of batches whose gradients are accumulated for one optimiser step."""

    clip: float = 1.0
    """Gradient clipping threshold; 0: no clipping."""

    clip_by: Literal["norm", "value"] = "norm"
    """Clip the global gradient norm, or each gradient value."""

    schedule: Literal["plateau", "constant", "cosine", "onecycle"] = "plateau"
    """Learning rate schedule. plateau: reduce when the validation loss stops improving; cosine and
    onecycle: change it every step over the length of the run."""

    warmup: int = 0
    """Number of warm-up steps in which the learning rate rises linearly to --lr; 0: none (onecycle:
    30 % of the run)."""

    patience: int = 2
    """Reduce the learning rate when the validation loss has not improved for more than N epochs
    (plateau)."""

    factor: float = 0.1
    """Factor by which the learning rate is reduced (plateau)."""

    ema: float = 0.98
    """Decay of the exponential moving average (EMA) of the weights, which is evaluated and saved;
    0: no EMA."""

    def __post_init__(self) -> None:
        _check(0 < self.lr < inf, "lr", self.lr, "a positive number")
        _check(0 <= self.momentum < 1, "momentum", self.momentum, "0 or more, and less than 1")
        _check(0 <= self.weight_decay < inf, "weight_decay", self.weight_decay, "0 or more")
        _check(0 < self.grad_accum <= MOST, "grad_accum", self.grad_accum, f"1 to {MOST}")
        _check(0 <= self.clip < inf, "clip", self.clip, "0 or more")
        _check(self.patience >= 0, "patience", self.patience, "0 or more")
        _check(0 < self.factor < 1, "factor", self.factor, "a number between 0 and 1")
        _check(self.warmup >= 0, "warmup", self.warmup, "0 or more")
        _check(0 <= self.ema < 1, "ema", self.ema, "0 or more, and less than 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Compute:
    """Device and precision."""

    device: str = "auto"
    """cpu, cuda, cuda:N, or auto (a GPU if there is one)."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the network; auto: bf16 on a GPU that supports it, else fp32."""

    threads: int = 2
    """Number of threads that prepare batches."""

    torch_threads: int = 0
    """Number of torch threads on a CPU; 0: the default of torch."""

    channels_last: bool = True
    """Use the channels_last memory format: faster on CPU and GPU."""

    compile: Literal["no", "yes", "graphs"] = "no"
    """Use torch.compile, once per resolution; graphs: with CUDA graphs (one GPU, no gradient
    accumulation)."""

    sync_bn: bool = False
    """Synchronise batch norm statistics over all ranks."""

    deterministic: bool = False
    """Use deterministic GPU algorithms only (on a CPU all are)."""

    def __post_init__(self) -> None:
        check_device(self.device)
        _check(0 < self.threads <= THREADS, "threads", self.threads, f"1 to {THREADS}")
        _check(
            0 <= self.torch_threads <= THREADS,
            "torch_threads",
            self.torch_threads,
            f"0 to {THREADS}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """Length and outputs of the run."""

    out: str = "run"
    """Output folder: settings, metrics, weights, checkpoints, image panels."""

    seed: int = 0
    """Random seed of the initial weights, the sample order and the augmentation."""

    max_steps: int = 0
    """Stop after N optimiser steps in total; 0: when all epochs are done."""

    stop_after: int = 0
    """Early stopping: end a stage after N epochs in a row without a lower validation loss, and the
    run if it is the last stage; 0: never."""

    checkpoint_steps: int = 0
    """Save a checkpoint every N steps, in addition to every epoch; 0: every epoch only."""

    checkpoint_minutes: float = 10.0
    """Save a checkpoint when N minutes have passed since the last; 0: off."""

    keep: int = 3
    """Number of newest checkpoints to keep."""

    log_steps: int = 10
    """Log the loss every N steps (each log synchronises with the GPU)."""

    profile: bool = False
    """Write a profiler trace of a few steps to trace.json (chrome://tracing, Perfetto)."""

    tensorboard: bool = True
    """Write TensorBoard logs."""

    report: bool = True
    """Write report.html at the end of the run."""

    panel_rows: int = 6
    """Number of validation samples in the image panel of each epoch; 0: no panel."""

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**63, "seed", self.seed, "0 or more, below 2^63")
        _check(self.max_steps >= 0, "max_steps", self.max_steps, "0 or more")
        _check(self.stop_after >= 0, "stop_after", self.stop_after, "0 or more")
        _check(self.checkpoint_steps >= 0, "checkpoint_steps", self.checkpoint_steps, "0 or more")
        minutes = self.checkpoint_minutes
        _check(0 <= minutes < inf, "checkpoint_minutes", minutes, "0 or more")
        _check(self.keep > 0, "keep", self.keep, "at least 1")
        _check(self.log_steps > 0, "log_steps", self.log_steps, "at least 1")
        _check(self.panel_rows >= 0, "panel_rows", self.panel_rows, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All settings of a run; each field is a section of the TOML file."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    compute: Compute = field(default_factory=Compute)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        stage, stages = self.network.unfreeze_stage, len(self.data.res)
        expected = f"a stage of the run, which has {stages}; --res sets the stages"
        _check(stage <= stages, "unfreeze_stage", stage, expected)
        if self.loss.loss == "ssim" and self.loss.deep_supervision:
            smallest = min(map(min, self.data.res))
            expected = "96 or more with ssim under supervision, whose window is 11 pixels wide"
            _check(smallest >= 96, "res", smallest, expected)


def check_device(name: str) -> None:
    """Check that ``name`` is ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.

    Raises:
        ConfigError: It is not.
    """
    good = re.fullmatch(r"auto|cpu|cuda(:\d+)?", name) is not None
    _check(good, "device", name, "cpu, cuda, cuda:N or auto")


def _resolution(value: ResolutionLike) -> Resolution:
    try:
        return resolution(value)
    except ValueError as error:
        raise ConfigError(f"--res: {error}") from None


def _check(good: bool, name: str, found: object, expected: str) -> None:
    """Raise ConfigError with the flag, the value and what was expected."""
    if not good:
        raise ConfigError(f"--{name.replace('_', '-')} {found}: expected {expected}")
