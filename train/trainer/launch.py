"""Launch a run: check the settings, lock the folder, connect the ranks, start or resume."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from model.registry import MakeModel, check_resolution, create
from shardify.errors import ShardifyError
from train.checkpoint.checkpoint_file import Checkpoints, Stored
from train.checkpoint.initial_weights import InitialWeights, locate
from train.config import Config
from train.data import Dataset, ShardDataset, find_shards
from train.distributed import SAVED, RankMessages, World, connected
from train.errors import ConfigError, Interrupted, PeerError, RunError, TrainError
from train.optim.compute import choose_precision, pick_device, set_cudnn_algorithms
from train.optim.criterion import available_targets
from train.report.run_report import write_report
from train.settings import from_text, from_toml, resolve, settings
from train.tracking.console import Console
from train.tracking.run_folder_setup import (
    CONFIG,
    check_new_folder,
    check_nothing_lost,
    prepare,
    readable,
    removed_unless,
    run_lock,
)
from train.trainer.progress import Summary
from train.trainer.resumed_settings import check_kept, with_same_init
from train.trainer.signals import StopSignal
from train.trainer.stages import plan, stage_at
from train.trainer.trainer import Trainer

REQUIREMENTS = {
    "patience": ("optim", "schedule", "plateau"),
    "factor": ("optim", "schedule", "plateau"),
    "momentum": ("optim", "optimizer", "sgd"),
    "dice_weight": ("loss", "loss", "dice+l1"),
    "l1_weight": ("loss", "loss", "dice+l1"),
}
"""Setting → section, name and value of another setting that it requires."""

MakeSource = Callable[[Config, World, torch.device], Dataset]
"""Opens the data set for settings, rank and device."""


def configure(
    flags: Mapping[str, object], *, file: Path | None, resume: bool, override: bool = False
) -> Config:
    """Merge the settings of a run: defaults, then the resumed run, the file, and the flags.

    With ``resume``, start from ``RUN/config.toml``, or, if it is missing, from the settings in the
    newest checkpoint. With ``override``, the resumed run may change `OVERRIDABLE` settings.

    Raises:
        ConfigError: A setting is unknown or invalid, or cannot be changed in a resumed run.
        CheckpointError: The settings are only in a checkpoint that cannot be read.
        RunError: The folder cannot be read.
    """
    if override and not resume:
        raise ConfigError("--override: has no effect without --resume; remove it")
    if resume and "init" in flags:
        raise ConfigError(
            f"--init {flags['init']}: a resumed run has its own weights; remove --init, or start a "
            "new run without --resume and with another --out"
        )
    requested = resolve(from_toml(file) if file else Config(), flags)
    before, where = _resumed_settings(requested) if resume else (None, "")
    config = requested
    if before is not None:
        config = resolve(from_toml(file, before) if file else before, flags)
        config = resolve(config, {"out": requested.run.out})  # The folder may have been moved.
        if where:
            config = with_same_init(config, before)
            check_kept(before, config, where, override=override)
    _check_utf8(config)
    _check_resolutions(config)
    _check_flags(config, flags)
    if config.compute.device == "cpu":
        choose_precision(config.compute.precision, torch.device("cpu"))
    return config


def launch(
    config: Config,
    *,
    resume: bool = False,
    override: bool = False,
    make_source: MakeSource | None = None,
    make_model: MakeModel = create,
    console: Console | None = None,
) -> Summary:
    """Train a network on this rank.

    With ``resume``, continue from the newest checkpoint of the folder, or start at step 0 if there
    is none. With ``override``, `OVERRIDABLE` settings may differ from those of the run.

    Raises:
        TrainError: See ``train.errors``; the message is one line.
        ShardifyError: The data set cannot be read.
        Interrupted: A signal stopped the run; the state is saved.
    """
    _check_utf8(config)
    _check_resolutions(config)
    world = World.from_environ()
    device = pick_device(config.compute.device, world)
    choose_precision(config.compute.precision, device)
    _set_up_torch(config, device)
    out = Path(config.run.out)
    # torchrun restarts all ranks when one of them died: then the run is resumed.
    resume = resume or int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if make_source is None and config.data.shards:
        shards = config.data.shards
        path = find_shards(shards, out) if resume else Path(shards).absolute()
        config = resolve(config, {"shards": str(path)})  # To resume from any working directory.
    open_source = make_source or _open_shards
    source = open_source(config, world, device)
    stop = StopSignal()
    console = console or Console()
    with ExitStack() as locked:
        with _stopped_by_first_rank(world, stop), connected(world, device):
            if world.first:
                locked.enter_context(run_lock(out))
                if not resume:
                    check_new_folder(out)
            stored = _newest(config) if resume else None
            if world.first and resume and stored is None:
                check_nothing_lost(out)
            if not world.same(stored.state["position"]["step"] if stored else -1):
                raise RunError(
                    f"{out}: the ranks find different checkpoints; with several machines, --out "
                    "must be on a shared file system"
                )
            if stored is not None:
                config = with_same_init(config, _stored_settings(stored))
                changes = _check_stages(config, stored, override=override)
            elif config.network.init:
                config = locate(config)
                targets = available_targets(source.roles)
                weights = InitialWeights(config, make_model, targets)
                make_model = weights.make
            trainer = Trainer(
                config, source, world=world, device=device, make_model=make_model, console=console,
                stop=stop,
            )  # fmt: skip
            if stored is not None:
                trainer.load_state(stored.state)
                rest = f": {trainer.ending}" if trainer.ending else ""
                rest += "; --epochs, --stop-after or --max-steps can extend it" if rest else ""
                console.print_line(f"{out}: resumed after step {trainer.at.step}{rest}")
                for change in changes:
                    console.print_line(f"{out}: --override: {change}")
            elif config.network.init:
                begun = ", ".join(weights.begun)
                anew = f"; begun anew: {begun}" if begun else ""
                console.print_line(f"{out}: starts from {config.network.init}{anew}")
            if resume and stored is None:
                console.print_line(f"{out}: no checkpoint found; starting at step 0")

            def prepare_folder() -> None:
                if world.first:
                    prepare(out, config, trainer.at.epoch)
                world.barrier()

            with removed_unless(lambda: trainer.started or not world.first, out):
                summary = trainer.run(prepare_folder)
        if world.first and config.run.report and summary.last is not None:
            try:
                whole = source if world.size == 1 else open_source(config, World(), device)
                page = write_report(out, whole, device=device, make_model=make_model)
                console.print_line(f"{page}: written")
            except (TrainError, ShardifyError, OSError) as error:
                # The network is trained and saved, so a missing report is only a warning.
                console.print_line(f"Warning: no report: {error}; retry with `train report {out}`")
    return summary


@contextmanager
def _stopped_by_first_rank(world: World, stop: StopSignal) -> Iterator[None]:
    """Turn the loss of the first rank into `Interrupted`, if it saved and exited after a signal."""
    try:
        yield
    except PeerError:
        messages = RankMessages.connect(world) if stop.requested else None
        if messages and messages.posted(SAVED):
            raise Interrupted("") from None
        raise


def _resumed_settings(requested: Config) -> tuple[Config | None, str]:
    """Return the settings of the run in the folder, and the file that they were read from.

    None: there is no run. An empty file name: there is no checkpoint, so all settings may change:
    nothing was trained with them yet, and one of them may be the mistake that ended the run.
    """
    out = Path(requested.run.out)
    file = out / CONFIG
    with readable(out):
        if file.is_file():
            return from_toml(file), str(file) if _checkpoints(requested).files() else ""
    stored = _newest(requested)
    return (_stored_settings(stored), str(stored.path)) if stored else (None, "")


def _stored_settings(stored: Stored) -> Config:
    """Return the settings in a checkpoint."""
    return from_text(stored.state["about"]["config"], where=str(stored.path))


def _check_utf8(config: Config) -> None:
    """Check that all texts are UTF-8, as TOML requires; file names may be other bytes."""
    for setting in settings():
        value = getattr(getattr(config, setting.section), setting.name)
        try:
            str(value).encode()
        except UnicodeEncodeError:
            shown = str(value).encode("utf-8", "backslashreplace").decode()
            raise ConfigError(
                f"--{setting.name.replace('_', '-')} {shown}: not UTF-8, so "
                f"{CONFIG} cannot store it; use another name"
            ) from None


def _check_resolutions(config: Config) -> None:
    for res in config.data.res:
        try:
            check_resolution(*res)
        except ValueError as error:
            raise ConfigError(f"--res {res}: {error}") from error


def _check_flags(config: Config, flags: Mapping[str, object]) -> None:
    """Refuse flags without effect; a file may contain such settings, because it lists all.

    Raises:
        ConfigError: Names the flag and the setting that it requires.
    """
    for name in flags:
        if name not in REQUIREMENTS:
            continue
        section, key, value = REQUIREMENTS[name]
        actual = getattr(getattr(config, section), key)
        if actual != value:
            raise ConfigError(
                f"--{name.replace('_', '-')}: has no effect with --{key} {actual}; "
                f"remove it, or use --{key} {value}"
            )


def _open_shards(config: Config, world: World, device: torch.device) -> Dataset:
    if not config.data.shards:
        raise ConfigError("--shards: missing; expected a folder written by `shardify build`")
    return ShardDataset(
        folder=Path(config.data.shards),
        world=world,
        device=device,
        threads=config.compute.threads,
        channels_last=config.compute.channels_last,
        order=config.data.order,
        cache=config.data.cache,
        exclude=tuple(filter(None, config.data.exclude.split(","))),
        res=max(config.data.res, key=lambda res: res.pixels),
    )


def _set_up_torch(config: Config, device: torch.device) -> None:
    """Set the number of threads and the GPU algorithms of this process."""
    if config.compute.torch_threads:
        torch.set_num_threads(config.compute.torch_threads)
    set_cudnn_algorithms(device, deterministic=config.compute.deterministic)


def _newest(config: Config) -> Stored | None:
    with readable(Path(config.run.out)):
        return _checkpoints(config).newest()


def _checkpoints(config: Config) -> Checkpoints:
    return Checkpoints(Path(config.run.out) / "checkpoints", keep=config.run.keep)


def _check_stages(config: Config, stored: Stored, *, override: bool) -> list[str]:
    """Check the settings, and that finished epochs keep their resolution.

    Returns:
        A text for each setting that ``override`` allows to change.
    """
    before = _stored_settings(stored)
    changes = check_kept(before, config, str(stored.path), override=override)
    cut = stored.state["position"].get("cut", {})
    old = plan(before.data.res, before.data.epochs, cut)
    new = plan(config.data.res, config.data.epochs, cut)
    for epoch in range(int(stored.state["position"]["epoch"])):
        done, planned = stage_at(old, epoch), stage_at(new, epoch)
        if done and planned and done.res != planned.res:
            raise ConfigError(
                f"--res, --epochs: epoch {epoch + 1} was trained at {done.res} px, but the command "
                f"says {planned.res} px; a resumed run can change later epochs only"
            )
    return changes
