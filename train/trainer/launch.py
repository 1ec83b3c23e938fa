"""From settings to a run: the folder, the place among other processes, going on or starting.

Decides what a resumed run may change and what it must keep; everything after that is
``train.trainer.trainer``'s.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from model.registry import MakeModel, check_resolution, create
from shardify.errors import ShardifyError
from train.checkpoint.checkpoint_file import Checkpoints, Stored
from train.config import Config
from train.data import Dataset, ShardDataset
from train.distributed import SAVED, RankMessages, World, connected
from train.errors import ConfigError, Interrupted, PeerError, RunError, TrainError
from train.optim.compute import pick_device, set_cudnn_algorithms
from train.report.run_report import write_report
from train.settings import from_text, from_toml, resolve, settings
from train.tracking.console import Screen
from train.tracking.run_folder_setup import (
    CONFIG,
    prepare,
    readable,
    refuse_again,
    refuse_other,
    run_lock,
)
from train.trainer.progress import Summary
from train.trainer.signals import StopSignal
from train.trainer.stages import plan, stage_of
from train.trainer.trainer import Trainer

__all__ = ["MakeSource", "configure", "launch"]

FREE = {
    *("shards", "res", "epochs", "batch", "cache"),
    *("device", "threads", "torch_threads", "channels_last", "deterministic"),
    *("out", "max_steps", "checkpoint_steps", "checkpoint_minutes", "keep"),
    *("log_steps", "panel_rows", "profile", "compile", "tensorboard", "report"),
}
"""Settings that a resumed run may change: none of them is part of the state."""

NEEDS = {
    "patience": ("optim", "schedule", "plateau"),
    "factor": ("optim", "schedule", "plateau"),
    "momentum": ("optim", "optimizer", "sgd"),
    "dice_weight": ("loss", "loss", "dice+l1"),
    "l1_weight": ("loss", "loss", "dice+l1"),
}
"""Settings that mean something only where another has a certain value: its section, name, value."""

MakeSource = Callable[[Config, World, torch.device], Dataset]
"""Settings, place and device → the data set."""


def configure(flags: Mapping[str, object], *, file: Path | None, resume: bool) -> Config:
    """The settings of a run: defaults, then the run that is resumed, the file, and the flags.

    Args:
        flags: ``{name: value}`` of what was said on the command line.
        file: A TOML file.
        resume: Whether ``RUN/config.toml``, if there is one, is where to begin; if it was lost,
            the settings in the newest checkpoint.

    Raises:
        ConfigError: Something is unknown or invalid, or a resumed run would have to change what
            it cannot.
        CheckpointError: Only a checkpoint could say the settings, and it cannot be read.
        RunError: The folder cannot be read.
    """
    asked = resolve(from_toml(file) if file else Config(), flags)
    before, where = _before(asked) if resume else (None, "")
    config = asked
    if before is not None:
        config = resolve(from_toml(file, before) if file else before, flags)
        config = resolve(config, {"out": asked.run.out})  # The folder may have been moved.
        if where:
            _check_kept(before, config, where)
    _check_texts(config)
    _check_resolutions(config)
    _check_flags(config, flags)
    return config


def launch(
    config: Config,
    *,
    resume: bool = False,
    make_source: MakeSource | None = None,
    make_model: MakeModel = create,
    screen: Screen | None = None,
) -> Summary:
    """Train as ``config`` says, on this process's share.

    Args:
        config: From `configure`.
        resume: Go on from the newest checkpoint of the folder; from the beginning if none is there.
        make_source: Opens the data set; shards by default.
        make_model: Makes the network that the settings name.
        screen: Where progress is shown.

    Raises:
        TrainError: See the tree; one line says what and where.
        ShardifyError: The manifest cannot be read.
        Interrupted: A signal asked for the end; the state is saved.
    """
    _check_texts(config)
    _check_resolutions(config)
    world = World.from_environ()
    device = pick_device(config.compute.device, world)
    _set_up_torch(config, device)
    make = make_source or _shards
    source = make(config, world, device)
    out = Path(config.run.out)
    # torchrun starts all ranks again when one of them died: that is no new run.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    stop = StopSignal()
    screen = screen or Screen()
    with ExitStack() as to_the_end:
        with _parting(world, stop), connected(world, device):
            if world.first:
                to_the_end.enter_context(run_lock(out))
                if not resume:
                    refuse_other(out)
            found = _newest(config) if resume else None
            if world.first and resume and found is None:
                refuse_again(out)
            if not world.same(found.state["position"]["step"] if found else -1):
                raise RunError(
                    f"{out}: the ranks see different checkpoints there; with several machines, "
                    "--out must be on a disk that they share"
                )
            if found is not None:
                _check_stages(config, found)
            trainer = Trainer(
                config, source, world=world, device=device, make_model=make_model, screen=screen,
                stop=stop,
            )  # fmt: skip
            if found is not None:
                trainer.load_state(found.state)
                rest = ", which was its last; --epochs adds more" if trainer.over else ""
                screen.say(f"{out}: going on after step {trainer.at.step}{rest}")
            elif resume:
                screen.say(f"{out}: no checkpoint to go on from; starting at step 0")

            def begin() -> None:
                if world.first:
                    prepare(out, config, trainer.at.epoch)
                world.barrier()

            summary = trainer.run(begin)
        if world.first and config.run.report and summary.last is not None:
            try:
                alone = source if world.size == 1 else make(config, World(), device)
                page = write_report(out, alone, device=device, make_model=make_model)
                screen.say(f"{page}: written")
            except (TrainError, ShardifyError, OSError) as error:
                # The network is trained and saved; a page is no reason to fail.
                screen.say(f"Warning: {error}; `train report {out}` writes it later")
    return summary


@contextmanager
def _parting(world: World, stop: StopSignal) -> Iterator[None]:
    """After a signal, a rank that finds the first one gone, its state saved, is stopped too."""
    try:
        yield
    except PeerError:
        notes = RankMessages.of(world) if stop.asked else None
        if notes and notes.left(SAVED):
            raise Interrupted("") from None
        raise


def _before(asked: Config) -> tuple[Config | None, str]:
    """The settings of the run in the folder, and what they were read from; None of a new one.

    They come from nowhere, which binds nobody, where there is no checkpoint: nothing was trained
    with them yet, and one of them may be the mistake that ended the run.
    """
    out = Path(asked.run.out)
    stored = out / CONFIG
    with readable(out):
        if stored.is_file():
            return from_toml(stored), str(stored) if _checkpoints(asked).files() else ""
    found = _newest(asked)
    return (_settings_of(found), str(found.path)) if found else (None, "")


def _settings_of(found: Stored) -> Config:
    """The settings that a checkpoint was trained with."""
    return from_text(found.state["about"]["config"], where=str(found.path))


def _check_kept(before: Config, config: Config, where: str) -> None:
    """A resumed run is the same run: what is part of its state stays as it was."""
    for setting in settings():
        old, new = (getattr(getattr(c, setting.section), setting.name) for c in (before, config))
        if old != new and setting.name not in FREE:
            raise ConfigError(
                f"{where}: {setting.key} is {old!r} there, and {new!r} was asked for; "
                "a resumed run keeps it: leave it out, or start a new run with another --out"
            )


def _check_texts(config: Config) -> None:
    """Names of files may be any bytes; what a run writes about itself is UTF-8."""
    for setting in settings():
        value = getattr(getattr(config, setting.section), setting.name)
        if isinstance(value, str) and not _is_utf8(value):
            shown = value.encode("utf-8", "backslashreplace").decode()
            raise ConfigError(
                f"--{setting.name.replace('_', '-')} {shown}: not UTF-8; expected text that "
                f"{CONFIG} can hold; use another name"
            )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_resolutions(config: Config) -> None:
    for res in config.data.res:
        try:
            check_resolution(res)
        except ValueError as error:
            raise ConfigError(f"--res {res}: {error}") from error


def _check_flags(config: Config, flags: Mapping[str, object]) -> None:
    """A flag that would do nothing is a mistake; in a file, which may list everything, it is not.

    Raises:
        ConfigError: Names the flag and what it would need.
    """
    for name in flags:
        if name not in NEEDS:
            continue
        section, key, value = NEEDS[name]
        found = getattr(getattr(config, section), key)
        if found != value:
            raise ConfigError(
                f"--{name.replace('_', '-')}: means nothing with --{key} {found}; "
                f"leave it out, or use --{key} {value}"
            )


def _shards(config: Config, world: World, device: torch.device) -> Dataset:
    if not config.data.shards:
        raise ConfigError("--shards: not given; expected the folder that `shardify build` made")
    return ShardDataset(
        config.data.shards,
        world=world,
        device=device,
        threads=config.compute.threads,
        channels_last=config.compute.channels_last,
        order=config.data.order,
        cache=config.data.cache,
        exclude=tuple(filter(None, config.data.exclude.split(","))),
        res=max(config.data.res),
    )


def _set_up_torch(config: Config, device: torch.device) -> None:
    """Process-wide switches: threads, and which algorithms a GPU may take."""
    if config.compute.torch_threads:
        torch.set_num_threads(config.compute.torch_threads)
    set_cudnn_algorithms(device, deterministic=config.compute.deterministic)


def _newest(config: Config) -> Stored | None:
    with readable(Path(config.run.out)):
        return _checkpoints(config).newest()


def _checkpoints(config: Config) -> Checkpoints:
    return Checkpoints(Path(config.run.out) / "checkpoints", keep=config.run.keep)


def _check_stages(config: Config, found: Stored) -> None:
    """What is trained already stays as it was: resolutions may only change in the future."""
    before = _settings_of(found)
    _check_kept(before, config, str(found.path))
    old = plan(before.data.res, before.data.epochs)
    new = plan(config.data.res, config.data.epochs)
    for epoch in range(int(found.state["position"]["epoch"])):
        was, now = stage_of(old, epoch), stage_of(new, epoch)
        if was and now and was.res != now.res:
            raise ConfigError(
                f"--res, --epochs: epoch {epoch} was trained at {was.res} px, and {now.res} px "
                "was asked for; a resumed run can change only the epochs to come"
            )
