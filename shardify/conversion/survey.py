"""What a build would do, known from names and directories alone: samples, splits, doubts.

Reads no payload and writes nothing. Which files belong together is ``layout``'s word, which sample
goes where is ``plan``'s; here they meet the user's options.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from shardify.conversion.rejects import drop_background, refuse_many, tally
from shardify.conversion.splits import ShardPlan, hold_back, plan_shards, why_unheld
from shardify.dataset.manifest import Source
from shardify.errors import PlanError
from shardify.images.codecs import Variant
from shardify.layout import layout_file as rules
from shardify.layout.detect import Layout, Rejection, detect
from shardify.layout.layout_file_writer import to_toml
from shardify.sources.catalog import FAULTS, Catalog, OpenSources, entry_reader
from shardify.sources.duplicates import drop_duplicates
from shardify.sources.nested_zips import UnpackCache
from shardify.sources.open_sources import open_sources
from shardify.storage.paths import PathOrUrl

__all__ = [
    "MEMBERS",
    "BuildOptions",
    "BuildPlan",
    "check_bad",
    "entry_reader",
    "plan_splits",
    "sources_of",
    "survey",
]

MEMBERS = ("fg_bg", "mask", "depth")
"""Roles that stand in a shard, in the order in which they are written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What a user may choose. All but who works, and ``max_bad``, decide what is written."""

    val: float = 0.05
    """Share of the samples held back for validation, in [0, 1)."""
    group_by: str | None = None
    """``bg``, ``fg`` or ``none``: what must not stand in both splits. None: bg where known."""
    res: tuple[int, ...] = ()
    """Sides of the square pictures to write; empty keeps each picture's size."""
    codec: str = "keep"
    """``keep``, ``jpeg``, ``png`` or ``raw``: see ``codecs``."""
    shard_samples: int | None = None
    """Most samples in a shard; None chooses."""
    seed: int = 0
    verify: str = "headers"
    max_bad: float = 0.01
    """A larger share of rejected samples refuses the build."""
    workers: int | None = None
    """Processes; None for one a core."""
    scheduler: str | None = None
    """Address of a Dask cluster whose workers shall do the work, as ``tcp://HOST:PORT``."""
    layout: Path | None = None
    """A layout file, whose rules take the place of detection."""

    def deciding(self) -> dict[str, Any]:
        """Those that decide the bytes, for the manifest (a layout counts by what it finds)."""
        values = dataclasses.asdict(self)
        for name in ("workers", "scheduler", "max_bad", "layout"):
            del values[name]
        return values | {"res": list(self.res)}

    def variants(self) -> tuple[Variant, ...]:
        """The data sets to write: OUT itself, or a folder a resolution where there are several."""
        if len(self.res) < 2:
            return (Variant("", self.res[0] if self.res else 0, self.codec),)
        return tuple(Variant(f"res-{res:03d}", res, self.codec) for res in sorted(set(self.res)))


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """What a build would do, known from names and the directory alone."""

    where: str
    catalog: Catalog
    layout: Layout
    options: BuildOptions
    rejected: list[Rejection]
    """Samples left out so far."""
    usable: NDArray[np.bool_]
    """(N,) of the layout's samples."""
    shards: dict[str, list[ShardPlan]]

    @property
    def bad_share(self) -> float:
        """Rejected samples, as a share of all."""
        total = int(self.usable.sum()) + len(self.rejected)
        return len(self.rejected) / total if total else 1.0

    def description(self, written: int | None = None) -> dict[str, object]:
        """The layout's, with a warning where nothing is held back for validation.

        Args:
            written: Samples of validation that stand in shards; None before they are written.
        """
        found = dict(self.layout.description)
        if self.options.val and self.layout.split is None:
            unheld = why_unheld(self.shards, by=self.options.group_by, written=written)
            if unheld:
                found["warnings"] = [*cast("list[str]", found.pop("warnings", [])), unheld]
        return found

    def digest(self) -> str:
        """Of which samples there are, and on which background each stands."""
        layout = self.layout
        found = hashlib.sha256("\n".join([*layout.keys, "", *layout.background_ids]).encode())
        found.update(layout.background.astype("<i4").tobytes())
        return found.hexdigest()

    def layout_file(self) -> str:
        """The layout, as a layout file that finds it again."""
        return to_toml(self.layout, self.catalog.names)

    def to_json(self) -> dict[str, Any]:
        """For ``inspect --json``."""
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
            "source": [dataclasses.asdict(each) for each in sources_of(self.catalog)],
            "layout": self.description(),
            "roles": list(layout.roles),
            "samples": int(self.usable.sum()),
            "backgrounds": len(layout.background_ids),
            "splits": held,
            "rejected": dataclasses.asdict(tally(self.rejected, self.catalog)),
            "options": self.options.deciding(),
        }


def survey(
    paths: Sequence[PathOrUrl],
    options: BuildOptions,
    work: UnpackCache | None = None,
    *,
    later: ExitStack | None = None,
    check: bool = True,
) -> BuildPlan:
    """Read the directories, detect the layout and plan; read payloads to settle doubts alone.

    Args:
        paths: Zips, or folders of zips or files, that together are one data set.
        options: See there.
        work: Where zips are unpacked that lie deflated in others; they are read there as long as
            it is open. None unpacks them for this call alone.
        later: If given, the proof of backgrounds that names state is left to ``layout.pending``;
            what it reads stays open as long as this.
        check: Whether backgrounds are proven by pixels.

    Raises:
        SourceError: A source is missing, no zip, damaged or hostile as a whole.
        LayoutError: The names do not say what belongs together.
        PlanError: The samples cannot be split as asked.
        BuildError: More samples are bad than ``max_bad`` allows.
    """
    if work is None:
        with UnpackCache() as work:
            return survey(paths, options, work, later=later, check=check)
    where = ", ".join(path.name or str(path) for path in paths)
    given = rules.load(options.layout) if options.layout else None
    catalog = open_sources(paths, work)
    with ExitStack() as now:
        stack = now if later is None else later
        descriptors = stack.enter_context(OpenSources([each.path for each in catalog.sources]))
        read = entry_reader(catalog, descriptors)
        layout = detect(
            catalog.names,
            where=where,
            read=read,
            layout=given,
            single=lambda files: drop_duplicates(catalog, files, read, where=where),
            defer=later is not None,
            check=check,
        )
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
    options = _resolved(options, layout)
    try:
        shards = plan_splits(layout, usable, options)
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
    )
    check_bad(found)
    return found


def _resolved(options: BuildOptions, layout: Layout) -> BuildOptions:
    if options.group_by is not None:
        return options
    return dataclasses.replace(options, group_by="bg" if layout.background_ids else "none")


def plan_splits(
    layout: Layout, usable: NDArray[np.bool_], options: BuildOptions
) -> dict[str, list[ShardPlan]]:
    """Splits and shards of the usable samples.

    Raises:
        PlanError: They cannot be split as asked.
    """
    rows = np.flatnonzero(usable)
    groups = None
    given = layout.split
    if given is not None:
        pass  # The data set's own splits are kept: results on them shall stay comparable.
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
        held = hold_back(groups, len(rows), val=options.val, seed=options.seed)
    shards = plan_shards(held, shard_samples=options.shard_samples, seed=options.seed)
    return {
        split: [
            dataclasses.replace(plan, samples=rows[plan.samples].astype(np.int32)) for plan in plans
        ]
        for split, plans in shards.items()
    }


def check_bad(found: BuildPlan, more: Sequence[Rejection] = ()) -> None:
    """Raise BuildError if too many samples are left out, ``more`` included, or none is left."""
    rejected, good = [*found.rejected, *more], int(found.usable.sum()) - len(more)
    refuse_many(found.where, rejected, good, found.options.max_bad)


def sources_of(catalog: Catalog) -> list[Source]:
    """The sources as a manifest names them: without their folders, which differ by machine."""
    return [
        Source(name=each.name, bytes=each.bytes, entries=each.entries, digest=each.digest)
        for each in catalog.sources
        if not each.inner
    ]
