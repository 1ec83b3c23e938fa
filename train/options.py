"""What all commands of ``train`` share: a flag for every setting, and how errors end a command.

Makes options out of ``train.settings``; takes no decision, runs nothing, and imports nothing heavy
before an error of several ranks has to be told once.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from shardify.errors import ShardifyError
from train import config
from train.errors import ConfigError, Interrupted, TrainError
from train.settings import SYNONYMS, Setting, settings

__all__ = [
    "COUNT",
    "FILE",
    "THREADS",
    "Commands",
    "SettingsCommand",
    "all_settings",
    "one_line_errors",
    "said",
]

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)

COUNT = click.IntRange(1, config.MOST)

THREADS = click.IntRange(1, config.THREADS)


class UsageError(click.ClickException):
    """Wrong usage in one line: no usage text buries it."""

    exit_code = 2


class Commands(click.Group):
    """A group whose errors are printed once, whatever the number of ranks that have them."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error's line is said by one rank for all that would say the same.

        A flag that other programs have is answered with what it is called here.
        """
        try:
            return super().invoke(ctx)
        except click.ClickException as found:
            error = _nearest(found) if isinstance(found, click.NoSuchOption) else found
            if os.environ.get("WORLD_SIZE", "1") == "1":
                raise error from found.__cause__
            from train.distributed import World
            from train.notes import Word

            try:
                world = World.from_environ()
            except ConfigError:  # Not torchrun's doing.
                raise error from None
            word = Word(error.format_message(), error.__cause__, world)
            if word.mine():
                error.show()
                word.said()
            ctx.exit(error.exit_code)


def _nearest(error: click.NoSuchOption) -> click.NoSuchOption:
    """The error of an unknown flag, with the flag that other programs call so."""
    meant = SYNONYMS.get(error.option_name.lstrip("-").replace("-", "_"))
    if error.ctx is None or meant not in {each.name for each in error.ctx.command.params}:
        return error
    text = f"No such option {error.option_name!r}. Did you mean '--{meant}'?"
    return click.NoSuchOption(error.option_name, text, ctx=error.ctx)


class Numbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers, comma-separated."""

    name = "N,N,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """``"64,256"`` → ``(64, 256)``."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers like 64,256", param, ctx)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """What is the user's to mend ends the command with one line, never with a traceback."""
    try:
        yield
    except ConfigError as error:
        raise UsageError(str(error)) from error
    except (TrainError, ShardifyError) as error:
        raise click.ClickException(str(error)) from error
    except Interrupted as stopped:
        if str(stopped):  # One rank speaks for all.
            click.echo(str(stopped), err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("Stopped; what was written by then is whole.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not complain at its exit.
        sys.stdout = None
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        try:
            sys.stdout.flush()
        except OSError:
            # What it still holds would fail once more when the interpreter ends.
            sys.stdout = None
        text = f"{where}{error.strerror or error}; see to it and run the command again"
        raise click.ClickException(text) from error
    except MemoryError as error:
        text = "out of memory; use a smaller --batch or --res, or fewer --threads"
        raise click.ClickException(text) from error
    except UnicodeEncodeError as error:
        text = f"{error.object!a}: not text that can be written; use names that are valid UTF-8"
        raise click.ClickException(text) from error


_GROUPS = {
    "data": "Data", "network": "Network", "loss": "Loss", "optim": "Optimiser",
    "compute": "Device", "run": "Output",
}  # fmt: skip
"""Section of a setting -> heading in the help, unless the setting stands in ``_MOVED``."""

_MOVED = {
    "augment": "Augmentation", "schedule": "Schedule", "warmup": "Schedule",
    "patience": "Schedule", "factor": "Schedule", "max_steps": "Schedule", "seed": "Data",
}  # fmt: skip
_HEADINGS = (
    "Data", "Augmentation", "Network", "Loss", "Optimiser", "Schedule", "Device", "Output",
)  # fmt: skip


class SettingsCommand(click.Command):
    """A command with a flag for every setting; its help lists them under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, settings by group, then the others."""
        heading = {
            setting.name: _MOVED.get(setting.name, _GROUPS[setting.section])
            for setting in settings()
        }
        records: dict[str, list[tuple[str, str]]] = {each: [] for each in (*_HEADINGS, "Options")}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                records[heading.get(param.name or "", "Options")].append(record)
        for title, rows in records.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _option(setting: Setting) -> Callable[[F], F]:
    """The flag of a setting."""
    flag = "--" + setting.name.replace("_", "-")
    text = f"{setting.help} [{_shown(setting)}]" if _shown(setting) else setting.help
    if setting.kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    kind: Any = click.Choice(setting.choices) if setting.choices else setting.kind
    return click.option(flag, type=Numbers() if setting.kind is tuple else kind, help=text)


def _shown(setting: Setting) -> str:
    """The default as a user would type it."""
    if setting.kind is bool:
        return "yes" if setting.default else "no"
    if setting.kind is tuple:
        return ",".join(map(str, setting.default))
    return f"{setting.default:g}" if setting.kind is float else str(setting.default)


def all_settings(command: F) -> F:
    """A flag for every setting there is."""
    for setting in reversed(settings()):
        command = _option(setting)(command)
    return click.option("--config", "file", type=FILE, help="Settings from a TOML file.")(command)


def said(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given."""
    return {name: value for name, value in flags.items() if value is not None}
