"""A run: stages of epochs, from the first weights to the last, that can be stopped anywhere.

``train.trainer.state`` holds what must survive; here is what is done with it, and when it is saved.
What an epoch leaves behind is written in `_close_epoch`, in the order that lets a kill between any
two writes be repaired by running the epoch's end again.

Every rank runs the same code and decides the same: what one rank alone knows (a signal, the clock)
``train.trainer.checkpoint_policy`` makes known to all first. This module decodes nothing, draws
nothing and computes no figure.
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from model.registry import MakeModel, create
from shardify.errors import DataError
from shardify.loader.batch import Batch
from train.checkpoint.trained_model import weights_in, weights_metadata
from train.config import Config
from train.data import Dataset
from train.distributed import World
from train.evaluation.evaluate import evaluate
from train.evaluation.metrics import Metrics
from train.optim.compute import pick_device
from train.optim.criterion import missing, targets_of
from train.optim.memory import fitting, next_of, peak_mb
from train.optim.step import StepResult
from train.optim.wrapped_model import alone, compiling
from train.tracking import image_panels
from train.tracking.console import Screen
from train.tracking.run_folder import RunFolder
from train.trainer.checkpoint_policy import CheckpointPolicy
from train.trainer.profiler_trace import Tracer
from train.trainer.progress import Position, Summary, Throughput
from train.trainer.signals import StopSignal
from train.trainer.stages import Stage, StageLoaders, Stages
from train.trainer.state import State

__all__ = ["Trainer"]


TRACE = "trace.json"


class Trainer:
    """One run, on one process."""

    def __init__(
        self,
        config: Config,
        source: Dataset,
        *,
        world: World | None = None,
        device: torch.device | None = None,
        make_model: MakeModel = create,
        screen: Screen | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        """Build everything that a run needs; the disk is not touched yet.

        Args:
            config: What is asked for.
            source: The data.
            world: Place among other processes, which are connected already.
            device: Where to compute; as the settings say by default.
            make_model: Makes the network that the settings name.
            screen: Where progress is shown.
            stop: Hears signals.

        Raises:
            DataError: The training split has no samples.
            ConfigError: The device is not there, or cannot do what is asked for.
        """
        self.config = config
        self.source = source
        self.world = world or World()
        self.device = device or pick_device(config.compute.device, self.world)
        self.screen = screen or Screen()
        if not self.world.first:
            self.screen.hush()
        if source.samples("train") == 0:
            raise DataError(
                f"{config.data.shards}: split 'train' has no samples; build it with a smaller --val"
            )
        torch.manual_seed(config.run.seed)
        self.state = State(
            config, source, world=self.world, device=self.device, make_model=make_model
        )
        self._val_scores = Metrics(self.device, targets_of(source.roles))
        self._out = RunFolder(Path(config.run.out), keep=config.run.keep, screen=self.screen)
        self._keeper = CheckpointPolicy(
            self.state,
            self._out,
            config.run,
            world=self.world,
            device=self.device,
            screen=self.screen,
            stop=stop or StopSignal(),
        )
        self._stages = Stages(config, source, self.state, world=self.world, screen=self.screen)
        self._pace = Throughput()
        self._record: dict[str, Any] | None = None
        self._tracer: Tracer | None = None

    @property
    def at(self) -> Position:
        """How far the run is."""
        return self.state.at

    @property
    def over(self) -> bool:
        """Whether all epochs are done."""
        return self._stages.now is None

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the run that `state` described.

        Raises:
            DataError: It was trained on other data.
        """
        self._stages.resume(self.state.load(state, self._out.out))
        self._keeper.saved = True

    def run(self, begin: Callable[[], None] | None = None) -> Summary:
        """Train to the end of the last stage, or of ``max_steps``.

        Args:
            begin: Called before the first step and before anything is written, when the first
                stage's loaders are open: what is wrong with the settings has shown by then.

        Raises:
            Interrupted: A signal asked for the end; the state is saved.
            DivergedError: The loss or a weight is no finite number.
            DataError: A sample cannot be decoded.
        """
        try:
            with self._keeper.listening():
                lacks = missing(self.source.roles, self.source.samples("val"))
                for line in (*lacks, *alone(self.config, self.world)):
                    self.screen.say(line)
                if (stage := self._stages.now) and not self._enough():
                    self._stages.enter(stage)
                if begin is not None:
                    begin()
                if self.config.run.profile and self.world.first:
                    self._tracer = Tracer(self._out.out / TRACE, self.device)
                if self.config.run.tensorboard and self.world.first:
                    self._out.board(self.config, self.at.step)
                while (stage := self._stages.now) and not self._enough():
                    loaders = self._stages.enter(stage)
                    if not self.at.trained:
                        self._train_epoch(stage, loaders)
                    self._close_epoch(stage, loaders)
        finally:
            self.screen.end()
            if self._tracer is not None and self._tracer.close():
                self.screen.say(f"{self._out.out / TRACE}: written")
            self._stages.close()
            self._out.close()
        return Summary(
            out=self._out.out,
            steps=self.at.step,
            last=self._record,
            panel=self._out.panel,
            weights=weights_in(self._out.out),
        )

    def _enough(self) -> bool:
        most = self.config.run.max_steps
        return bool(most) and self.at.step >= most

    def _train_epoch(self, stage: Stage, loaders: StageLoaders) -> None:
        """Train until the epoch has no more batches, or the run has had its steps."""
        run = self.config.run
        self.state.networks.model.train()
        batches = iter(loaders.train)
        total = -(-len(loaders.train) // self.config.optim.grad_accum)
        self.screen.begin(f"epoch {self.at.epoch} · {stage.res} px", total)
        self._pace.begin()
        while True:
            results, group = [], []
            with self._keeper.interruptible(loaders.train):
                asked = perf_counter()
                group = next_of(batches, self.config.optim.grad_accum)
                self._pace.waited += perf_counter() - asked
                if group:
                    layout = self.config.compute.channels_last
                    with compiling(self.config.compute.compile):
                        results = fitting(self.state.train_step, group, channels_last=layout)
            if not group:
                self.at.trained = True
                break
            self._move(results, group)
            note = None
            if self.at.step % run.log_steps == 0:
                loss = self._keeper.finite(float(results[-1].parts.total))
                note = f"loss {loss:.4f} · {self._pace}"
            self.screen.step(self._pace.steps, note)
            overdue = self._keeper.ask()
            if self._keeper.stopping or self._enough():
                self.at.trained = loaders.train.state_dict()["epoch"] > self.at.epoch
                break
            if overdue or (run.checkpoint_steps and self.at.step % run.checkpoint_steps == 0):
                self._keeper.save(loaders.train)
        self._pace.end()
        self.screen.end()
        if self._keeper.stopping or not self.at.trained or not self._keeper.saved:
            # What follows must not enter the state: a run that goes on from here does it later.
            # Nor are there figures or weights before a first checkpoint.
            self._keeper.save(loaders.train)
        self._keeper.leave_if_asked()

    def _move(self, results: list[StepResult], group: list[Batch]) -> None:
        """The rest of a step: weights, their average, sums, position."""
        state = self.state
        state.lr.before_step(self.at.step)
        state.train_step.move()
        self.at.step += 1
        if state.networks.average is not None:
            state.networks.average.update(self.at.step)
        for result, batch in zip(results, group, strict=True):
            state.scores.update(result, batch)
            self._pace.samples += batch.mask.shape[0] * self.world.size
        self._pace.steps += 1
        if self._tracer is not None and self._tracer.step():
            self.screen.say(f"{self._out.out / TRACE}: written")

    def _close_epoch(self, stage: Stage, loaders: StageLoaders) -> None:
        """Judge the network, write what the epoch leaves, and move on to the next.

        An epoch that ``max_steps`` cut short is judged and written too, but the position, the
        learning rate and the best loss stay: going on from it, the epoch is finished first.
        """
        whole = self.at.trained
        train = self.state.scores.compute(self.world)
        self._keeper.finite(train["loss"])
        started = perf_counter()
        rows = self._judge(loaders)
        if self._keeper.stopping:
            self._keeper.save(loaders.train)
        self._keeper.leave_if_asked()
        val = self._val_scores.compute(self.world) if loaders.val is not None else None
        watched = self._keeper.finite((val or train)["loss"])
        better = self.at.best is None or (whole and watched < self.at.best)
        record = {
            "epoch": self.at.epoch,
            "stage": stage.index,
            "res": stage.res,
            "step": self.at.step,
            "whole": whole,
            "lr": self.state.lr.value,
            "train": train,
            "val": val,
            **self._pace.figures(),
            "peak_memory_mb": peak_mb(self.device),
            "val_seconds": perf_counter() - started,
        }
        self._record = record
        if self.world.first:
            names = ("last.safetensors", *(("best.safetensors",) if better else ()))
            kept = self.state.networks.judged.state_dict()
            self._out.weights(names, kept, weights_metadata(self.state.about()))
            if rows is not None:
                self._out.draw(record, rows, self.source.mean, self.source.std)
            self._out.epoch(record)
        if not whole:
            return
        self.at.best = watched if better else self.at.best
        self.state.lr.after_epoch(watched)
        self.at.epoch += 1
        self.at.trained = False
        self._keeper.next_epoch()
        if self.at.epoch == stage.end:
            self.at.best = None  # Losses at another resolution do not compare.
            self.state.lr.new_stage()
        self._keeper.save(loaders.train)

    def _judge(self, loaders: StageLoaders) -> image_panels.Rows | None:
        """Run over the validation split; the first samples come back for the panel."""
        self._val_scores.reset()
        judged = self.state.networks.judged.eval()
        # Batch norms have seen other batches on every rank; what is saved is the first one's.
        self.world.broadcast_(judged.buffers())
        rows = self.config.run.panel_rows if self.world.first else 0
        step, stop, roles = self.state.eval_step, self._keeper.asked, self.source.roles
        with self._keeper.interruptible(loaders.train):
            if loaders.val is not None:
                return evaluate(
                    step, loaders.val, self._val_scores, rows=rows, roles=roles, stop=stop
                )
            if loaders.shown is None or not rows:
                return None
            unread = Metrics(self.device, targets_of(roles))
            return evaluate(step, [loaders.shown], unread, rows=rows, roles=roles)
