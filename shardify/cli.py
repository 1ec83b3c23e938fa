"""The ``shardify`` command: parse, call one function, print what it returns.

Decides nothing. Exit 0: done; 1: the data or the environment is at fault, one line on stderr;
2: wrong usage; 130: interrupted.

What commands of ``shardify`` share: the options that decide what is written.

Makes options; takes no decision, and runs nothing.

What the commands print for people: from figures, as ``--json`` gives them, to lines.

Formats alone: it counts nothing, opens nothing and prints nothing.

A progress bar on stderr, for people alone: elsewhere nothing is shown, nor imported.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shardify.errors import ShardifyError
from shardify.storage.paths import PathOrUrl, as_path
from shardify.version import version
from shardify.workers.factory import start_build_workers

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["Bar", "build_text", "main", "planning", "progress", "stats_text", "survey_text"]


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


def survey_text(found: dict[str, Any]) -> str:
    """What ``inspect`` found: figures as comments before a layout file."""
    lines = [
        f"{source['name']}: {source['entries']} entries, {source['bytes'] / 1e6:.1f} MB"
        for source in found["source"]
    ]
    lines.append(
        f"samples      {found['samples']}  (roles: {', '.join(found['roles'])}; "
        f"{found['backgrounds']} backgrounds)"
    )
    for name, split in found["splits"].items():
        on = f" on {split['backgrounds']} backgrounds" if split["backgrounds"] else ""
        lines.append(f"{name:12} {split['samples']}{on}, in {split['shards']} shards")
    lines += _rejected_lines(found["rejected"])
    layout = dict(found["layout"])
    lines += _warnings(layout.pop("warnings", []))
    lines += _role_lines(layout.pop("roles", {}))
    lines += [f"layout       {key}: {_plain(value)}" for key, value in layout.items()]
    # All of it can be saved as a layout file, and edited.
    return "\n".join([*(f"# {line}" for line in lines), found["layout_file"]]).rstrip()


def build_text(found: dict[str, Any]) -> str:
    """What ``build`` made, and what it left out."""
    splits = ", ".join(
        f"{split['samples']} {name} in {split['shards']} shards"
        for name, split in found["splits"].items()
    )
    if found["already"]:
        return f"{found['out']}: already built from this source with these options ({splits})"
    lines = [
        f"{found['out']}: {splits}; {found['backgrounds']} backgrounds; "
        f"{found['bytes'] / 1e6:.1f} MB in {found['seconds']:.1f} s "
        f"({found['samples_per_second']:,.0f} samples/s)"
    ]
    if found["resolutions"]:
        lines[0] += ", at " + " and ".join(f"{res} px" for res in found["resolutions"])
    for costs in found["costs"]:
        told = [f"{role} {_cost(each)}" for role, each in costs.items()]
        lines.append(f"re-encoding  {', '.join(told)}")
    return "\n".join(lines + _rejected_lines(found["rejected"]) + _warnings(found["warnings"]))


def stats_text(found: dict[str, Any]) -> str:
    """A data set's figures, two or three lines a role."""
    splits = ", ".join(f"{count:,} {name}" for name, count in found["samples"].items())
    lines = [f"{found['out']}: {splits}; {found['backgrounds']} backgrounds"]
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


def _cost(found: dict[str, float]) -> str:
    return f"IoU {found['iou']:.4f}" if "iou" in found else f"RMSE {found['rmse']:.4f}"


def _role_lines(roles: dict[str, Any]) -> list[str]:
    """A line a role: its files, and what decided that they have it."""
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


def _rejected_lines(rejected: dict[str, Any]) -> list[str]:
    return [f"left out     {count}: {reason}" for reason, count in rejected["by_reason"].items()]


def _warnings(told: list[str]) -> list[str]:
    # Names in them may hold anything; a line is a line.
    return [f"warning      {' '.join(each.split())}" for each in told]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


class Bar:
    """Called with what is done and what there is in all."""

    def __init__(self, bar: "Progress", unit: str) -> None:
        self._bar = bar
        self._unit = unit
        self._task = bar.add_task("", total=None, rate="")

    def __call__(self, done: int, total: int) -> None:
        """Show how far it is."""
        speed = self._bar.tasks[0].speed
        rate = f"{speed:,.0f} {self._unit}/s" if speed else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate)

    def waiting(self, share: float) -> None:
        """Show that nothing is done until something is read, and how much of it is: in [0, 1]."""
        self._bar.update(self._task, rate=f"waiting for the disk: {share:.0%} read ahead")


@contextmanager
def progress(unit: str) -> Iterator[Bar | None]:
    """A bar on stderr, if that is a terminal; else nothing at all."""
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
    """Run the command line; what the console script calls."""
    try:
        cli.main(args=arguments, prog_name="shardify", standalone_mode=False)
    except ShardifyError as error:
        _fail(str(error))
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted; what is finished is kept: run it again to go on.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read our output has left; the interpreter must not complain at its exit.
        sys.stdout = None
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}; see to it and run the command again")
    except MemoryError:
        _fail("out of memory; expected a source that fits; try fewer --workers")


def _tell_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"{ctx.info_name}, version {version()}")
        ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_tell_version,
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
@planning
@click.option(
    "--no-check",
    is_flag=True,
    help="Go without the proof of backgrounds by pixels; the layout file then says check = false.",
)
@_JSON
def inspect(src: tuple[PathOrUrl, ...], as_json: bool, no_check: bool, **options: Any) -> None:
    """Say what `build` would make of SRC, and write nothing.

    \b
    shardify inspect data.zip
    shardify inspect data.zip --val 0.1 --json
    shardify inspect data.zip --no-check > layout.toml
    """
    from shardify.conversion.survey import BuildOptions, survey

    surveyed = survey(src, BuildOptions(**options), check=not no_check)
    found = {**surveyed.to_json(), "layout_file": surveyed.layout_file()}
    click.echo(json.dumps(found, indent=1) if as_json else survey_text(found))


@cli.command()
@click.argument("src", nargs=-1, required=True, type=as_path)
@click.argument("out", type=as_path)
@planning
@click.option(
    "--codec",
    type=click.Choice(["keep", "jpeg", "png", "raw"]),
    default="keep",
    show_default=True,
    help="How pictures are stored: keep copies their bytes unchanged; jpeg is lossy, and what it "
    "costs is in the manifest; png decodes faster than most; raw needs no decoding at all.",
)
@click.option(
    "--res",
    type=click.IntRange(1, 8192),
    multiple=True,
    help="Write square pictures of this side; several times for a data set each, in OUT/res-NNN.",
)
@click.option(
    "--verify",
    type=click.Choice(["headers", "decode", "none"]),
    default="headers",
    show_default=True,
    help="Check every picture's structure to its end marker; decode every pixel; or trust them. "
    "The zip's checksums are checked in any case.",
)
@click.option(
    "--workers", type=click.IntRange(1, 256), default=None, help="Processes.  [default: one a core]"
)
@click.option(
    "--scheduler",
    metavar="tcp://HOST:PORT",
    default=None,
    help="Let the workers of this Dask cluster do the work; they must see SRC and OUT as well.",
)
@_JSON
def build(src: tuple[PathOrUrl, ...], out: PathOrUrl, as_json: bool, **options: Any) -> None:
    """Convert SRC to shards in the new folder OUT.

    SRC is a zip, a folder of pictures or zips, or several of them that are one data set; zips may
    lie in a zip. An interrupted build goes on where it was when it is run again with the same
    options. SRC and OUT may be URLs as well: a zip is read by ranges, shards are put whole.

    \b
    shardify build data.zip out/
    shardify build pictures/ out/
    shardify build fg_bg.zip masks.zip depth.zip backgrounds/ out/ --val 0.1
    shardify build s3://bucket/data.zip s3://bucket/out --scheduler tcp://10.0.0.1:8786
    """
    chosen = {name: options[name] for name in ("codec", "res", "verify", "workers", "scheduler")}
    with start_build_workers(src, out, **chosen) as pool:
        # They have as much to import.
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
@click.option("--decode", is_flag=True, help="Decode every picture as well.")
@click.option("--workers", type=click.IntRange(1, 256), default=None, help="[default: one a core]")
@_JSON
def verify(out: PathOrUrl, decode: bool, workers: int | None, as_json: bool) -> None:
    """Compare every byte of OUT with its manifest; name each file at fault.

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
        pictures = f", {report.decoded} pictures decoded" if decode else ""
        click.echo(
            f"{out}: {report.files} files, {report.bytes / 1e6:.1f} MB, {report.samples} samples"
            f"{pictures}: all as built"
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
    """Print each role's mean and deviation, range, sizes and bytes.

    Means and deviations, in [0, 1], were measured by the build, as the mean over pictures of each
    picture's own; ranges come from up to 200 samples.

    \b
    shardify stats out/
    shardify stats s3://bucket/out --json
    """
    from shardify.dataset.stats import figures

    found = figures(out)
    click.echo(json.dumps(found, indent=1) if as_json else stats_text(found))


@cli.command()
@click.argument("out", type=as_path)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    default=Path("report.html"),
    show_default=True,
    help="The page to write.",
)
def report(out: PathOrUrl, output: Path) -> None:
    """Write one self-contained page about OUT: samples, backgrounds, distributions, rejects.

    \b
    shardify report out/
    shardify report out/ -o out.html
    """
    from shardify.dataset.report import write_report

    write_report(out, output)
    click.echo(f"{output}: {output.stat().st_size / 1e6:.1f} MB, one file")


@cli.command()
@click.argument("out", type=_PATH)
@click.option("--samples", type=click.IntRange(1, 10_000_000), default=2000, show_default=True)
@click.option("--backgrounds", type=click.IntRange(1, 999), default=100, show_default=True)
@click.option(
    "--size",
    type=click.IntRange(32, 1024),
    default=250,
    show_default=True,
    help="Side of the square composites. Pixels.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True)
@click.option(
    "--released",
    is_flag=True,
    help="Write the zips as the data set's authors published them, eight in the new folder OUT, "
    "instead of one zip.",
)
def synth(out: Path, **options: Any) -> None:
    """Make OUT.zip, a stand-in for the real data set: the same names, sizes and statistics.

    \b
    shardify synth demo.zip --samples 600 --backgrounds 40
    shardify synth downloads --released --samples 600
    """
    from shardify.synth.generate import make

    with progress("samples") as advance:
        report = make(out, **options, progress=advance)
    click.echo(report)


def _fail(message: str) -> None:
    # One line, whatever a file name or a library's message holds.
    click.echo("Error: " + " ".join(message.split()), err=True)
    sys.exit(1)
