"""Define the commands of ``train``: parse, call one function, print the result.

Slow imports are inside the commands, so that ``--help`` is fast.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import click

from shardify.errors import ShardifyError
from shardify.resolution import Resolution, parse_resolutions, resolution
from shardify.version import version
from train import config
from train.errors import ConfigError, Interrupted, TrainError
from train.settings import SYNONYMS, Setting, settings

F = TypeVar("F", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)

COUNT = click.IntRange(1, config.MOST)

THREADS = click.IntRange(1, config.THREADS)


class UsageError(click.ClickException):
    """Wrong usage, printed as one line without the usage text."""

    exit_code = 2


class Commands(click.Group):
    """A group of commands whose errors are printed once, by one of the ranks that have them."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        The error of an unknown flag names the flag here that corresponds to it.
        """
        try:
            return super().invoke(ctx)
        except click.ClickException as raised:
            error = raised
            if isinstance(raised, click.NoSuchOption):
                error = _with_synonym(raised)
            if os.environ.get("WORLD_SIZE", "1") == "1":
                raise error from raised.__cause__
            from train.distributed import ErrorReport, World

            try:
                world = World.from_environ()
            except ConfigError:  # WORLD_SIZE was not set by torchrun.
                raise error from None
            report = ErrorReport(error.format_message(), error.__cause__, world)
            if report.should_print():
                error.show()
                report.mark_printed()
            ctx.exit(error.exit_code)


def _with_synonym(error: click.NoSuchOption) -> click.NoSuchOption:
    """Add the corresponding flag to the error, if the flag is a name in other programs."""
    name = SYNONYMS.get(error.option_name.lstrip("-").replace("-", "_"))
    if error.ctx is None or name not in {each.name for each in error.ctx.command.params}:
        return error
    text = f"No such option {error.option_name!r}. Did you mean '--{name}'?"
    return click.NoSuchOption(error.option_name, text, ctx=error.ctx)


class Parsed(click.ParamType[Any]):
    """A value that a function parses from text; its ValueError is wrong usage."""

    name = "text"

    def __init__(self, parse: Callable[[str], Any]) -> None:
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse text; another value is one that was parsed before."""
        try:
            return self._parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _numbers(text: str) -> tuple[int, ...]:
    """Parse whole numbers, comma-separated."""
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise ValueError(f"{text!r} is not a list of whole numbers like 64,256") from None


RESOLUTION = Parsed(resolution)

_LISTS: dict[type, tuple[str, click.ParamType[Any]]] = {
    tuple: ("N,N,…", Parsed(_numbers)),
    Resolution: ("N|HxW,…", Parsed(parse_resolutions)),
}
"""Type of a setting that is a list → its form in the help, and the type of its flag."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn errors that a user can fix into one line and an exit code, without a traceback."""
    try:
        yield
    except ConfigError as error:
        raise UsageError(str(error)) from error
    except (TrainError, ShardifyError) as error:
        raise click.ClickException(str(error)) from error
    except Interrupted as interrupted:
        if str(interrupted):  # Empty on all ranks but the first.
            click.echo(str(interrupted), err=True)
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo("Stopped; all files that were written are complete.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has ended; the interpreter must not report that at exit.
        sys.stdout = None
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            # Its buffer would fail once more when the interpreter exits.
            sys.stdout = None
        text = f"{where}{error.strerror or error}; fix the cause and run the command again"
        raise click.ClickException(text) from error
    except MemoryError as error:
        text = "out of memory; use a smaller --batch or --res, or fewer --threads"
        raise click.ClickException(text) from error
    except UnicodeEncodeError as error:
        text = f"{error.object!a}: cannot be written as text; use names that are valid UTF-8"
        raise click.ClickException(text) from error


_HEADINGS = {
    "Data": ("data", "seed"),
    "Augmentation": ("augment",),
    "Network": ("network",),
    "Loss": ("loss",),
    "Optimiser": ("optim",),
    "Schedule": ("schedule", "warmup", "patience", "factor", "max_steps", "stop_after"),
    "Device": ("compute",),
    "Output": ("run",),
}
"""Heading in the help → sections of settings, and single settings of other sections."""


class SettingsCommand(click.Command):
    """A command with a flag for every setting; its help groups them under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the settings by heading, then the other options."""
        headings = {name: head for head, names in _HEADINGS.items() for name in names}
        heading = {
            each.name: headings.get(each.name, headings[each.section]) for each in settings()
        }
        records: dict[str, list[tuple[str, str]]] = {each: [] for each in (*_HEADINGS, "Options")}
        for param in self.get_params(ctx):
            if record := param.get_help_record(ctx):
                records[heading.get(param.name or "", "Options")].append(record)
        for title, rows in records.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def _option(setting: Setting) -> Callable[[F], F]:
    """Create the flag of a setting."""
    flag = "--" + setting.name.replace("_", "-")
    text = f"{setting.help} [{_shown(setting)}]" if _shown(setting) else setting.help
    if setting.kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", default=None, help=text)
    if setting.kind in _LISTS:
        form, several = _LISTS[setting.kind]
        return click.option(
            flag, type=several, metavar=form, multiple=True, callback=_joined, help=text
        )
    kind: Any = click.Choice(setting.choices) if setting.choices else setting.kind
    return click.option(flag, type=kind, help=text)


def _joined(
    _ctx: click.Context, _param: click.Parameter, lists: tuple[tuple[Any, ...], ...]
) -> tuple[Any, ...] | None:
    """Join the lists of a repeated flag; None if it was not given."""
    return tuple(chain.from_iterable(lists)) if lists else None


def _shown(setting: Setting) -> str:
    """Format the default as on the command line."""
    if setting.kind is bool:
        return "yes" if setting.default else "no"
    if setting.kind in _LISTS:
        return ",".join(map(str, setting.default))
    return f"{setting.default:g}" if setting.kind is float else str(setting.default)


def all_settings(command: F) -> F:
    """Add a flag for every setting, and ``--config``."""
    for setting in reversed(settings()):
        command = _option(setting)(command)
    return click.option("--config", "file", type=FILE, help="Read settings from a TOML file.")(
        command
    )


def given_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags that were given on the command line."""
    return {name: value for name, value in flags.items() if value is not None}


_TRAINED = click.argument("trained", metavar="CHECKPOINT_OR_RUN", type=FILE)
_RES = click.option(
    "--res",
    type=RESOLUTION,
    metavar="N|HxW",
    help="Resolution: the side of squares, or HEIGHTxWIDTH; by default the last of the training. "
    "Pixels.",
)
_DEVICE = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto."
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version())
def main() -> None:
    """Train networks on shards, evaluate them and use them.

    \b
    train run --shards out --res 64,256 --epochs 10,5 --out run
    train eval run --shards out
    train predict run --bg street.jpg --fg-bg street-with-car.jpg --out maps
    """


@main.command(name="run", cls=SettingsCommand)
@all_settings
@click.option("--resume", is_flag=True, help="Continue from the newest checkpoint in --out.")
@click.option(
    "--override",
    is_flag=True,
    help="With --resume, allow another --lr, --schedule, --warmup, --patience and --factor.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def run_command(
    file: Path | None, resume: bool, override: bool, as_json: bool, **flags: Any
) -> None:
    """Train a network.

    Writes settings, metrics, weights, checkpoints and image panels to --out. Ctrl-C saves the
    state and stops; --resume continues from it.

    \b
    train run --shards out --res 64 --epochs 10 --out run
    train run --shards out --res 64,256 --epochs 10,5 --model unet --lr 0.02 --out run2
    train run --shards other --init run --freeze encoder --lr 0.02 --out run3
    train run --resume --out run
    """
    with one_line_errors():
        from train.distributed import World, exit_rank
        from train.tracking.console import Console
        from train.trainer.launch import configure, launch

        config = configure(given_flags(flags), file=file, resume=resume, override=override)
        console = Console(to_stderr=as_json)
        summary = launch(config, resume=resume, override=override, console=console)
        console.print_result(summary.to_json() if as_json else str(summary))
        if World.from_environ().size > 1:
            exit_rank()


@main.command(name="config", cls=SettingsCommand)
@all_settings
@click.option("--resume", is_flag=True, help="Start from the settings of the run in --out.")
@click.option(
    "--override",
    is_flag=True,
    help="With --resume, allow another --lr, --schedule, --warmup, --patience and --factor.",
)
def config_command(file: Path | None, resume: bool, override: bool, **flags: Any) -> None:
    """Print all settings as TOML, for `train run --config`.

    \b
    train config --res 64,256 --epochs 10,5 > my.toml
    train run --config my.toml --shards out
    """
    with one_line_errors():
        from train.settings import to_toml
        from train.trainer.launch import configure

        config = configure(given_flags(flags), file=file, resume=resume, override=override)
        click.echo(to_toml(config), nl=False)


@main.command(name="eval")
@_TRAINED
@click.option("--shards", required=True, help="Folder written by `shardify build`.")
@_RES
@click.option(
    "--split", default="val", show_default=True, help="train or val; without augmentation."
)
@click.option("--batch", type=COUNT, default=16, show_default=True, help="Batch size. Samples.")
@_DEVICE
@click.option(
    "--threads",
    type=THREADS,
    default=2,
    show_default=True,
    help="Number of threads that prepare batches.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as one JSON object.")
def eval_command(trained: Path, as_json: bool, **flags: Any) -> None:
    """Evaluate a trained network on a split.

    \b
    train eval run --shards out
    train eval run/last.safetensors --shards out --res 256 --split train --json
    """
    with one_line_errors():
        from train.evaluation.evaluate import evaluate_shards
        from train.evaluation.metrics import describe
        from train.tracking.metrics_log import json_safe

        metrics = evaluate_shards(
            trained, **flags, warn=lambda line: click.echo(f"Warning: {line}", err=True)
        )
        click.echo(json.dumps(json_safe(metrics)) if as_json else describe(metrics))


@main.command(name="predict")
@_TRAINED
@click.option("--bg", type=FILE, help="Background image or folder; required if trained with bg.")
@click.option("--fg-bg", type=FILE, required=True, help="Image with the object, or a folder.")
@click.option("--out", type=FILE, required=True, help="Output folder.")
@_RES
@click.option("--batch", type=COUNT, default=8, show_default=True, help="Batch size. Images.")
@click.option(
    "--bits",
    type=click.Choice(["8", "16"]),
    help="Bits of the depth PNG.  [default: as the training data; 8 if that is not known]",
)
@_DEVICE
def predict_command(trained: Path, bits: str | None, **flags: Any) -> None:
    """Predict mask, depth and an overlay of images, at the size of each image.

    The depth PNG has the bits and the scale of the training data; with other bits, its full range
    is that of the data. NAME_depth_color.png shows the depth in colours.

    Images in a folder are matched with backgrounds by name: the same stem, or the number after
    `bg`.

    \b
    train predict run --bg park021.jpg --fg-bg fg_070_bg_021_000435.jpg --out maps
    train predict run --bg bg/ --fg-bg fg_bg/ --out maps --bits 16
    """
    with one_line_errors():
        from train.inference.predict import predict

        files = predict(trained, bits=int(bits) if bits else None, **flags)
        images = {file.stem.removesuffix("_color").rpartition("_")[0] for file in files}
        s = "s" * (len(images) != 1)
        click.echo(f"{flags['out']}: {len(files)} files for {len(images)} image{s}")


@main.command(name="bench")
@click.option("--shards", help="Folder written by `shardify build`; required without --suite.")
@click.option("--res", type=RESOLUTION, metavar="N|HxW",
              help="Resolution: the side of squares, or HEIGHTxWIDTH; required without --suite. "
              "Pixels.")  # fmt: skip
@click.option("--batch", "batch_size", type=COUNT, default=16, show_default=True,
              help="Batch size. Samples.")  # fmt: skip
@click.option(
    "--threads",
    type=THREADS,
    default=2,
    show_default=True,
    help="Number of threads, or of worker processes.",
)
@click.option("--model", default="resunet", show_default=True, help="Network to measure.")
@click.option("--device", help="cpu, cuda or cuda:N. [cpu; with --suite: cuda]")
@click.option(
    "--order", type=click.Choice(["permuted", "block", "sequential"]), help="Order of samples."
)
@click.option("--cache", type=click.Choice(["disk", "ram"]), default="disk", show_default=True,
              help="disk: memory-map the shards; ram: read them into memory once.")  # fmt: skip
@click.option(
    "--windows", type=COUNT, default=5, show_default=True, help="Number of windows per case."
)
@click.option("--seconds", default=2.0, show_default=True, help="Length of a window. Seconds.")
@click.option(
    "--only", multiple=True, metavar="NAME", help="Measure this case only; may be repeated."
)
@click.option("--built", multiple=True, metavar="OUT",
              help="Also measure the loader on this folder: the same samples, built with another "
              "--res or --codec; may be repeated.")  # fmt: skip
@click.option("--out", type=FILE, help="Folder for bench.json and bench.png.")
@click.option(
    "--suite", is_flag=True, help="Create data, run tests, measure and train; results in --out."
)
@click.option("--json", "as_json", is_flag=True, help="Print all results as one JSON object.")
def bench_command(
    only: tuple[str, ...],
    out: Path | None,
    suite: bool,
    as_json: bool,
    device: str | None,
    windows: int,
    seconds: float,
    built: tuple[str, ...],
    **flags: Any,
) -> None:
    """Measure the throughput of the loader's stages, the network, and other loaders.

    The cases run in turn, in short windows. The result names the bottleneck and what to try next.
    --suite creates its own data, runs the GPU tests, measures many sizes and trains, in nine
    minutes.

    \b
    train bench --shards out --res 64
    train bench --shards out --res 256 --batch 64 --out bench-256
    train bench --shards out --res 64 --only augment --only "webdataset + Pillow"
    train bench --suite --out build/gpu
    """
    with one_line_errors():
        from rich.console import Console

        from train.bench.fixtures import BenchConfig
        from train.bench.runner import bench

        if suite:
            _suite(out, device or "cuda")
            return
        for name in ("shards", "res"):
            if flags[name] is None:
                raise ConfigError(f"--{name}: missing; required without --suite")
        errors = Console(stderr=True)
        say = errors.print if errors.is_terminal else (lambda _: None)
        flags["res"] = flags["res"].to_json()
        job = BenchConfig(device=device or "cpu", **flags)
        report = bench(
            job, windows=windows, seconds=seconds, contenders=only or None, built=built, out=out,
            say=say,
        )  # fmt: skip
        if as_json:
            click.echo(report.to_json(), nl=False)
        else:
            Console(width=max(100, Console().width)).print(report.table())
            click.echo("\n".join(report.lines()))
        if out is not None:
            report.save(out)  # Last, so that results are printed even if they cannot be written.


@main.command(name="export")
@_TRAINED
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "torchscript", "safetensors"]),
    default="onnx",
    show_default=True,
    help="Output format.",
)
@click.option("-o", "--out", type=FILE, help="Output file; by default next to the weights.")
def export_command(trained: Path, **flags: Any) -> None:
    """Export a trained network for use without this program.

    The exported network takes batches of images in [0, 1], of any size divisible by 16, and returns
    mask and depth in [0, 1]. safetensors: weights and settings only, for this program.

    \b
    train export run --format onnx -o net.onnx
    """
    with one_line_errors():
        from train.inference.export import export

        click.echo(f"{export(trained, **flags)}: written")


def _suite(out: Path | None, device: str) -> None:
    """Run `train bench --suite`."""
    from train.bench.suite import suite

    if out is None:
        raise ConfigError("--out: missing; --suite needs an output folder")
    suite(out, device=device, say=lambda line: click.echo(line, err=True))
    click.echo(f"{out / 'suite.md'}: written")


@main.command(name="report")
@click.argument("run", type=FILE)
@click.option("--shards", help="Data set folder; by default that of the run.")
@click.option("-o", "--out", type=FILE, help="Output file; by default RUN/report.html.")
@_DEVICE
def report_command(run: Path, **flags: Any) -> None:
    """Write the HTML report of a run: curves, panels, worst samples, metrics by object size.

    \b
    train report run
    train report run --shards out -o run.html
    """
    with one_line_errors():
        from train.report.run_report import report_run

        click.echo(f"{report_run(run, **flags)}: written")


@main.command(name="compare")
@click.argument("runs", metavar="RUN...", type=FILE, nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print the table as one JSON object.")
def compare_command(runs: tuple[Path, ...], as_json: bool) -> None:
    """Compare runs: the settings that differ, metrics and speed.

    \b
    train compare run run2
    """
    with one_line_errors():
        from train.report.compare import compare

        comparison = compare(runs)
        click.echo(comparison.to_json() if as_json else comparison)
