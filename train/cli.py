"""The ``train`` command: parse, call one function, print what it returns.

No decision is taken here, and nothing heavy is imported before a command needs it: ``--help``
answers at once.

What all commands of ``train`` share: a flag for every setting, and how errors end a command.

Makes options out of ``train.settings``; takes no decision, runs nothing, and imports nothing heavy
before an error of several ranks has to be told once.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import click

from shardify.errors import ShardifyError
from shardify.version import version
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
    "main",
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
            from train.distributed import ErrorReport, World

            try:
                world = World.from_environ()
            except ConfigError:  # Not torchrun's doing.
                raise error from None
            word = ErrorReport(error.format_message(), error.__cause__, world)
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


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version())
def main() -> None:
    """Train networks on shards, judge them and use them.

    \b
    train run --shards out --res 64,256 --epochs 10,5 --out run
    train eval run --shards out
    train predict run --bg street.jpg --fg-bg street-with-car.jpg --out maps
    """


@main.command(name="run", cls=SettingsCommand)
@all_settings
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out.")
@click.option("--json", "as_json", is_flag=True, help="Print what came out as one JSON object.")
def run_command(file: Path | None, resume: bool, as_json: bool, **flags: Any) -> None:
    """Train a network.

    Leaves settings, metrics, weights, checkpoints and panels in --out. Ctrl-C saves the state;
    --resume goes on from it.

    \b
    train run --shards out --res 64 --epochs 10 --out run
    train run --shards out --res 64,256 --epochs 10,5 --model unet --lr 0.02 --out run2
    train run --resume --out run
    """
    with one_line_errors():
        from train.distributed import World, exit_rank
        from train.tracking.console import Screen
        from train.trainer.launch import configure, launch

        config = configure(said(flags), file=file, resume=resume)
        screen = Screen(to_stderr=as_json)
        summary = launch(config, resume=resume, screen=screen)
        screen.result(summary.to_json() if as_json else str(summary))
        if World.from_environ().size > 1:
            exit_rank()


@main.command(name="config", cls=SettingsCommand)
@all_settings
@click.option("--resume", is_flag=True, help="Begin with the settings of the run in --out.")
def config_command(file: Path | None, resume: bool, **flags: Any) -> None:
    """Print all settings as TOML, as `train run` would take them.

    \b
    train config --res 64,256 --epochs 10,5 > my.toml
    train run --config my.toml --shards out
    """
    with one_line_errors():
        from train.settings import to_toml
        from train.trainer.launch import configure

        click.echo(to_toml(configure(said(flags), file=file, resume=resume)), nl=False)


@main.command(name="eval")
@click.argument("trained", metavar="CHECKPOINT_OR_RUN", type=FILE)
@click.option("--shards", required=True, help="Folder that `shardify build` made.")
@click.option(
    "--res", type=COUNT, help="Resolution; by default the last it was trained at. Pixels."
)
@click.option("--split", default="val", show_default=True, help="train or val; never augmented.")
@click.option("--batch", type=COUNT, default=16, show_default=True, help="Samples a step.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option(
    "--threads", type=THREADS, default=2, show_default=True, help="Threads that prepare batches."
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def eval_command(trained: Path, as_json: bool, **flags: Any) -> None:
    """Judge a trained network on a split.

    \b
    train eval run --shards out
    train eval run/last.safetensors --shards out --res 256 --split train --json
    """
    with one_line_errors():
        from train.evaluation.evaluate import judge_shards
        from train.evaluation.metrics import describe
        from train.tracking.metrics_log import plain

        figures = judge_shards(trained, **flags)
        click.echo(json.dumps(plain(figures)) if as_json else describe(figures))


@main.command(name="predict")
@click.argument("trained", metavar="CHECKPOINT_OR_RUN", type=FILE)
@click.option("--bg", type=FILE, help="Background, or a folder of them; needed if trained with.")
@click.option("--fg-bg", type=FILE, required=True, help="Picture with the object, or a folder.")
@click.option("--out", type=FILE, required=True, help="Folder to write to.")
@click.option(
    "--res", type=COUNT, help="Resolution; by default the last it was trained at. Pixels."
)
@click.option("--batch", type=COUNT, default=8, show_default=True, help="Pictures a step.")
@click.option("--bits", type=click.Choice(["8", "16"]), default="8", help="Of the depth PNG. [8]")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
def predict_command(trained: Path, bits: str, **flags: Any) -> None:
    """Write mask, depth and an overlay of pictures, at their own size.

    Pictures in a folder find their background by name: the same stem, or the number after `bg`.

    \b
    train predict run --bg park021.jpg --fg-bg fg_070_bg_021_000435.jpg --out maps
    train predict run --bg bg/ --fg-bg fg_bg/ --out maps --bits 16
    """
    with one_line_errors():
        from train.inference.predict import predict

        files = predict(trained, bits=int(bits), **flags)
        pictures = {file.stem.rpartition("_")[0] for file in files}
        s = "s" * (len(pictures) != 1)
        click.echo(f"{flags['out']}: {len(files)} files of {len(pictures)} picture{s}")


@main.command(name="bench")
@click.option("--shards", help="Folder that `shardify build` made; required but for --suite.")
@click.option("--res", type=COUNT, help="Resolution; required but for --suite. Pixels.")
@click.option("--batch", type=COUNT, default=16, show_default=True, help="Samples a batch.")
@click.option(
    "--threads", type=THREADS, default=2, show_default=True, help="Threads, or worker processes."
)
@click.option("--model", default="resunet", show_default=True, help="Network to train with.")
@click.option("--device", help="cpu, cuda or cuda:N. [cpu; with --suite: cuda]")
@click.option("--order", type=click.Choice(["permuted", "block", "sequential"]), help="Of samples.")
@click.option("--cache", type=click.Choice(["disk", "ram"]), default="disk", show_default=True,
              help="Where the shards' bytes are.")  # fmt: skip
@click.option(
    "--windows", type=COUNT, default=5, show_default=True, help="Windows of each contender."
)
@click.option("--seconds", default=2.0, show_default=True, help="Length of a window.")
@click.option("--only", multiple=True, metavar="NAME", help="Measure this one; may be repeated.")
@click.option("--built", multiple=True, metavar="OUT",
              help="The same samples, built with another --res or --codec: measure the loader on "
              "them too; may be repeated.")  # fmt: skip
@click.option("--out", type=FILE, help="Folder for bench.json and bench.png.")
@click.option("--suite", is_flag=True, help="Make data, test, measure all and train; into --out.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def bench_command(
    only: tuple[str, ...],
    out: Path | None,
    suite: bool,
    as_json: bool,
    device: str | None,
    **flags: Any,
) -> None:
    """Measure where the time goes: the loader's stages, the network, and other loaders.

    All take turns in short windows. Names the bottleneck and what to try next. --suite needs no
    data: it makes its own, runs the GPU's tests, measures many sizes and trains, in nine minutes.

    \b
    train bench --shards out --res 64
    train bench --shards out --res 256 --batch 64 --out bench-256
    train bench --shards out --res 64 --only augment --only "webdataset + Pillow"
    train bench --suite --out build/gpu
    """
    with one_line_errors():
        from rich.console import Console

        from train.bench.runner import bench

        if suite:
            _suite(out, device or "cuda")
            return
        for name in ("shards", "res"):
            if flags[name] is None:
                raise ConfigError(f"--{name}: missing; expected it, or --suite")
        errors = Console(stderr=True)
        say = errors.print if errors.is_terminal else (lambda _: None)
        report = bench(contenders=only or None, out=out, say=say, device=device or "cpu", **flags)
        if as_json:
            click.echo(report.to_json(), nl=False)
        else:
            Console(width=max(100, Console().width)).print(report.table())
            click.echo("\n".join(report.lines()))
        if out is not None:
            report.save(out)  # Last: what was measured is told even where it cannot be written.


@main.command(name="export")
@click.argument("trained", metavar="CHECKPOINT_OR_RUN", type=FILE)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "torchscript", "safetensors"]),
    default="onnx",
    show_default=True,
    help="Of the file.",
)
@click.option("-o", "--out", type=FILE, help="The file; by default beside the weights.")
def export_command(trained: Path, **flags: Any) -> None:
    """Write a trained network for use without this program.

    What is written takes pictures in [0, 1], any number of them, of any size divisible by 16, and
    gives mask and depth in [0, 1].

    \b
    train export run --format onnx -o net.onnx
    """
    with one_line_errors():
        from train.inference.export import export

        click.echo(f"{export(trained, **flags)}: written")


def _suite(out: Path | None, device: str) -> None:
    """`train bench --suite`."""
    from train.bench.suite import suite

    if out is None:
        raise ConfigError("--out: missing; --suite expected a folder for what it finds")
    suite(out, device=device, say=lambda line: click.echo(line, err=True))
    click.echo(f"{out / 'suite.md'}: written")


@main.command(name="report")
@click.argument("run", type=FILE)
@click.option("--shards", help="Where the data set lies now; by default where the run read it.")
@click.option("-o", "--out", type=FILE, help="The page; by default RUN/report.html.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
def report_command(run: Path, **flags: Any) -> None:
    """Write a run's page: curves, panels, worst samples, small and large objects.

    \b
    train report run
    train report run --shards out -o run.html
    """
    with one_line_errors():
        from train.report.run_report import report_of

        click.echo(f"{report_of(run, **flags)}: written")


@main.command(name="compare")
@click.argument("runs", metavar="RUN...", type=FILE, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the table as one JSON object.")
def compare_command(runs: tuple[Path, ...], as_json: bool) -> None:
    """Show runs side by side: what was set differently, and what came of it.

    \b
    train compare run run2
    """
    with one_line_errors():
        from train.report.compare import compare

        comparison = compare(runs)
        click.echo(comparison.to_json() if as_json else comparison)
