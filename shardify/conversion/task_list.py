"""Create the tasks of a build: one per shard, and some that measure backgrounds."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.conversion.splits import ShardPlan
from shardify.conversion.survey import MEMBERS, BuildPlan
from shardify.images.pixels import LabelEncoding
from shardify.sources.catalog import entry_rows
from shardify.storage.paths import PathOrUrl
from shardify.writer.tasks import BackgroundTask, ShardTask

_MEASURED_SAMPLES = 400
"""Samples decoded for the statistics if there are no backgrounds; at most."""
_MEASURED_SAMPLES_WITH_BACKGROUNDS = 200
"""The same with backgrounds: fewer are enough if every background has its share of them, because
most of the variation between images comes from the background."""
_GOLDEN_RATIO = 0.6180339887498949
_MEASURED_BACKGROUNDS = 100
_BACKGROUNDS_PER_TASK = 16


def background_tasks(plan: BuildPlan) -> list[BackgroundTask]:
    """Return tasks that measure up to 100 evenly spaced backgrounds, a few per task."""
    layout, catalog = plan.layout, plan.catalog
    used = np.flatnonzero(np.bincount(1 + layout.background[plan.usable], minlength=1)[1:])
    used = used[:: max(1, -(-len(used) // _MEASURED_BACKGROUNDS))]
    entries = layout.background_members[used]
    rows = entry_rows(catalog, entries)
    return [
        BackgroundTask(
            sources=[each.path for each in catalog.sources],
            names=[catalog.names.raw(entry) for entry in entries[first:][:_BACKGROUNDS_PER_TASK]],
            rows=rows[first:][:_BACKGROUNDS_PER_TASK],
        )
        for first in range(0, len(used), _BACKGROUNDS_PER_TASK)
    ]


def _choose_measured(background: NDArray[Any]) -> NDArray[np.bool_]:
    """Choose the samples that are decoded for the statistics.

    Args:
        background: (N,) background of each training sample, in their order; -1 for none.

    Returns:
        (N,) bool. Each background has the same share of these samples as of all samples.
    """
    count = len(background)
    order = np.argsort(background, kind="stable")
    starts = np.flatnonzero(np.diff(background[order], prepend=-2))
    sizes = np.diff(starts, append=count)
    # Start at a different sample of each background, or a few shards would hold all of them.
    shifts = (np.arange(len(starts)) * _GOLDEN_RATIO % 1 * sizes).astype(np.int64)
    first, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    rotated = first + (np.arange(count) - first + np.repeat(shifts, sizes)) % np.maximum(size, 1)
    wanted = min(
        count, _MEASURED_SAMPLES if len(starts) < 2 else _MEASURED_SAMPLES_WITH_BACKGROUNDS
    )
    chosen = np.zeros(count, np.bool_)
    # Evenly spaced in the order sorted by background.
    chosen[
        order[rotated[((np.arange(wanted) + 0.5) * count / max(1, wanted)).astype(np.int64)]]
    ] = 1
    return chosen


def shard_tasks(
    plan: BuildPlan,
    out: PathOrUrl,
    shard_plans: Sequence[ShardPlan],
    index: dict[str, int],
    label_encoding: LabelEncoding,
) -> Iterator[ShardTask]:
    """Yield one task per shard; each is created when a worker will soon need it."""
    layout, catalog = plan.layout, plan.catalog
    roles = _roles(plan)
    place = np.array([index.get(name, -1) for name in layout.background_ids] + [-1])
    train = [shard_plan.samples for shard_plan in shard_plans if shard_plan.split == "train"]
    chosen = (
        _choose_measured(place[layout.background[np.concatenate(train)]]) if train else np.empty(0)
    )
    offset = 0
    for shard_plan in shard_plans:
        members = _members(plan, shard_plan)
        count = len(shard_plan.samples)
        names, name_ends = catalog.names.joined(members.ravel())
        measured = [False] * count
        if shard_plan.split == "train":
            measured = chosen[offset : offset + count].tolist()
            offset += count
        yield ShardTask(
            out=str(out.absolute()),
            name=shard_plan.name,
            sources=[each.path for each in catalog.sources],
            roles=roles,
            keys=[layout.keys[number] for number in shard_plan.samples.tolist()],
            names=names,
            name_ends=name_ends,
            rows=entry_rows(catalog, members),
            background=place[layout.background[shard_plan.samples]].tolist(),
            measured=measured,
            verify=plan.options.verify,
            label_encoding=label_encoding,
            variants=plan.options.variants(),
            united=_united(plan, shard_plan),
        )


def _united(plan: BuildPlan, shard_plan: ShardPlan) -> dict[int, tuple[list[bytes], NDArray[Any]]]:
    """Return the further masks of the samples of a shard that have several."""
    catalog, united = plan.catalog, plan.layout.united
    if not united:
        return {}
    firsts = plan.layout.members["mask"][shard_plan.samples].tolist()
    return {
        number: (
            [catalog.names.raw(entry) for entry in united[first]],
            entry_rows(catalog, np.array(united[first])),
        )
        for number, first in enumerate(firsts)
        if first in united
    }


def task_rows(plan: BuildPlan, shard_plans: Iterable[ShardPlan]) -> Iterator[NDArray[Any]]:
    """Return the entries that each task reads: (N, roles) of ``ENTRY_DTYPE``."""
    return (entry_rows(plan.catalog, _members(plan, shard_plan)) for shard_plan in shard_plans)


def _roles(plan: BuildPlan) -> tuple[str, ...]:
    return tuple(role for role in MEMBERS if role in plan.layout.members)


def _members(plan: BuildPlan, shard_plan: ShardPlan) -> NDArray[Any]:
    """Return the entry number of each member: (N, roles)."""
    members = plan.layout.members
    return np.stack([members[role][shard_plan.samples] for role in _roles(plan)], axis=1)
