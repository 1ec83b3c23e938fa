"""A run: stages of epochs, from the first weights to the last, that can be stopped anywhere.

The state of a run is a position, the weights, the optimiser, the learning rate, the loader and the
sums of the epoch so far: `Trainer.state` gathers it all, and a run that is rebuilt from it goes on
bit for bit. What an epoch leaves behind is written in `_close_epoch`, in the order that lets a kill
between any two writes be repaired by running the epoch's end again.

Every rank runs the same code and decides the same: what one rank alone knows (a signal, the clock)
is agreed on first. This module decodes nothing, draws nothing and computes no figure.
"""

from dataclasses import asdict
from itertools import islice
from math import isfinite
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any

import torch

from model.registry import create
from train import panels
from train.batch import Batch
from train.config import Config
from train.distributed import Agreement, World
from train.errors import DataError, DivergedError, FitError, Interrupted
from train.evaluate import MakeModel, criterion_of, evaluate, pick_device, weights_metadata
from train.folder import Folder
from train.logs import Screen
from train.memory import OUT_OF_MEMORY, is_out_of_memory, peak_mb, refusal
from train.metrics import Scores
from train.networks import Networks
from train.progress import Position, Summary
from train.schedule import LearningRate, Stage, load_optimizer, make_optimizer, plan, stage_of
from train.settings import to_toml
from train.source import Source, StageLoaders
from train.step import EvalStep, StepResult, TrainStep, precision_of
from train.stop import Stop
from train.tracing import Tracer

__all__ = ["Trainer"]


TRACE = "trace.json"


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
            world: Place among other processes, which are connected already.
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
        self.at = Position()
        self.stop = Stop()
        self.stages = plan(config.data.res, config.data.epochs)
        if source.samples("train") == 0:
            raise DataError(
                f"{config.data.shards}: split 'train' has no samples; build it with a smaller --val"
            )
        torch.manual_seed(config.run.seed)
        self.networks = Networks(
            config, world=self.world, device=self.device, make_model=make_model
        )
        self.optimizer = make_optimizer(self.networks.parameters, config.optim)
        self.lr = LearningRate(self.optimizer, config.optim)
        criterion = criterion_of(config.loss)
        precision = precision_of(config.compute.precision, self.device)
        self._train_step = TrainStep(
            self.networks.training,
            criterion,
            self.optimizer,
            precision=precision,
            clip=config.optim.clip,
            clip_by=config.optim.clip_by,
            supervision=config.loss.deep_supervision,
        )
        self._eval_step = EvalStep(self.networks.judged, criterion, precision)
        self._train_scores = Scores(self.device)
        self._val_scores = Scores(self.device)
        self._out = Folder(Path(config.run.out), keep=config.run.keep, screen=self.screen)
        self._agreement = Agreement(self.world, 2)
        self._stopping = False
        self._saved_at = monotonic()
        self._stage: Stage | None = None
        self._loaders: StageLoaders | None = None
        self._loader_state: dict[str, Any] | None = None
        self._speed = {"samples_per_s": 0.0, "data_wait": 0.0, "seconds": 0.0}
        self._record: dict[str, Any] | None = None
        self._tracer: Tracer | None = None

    def run(self) -> Summary:
        """Train to the end of the last stage, or of ``max_steps``.

        Raises:
            Interrupted: A signal asked for the end; the state is saved.
            DivergedError: The loss or a weight is no finite number.
            DataError: A sample cannot be decoded.
        """
        try:
            with self.stop.listening():
                if self.config.run.profile and self.world.first:
                    self._tracer = Tracer(self._out.out / TRACE, self.device)
                if self.config.run.tensorboard and self.world.first:
                    self._out.board(self.config, self.at.step)
                while (stage := stage_of(self.stages, self.at.epoch)) and not self._enough():
                    loaders = self._enter(stage)
                    if not self.at.trained:
                        self._train_epoch(stage, loaders)
                    self._close_epoch(stage, loaders)
        finally:
            self.screen.end()
            if self._tracer is not None:
                self._tracer.close()
            if self._loaders is not None:
                self._loaders.close()
            self._out.close()
        return Summary(
            out=self._out.out, steps=self.at.step, last=self._record, panel=self._out.panel
        )

    def state(self) -> dict[str, Any]:
        """Everything that a run needs to go on as if it had never stopped; all ranks take part."""
        assert self._loaders is not None
        return {
            "position": asdict(self.at),
            **self.networks.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self._train_step.scaler.state_dict(),
            "lr": self.lr.state_dict(),
            "loader": self._loaders.train.state_dict(),
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
                f"{self._out.out}: was trained on other data than {self.config.data.shards} holds "
                "now; go on with the data it was started on, or start a new run with another --out"
            )
        self.at = Position(**state["position"])
        self.networks.load_state_dict(state)
        load_optimizer(self.optimizer, state["optimizer"])
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

    def _enter(self, stage: Stage) -> StageLoaders:
        """The loaders of a stage, opened if it is another than the last."""
        if self._stage == stage and self._loaders is not None:
            return self._loaders
        if self._loaders is not None:
            self._loaders.close()
        state, self._loader_state = self._loader_state, None
        self._loaders = StageLoaders(
            self.source,
            res=stage.res,
            batch=self.config.data.batch,
            augment=self.config.data.augment,
            seed=self.config.run.seed,
            epoch=self.at.epoch + self.at.trained,
            state=state,
        )
        self._stage = stage
        before = self.lr.over(self._steps_in_all(self._loaders))
        if before:
            self.screen.say(
                f"{self._out.out}: the learning rate now goes by another length of the run than "
                f"the {before} steps it went by before"
            )
        return self._loaders

    def _steps_in_all(self, loaders: StageLoaders) -> int:
        """Optimiser steps of the whole run: those done, and those left at this batch size."""
        accum, most = self.config.optim.grad_accum, self.config.run.max_steps
        each = len(loaders.train)
        used = loaders.train.state_dict()["consumed"] // (self.config.data.batch * self.world.size)
        left = 0 if self.at.trained else -(-(each - used) // accum)
        left += (self.stages[-1].end - self.at.epoch - 1) * -(-each // accum)
        total = self.at.step + left
        return min(total, most) if most else total

    def _train_epoch(self, stage: Stage, loaders: StageLoaders) -> None:
        """Train until the epoch has no more batches, or the run has had its steps."""
        run = self.config.run
        self.networks.model.train()
        batches = iter(loaders.train)
        total = -(-len(loaders.train) // self.config.optim.grad_accum)
        self.screen.begin(f"epoch {self.at.epoch} · {stage.res} px", total)
        steps, samples, waited, started = 0, 0, 0.0, perf_counter()
        while True:
            asked = perf_counter()
            group = list(islice(batches, self.config.optim.grad_accum))
            waited += perf_counter() - asked
            if not group:
                self.at.trained = True
                break
            self.lr.before_step(self.at.step)
            results = self._step(group, stage.res)
            for result, batch in zip(results, group, strict=True):
                self._train_scores.update(result, batch)
                samples += batch.mask.shape[0] * self.world.size
            self.at.step += 1
            if self.networks.average is not None:
                self.networks.average.update(self.at.step)
            steps += 1
            note = None
            if self.at.step % run.log_steps == 0:
                loss = self._finite(float(results[-1].parts.total))
                seconds = perf_counter() - started
                note = f"loss {loss:.4f} · {samples / seconds:.1f} samples/s · "
                note += f"data-wait {100 * waited / seconds:.1f} %"
            self.screen.step(steps, note)
            overdue = self._ask()
            if self._stopping or self._enough():
                self.at.trained = loaders.train.state_dict()["epoch"] > self.at.epoch
                break
            if overdue or (run.checkpoint_steps and self.at.step % run.checkpoint_steps == 0):
                self._save()
        seconds = perf_counter() - started
        self._speed = {
            "samples_per_s": samples / seconds,
            "data_wait": waited / seconds,
            "seconds": seconds,
        }
        self.screen.end()
        if self._stopping or not self.at.trained:
            # What follows must not enter the state: a run that goes on from here does it later.
            self._save()
        self._leave_if_asked()

    def _step(self, group: list[Batch], res: int) -> list[StepResult]:
        """One step of the optimiser; memory that runs out ends the run with what would fit."""
        try:
            results = self._train_step(group)
        except OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
        else:
            if self._tracer is not None and self._tracer.step():
                self.screen.say(f"{self._out.out / TRACE}: written")
            return results
        # Outside the handler: the failed step's tensors are free only when its traceback is.
        size = group[0].mask.shape[0]
        group.clear()
        layout = self.config.compute.channels_last
        raise FitError(refusal(self._train_step, size, res, self.device, channels_last=layout))

    def _close_epoch(self, stage: Stage, loaders: StageLoaders) -> None:
        """Judge the network, write what the epoch leaves, and move on to the next.

        An epoch that ``max_steps`` cut short is judged and written too, but the position, the
        learning rate and the best loss stay: going on from it, the epoch is finished first.
        """
        whole = self.at.trained
        train = self._train_scores.compute(self.world)
        self._finite(train["loss"])
        started = perf_counter()
        rows = self._judge(loaders)
        if self._stopping:
            self._save()
        self._leave_if_asked()
        val = self._val_scores.compute(self.world) if loaders.val is not None else None
        watched = self._finite((val or train)["loss"])
        better = self.at.best is None or (whole and watched < self.at.best)
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
            "peak_memory_mb": peak_mb(self.device),
            "val_seconds": perf_counter() - started,
        }
        self._record = record
        if self.world.first:
            names = ("last.safetensors", *(("best.safetensors",) if better else ()))
            kept = self.networks.judged.state_dict()
            self._out.weights(names, kept, weights_metadata(self._about()))
            if rows is not None:
                self._out.draw(record, rows, self.source.mean, self.source.std)
            self._out.epoch(record)
        if not whole:
            return
        self.at.best = watched if better else self.at.best
        self.lr.after_epoch(watched)
        self.at.epoch += 1
        self.at.trained = False
        self._train_scores.reset()
        if self.at.epoch == stage.end:
            self.at.best = None  # Losses at another resolution do not compare.
            self.lr.new_stage()
        self._save()

    def _judge(self, loaders: StageLoaders) -> panels.Rows | None:
        """Run over the validation split; the first samples come back for the panel."""
        self._val_scores.reset()
        judged = self.networks.judged.eval()
        # Batch norms have seen other batches on every rank; what is saved is the first one's.
        self.world.broadcast_(judged.buffers())
        rows = self.config.run.panel_rows if self.world.first else 0
        if loaders.val is not None:
            return evaluate(
                self._eval_step, loaders.val, self._val_scores, rows=rows, stop=self._asked
            )
        if loaders.shown is None or not rows:
            return None
        return evaluate(self._eval_step, [loaders.shown], Scores(self.device), rows=rows)

    def _about(self) -> dict[str, Any]:
        """What somebody who uses the weights must know."""
        return {
            "config": to_toml(self.config),
            "res": (self._stage or self.stages[-1]).res,
            "step": self.at.step,
            "mean": self.source.mean,
            "std": self.source.std,
            "data": self.source.fingerprint,
        }

    def _save(self) -> None:
        """Have a checkpoint written; every rank takes part, the first one writes."""
        state = self.state()
        self._saved_at = monotonic()
        for name, value in state["model"].items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise DivergedError(self._diverged(f"weight {name} is no longer finite"))
        if self.world.first:
            self._out.checkpoint(self.at.step, state)

    def _ask(self) -> bool:
        """Agree with all ranks on whether to stop; returns whether a checkpoint is overdue."""
        minutes = self.config.run.checkpoint_minutes
        overdue = bool(minutes) and monotonic() - self._saved_at > 60 * minutes
        stop, overdue = self._agreement.ask(self.stop.asked, overdue)
        self._stopping |= stop
        return overdue

    def _asked(self) -> bool:
        self._ask()
        return self._stopping

    def _leave_if_asked(self) -> None:
        if not self._stopping:
            return
        step, out = self.at.step, self._out.out
        newest = self._out.newest() if self.world.first else None
        if self.world.first and (newest is None or newest.stem != f"step-{step:08d}"):
            goes_on = f"goes on from {newest.name}" if newest else "begins again"
            raise Interrupted(
                f"{out}: stopped at step {step}, which is not saved; --resume {goes_on}"
            )
        raise Interrupted(f"{out}: stopped at step {step}; --resume goes on from there")

    def _finite(self, loss: float) -> float:
        if not isfinite(loss):
            raise DivergedError(self._diverged(f"loss is {loss}"))
        return loss

    def _diverged(self, found: str) -> str:
        newest = self._out.newest()
        stands = f"{newest} is the last good state" if newest else "no checkpoint was written yet"
        return (
            f"{self._out.out}: step {self.at.step}: {found}; expected finite numbers; "
            f"lower --lr (now {self.lr.value:g}) or --clip; {stands}"
        )
