"""Small data sets as files, zips and folders; and builds of them in this very process."""

import io
import random
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from shardline_scenes import background, composite, depth, mask

from shardify.conversion.build import BuildReport, build
from shardify.conversion.survey import BuildOptions
from shardify.sources.catalog import Catalog
from shardify.sources.nested_zips import UnpackCache
from shardify.sources.open_sources import open_sources
from shardify.storage.paths import as_path
from shardify.workers.pool import InlinePool

STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def files_of(samples: int = 12, backgrounds: int = 4, first: int = 0) -> dict[str, bytes]:
    """A folder for each background, and one a role around those."""
    files = {f"bg/park{number}.jpg": background(number) for number in range(1, backgrounds + 1)}
    for number in range(first, first + samples):
        back = number % backgrounds + 1
        folder = f"bg_{back:03d}"
        stem = f"fg_{number % 3:03d}_{folder}_{number:06d}"
        files |= {
            f"fg_bg/{folder}/{stem}.jpg": composite(number, back),
            f"fg_bg_mask/{folder}/mask_{stem}.jpg": mask(number),
            f"fg_bg_depth/{folder}/depth_{stem}.png": depth(number),
        }
    return files


def only(files: Mapping[str, bytes], *roles: str) -> dict[str, bytes]:
    """Those in the named outermost folders."""
    return {name: data for name, data in files.items() if name.partition("/")[0] in roles}


def zipped(files: Mapping[str, bytes], method: int = DEFLATED) -> bytes:
    """A zip's bytes; an inner zip among the files is stored or deflated like the rest."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as file:
        for name, data in files.items():
            file.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def pack(path: Path, files: Mapping[str, bytes], method: int = DEFLATED) -> Path:
    """The same, as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zipped(files, method))
    return path


def open_catalog(paths: Sequence[Path]) -> Catalog:
    """The entries of zips and folders."""
    with UnpackCache() as cache:
        return open_sources(paths, cache)


def spread(folder: Path, files: Mapping[str, bytes], seed: int = 0) -> Path:
    """Plain files in a folder, made in an order drawn by the seed."""
    names = sorted(files)
    random.Random(seed).shuffle(names)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[name])
    return folder


def content(out: Path) -> dict[str, bytes]:
    """Name below the folder -> bytes."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def shards(out: Path) -> dict[str, bytes]:
    """Tars and indexes: what does not say where the data came from."""
    return {name: data for name, data in content(out).items() if name.endswith((".tar", ".idx"))}


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work in this process: quicker than starting workers, and the same otherwise."""
    monkeypatch.setattr(
        "shardify.workers.factory.create_pool", lambda target, **_: InlinePool(target)
    )


def run(sources: "list[str | Path]", out: "str | Path", **options: object) -> BuildReport:
    """Build with shards of five samples."""
    chosen = {"val": 0.25, "workers": 1, "shard_samples": 5} | options
    progress = chosen.pop("progress", None)
    return build(
        [as_path(each) for each in sources], as_path(out), BuildOptions(**chosen), progress=progress
    )  # type: ignore[arg-type]


def stop_after(count: int) -> object:
    """A progress that raises KeyboardInterrupt when so many shards are done."""
    calls = iter(range(1, 1000))

    def progress(done: int, total: int) -> None:
        del done, total
        if next(calls) == count:
            raise KeyboardInterrupt

    return progress
