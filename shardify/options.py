"""What commands of ``shardify`` share: the options that decide what is written.

Makes options; takes no decision, and runs nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["planning"]


class Share(click.FloatRange):
    """A range that holds no NaN, which is neither below nor above any bound."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        found = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return found


def planning(command: Callable[..., None]) -> Callable[..., None]:
    """The options that decide what is written, shared by inspect and build."""
    options = [
        click.option(
            "--layout",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            default=None,
            help="A TOML file that says what belongs together, instead of detecting it.",
        ),
        click.option(
            "--val",
            type=Share(0, 1, max_open=True),
            default=0.05,
            show_default=True,
            help="Share of the samples held back for validation.",
        ),
        click.option(
            "--group-by",
            type=click.Choice(["bg", "fg", "none"]),
            default=None,
            help="What never stands in both splits: backgrounds, foregrounds, or nothing is kept "
            "apart.  [default: bg, where backgrounds are known]",
        ),
        click.option(
            "--shard-samples",
            type=click.IntRange(1, 1_000_000),
            default=None,
            help="Most samples in a shard.  [default: 100 to 1000, by the number of samples]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Of the split and of the order in which samples are written.",
        ),
        click.option(
            "--max-bad",
            type=Share(0, 1),
            default=0.01,
            show_default=True,
            help="Refuse the source when a larger share of its samples is bad.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command
