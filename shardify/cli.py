"""The ``shardify`` command line: options, text output and progress bar.

Exit codes: 0 success; 1 error in the data or the environment, one line on stderr; 2 wrong usage;
130 interrupted.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardify.errors import ShardifyError
from shardify.resolution import Resolution, parse_resolutions
from shardify.storage.paths import PathOrUrl, as_path
from shardify.version import version
from shardify.workers.factory import start_build_workers

if TYPE_CHECKING:
    from rich.progress import Progress

ROLES = ("bg", "fg_bg", "mask", "depth")
"""Roles in the order in which they are shown, those without a file too."""


class _Fraction(click.FloatRange):
    """A float range, also as a percentage; it refuses NaN, which click accepts."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.strip().endswith("%"):
            with contextlib.suppress(ValueError):
                value = float(value.strip()[:-1]) / 100
        found = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return found


class _Resolutions(click.ParamType[tuple[Resolution, ...]]):
    """Resolutions, comma-separated."""

    name = "resolutions"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Resolution, ...]:
        try:
            return parse_resolutions(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _plan_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options shared by ``inspect`` and ``build``."""
    options = [
        click.option(
            "--layout",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            default=None,
            help="Layout file (TOML) to use instead of detecting the layout.",
        ),
        click.option(
            "--val",
            type=_Fraction(0, 1, max_open=True),
            default=0.05,
            show_default=True,
            help="Fraction of samples in the validation split, as 0.05 or 5%.",
        ),
        click.option(
            "--group-by",
            type=click.Choice(["bg", "fg", "none"]),
            default=None,
            help="Keep samples with the same background (bg) or foreground (fg) in one split, or "
            "split at random (none).  [default: bg if backgrounds are known, else none]",
        ),
        click.option(
            "--shard-samples",
            type=click.IntRange(1, 1_000_000),
            default=None,
            help="Maximum samples per shard.  [default: 100 to 1000, by the number of samples]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Random seed of the split and of the order of the samples.",
        ),
        click.option(
            "--max-bad",
            type=_Fraction(0, 1),
            default=0.01,
            show_default=True,
            help="Maximum fraction of rejected samples, as 0.01 or 1%; with more, it fails.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def survey_text(found: dict[str, Any]) -> str:
    """Format the output of ``inspect``: a summary in comments, then a layout file."""
    lines = [
        f"{source['name']}: {source['entries']} entries, {source['bytes'] / 1e6:.1f} MB"
        for source in found["source"]
    ]
    lines.append(
        f"samples      {found['samples']}  (roles: {', '.join(found['roles'])}; "
        f"{_count(found['backgrounds'], 'background')})"
    )
    for name, split in found["splits"].items():
        on = f" on {_count(split['backgrounds'], 'background')}" if split["backgrounds"] else ""
        lines.append(f"{name:12} {split['samples']}{on}, in {_count(split['shards'], 'shard')}")
    lines += _rejected_lines(found["rejected"])
    layout = dict(found["layout"])
    lines += _warning_lines(layout.pop("warnings", []))
    lines += _role_lines(layout.pop("roles", {}))
    lines += _ignored_lines(layout.pop("ignored", {}))
    lines += [f"layout       {key}: {_value_text(value)}" for key, value in layout.items()]
    # The whole output can be saved as a layout file and edited.
    return "\n".join([*(f"# {line}" for line in lines), found["layout_file"]]).rstrip()


def build_text(found: dict[str, Any]) -> str:
    """Format the summary of a build, with rejected samples and warnings."""
    splits = ", ".join(
        f"{split['samples']} {name} in {_count(split['shards'], 'shard')}"
        for name, split in found["splits"].items()
    )
    if found["already"]:
        return f"{found['out']}: already built from this source with these options ({splits})"
    lines = [
        f"{found['out']}: {splits}; {_count(found['backgrounds'], 'background')}; "
        f"{found['bytes'] / 1e6:.1f} MB in {found['seconds']:.1f} s "
        f"({found['samples_per_second']:,.0f} samples/s)"
    ]
    if found["resolutions"]:
        lines[0] += ", at " + " and ".join(f"{res} px" for res in found["resolutions"])
    for costs in found["costs"]:
        losses = [f"{role} {_loss_text(each)}" for role, each in costs.items()]
        lines.append(f"re-encoding  {', '.join(losses)}")
    lines += _rejected_lines(found["rejected"]) + _warning_lines(found["warnings"])
    lines.append(f"roles        {_role_counts(found['roles'])}")
    return "\n".join(lines + _ignored_lines(**found["ignored"]))


def stats_text(found: dict[str, Any]) -> str:
    """Format the statistics of a data set, up to three lines per role."""
    splits = ", ".join(f"{count:,} {name}" for name, count in found["samples"].items())
    lines = [f"{found['out']}: {splits}; {_count(found['backgrounds'], 'background')}"]
    for role, each in found["roles"].items():
        sizes = ", ".join(f"{w}x{h} ({count:,})" for w, h, count in each["sizes"][:3])
        more = " ..." if len(each["sizes"]) > 3 else ""
        lines.append(
            f"{role:6} {'/'.join(each['extensions'])} {each['bits']} bit, {sizes}{more}, "
            f"{(each['bytes'] or 0) / 1e6:,.1f} MB"
        )
        if each["mean"]:
            mean = ", ".join(f"{value:.4f}" for value in each["mean"])
            std = ", ".join(f"{value:.4f}" for value in each["std"])
            lines.append(f"       mean {mean}; std {std} ({each['measured']} measured)")
        if each["range"]:
            lines.append("       range {:.4f} to {:.4f}".format(*each["range"]))
    return "\n".join(lines)


def _loss_text(found: dict[str, float]) -> str:
    return f"IoU {found['iou']:.4f}" if "iou" in found else f"RMSE {found['rmse']:.4f}"


def _role_lines(roles: dict[str, Any]) -> list[str]:
    """Format one line per role: its files, and the words or pixels that identified it."""
    lines = []
    for role, each in roles.items():
        if not isinstance(each, dict):
            lines.append(f"roles        {role} {each}")
        elif "patterns" in each:
            lines.append(f"{role:12} patterns of the layout file: {', '.join(each['patterns'])}")
        else:
            words = f"words: {', '.join(each['words'])}" if each["words"] else "no word"
            seen = ", ".join(f"{kind} ({count})" for kind, count in each["pixels"].items())
            pixels = f"; pixels of some: {seen}" if seen else ""
            lines.append(
                f"{role:12} {each['files']} files, {', '.join(each['where'])}; {words}{pixels}"
            )
    return lines


def _role_counts(roles: dict[str, int]) -> str:
    """Format as ``bg 8, fg_bg 64, mask 64, depth none``."""
    names = [*ROLES, *(role for role in roles if role not in ROLES)]
    return ", ".join(f"{role} {roles.get(role) or 'none'}" for role in names)


def _ignored_lines(
    ignored: dict[str, int] | None = None, unused: dict[str, int] | None = None
) -> list[str]:
    """Format what a build did not use as one line; none if it used everything."""
    counts = ", ".join(f"{count} {what}" for what, count in (ignored or {}).items())
    folders = ", ".join(f"{count} {what}" for what, count in (unused or {}).items())
    return [f"ignored      {counts}" + (f" ({folders})" if folders else "")] if counts else []


def _rejected_lines(rejected: dict[str, Any]) -> list[str]:
    return [f"rejected     {count}: {reason}" for reason, count in rejected["by_reason"].items()]


def _warning_lines(warnings: list[str]) -> list[str]:
    # File names in a warning may contain line breaks.
    return [f"warning      {' '.join(each.split())}" for each in warnings]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _value_text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value_text(each)}" for name, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


class Bar:
    """A progress bar; call it with the number done and the total."""

    def __init__(self, bar: "Progress", unit: str) -> None:
        self._bar = bar
        self._unit = unit
        self._task = bar.add_task("", total=None, rate="")

    def __call__(self, done: int, total: int) -> None:
        """Update the bar."""
        speed = self._bar.tasks[0].speed
        rate = f"{speed:,.0f} {self._unit}/s" if speed else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate)

    def waiting(self, share: float) -> None:
        """Show that the workers wait for the disk, and the fraction read ahead, in [0, 1]."""
        self._bar.update(self._task, rate=f"waiting for the disk: {share:.0%} read ahead")


@contextlib.contextmanager
def progress(unit: str) -> Iterator[Bar | None]:
    """Show a progress bar on stderr if that is a terminal; else yield None."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        yield Bar(bar, unit)


_PATH = click.Path(path_type=Path)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    try:
        cli.main(args=arguments, prog_name="shardify", standalone_mode=False)
    except ShardifyError as error:
        layout_file = getattr(error, "layout_file", "")
        if layout_file and "--json" not in (sys.argv if arguments is None else arguments):
            click.echo(layout_file.rstrip())
        _fail(str(error))
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; finished shards are kept; run it again to resume.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of our output has closed it; avoid an error message at interpreter exit.
        sys.stdout = None
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; fix the cause and run the command again")
    except MemoryError:
        _fail("out of memory; expected a source that fits; try fewer --workers")


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"{ctx.info_name}, version {version()}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Turn zips of aligned images into checked, reproducible WebDataset shards.

    \b
    shardify synth demo.zip --samples 600
    shardify inspect demo.zip
    shardify build demo.zip out/
    shardify verify out/
    """


@cli.command()
@click.argument("src", nargs=-1, required=True, type=as_path)
@_plan_options
@click.option(
    "--no-check",
    is_flag=True,
    help="Do not check by pixels that each sample shows its background; the layout file then "
    "contains check = false.",
)
@_JSON
def inspect(src: tuple[PathOrUrl, ...], as_json: bool, no_check: bool, **options: Any) -> None:
    """Show what `build` would write for SRC, without writing anything.

    \b
    shardify inspect data.zip
    shardify inspect data.zip --val 0.1 --json
    shardify inspect data.zip --no-check > layout.toml
    """
    from shardify.conversion.source_encoding import inspect_source
    from shardify.conversion.survey import BuildOptions

    found = inspect_source(src, BuildOptions(**options), check=not no_check)
    click.echo(json.dumps(found, indent=1) if as_json else survey_text(found))


@cli.command()
@click.argument("src", nargs=-1, metavar="SRC...", type=as_path)
@click.argument("out", type=as_path)
@_plan_options
@click.option(
    "--codec",
    type=click.Choice(["keep", "jpeg", "png", "raw"]),
    default="keep",
    show_default=True,
    help="Storage format of images. keep: copy the files unchanged; jpeg: lossy, the manifest "
    "states the loss; png: lossless and fast to decode; raw: pixels without compression.",
)
@click.option(
    "--res",
    type=_Resolutions(),
    metavar="N|HxW,…",
    multiple=True,
    callback=lambda _ctx, _param, lists: tuple(chain.from_iterable(lists)),
    help="Resize images to squares with this side, or to HEIGHTxWIDTH. Pixels. Several, "
    "comma-separated or by repeating the option, are data sets in OUT/res-NNN.",
)
@click.option(
    "--verify",
    type=click.Choice(["headers", "decode", "none"]),
    default="headers",
    show_default=True,
    help="headers: check the structure of each image up to its end marker; decode: also decode "
    "each image; none: no check. Zip checksums are always checked.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=None,
    help="Worker processes.  [default: one per CPU core]",
)
@click.option(
    "--scheduler",
    metavar="tcp://HOST:PORT",
    default=None,
    help="Run on the workers of this Dask cluster; they must have access to SRC and OUT.",
)
@_JSON
def build(src: tuple[PathOrUrl, ...], out: PathOrUrl, as_json: bool, **options: Any) -> None:
    """Convert SRC to shards in the new folder OUT.

    SRC is a zip, a folder of images or zips, or several of these that form one data set. A zip may
    contain zips. To resume an interrupted build, run it again with the same options. SRC and OUT
    may also be URLs: zips are read by range requests, shards are uploaded as whole objects.

    \b
    shardify build data.zip out/
    shardify build pictures/ out/
    shardify build fg_bg.zip masks.zip depth.zip backgrounds/ out/ --val 0.1
    shardify build s3://bucket/data.zip s3://bucket/out --scheduler tcp://10.0.0.1:8786
    """
    if not src:
        raise click.UsageError(f"OUT is missing; expected: shardify build {out} OUT")
    chosen = {name: options[name] for name in ("codec", "res", "verify", "workers", "scheduler")}
    with start_build_workers(src, out, **chosen) as pool:
        # Imported while the workers start and import theirs.
        from shardify.conversion.build import build as run
        from shardify.conversion.survey import BuildOptions

        with progress("samples") as bar:
            waiting = bar.waiting if bar else None
            report = run(
                src, out, BuildOptions(**options), progress=bar, waiting=waiting, pool=pool
            )
    found = report.to_json()
    click.echo(json.dumps(found, indent=1) if as_json else build_text(found))


@cli.command()
@click.argument("out", type=as_path)
@click.option("--decode", is_flag=True, help="Also decode every image.")
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=None,
    help="Processes for decoding and threads for reading.  [default: one per CPU core]",
)
@_JSON
def verify(out: PathOrUrl, decode: bool, workers: int | None, as_json: bool) -> None:
    """Compare every byte of OUT with its manifest and name each faulty file.

    \b
    shardify verify out/
    shardify verify out/ --decode
    """
    from shardify.dataset.verify import verify as run
    from shardify.errors import VerifyError

    with progress("files") as advance:
        report = run(out, deep=decode, workers=workers, progress=advance)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=1))
    elif not report.problems:
        decoded = f", {report.decoded} images decoded" if decode else ""
        click.echo(
            f"{out}: {report.files} files, {report.bytes / 1e6:.1f} MB, {report.samples} samples"
            f"{decoded}: no faults"
        )
    if report.problems:
        for problem in report.problems[1:20]:
            click.echo(f"{out}/{problem}", err=True)
        more = f" ({len(report.problems)} faults in all)" if len(report.problems) > 1 else ""
        raise VerifyError(f"{out}/{report.problems[0]}{more}; build the data set again")


@cli.command()
@click.argument("out", type=as_path)
@_JSON
def stats(out: PathOrUrl, as_json: bool) -> None:
    """Print mean, standard deviation, range, image sizes and bytes of each role.

    The build measured the means and standard deviations: averages, in [0, 1], over the values of
    single images. Ranges come from up to 200 samples.

    \b
    shardify stats out/
    shardify stats s3://bucket/out --json
    """
    from shardify.dataset.stats import dataset_stats

    found = dataset_stats(out)
    click.echo(json.dumps(found, indent=1) if as_json else stats_text(found))


@cli.command()
@click.argument("out", type=as_path)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    default=Path("report.html"),
    show_default=True,
    help="HTML file to write.",
)
def report(out: PathOrUrl, output: Path) -> None:
    """Write a self-contained HTML report about OUT: samples, backgrounds, distributions, rejects.

    \b
    shardify report out/
    shardify report out/ -o out.html
    """
    from shardify.dataset.report import write_report

    write_report(out, output)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB")


@cli.command()
@click.argument("out", type=_PATH)
@click.option(
    "--samples",
    type=click.IntRange(1, 10_000_000),
    default=2000,
    show_default=True,
    help="Number of samples.",
)
@click.option(
    "--backgrounds",
    type=click.IntRange(1, 999),
    default=100,
    show_default=True,
    help="Number of backgrounds.",
)
@click.option(
    "--size",
    type=click.IntRange(32, 1024),
    default=250,
    show_default=True,
    help="Side of the square images, in pixels.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Random seed."
)
@click.option(
    "--released",
    is_flag=True,
    help="Write eight zips into the new folder OUT, as the authors of the data set published them, "
    "instead of one zip.",
)
def synth(out: Path, **options: Any) -> None:
    """Write OUT, a synthetic data set with the names, sizes and statistics of the real one.

    \b
    shardify synth demo.zip --samples 600 --backgrounds 40
    shardify synth downloads --released --samples 600
    """
    from shardify.synth.generate import generate

    if not (options["released"] or out.suffix):
        raise click.UsageError(f"{out}: expected the name of a zip; pass {out}.zip")
    with progress("samples") as advance:
        report = generate(out, **options, progress=advance)
    click.echo(report)


def _fail(message: str) -> None:
    # A file name or the message of a library may contain line breaks.
    click.echo("Error: " + " ".join(message.split()), err=True)
    sys.exit(1)
