"""Create the criterion from the settings; find the targets of a data set."""

from model.losses import TARGETS, Criterion
from train.config import Loss
from train.errors import ConfigError


def make_criterion(loss: Loss, targets: tuple[str, ...] = TARGETS) -> Criterion:
    """Create the criterion of the settings for ``targets``, those that the data set has.

    Raises:
        ConfigError: The weight of the only target is 0.
    """
    for name in targets:
        if len(targets) == 1 and not getattr(loss, f"{name}_weight"):
            raise ConfigError(
                f"--{name}-weight 0: the data set has no other target; use a weight above 0"
            )
    return Criterion(
        targets=targets,
        kind=loss.loss,
        activation=loss.activation,
        dice_weight=loss.dice_weight,
        l1_weight=loss.l1_weight,
        mask_weight=loss.mask_weight,
        depth_weight=loss.depth_weight,
    )


def available_targets(roles: frozenset[str]) -> tuple[str, ...]:
    """Return those of mask and depth that are among ``roles``."""
    return tuple(target for target in TARGETS if target in roles)


def missing_role_messages(roles: frozenset[str], val_samples: int) -> list[str]:
    """Return a line for each missing role, and one if there are no validation samples."""
    lines = []
    targets = available_targets(roles)
    if len(targets) == 1:
        (other,) = set(TARGETS) - set(targets)
        lines.append(f"this data set has no {other}: only the {targets[0]} is trained")
    if "bg" not in roles:
        lines.append("this data set has no bg: only fg_bg is used as input")
    if not val_samples:
        lines.append("this data set has no validation samples: the training loss is used instead")
    return lines
