"""The tasks of a build: what each worker is told to read and where to put it.

Pure of decisions: which samples there are and where they go has been settled before.
"""

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

__all__ = ["background_tasks", "rows_read", "shard_tasks"]

_MEASURED = 400
"""About this many samples are decoded for the statistics, if there are as many."""
_MEASURED_OF_ALL = 200
"""So many are enough where each background has its share of them: most of what sets pictures apart
is what they stand on."""
_GOLDEN = 0.6180339887498949
_MEASURED_BACKGROUNDS = 100
_BACKGROUNDS_A_TASK = 16


def background_tasks(found: BuildPlan) -> list[BackgroundTask]:
    """Up to a hundred backgrounds, evenly spaced, to be measured a few at a time."""
    layout, catalog = found.layout, found.catalog
    used = np.flatnonzero(np.bincount(1 + layout.background[found.usable], minlength=1)[1:])
    used = used[:: max(1, -(-len(used) // _MEASURED_BACKGROUNDS))]
    entries = layout.background_members[used]
    rows = entry_rows(catalog, entries)
    return [
        BackgroundTask(
            sources=[each.path for each in catalog.sources],
            names=[catalog.names.raw(entry) for entry in entries[first:][:_BACKGROUNDS_A_TASK]],
            rows=rows[first:][:_BACKGROUNDS_A_TASK],
        )
        for first in range(0, len(used), _BACKGROUNDS_A_TASK)
    ]


def _measured(background: NDArray[Any]) -> NDArray[np.bool_]:
    """Which samples are decoded for the statistics.

    Args:
        background: (N,) of the training samples, in their order; -1 where there is none.

    Returns:
        (N,): of each background as large a share as it has of all samples.
    """
    count = len(background)
    order = np.argsort(background, kind="stable")
    starts = np.flatnonzero(np.diff(background[order], prepend=-2))
    sizes = np.diff(starts, append=count)
    # Each background begins elsewhere among its samples, or a few shards would have all of them.
    shifts = (np.arange(len(starts)) * _GOLDEN % 1 * sizes).astype(np.int64)
    first, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    turned = first + (np.arange(count) - first + np.repeat(shifts, sizes)) % np.maximum(size, 1)
    wanted = min(count, _MEASURED if len(starts) < 2 else _MEASURED_OF_ALL)
    chosen = np.zeros(count, np.bool_)
    # Evenly spaced where the samples of a background stand together.
    chosen[order[turned[((np.arange(wanted) + 0.5) * count / max(1, wanted)).astype(np.int64)]]] = 1
    return chosen


def shard_tasks(
    found: BuildPlan,
    out: PathOrUrl,
    plans: Sequence[ShardPlan],
    index: dict[str, int],
    meaning: LabelEncoding,
) -> Iterator[ShardTask]:
    """A task for each shard, made when a worker will soon be free for it."""
    layout, catalog = found.layout, found.catalog
    roles = _roles(found)
    place = np.array([index.get(name, -1) for name in layout.background_ids] + [-1])
    train = [plan.samples for plan in plans if plan.split == "train"]
    chosen = _measured(place[layout.background[np.concatenate(train)]]) if train else np.empty(0)
    seen = 0
    for plan in plans:
        members = _members(found, plan)
        count = len(plan.samples)
        names, name_ends = catalog.names.joined(members.ravel())
        measured = [False] * count
        if plan.split == "train":
            measured = chosen[seen : seen + count].tolist()
            seen += count
        yield ShardTask(
            out=str(out.absolute()),
            name=plan.name,
            sources=[each.path for each in catalog.sources],
            roles=roles,
            keys=[layout.keys[number] for number in plan.samples.tolist()],
            names=names,
            name_ends=name_ends,
            rows=entry_rows(catalog, members),
            background=place[layout.background[plan.samples]].tolist(),
            measured=measured,
            verify=found.options.verify,
            meaning=meaning,
            variants=found.options.variants(),
        )


def rows_read(found: BuildPlan, plans: Iterable[ShardPlan]) -> Iterator[NDArray[Any]]:
    """What each of those tasks reads: (N, roles) of ``tasks.ROW``."""
    return (entry_rows(found.catalog, _members(found, plan)) for plan in plans)


def _roles(found: BuildPlan) -> tuple[str, ...]:
    return tuple(role for role in MEMBERS if role in found.layout.members)


def _members(found: BuildPlan, plan: ShardPlan) -> NDArray[Any]:
    """(N, roles): the entry of each member."""
    members = found.layout.members
    return np.stack([members[role][plan.samples] for role in _roles(found)], axis=1)
