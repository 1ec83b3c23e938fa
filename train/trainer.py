"""A run: stages of epochs, from the first weights to the last, that can be stopped anywhere.

The state of a run is a position, the weights, the optimiser, the learning rate, the loader and the
sums of the epoch so far: `Trainer.state` gathers it all, and a run that is rebuilt from it goes on
bit for bit. What an epoch leaves behind is written in `_close_epoch`, in the order that lets a kill
between any two writes be repaired by running the epoch's end again.

This module decodes nothing, draws nothing and computes no figure.
"""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from model.registry import create
from train import panels
from train.batch import Batch
from train.checkpoint import Checkpoints, save
from train.config import Config, Optim
from train.distributed import World
from train.errors import DataError, DivergedError, Interrupted
from train.evaluate import MakeModel, criterion_of, evaluate, pick_device, place, weights_metadata
from train.logs import JsonLines, Screen, epoch_line, plain
from train.metrics import Scores
from train.schedule import LearningRate, Stage, plan, stage_of
from train.settings import to_toml
from train.source import Batches, Source
from train.step import EvalStep, TrainStep, precision_of

__all__ = ["Position", "Stop", "Summary", "Trainer", "make_optimizer"]


@dataclass(slots=True)
class Position:
    """How far a run has come."""

    epoch: int = 0
    """Epochs that are wholly done; the number of the one at work."""

    step: int = 0
    """Optimiser steps done in all."""

    trained: bool = False
    """Whether the epoch at work has seen all its batches, and only its judgement is missing."""

    best: float | None = None
    """Lowest watched loss at this resolution; None before the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """What a run came to."""

    out: Path
    """Its folder."""

    steps: int
    """Optimiser steps in all."""

    last: dict[str, Any] | None
    """The record of the last epoch, as in ``metrics.jsonl``; None if there was nothing to do."""

    panel: Path | None
    """The last panel; None if none was drawn."""

    def __str__(self) -> str:
        lines = [f"{self.out}: {self.steps} steps"]
        if self.last is not None:
            lines.append(f"  data-wait  {100 * self.last['data_wait']:.1f} % of the step time")
            lines.append(f"  throughput {self.last['samples_per_s']:.1f} samples/s")
        lines.append(f"  weights    {self.out / 'best.safetensors'}")
        if self.panel is not None:
            lines.append(f"  panel      {self.panel}")
        return "\n".join(lines)

    def to_json(self) -> str:
        """One JSON object on one line."""
        return json.dumps(
            plain(
                {
                    "out": str(self.out),
                    "steps": self.steps,
                    "last": self.last,
                    "panel": str(self.panel) if self.panel else None,
                }
            )
        )


class Stop:
    """Whether somebody asked the run to end: SIGINT or SIGTERM, seen between two steps."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals for the length of the block; a second one acts as it always did."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Only the main thread may handle signals; whoever runs us here decides.
            return
        before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

        def ask(number: int, _: FrameType | None) -> None:
            self.asked = True
            signal.signal(number, before[signal.Signals(number)])

        try:
            for name in before:
                signal.signal(name, ask)
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


class Trainer:
    """One run, on one process."""

    def __init__(
        self,
        config: Config,
        source: Source,
        *,
        world: World | None = None,
        device: torch.device | None = None,
        make_model: MakeModel = create,
        screen: Screen | None = None,
    ) -> None:
        """Build everything that a run needs; the disk is not touched yet.

        Args:
            config: What is asked for.
            source: The data.
            world: Place among other processes.
            device: Where to compute; as the settings say by default.
            make_model: Makes the network that the settings name.
            screen: Where progress is shown.

        Raises:
            DataError: The training split has no samples.
            ConfigError: The device is not there.
        """
        self.config = config
        self.source = source
        self.world = world or World()
        self.device = device or pick_device(config.compute.device, self.world)
        self.screen = screen or Screen()
        if not self.world.first:
            self.screen.hush()
        self.out = Path(config.run.out)
        self.at = Position()
        self.stop = Stop()
        self.stages = plan(config.data.res, config.data.epochs)
        if source.samples("train") == 0:
            raise DataError("split 'train': has no samples; expected some; build with other --val")
        torch.manual_seed(config.run.seed)
        model = make_model(config.network.model)
        place(model, self.device, channels_last=config.compute.channels_last)
        self.model = model
        self.optimizer = make_optimizer(list(model.parameters()), config.optim)
        self.lr = LearningRate(self.optimizer, config.optim)
        criterion = criterion_of(config.loss)
        precision = precision_of(config.compute.precision, self.device)
        self._train_step = TrainStep(
            model,
            criterion,
            self.optimizer,
            precision=precision,
            clip=config.optim.clip,
            clip_by=config.optim.clip_by,
        )
        self._eval_step = EvalStep(model, criterion, precision)
        self._train_scores = Scores(self.device)
        self._val_scores = Scores(self.device)
        self._checkpoints = Checkpoints(self.out / "checkpoints", keep=config.run.keep)
        self._metrics = JsonLines(self.out / "metrics.jsonl")
        self._stage: Stage | None = None
        self._train: Batches | None = None
        self._judged: Batches | None = None
        self._shown: Batch | None = None
        self._loader_state: dict[str, Any] | None = None
        self._speed = {"samples_per_s": 0.0, "data_wait": 0.0, "seconds": 0.0}
        self._record: dict[str, Any] | None = None
        self._panel: Path | None = None

    def run(self) -> Summary:
        """Train to the end of the last stage, or of ``max_steps``.

        Raises:
            Interrupted: A signal asked for the end; the state is saved.
            DivergedError: The loss or a weight is no finite number.
            DataError: A sample cannot be decoded.
        """
        try:
            with self.stop.listening():
                while (stage := stage_of(self.stages, self.at.epoch)) and not self._enough():
                    self._enter(stage)
                    if not self.at.trained:
                        self._train_epoch(stage)
                    self._close_epoch(stage)
        finally:
            self.screen.end()
            self._close_loaders()
        return Summary(out=self.out, steps=self.at.step, last=self._record, panel=self._panel)

    def state(self) -> dict[str, Any]:
        """Everything that a run needs to go on as if it had never stopped."""
        assert self._train is not None
        return {
            "position": asdict(self.at),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._train_step.scaler.state_dict(),
            "lr": self.lr.state_dict(),
            "loader": self._train.state_dict(),
            "scores": self._train_scores.state_dict(self.world),
            "random": torch.get_rng_state(),
            "about": self._about(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the run that `state` described.

        Raises:
            DataError: It was trained on other data.
        """
        if state["about"]["data"] != self.source.fingerprint:
            raise DataError(
                f"{self.out}: was trained on other data than {self.config.data.shards} holds now; "
                "go on with the data it was started on, or start a new run with another --out"
            )
        self.at = Position(**state["position"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._train_step.scaler.load_state_dict(state["scaler"])
        self.lr.load_state_dict(state["lr"])
        # Whole epochs may have ended at another resolution, whose shards may be others.
        self._loader_state = state["loader"] if state["loader"]["consumed"] else None
        if state["loader"]["epoch"] > self.at.epoch:
            self.at.trained = True  # Saved after its last batch, before that was known.
        if self.world.first:  # Sums over all ranks: one of them goes on with them.
            self._train_scores.load_state_dict(state["scores"])
        torch.set_rng_state(state["random"])

    def _enough(self) -> bool:
        most = self.config.run.max_steps
        return bool(most) and self.at.step >= most

    def _enter(self, stage: Stage) -> None:
        """Open the loaders of a stage; the order of samples goes on from where it was."""
        if self._stage == stage:
            return
        self._close_loaders()
        data, seed = self.config.data, self.config.run.seed
        self._train = self.source.open(
            "train", res=stage.res, batch=data.batch, augment=data.augment, seed=seed
        )
        state, self._loader_state = self._loader_state, None
        if state is None:
            # The order and the draws of an epoch depend on its number: count over all stages.
            epoch = self.at.epoch + self.at.trained
            state = {**self._train.state_dict(), "epoch": epoch, "consumed": 0}
        self._train.load_state_dict(state)
        if self.source.samples("val"):
            self._judged = self.source.open(
                "val", res=stage.res, batch=data.batch, augment=False, seed=seed
            )
        else:
            plain = self.source.open(
                "train", res=stage.res, batch=data.batch, augment=False, seed=seed
            )
            self._shown = next(iter(plain), None)
            plain.close()
        self._stage = stage

    def _train_epoch(self, stage: Stage) -> None:
        """Train until the epoch has no more batches, or the run has had its steps."""
        assert self._train is not None
        run = self.config.run
        self.model.train()
        batches = iter(self._train)
        title = f"epoch {self.at.epoch} · {stage.res} px"
        first = self.at.step
        self.screen.begin(title, len(self._train), 0)
        samples, waited, started = 0, 0.0, perf_counter()
        while True:
            asked = perf_counter()
            batch = next(batches, None)
            waited += perf_counter() - asked
            if batch is None:
                self.at.trained = True
                break
            result = self._train_step(batch)
            self._train_scores.update(result, batch)
            self.at.step += 1
            samples += batch.mask.shape[0] * self.world.size
            note = None
            if self.at.step % run.log_steps == 0:
                loss = self._finite(float(result.parts.total))
                seconds = perf_counter() - started
                note = f"loss {loss:.4f} · {samples / seconds:.1f} samples/s · "
                note += f"data-wait {100 * waited / seconds:.1f} %"
            self.screen.step(self.at.step - first, note)
            if self._stop_asked() or self._enough():
                self.at.trained = self._train.state_dict()["epoch"] > self.at.epoch
                break
            if run.checkpoint_steps and self.at.step % run.checkpoint_steps == 0:
                self._save()
        seconds = perf_counter() - started
        self._speed = {
            "samples_per_s": samples / seconds,
            "data_wait": waited / seconds,
            "seconds": seconds,
        }
        self.screen.end()
        if not self.at.trained:
            # What follows must not enter the state: a run that goes on from here does it later.
            self._save()
            self._leave_if_asked()

    def _close_epoch(self, stage: Stage) -> None:
        """Judge the network, write what the epoch leaves, and move on to the next.

        An epoch that ``max_steps`` cut short is judged and written too, but the position, the
        learning rate and the best loss stay: going on from it, the epoch is finished first.
        """
        whole = self.at.trained
        train = self._train_scores.compute(self.world)
        self._finite(train["loss"])
        started = perf_counter()
        rows = self._judge()
        if self._stop_asked():
            self._save()
            self._leave_if_asked()
        val = self._val_scores.compute(self.world) if self._judged is not None else None
        watched = (val or train)["loss"]
        better = self.at.best is None or watched < self.at.best
        record = {
            "epoch": self.at.epoch,
            "stage": stage.index,
            "res": stage.res,
            "step": self.at.step,
            "whole": whole,
            "lr": self.lr.value,
            "train": train,
            "val": val,
            **self._speed,
            "val_seconds": perf_counter() - started,
        }
        if whole:
            self.at.best = watched if better else self.at.best
            self.lr.after_epoch(watched)
        if self.world.first:
            self._write_epoch(record, rows, better)
        self._record = record
        if not whole:
            return
        self.at.epoch += 1
        self.at.trained = False
        self._train_scores.reset()
        if self.at.epoch == stage.end:
            self.at.best = None  # Losses at another resolution do not compare.
            self.lr.new_stage()
        self._save()

    def _judge(self) -> panels.Rows | None:
        """Run over the validation split; the first samples come back for the panel."""
        self._val_scores.reset()
        self.model.eval()
        rows = self.config.run.panel_rows if self.world.first else 0
        if self._judged is not None:
            return evaluate(
                self._eval_step, self._judged, self._val_scores, rows=rows, stop=self._stop_asked
            )
        if self._shown is None or not rows:
            return None
        return evaluate(self._eval_step, [self._shown], Scores(self.device), rows=rows)

    def _write_epoch(self, record: dict[str, Any], rows: panels.Rows | None, better: bool) -> None:
        """The files of an epoch, and its line on the screen."""
        self.screen.say(epoch_line(record))
        with self._tolerant("the epoch's files"):
            self._write_weights("last.safetensors")
            if better:
                self._write_weights("best.safetensors")
            if rows is not None:
                self._panel = self.out / "panels" / f"epoch-{self.at.epoch:03d}.png"
                self._panel.parent.mkdir(exist_ok=True)
                title = f"epoch {self.at.epoch}, {record['res']} px, step {self.at.step}"
                panels.draw(
                    self._panel, rows, mean=self.source.mean, std=self.source.std, title=title
                )
            self._metrics.append(record)

    def _write_weights(self, name: str) -> None:
        metadata = weights_metadata(self._about())
        weights = {
            key: value.detach().cpu().contiguous() for key, value in self.model.state_dict().items()
        }
        save(self.out / name, weights, metadata)

    def _about(self) -> dict[str, Any]:
        """What somebody who uses the weights must know."""
        stage = self._stage or self.stages[-1]
        return {
            "config": to_toml(self.config),
            "res": stage.res,
            "step": self.at.step,
            "mean": self.source.mean,
            "std": self.source.std,
            "data": self.source.fingerprint,
        }

    def _save(self) -> None:
        """Write a checkpoint; every rank takes part, the first one writes."""
        state = self.state()
        if not self.world.first:
            return
        for name, value in state["model"].items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise DivergedError(self._diverged(f"weight {name} is no longer finite"))
        with self._tolerant("the checkpoint"):
            self._checkpoints.save(self.at.step, state)

    @contextmanager
    def _tolerant(self, what: str) -> Iterator[None]:
        """A full disk is no reason to lose the run: say so and go on."""
        try:
            yield
        except OSError as error:
            self.screen.say(f"Warning: {self.out}: {what} could not be written ({error})")

    def _stop_asked(self) -> bool:
        return self.world.any(self.stop.asked)

    def _leave_if_asked(self) -> None:
        if self._stop_asked():
            raise Interrupted(
                f"{self.out}: stopped at step {self.at.step}; --resume goes on from there"
            )

    def _finite(self, loss: float) -> float:
        if not isfinite(loss):
            raise DivergedError(self._diverged(f"loss is {loss}"))
        return loss

    def _diverged(self, found: str) -> str:
        files = self._checkpoints.files()
        stands = f"{files[0]} is the last good state" if files else "no checkpoint was written yet"
        return (
            f"{self.out}: step {self.at.step}: {found}; expected finite numbers; "
            f"lower --lr (now {self.lr.value:g}) or --clip; {stands}"
        )

    def _close_loaders(self) -> None:
        for loader in (self._train, self._judged):
            if loader is not None:
                loader.close()
        self._train = self._judged = self._stage = None


def make_optimizer(parameters: list[Tensor], optim: Optim) -> Optimizer:
    """The optimiser that the settings describe."""
    if optim.optimizer == "adamw":
        return AdamW(parameters, lr=optim.lr, weight_decay=optim.weight_decay)
    return SGD(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
