"""Run the training loop: stages, epochs, validation and output; it can be stopped at any step.

`Trainer._close_epoch` writes the results of an epoch in an order such that, after a kill between
any two writes, running the end of the epoch again repairs them.

All ranks run the same code and take the same decisions. What only one rank knows (a signal, the
clock), ``train.trainer.checkpoint_policy`` shares with all ranks first.
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from model.registry import MakeModel, create
from shardify.errors import DataError
from shardify.loader.batch import Batch
from shardify.resolution import resolution
from train.checkpoint.trained_model import find_weights, weights_metadata
from train.config import Config
from train.data import Dataset
from train.distributed import World
from train.evaluation.evaluate import evaluate
from train.evaluation.metrics import Metrics
from train.optim.compute import pick_device
from train.optim.criterion import available_targets, missing_role_messages
from train.optim.memory import gradients_in_memory, next_batches, peak_mb
from train.optim.step import StepResult
from train.optim.wrapped_model import single_rank_messages, translate_compile_errors
from train.tracking import image_panels
from train.tracking.console import Console, duration
from train.tracking.run_folder import RunFolder
from train.tracking.run_folder_setup import TRACE
from train.trainer.checkpoint_policy import CheckpointPolicy
from train.trainer.profiler_trace import Tracer
from train.trainer.progress import Position, Summary, Throughput
from train.trainer.signals import StopSignal
from train.trainer.stages import Stage, StageLoaders, Stages
from train.trainer.state import State


class Trainer:
    """One run on one rank."""

    def __init__(
        self,
        config: Config,
        source: Dataset,
        *,
        world: World | None = None,
        device: torch.device | None = None,
        make_model: MakeModel = create,
        console: Console | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        """Create the state of a run; nothing is written yet.

        Raises:
            DataError: The training split has no samples.
            ConfigError: The device is not available, or does not support a setting.
        """
        self.config = config
        self.source = source
        self.world = world or World()
        self.device = device or pick_device(config.compute.device, self.world)
        self.console = console or Console()
        if not self.world.first:
            self.console.silence()
        if source.samples("train") == 0:
            raise DataError(
                f"{config.data.shards}: split 'train' has no samples; build it with a smaller --val"
            )
        torch.manual_seed(config.run.seed)
        self.state = State(
            config, source, world=self.world, device=self.device, make_model=make_model
        )
        self._val_scores = Metrics(self.device, available_targets(source.roles))
        self._out = RunFolder(Path(config.run.out), keep=config.run.keep, console=self.console)
        self._policy = CheckpointPolicy(
            self.state,
            self._out,
            config.run,
            world=self.world,
            device=self.device,
            console=self.console,
            stop=stop or StopSignal(),
        )
        self._stages = Stages(config, source, self.state, world=self.world, console=self.console)
        self._throughput = Throughput()
        self._record: dict[str, Any] | None = None
        self._tracer: Tracer | None = None

    @property
    def at(self) -> Position:
        """Position of the run."""
        return self.state.at

    @property
    def started(self) -> bool:
        """Whether a step was done, or a checkpoint written or loaded."""
        return self.at.step > 0 or self._policy.saved

    @property
    def ending(self) -> str:
        """Why the run has ended; empty before its end."""
        return self._stages.ending

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state of a checkpoint.

        Raises:
            DataError: The checkpoint was trained on other data.
        """
        self._stages.resume(self.state.load(state, self._out.out))
        self._policy.saved = True

    def run(self, begin: Callable[[], None] | None = None) -> Summary:
        """Train until the last stage or ``max_steps`` is done.

        ``begin`` is called before the first step and before anything is written, after the loaders
        of the first stage were opened, so that invalid settings are found before.

        Raises:
            Interrupted: A signal stopped the run; the state is saved.
            DivergedError: The loss or a weight is not finite.
            DataError: A sample cannot be decoded.
            RunError: The disk is full, or the end of the run could not be saved.
        """
        try:
            with self._policy.handle_signals():
                missing = missing_role_messages(self.source.roles, self.source.samples("val"))
                for line in (*missing, *single_rank_messages(self.config, self.world)):
                    self.console.print_line(line)
                if stage := self._stages.now:
                    self._stages.enter(stage)
                if begin is not None:
                    begin()
                if self.config.run.profile and self.world.first:
                    self._tracer = Tracer(self._out.out / TRACE, self.device)
                if self.config.run.tensorboard and self.world.first:
                    self._out.open_tensorboard(self.config)
                while stage := self._stages.now:
                    loaders = self._stages.enter(stage)
                    if not self.at.trained:
                        self._train_epoch(stage, loaders)
                    self._close_epoch(stage, loaders)
        finally:
            self.console.remove_bar()
            if self._tracer is not None and self._tracer.close():
                self.console.print_line(f"{self._out.out / TRACE}: written")
            self._stages.close()
            self._out.close()
        if self.world.first:
            self._out.check_saved(self.at.step)
        return Summary(
            out=self._out.out,
            steps=self.at.step,
            ended=self.ending,
            last=self._record,
            panel=self._out.panel,
            weights=find_weights(self._out.out),
        )

    def _train_epoch(self, stage: Stage, loaders: StageLoaders) -> None:
        """Train to the end of the epoch, or until ``max_steps`` is reached."""
        run = self.config.run
        self.state.networks.train_mode()
        batches = iter(loaders.train)
        total = -(-len(loaders.train) // self.config.optim.grad_accum)
        used = loaders.train.state_dict()["consumed"]
        group_size = self.config.data.batch * self.world.size * self.config.optim.grad_accum
        done = -(-used // group_size)
        title = f"epoch {self.at.epoch + 1} of {self._stages.epochs} · {stage.res} px"
        self.console.start_bar(title, total)
        self._throughput.begin()
        while True:
            results, group = [], []
            with self._policy.interruptible(loaders.train):
                started = perf_counter()
                group = next_batches(batches, self.config.optim.grad_accum)
                self._throughput.waited += perf_counter() - started
                if group:
                    channels_last = self.config.compute.channels_last
                    with translate_compile_errors(self.config.compute.compile):
                        results = gradients_in_memory(
                            self.state.train_step, group, channels_last=channels_last
                        )
            if not group:
                self.at.trained = True
                break
            self._apply_step(results, group)
            done += 1
            note = None
            if self.at.step % run.log_steps == 0:
                loss = self._policy.check_finite(float(results[-1].parts.total))
                left = self._seconds_left(stage, steps=total, done=done)
                note = f"loss {loss:.4f} · {self._throughput} · {duration(left)} left"
            self.console.update_bar(done, note)
            overdue = self._policy.agree()
            self._out.check_writes()
            if self._policy.stopping or self._stages.reached_max_steps:
                self.at.trained = loaders.train.state_dict()["epoch"] > self.at.epoch
                break
            if overdue or (run.checkpoint_steps and self.at.step % run.checkpoint_steps == 0):
                self._policy.save(loaders.train)
        self._throughput.end()
        self.console.remove_bar()
        if self._policy.stopping or not self.at.trained or not self._policy.saved:
            # Save before validation changes anything: a resumed run validates itself. Metrics and
            # weights must never exist without a checkpoint.
            self._policy.save(loaders.train)
        self._policy.exit_if_stopping()

    def _seconds_left(self, stage: Stage, *, steps: int, done: int) -> float:
        """Estimate the time left of the run from this epoch's steps and the last validation."""
        validation = 0.0
        if self._record is not None:
            pixels = resolution(self._record["res"]).pixels
            validation = self._record["val_seconds"] * stage.res.pixels / pixels
        step = self._throughput.seconds_per_step()
        return self._stages.seconds_left(step=step, validation=validation, steps=steps, done=done)

    def _apply_step(self, results: list[StepResult], group: list[Batch]) -> None:
        """Finish a step: update weights, EMA, metrics and position."""
        state = self.state
        state.lr.before_step(self.at.step)
        state.train_step.update_weights()
        self.at.step += 1
        if state.networks.average is not None:
            state.networks.average.update(self.at.step)
        for result, batch in zip(results, group, strict=True):
            state.scores.update(result, batch)
            self._throughput.samples += batch.mask.shape[0] * self.world.size
        self._throughput.steps += 1
        if self._tracer is not None and self._tracer.step():
            self.console.print_line(f"{self._out.out / TRACE}: written")

    def _close_epoch(self, stage: Stage, loaders: StageLoaders) -> None:
        """Validate the network, write the results of the epoch, and advance to the next one.

        An epoch that ``max_steps`` cut short is validated and written too, but position, learning
        rate and best loss are not advanced: a resumed run finishes the epoch first.
        """
        whole = self.at.trained
        train = self.state.scores.compute(self.world)
        self._policy.check_finite(train["loss"])
        started = perf_counter()
        rows = self._validate(loaders)
        if self._policy.stopping:
            self._policy.save(loaders.train)
        self._policy.exit_if_stopping()
        val = self._val_scores.compute(self.world) if loaders.val is not None else None
        loss = self._policy.check_finite((val or train)["loss"])
        better = self.at.best is None or (whole and loss < self.at.best)
        record = {
            "epoch": self.at.epoch,
            "stage": stage.index,
            "res": stage.res.to_json(),
            "step": self.at.step,
            "whole": whole,
            "lr": self.state.lr.value,
            "train": train,
            "val": val,
            **self._throughput.figures(),
            "peak_memory_mb": peak_mb(self.device),
            "val_seconds": perf_counter() - started,
        }
        self._record = record
        if self.world.first:
            names = ("last.safetensors", *(("best.safetensors",) if better else ()))
            weights = self.state.networks.evaluated.state_dict()
            self._out.save_weights(names, weights, weights_metadata(self.state.about()))
            if rows is not None:
                self._out.draw_panel(record, rows, self.source.mean, self.source.std)
            self._out.log_epoch(record, best=better)
            self._out.check_writes()
        if not whole:
            return
        self.at.best, self.at.stale = (loss, 0) if better else (self.at.best, self.at.stale + 1)
        self.state.lr.after_epoch(loss)
        self.at.epoch += 1
        self.at.trained = False
        self._policy.next_epoch()
        self._stages.advance()
        self._policy.save(loaders.train)

    def _validate(self, loaders: StageLoaders) -> image_panels.Rows | None:
        """Evaluate the validation split; return its first samples for the panel."""
        self._val_scores.reset()
        network = self.state.networks.evaluated.eval()
        # Batch norm statistics differ between ranks; those of the first rank are saved.
        self.world.broadcast_(network.buffers())
        rows = self.config.run.panel_rows if self.world.first else 0
        step, stop, roles = self.state.eval_step, self._policy.should_stop, self.source.roles
        with self._policy.interruptible(loaders.train):
            if loaders.val is not None:
                return evaluate(
                    step, loaders.val, self._val_scores, rows=rows, roles=roles, stop=stop
                )
            if loaders.preview is None or not rows:
                return None
            unused = Metrics(self.device, available_targets(roles))
            return evaluate(step, [loaders.preview], unused, rows=rows, roles=roles)
