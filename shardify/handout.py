"""The tasks of a build: what each worker is told to read and where to put it.

Pure of decisions: which samples there are and where they go has been settled before.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from shardify.pixels import Meaning
from shardify.plan import ShardPlan
from shardify.reading import rows_of
from shardify.remote import Place
from shardify.survey import MEMBERS, Survey
from shardify.tasks import BackgroundTask, ShardTask

__all__ = ["background_tasks", "shard_tasks"]

_MEASURED = 400
"""At least this many samples are decoded for the statistics, if there are as many."""
_MEASURED_BACKGROUNDS = 100
_BACKGROUNDS_A_TASK = 8


def background_tasks(
    found: Survey, index: dict[str, int], meaning: Meaning
) -> list[BackgroundTask]:
    """Up to a hundred backgrounds, evenly spaced, to be measured a few at a time."""
    layout, catalog = found.layout, found.catalog
    good = [number for number, name in enumerate(layout.background_ids) if name in index]
    good = good[:: max(1, -(-len(good) // _MEASURED_BACKGROUNDS))]
    entries = layout.background_members[good]
    rows = rows_of(catalog, entries)
    return [
        BackgroundTask(
            sources=[each.path for each in catalog.sources],
            names=catalog.names.raws(entries[first:][:_BACKGROUNDS_A_TASK]),
            rows=rows[first:][:_BACKGROUNDS_A_TASK],
            meaning=meaning,
        )
        for first in range(0, len(good), _BACKGROUNDS_A_TASK)
    ]


def shard_tasks(
    found: Survey,
    out: Place,
    plans: Sequence[ShardPlan],
    index: dict[str, int],
    meaning: Meaning,
) -> Iterator[ShardTask]:
    """A task for each shard, made when a worker will soon be free for it."""
    layout, catalog = found.layout, found.catalog
    roles = tuple(role for role in MEMBERS if role in layout.members)
    place = np.array([index.get(name, -1) for name in layout.background_ids] + [-1])
    step = max(1, sum(len(plan.samples) for plan in plans if plan.split == "train") // _MEASURED)
    seen = 0
    for plan in plans:
        members = np.stack([layout.members[role][plan.samples] for role in roles], axis=1)
        count = len(plan.samples)
        raw = catalog.names.raws(members.ravel())
        measured = (np.arange(seen, seen + count) % step == 0) & (plan.split == "train")
        seen += count
        yield ShardTask(
            out=str(out.absolute()),
            name=plan.name,
            sources=[each.path for each in catalog.sources],
            roles=roles,
            keys=[layout.keys[number] for number in plan.samples.tolist()],
            names=[raw[first : first + len(roles)] for first in range(0, len(raw), len(roles))],
            rows=rows_of(catalog, members),
            background=place[layout.background[plan.samples]].tolist(),
            measured=measured.tolist(),
            verify=found.options.verify,
            meaning=meaning,
            variants=found.options.variants(),
        )
