"""A data set and two networks small enough to train in a test; as a script, `train` on them.

``python tests/helpers/shardline_tiny_run.py run --out RUN …`` takes the flags of ``train run``:
tests that kill a real process start it so. ``--shards SAMPLES:VAL[:DELAY]`` says how large the data
set is and how long a batch takes to come, in seconds.
"""

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.blocks import Prediction
from shardify.errors import DataError
from shardify.loader.batch import Batch
from shardify.resolution import ResolutionLike, resolution
from train.config import Config
from train.distributed import World
from train.tracking.image_panels import ROLES

STATS = {"bg": [0.0, 0.0, 0.0], "fg_bg": [0.0, 0.0, 0.0]}
ONES = {"bg": [1.0, 1.0, 1.0], "fg_bg": [1.0, 1.0, 1.0]}

SLOW = [int(step) for step in os.environ.get("TINY_SLOW", "").split()]
"""The number of training steps after which one takes a minute, in its backward pass."""


class TinyNet(nn.Module):
    """Three convolutions; with batch norm, or (``unet``) with a norm that ranks need not share."""

    encoder = ("body.0", "body.1")

    def __init__(self, name: str) -> None:
        super().__init__()
        norm = nn.BatchNorm2d(8) if name == "resunet" else nn.GroupNorm(2, 8)
        self.body = nn.Sequential(
            nn.Conv2d(6, 8, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Conv2d(8, 2, 1)
        self.coarse_channels = ((8, 8),)

    def forward(self, x: Tensor) -> Prediction:
        return self.read(*self.decode(x)[-1])

    def decode(self, x: Tensor, *, every: bool = False) -> list[tuple[Tensor, Tensor]]:
        full = self.body(x)
        if self.training and SLOW:
            SLOW[0] -= 1
            if SLOW[0] < 0:  # Batch norm has moved; the weights have not.
                full.register_hook(lambda _: time.sleep(60))
        half = nn.functional.avg_pool2d(full, 2)
        return [(half, half), (full, full)] if every else [(full, full)]

    def read(self, depth: Tensor, mask: Tensor) -> Prediction:
        assert depth is mask
        out = self.head(depth)
        return Prediction(depth=out[:, :1], mask=out[:, 1:])


def sample(index: int, epoch: int, res: ResolutionLike, augment: bool) -> list[np.ndarray]:
    """bg, fg_bg (3, H, W), mask and depth (1, H, W): a bright disc on noise; depth falls off it."""
    still = np.random.default_rng([7, index])
    height, width = size = resolution(res)
    y, x = np.mgrid[0:height, 0:width] / np.array(size).reshape(2, 1, 1)
    bg = still.normal(0, 0.3, (3, 1, 1)) + still.normal(0, 0.1, (3, *size))
    away = np.hypot(x - still.uniform(0.3, 0.7), y - still.uniform(0.3, 0.7))
    mask = (away < still.uniform(0.15, 0.3))[None].astype(float)
    fg_bg = bg * (1 - mask) + (1.0 + 0.3 * still.normal(0, 1, (3, 1, 1))) * mask
    if augment:
        noise = np.random.default_rng([8, index, epoch]).normal(0, 0.02, (3, *size))
        bg, fg_bg = bg + noise, fg_bg + noise
    return [bg, fg_bg, mask, np.clip(1 - away, 0, 1)[None]]


class TinyLoader:
    """What ``shardify.loader.loader.Loader`` promises, on made-up samples."""

    def __init__(
        self, samples: range, *, res: ResolutionLike, batch: int, augment: bool, seed: int,
        world: World, training: bool, delay: float = 0.0, fingerprint: str = "tiny",
        roles: frozenset[str] = ROLES,
    ) -> None:  # fmt: skip
        self._roles = roles
        self._samples, self._res, self._batch = samples, res, batch
        self._augment, self._seed, self._world = augment, seed, world
        self._training, self._delay, self._fingerprint = training, delay, fingerprint
        self.epoch, self._used, self.closed = 0, 0, False

    def __len__(self) -> int:
        whole = self._batch * self._world.size
        count = len(self._samples)
        return count // whole if self._training else -(-count // whole)

    def indexes(self, epoch: int) -> np.ndarray:
        order = np.arange(len(self._samples))
        return (
            np.random.default_rng([self._seed, epoch]).permutation(order)
            if self._training
            else order
        )

    def __iter__(self) -> Iterator[Batch]:
        order, epoch = self.indexes(self.epoch), self.epoch
        whole = self._batch * self._world.size
        while self._used < len(order) and not (self._training and len(order) - self._used < whole):
            mine = order[self._used : self._used + whole][self._world.rank :: self._world.size]
            self._used += whole
            time.sleep(self._delay)
            if self._used >= len(order) or (self._training and len(order) - self._used < whole):
                self.epoch, self._used = epoch + 1, 0
            yield self._make(mine, epoch)
            if self.epoch != epoch:
                return
        self.epoch, self._used = epoch + 1, 0

    def _make(self, indexes: np.ndarray, epoch: int) -> Batch:
        rows = [sample(self._samples[int(i)], epoch, self._res, self._augment) for i in indexes]
        if not rows:
            size = resolution(self._res)
            side = (0, 3, *size), (0, 1, *size)
            return Batch(*(torch.zeros(side[i // 2]) for i in range(4)))
        parts = [torch.tensor(np.stack(part)).float() for part in zip(*rows, strict=True)]
        return Batch(
            *(
                part if role in self._roles else torch.zeros_like(part)
                for role, part in zip(Batch._fields, parts, strict=True)
            )
        )

    def samples_of(self, epoch: int, step: int) -> np.ndarray:
        whole = self._batch * self._world.size
        return self.indexes(epoch)[step * whole : (step + 1) * whole][
            self._world.rank :: self._world.size
        ]

    def keys(self, indexes: np.ndarray) -> list[str]:
        return [f"tiny{self._samples[int(i)]:06d}" for i in indexes]

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "consumed": self._used, "data": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["data"] != self._fingerprint:
            raise DataError(f"tiny: data {self._fingerprint}; the state is of {state['data']}")
        self.epoch, self._used = state["epoch"], state["consumed"]

    def close(self) -> None:
        self.closed = True


class TinySource:
    """``samples`` for training and ``val`` for validation."""

    mean, std = STATS, ONES
    formats: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self, samples: int = 64, val: int = 10, *, world: World | None = None, delay: float = 0.0,
        fingerprint: str = "tiny", roles: frozenset[str] = ROLES,
    ) -> None:  # fmt: skip
        self.roles = roles
        self._counts = {"train": samples, "val": val}
        self._world, self._delay, self.fingerprint = world or World(), delay, fingerprint
        self.opened: list[TinyLoader] = []

    def samples(self, split: str) -> int:
        return self._counts.get(split, 0)

    def open(
        self, split: str, *, res: ResolutionLike, batch: int, augment: bool, seed: int
    ) -> TinyLoader:
        training = split == "train"
        first = 0 if training else 100_000
        loader = TinyLoader(
            range(first, first + self._counts[split]),
            res=res, batch=batch, augment=augment, seed=seed, world=self._world,
            training=training, delay=self._delay if training else 0.0,
            fingerprint=self.fingerprint, roles=self.roles,
        )  # fmt: skip
        self.opened.append(loader)
        return loader


def make_source(config: Config, world: World, device: torch.device) -> TinySource:
    """What ``--shards SAMPLES:VAL[:DELAY]`` asks for."""
    assert device.type == "cpu"
    parts = (config.data.shards or "64:10").split(":")
    delay = float(parts[2]) if len(parts) > 2 else 0.0
    return TinySource(int(parts[0]), int(parts[1]), world=world, delay=delay)


def main() -> None:
    """`train` as it is, on the tiny data set and network."""
    import functools

    import train.trainer.launch
    from train.cli import main as command

    train.trainer.launch.launch = functools.partial(  # type: ignore[misc]
        train.trainer.launch.launch, make_source=make_source, make_model=TinyNet
    )
    command()


if __name__ == "__main__":
    main()
