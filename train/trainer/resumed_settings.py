"""Check that a command changes only settings that a resumed run may change."""

from train.config import Config
from train.errors import ConfigError
from train.settings import resolve, settings

CHANGEABLE = {
    *("shards", "res", "epochs", "batch", "cache"),
    *("device", "threads", "torch_threads", "channels_last", "deterministic"),
    *("out", "max_steps", "stop_after", "checkpoint_steps", "checkpoint_minutes", "keep"),
    *("log_steps", "panel_rows", "profile", "compile", "tensorboard", "report"),
}
"""Settings that a resumed run may change, because they are not part of its state."""

OVERRIDABLE = {"lr", "schedule", "warmup", "patience", "factor"}
"""Settings that a resumed run may change with ``--override``."""


def check_kept(before: Config, config: Config, where: str, *, override: bool) -> list[str]:
    """Check that a resumed run does not change settings that are part of its state.

    Returns:
        A text for each setting that ``override`` allows to change.
    """
    changes = []
    for setting in settings():
        old, new = (getattr(getattr(c, setting.section), setting.name) for c in (before, config))
        if old == new or setting.name in CHANGEABLE:
            continue
        problem = f"{where}: {setting.key} is {old!r}, but the command says {new!r}; "
        if setting.name not in OVERRIDABLE:
            raise ConfigError(
                f"{problem}a resumed run cannot change it: remove it, or start a new run with "
                "another --out"
            )
        if not override:
            raise ConfigError(
                f"{problem}add --override to change it, or start a new run from these weights with "
                f"--init {config.run.out} and another --out"
            )
        changes.append(f"{setting.key} was {old!r} and is {new!r} from here on")
    return changes


def with_same_init(config: Config, before: Config) -> Config:
    """Return the settings with the ``--init`` of the run: it has its own weights now."""
    network = before.network
    same = {"init": network.init, "init_sha256": network.init_sha256}
    return resolve(config, {**same, "init_partial": network.init_partial})
