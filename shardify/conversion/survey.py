"""Survey the sources and plan a build: list entries, detect the layout, split, plan shards.

Writes nothing. Payloads are read only where names leave the layout in doubt.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from shardify.conversion.rejects import check_rejected_share, count_rejected, drop_background
from shardify.conversion.repeated_samples import find_repeated_samples, join_groups
from shardify.conversion.splits import ShardPlan, empty_validation_warning, hold_back, plan_shards
from shardify.dataset.manifest import Source
from shardify.errors import BuildError, EntryError, PlanError
from shardify.images.codecs import Variant
from shardify.images.depth import DepthEncoding
from shardify.images.parser import parse
from shardify.layout import layout_file
from shardify.layout.detect import Layout, Rejection, detect
from shardify.layout.layout_file_writer import to_toml
from shardify.resolution import Resolution, ResolutionLike, resolution
from shardify.sources.catalog import Catalog, OpenSources, entry_reader
from shardify.sources.duplicates import drop_duplicates
from shardify.sources.file_types import IMAGE_EXTENSIONS
from shardify.sources.nested_zips import UnpackCache
from shardify.sources.open_sources import open_sources
from shardify.sources.zip_directory import FAULTS
from shardify.storage.paths import PathOrUrl

_MAX_NAMES_LOOKED_AT, _MAX_FILES_OPENED = 256, 16
"""Names among which image files are looked for before detection, and files that are opened."""

MEMBERS = ("fg_bg", "mask", "depth")
"""Roles stored in a shard, in writing order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """Options of a build.

    All except ``workers``, ``scheduler`` and ``max_bad`` affect what is written.
    """

    val: float = 0.05
    """Fraction of samples for validation, in [0, 1)."""
    group_by: str | None = None
    """``bg``, ``fg`` or ``none``: the group that must not appear in both splits. None means
    ``bg`` if backgrounds are known, else ``none``."""
    res: tuple[ResolutionLike, ...] = ()
    """Resolutions of the images to write, in pixels: a side, (height, width) or ``"128x224"``;
    empty keeps the original sizes."""
    codec: str = "keep"
    """``keep``, ``jpeg``, ``png`` or ``raw``; see ``images.codecs``."""
    shard_samples: int | None = None
    """Maximum samples per shard; None chooses from the number of samples."""
    seed: int = 0
    verify: str = "headers"
    max_bad: float = 0.01
    """Largest allowed fraction of rejected samples."""
    workers: int | None = None
    """Worker processes; None for one per CPU core."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers write the shards, as ``tcp://HOST:PORT``."""
    layout: Path | None = None
    """Layout file used instead of detection."""

    def output_options(self) -> dict[str, Any]:
        """Return the options that affect the output, for the manifest.

        ``layout`` is not one of them: the samples that it finds are recorded by digest.
        """
        values = dataclasses.asdict(self)
        for name in ("workers", "scheduler", "max_bad", "layout"):
            del values[name]
        return values | {"res": [each.to_json() for each in self._resolutions()]}

    def variants(self) -> tuple[Variant, ...]:
        """Return the data sets to write: OUT itself, or one folder per resolution if several."""
        sizes = self._resolutions()
        if len(sizes) < 2:
            return (Variant("", sizes[0] if sizes else None, self.codec),)
        return tuple(Variant(each.folder, each, self.codec) for each in sorted(set(sizes)))

    def _resolutions(self) -> tuple[Resolution, ...]:
        return tuple(map(resolution, self.res))


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """Samples, splits and shards of a build, before any shard is written."""

    where: str
    """Names of the sources, for error messages."""
    catalog: Catalog
    layout: Layout
    options: BuildOptions
    rejected: list[Rejection]
    """Samples rejected so far."""
    usable: NDArray[np.bool_]
    """(N,) True for each sample of the layout that is not rejected."""
    shards: dict[str, list[ShardPlan]]
    picture: NDArray[np.int64] | None
    """(N,) the same number for samples of the same picture; None if no two are equal."""
    warnings: tuple[str, ...]
    """About the sources and repeated samples."""
    depth: DepthEncoding | None = None
    """What the layout file says of depth maps."""
    exif: str = ""
    """What the layout file says of pictures that EXIF turns: ``stored``, ``turned`` or empty."""
    mask_rule: str | None = None
    """Rule of the masks given by a layout file."""

    def listed_rejections(self, more: Sequence[Rejection] = ()) -> list[Rejection]:
        """Return what ``rejected.jsonl`` lists: rejected samples, ``more``, and unused files."""
        return [*self.rejected, *more, *self.layout.unused]

    def description(self, written: int | None = None) -> dict[str, object]:
        """Return the layout's description, with a warning if the validation split is empty.

        Args:
            written: Validation samples written to shards; None before they are written.
        """
        found = dict(self.layout.description)
        if self.warnings:
            found["warnings"] = [*self.warnings, *cast("list[str]", found.pop("warnings", []))]
        if self.options.val and self.layout.split is None:
            unheld = empty_validation_warning(
                self.shards, by=self.options.group_by, written=written
            )
            if unheld:
                found["warnings"] = [*cast("list[str]", found.pop("warnings", [])), unheld]
        return found

    def digest(self) -> str:
        """Return a SHA-256 of the samples and of what the layout file says of their values.

        Of the samples: keys, the background IDs and each sample's background.
        """
        layout = self.layout
        found = hashlib.sha256("\n".join([*layout.keys, "", *layout.background_ids]).encode())
        found.update(layout.background.astype("<i4").tobytes())
        if self.depth or self.exif or self.mask_rule:
            found.update(repr((self.depth, self.exif, self.mask_rule)).encode())
        if layout.united:
            found.update(repr(sorted(layout.united.items())).encode())
        return found.hexdigest()

    def layout_file(self) -> str:
        """Return the text of a layout file that reproduces this layout."""
        return to_toml(
            self.layout,
            self.catalog.names,
            exif=self.exif,
            depth=self.depth,
            mask_rule=self.mask_rule,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``inspect --json`` prints."""
        layout, shards = self.layout, self.shards
        held = {
            split: {
                "samples": sum(len(shard.samples) for shard in plans),
                "shards": len(plans),
                "backgrounds": len(
                    {int(b) for shard in plans for b in np.unique(layout.background[shard.samples])}
                    - {-1}
                ),
            }
            for split, plans in shards.items()
        }
        return {
            "source": [dataclasses.asdict(each) for each in manifest_sources(self.catalog)],
            "layout": self.description(),
            "roles": list(layout.roles),
            "samples": int(self.usable.sum()),
            "backgrounds": len(layout.background_ids),
            "splits": held,
            "rejected": dataclasses.asdict(count_rejected(self.listed_rejections(), self.catalog)),
            "options": self.options.output_options(),
        }


def survey(
    paths: Sequence[PathOrUrl],
    options: BuildOptions,
    work: UnpackCache | None = None,
    *,
    later: ExitStack | None = None,
    check: bool = True,
) -> BuildPlan:
    """List the entries of the sources, detect the layout, and plan splits and shards.

    Args:
        paths: Zips, or folders of zips or files, that together form one data set.
        options: Build options.
        work: Cache for compressed zips inside zips; it must stay open while they are read. None
            unpacks them for this call only.
        later: If given, the check of backgrounds by pixels is deferred to ``layout.pending``, and
            the sources that it reads stay open until this stack closes.
        check: Whether to check backgrounds by pixels.

    Raises:
        SourceError: A source is missing, not a zip, damaged or hostile.
        LayoutError: The names do not determine which files form a sample.
        PlanError: The samples cannot be split as requested.
        BuildError: More samples are bad than ``max_bad`` allows.
    """
    if work is None:
        with UnpackCache() as work:
            return survey(paths, options, work, later=later, check=check)
    where = ", ".join(path.name or str(path) for path in paths)
    given = layout_file.load(options.layout) if options.layout else None
    catalog = open_sources(paths, work)
    with ExitStack() as now:
        stack = now if later is None else later
        descriptors = stack.enter_context(OpenSources([each.path for each in catalog.sources]))
        read = entry_reader(catalog, descriptors)
        _refuse_unreadable(catalog, read, where)
        layout = detect(
            catalog.names,
            where=where,
            read=read,
            layout=given,
            single=lambda files: drop_duplicates(catalog, files, read, where=where),
            defer=later is not None,
            check=check,
            refused=[(each.member, each.reason) for each in catalog.refused],
        )
        rejected, usable = _reject_faulty(layout, catalog)
        repeated = find_repeated_samples(layout, catalog, descriptors, usable)
    usable &= ~repeated.again
    options = _with_default_group(options, layout)
    try:
        shards = plan_splits(layout, usable, options, repeated.picture)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from error
    found = BuildPlan(
        where=where,
        catalog=catalog,
        layout=layout,
        options=options,
        rejected=rejected,
        usable=usable,
        shards=shards,
        picture=repeated.picture,
        warnings=(*catalog.notes, *repeated.warnings),
        depth=given.depth if given else None,
        exif=given.exif if given else "",
        mask_rule=given.mask if given else None,
    )
    check_rejected(found)
    return found


def _reject_faulty(layout: Layout, catalog: Catalog) -> tuple[list[Rejection], NDArray[np.bool_]]:
    """Return the rejections so far, and (N,) which samples have no entry with a fault."""
    rejected = list(layout.rejected)
    usable = np.ones(len(layout.keys), bool)
    faults = catalog.entries.fault
    if layout.background_ids:
        bad = faults[layout.background_members]
        for number in np.flatnonzero(bad).tolist():
            drop_background(layout, catalog, number, FAULTS[int(bad[number])], usable, rejected)
    for role in MEMBERS:
        if role in layout.members:
            rows = layout.members[role]
            bad = np.where(usable, faults[rows], 0)
            if role == "mask" and layout.united:
                for number, first in enumerate(rows.tolist()):
                    if usable[number] and first in layout.united and not bad[number]:
                        bad[number] = faults[layout.united[first]].max()
            for number in np.flatnonzero(bad).tolist():
                usable[number] = False
                rejected.append(
                    Rejection(
                        key=layout.keys[number],
                        member=catalog.names[int(rows[number])],
                        role=role,
                        reason=FAULTS[int(bad[number])],
                    )
                )
    return rejected, usable


def _refuse_unreadable(catalog: Catalog, read: Callable[[int], bytes], where: str) -> None:
    """Raise BuildError if none of a few image files is an image, as in a clone without Git LFS.

    Detection by pixels would find another reason to refuse the source, or none.
    """
    count = len(catalog.names)
    reasons: list[str] = []
    for index in range(0, count, max(1, count // _MAX_NAMES_LOOKED_AT)):
        name = catalog.names[index]
        extension = name.rpartition(".")[2].lower()
        if extension not in IMAGE_EXTENSIONS or catalog.entries.fault[index]:
            continue
        try:
            parse(read(index))
        except EntryError as error:
            reasons.append(f"{name}: {error}")
            if len(reasons) == _MAX_FILES_OPENED:
                break
        else:
            return
    if reasons:
        raise BuildError(
            f"{where}: none of the {len(reasons)} image files looked at can be read: {reasons[0]}"
        )


def _with_default_group(options: BuildOptions, layout: Layout) -> BuildOptions:
    if options.group_by is not None:
        return options
    return dataclasses.replace(options, group_by="bg" if layout.background_ids else "none")


def plan_splits(
    layout: Layout,
    usable: NDArray[np.bool_],
    options: BuildOptions,
    picture: NDArray[np.int64] | None = None,
) -> dict[str, list[ShardPlan]]:
    """Plan the splits and shards of the usable samples.

    Args:
        layout: The samples.
        usable: (N,) True for each sample that is published.
        options: Build options.
        picture: (N,) the same number for samples that must be in one split; None for none.

    Raises:
        PlanError: They cannot be split as requested.
    """
    rows = np.flatnonzero(usable)
    groups = None
    given = layout.split
    if given is not None:
        pass  # Keep the data set's own splits, so that results stay comparable.
    elif options.group_by == "bg":
        if not layout.background_ids:
            raise PlanError("no backgrounds are known to split by; pass --group-by none")
        groups = layout.background[rows]
    elif options.group_by == "fg":
        if layout.foreground is None:
            raise PlanError("names tell no foreground to split by; pass --group-by bg or none")
        groups = layout.foreground[rows]
    if not len(rows):
        return {"train": [], "val": []}
    if given is not None:
        held = given[rows] == 1
    else:
        groups = join_groups(groups, None if picture is None else picture[rows])
        held = hold_back(groups, len(rows), val=options.val, seed=options.seed)
    shards = plan_shards(held, shard_samples=options.shard_samples, seed=options.seed)
    return {
        split: [
            dataclasses.replace(plan, samples=rows[plan.samples].astype(np.int32)) for plan in plans
        ]
        for split, plans in shards.items()
    }


def check_rejected(found: BuildPlan, more: Sequence[Rejection] = ()) -> None:
    """Raise BuildError if too many samples are rejected, ``more`` included, or none is left."""
    rejected, good = [*found.rejected, *more], int(found.usable.sum()) - len(more)
    check_rejected_share(found.where, rejected, good, found.options.max_bad)


def manifest_sources(catalog: Catalog) -> list[Source]:
    """Return the sources for the manifest: names without folders, which differ by machine."""
    return [
        Source(name=each.name, bytes=each.bytes, entries=each.entries, digest=each.digest)
        for each in catalog.sources
        if not each.inner
    ]
