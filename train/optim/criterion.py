"""Build the criterion from the settings; say which targets a data set has."""

from model.losses import TARGETS, Criterion
from train.config import Loss
from train.errors import ConfigError

__all__ = ["criterion_of", "missing", "targets_of"]


def criterion_of(loss: Loss, targets: tuple[str, ...] = TARGETS) -> Criterion:
    """The criterion that the settings describe, for the targets that there is truth for.

    Raises:
        ConfigError: The settings give none of them a weight.
    """
    for name in targets:
        if len(targets) == 1 and not getattr(loss, f"{name}_weight"):
            raise ConfigError(f"--{name}-weight 0: the data has no other target; give it a weight")
    return Criterion(
        targets=targets,
        kind=loss.loss,
        activation=loss.activation,
        dice_weight=loss.dice_weight,
        l1_weight=loss.l1_weight,
        mask_weight=loss.mask_weight,
        depth_weight=loss.depth_weight,
    )


def targets_of(roles: frozenset[str]) -> tuple[str, ...]:
    """Of mask and depth, those that a data set has."""
    return tuple(target for target in TARGETS if target in roles)


def missing(roles: frozenset[str], val: int) -> list[str]:
    """A line for whoever trains on a data set that lacks a role, or has no sample in ``val``."""
    lines = []
    targets = targets_of(roles)
    if len(targets) == 1:
        (other,) = set(TARGETS) - set(targets)
        lines.append(f"this data set has no {other}: training the {targets[0]} only")
    if "bg" not in roles:
        lines.append("this data set has no bg: the network sees fg_bg only")
    if not val:
        lines.append("this data set has no validation samples: the training loss judges the run")
    return lines
