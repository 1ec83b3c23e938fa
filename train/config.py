"""The settings of a run: frozen dataclasses that refuse what is out of range or contradictory.

Each field is one setting: its name is the key in the TOML file and the flag on the command line,
its docstring the flag's help (``train.settings`` reads them from here). This module reads no file,
imports no torch and decides nothing.
"""

from dataclasses import dataclass, field
from math import inf
from typing import Literal

from train.errors import ConfigError

__all__ = ["MOST", "THREADS", "Compute", "Config", "Data", "Loss", "Network", "Optim", "Run"]

MOST = 1 << 20
"""Samples a batch, or batches a step: a number beyond is a slip."""

THREADS = 1024
"""More end the process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Which samples the network sees, at which size, how often."""

    shards: str = ""
    """Folder that `shardify build` made."""

    res: tuple[int, ...] = (64,)
    """Resolutions, one a stage, comma-separated; each divisible by 16. Pixels."""

    epochs: tuple[int, ...] = (10,)
    """Epochs of each stage, comma-separated; one number serves for all."""

    batch: int = 16
    """Samples a step on each rank."""

    augment: bool = True
    """Rotate, shift colours and add noise while training."""

    order: Literal["permuted", "block", "sequential"] = "permuted"
    """Of training samples: any order; blocks of neighbours, mixed, for data far larger than memory;
    or as they lie in the shards."""

    cache: Literal["disk", "ram"] = "disk"
    """Where the shards' bytes are kept: mapped from disk, or read once and held in memory."""

    exclude: str = ""
    """Keys of training samples to go on without, comma-separated; validation keeps all of its."""

    def __post_init__(self) -> None:
        _check(bool(self.res), "res", self.res, "one resolution at least")
        for res in self.res:
            _check(res > 0, "res", res, "a positive number of pixels")
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
    """Which network."""

    model: Literal["resunet", "unet"] = "resunet"
    """Architecture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What the network is asked to make small."""

    loss: Literal["dice+l1", "dice", "l1", "bce", "ssim"] = "dice+l1"
    """Loss of the mask, and of the depth."""

    activation: Literal["sigmoid", "none"] = "sigmoid"
    """What is applied to the raw outputs before the loss."""

    dice_weight: float = 1.0
    """Weight of Dice in dice+l1."""

    l1_weight: float = 1.0
    """Weight of L1 in dice+l1."""

    mask_weight: float = 2.0
    """Weight of the mask's loss in the total."""

    depth_weight: float = 1.0
    """Weight of the depth's loss in the total."""

    deep_supervision: float = 0.0
    """Weight of the losses at the decoders' coarser scales, while training; 0: none."""

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
    """How the weights move."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""

    lr: float = 0.1
    """Learning rate at the start."""

    momentum: float = 0.9
    """Momentum (sgd)."""

    weight_decay: float = 1e-3
    """Weight decay."""

    grad_accum: int = 1
    """Batches whose gradients make one optimiser step."""

    clip: float = 1.0
    """Largest gradient, measured as --clip-by says; 0 clips nothing."""

    clip_by: Literal["norm", "value"] = "norm"
    """Clip the norm of all gradients together, or every value by itself."""

    schedule: Literal["plateau", "constant", "cosine", "onecycle"] = "plateau"
    """Learning rate: lower it when the validation loss stalls; leave it; or move it every step:
    down along half a cosine, or up to --lr and then down. The last two know the run's length."""

    warmup: int = 0
    """Steps in which the learning rate rises to --lr; 0: none, but a third of a onecycle run."""

    patience: int = 2
    """Epochs without a better loss that are let pass; after the next the rate falls (plateau)."""

    factor: float = 0.1
    """What the learning rate is multiplied by when it falls (plateau)."""

    ema: float = 0.98
    """Judge and keep a running average of the weights, of which each step leaves this share;
    0 averages nothing."""

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
    """Where and how the arithmetic is done."""

    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: a GPU where there is one."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto: bf16 on a GPU that has it, otherwise fp32."""

    threads: int = 2
    """Threads that prepare batches."""

    torch_threads: int = 0
    """Threads of the network's arithmetic on a CPU; 0: as torch chooses."""

    channels_last: bool = True
    """Keep a pixel's channels side by side in memory: faster on CPU and GPU."""

    compile: Literal["no", "yes", "graphs"] = "no"
    """Compile the network once a resolution; graphs: CUDA graphs (one GPU, one batch a step)."""

    sync_bn: bool = False
    """With several GPUs, norm each batch by the statistics of all ranks."""

    deterministic: bool = False
    """On a GPU, take only algorithms that repeat bit for bit (a CPU's always do)."""

    def __post_init__(self) -> None:
        kind = self.device.partition(":")[0]
        _check(kind in ("auto", "cpu", "cuda"), "device", self.device, "cpu, cuda, cuda:N or auto")
        _check(0 < self.threads <= THREADS, "threads", self.threads, f"1 to {THREADS}")
        _check(
            0 <= self.torch_threads <= THREADS,
            "torch_threads",
            self.torch_threads,
            f"0 to {THREADS}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """How long the run lasts and what it leaves behind."""

    out: str = "run"
    """Folder of the run: settings, metrics, weights, checkpoints, panels."""

    seed: int = 0
    """Decides the first weights, the order of samples and every augmentation."""

    max_steps: int = 0
    """End after so many optimiser steps in all; 0: when the epochs are done."""

    checkpoint_steps: int = 0
    """Save the whole state every so many steps, as well as each epoch; 0: each epoch only."""

    checkpoint_minutes: float = 10.0
    """Save the whole state when so many minutes have passed since the last time; 0: never."""

    keep: int = 3
    """How many of the newest checkpoints to keep."""

    log_steps: int = 10
    """Read the loss back every so many steps; between them nothing waits for the device."""

    profile: bool = False
    """Write a trace of a few steps to trace.json, for chrome://tracing or Perfetto."""

    tensorboard: bool = True
    """Write figures, panels and settings for TensorBoard."""

    report: bool = True
    """Write report.html when the run ends."""

    panel_rows: int = 6
    """Validation samples shown in each epoch's panel; 0 draws none."""

    def __post_init__(self) -> None:
        _check(0 <= self.seed < 2**63, "seed", self.seed, "0 or more, below 2^63")
        _check(self.max_steps >= 0, "max_steps", self.max_steps, "0 or more")
        _check(self.checkpoint_steps >= 0, "checkpoint_steps", self.checkpoint_steps, "0 or more")
        minutes = self.checkpoint_minutes
        _check(0 <= minutes < inf, "checkpoint_minutes", minutes, "0 or more")
        _check(self.keep > 0, "keep", self.keep, "at least 1")
        _check(self.log_steps > 0, "log_steps", self.log_steps, "at least 1")
        _check(self.panel_rows >= 0, "panel_rows", self.panel_rows, "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Everything that a run was asked for; each field is a section of the TOML file."""

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    loss: Loss = field(default_factory=Loss)
    optim: Optim = field(default_factory=Optim)
    compute: Compute = field(default_factory=Compute)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        if self.loss.loss == "ssim" and self.loss.deep_supervision:
            smallest = min(self.data.res)
            expected = "96 or more with ssim under supervision, whose window is 11 pixels wide"
            _check(smallest >= 96, "res", smallest, expected)


def _check(good: bool, name: str, found: object, expected: str) -> None:
    """Refuse a value with one line that names its flag."""
    if not good:
        raise ConfigError(f"--{name.replace('_', '-')} {found}: expected {expected}")
