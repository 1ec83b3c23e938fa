"""What a finished build tells of itself: its manifests, put together of what the workers answered.

The last to be written, after all else is on the disk. Nothing is decided here.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from shardify.conversion.backgrounds import Bank
from shardify.conversion.output_folder import sweep
from shardify.conversion.rejects import tally, write_rejected
from shardify.conversion.splits import ShardPlan
from shardify.conversion.summary import costs_of, roles_of, splits_of, stats_of, uses_of
from shardify.conversion.survey import Survey, sources_of
from shardify.dataset.manifest import BACKGROUNDS, REJECTED, Manifest, Resolution
from shardify.images.pixels import Meaning
from shardify.layout.detect import Rejection
from shardify.storage.atomic_write import sync_folder
from shardify.storage.paths import Place
from shardify.version import version
from shardify.writer.tasks import Moments, ShardRecord

__all__ = ["Settled", "publish", "rejections_of"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """What is known once masks and backgrounds have been looked at."""

    found: Survey
    """Without samples on bad backgrounds."""
    meaning: Meaning
    banks: list[Bank]
    plans: list[ShardPlan]


def publish(settled: Settled, out: Place, results: Sequence[ShardRecord | Moments]) -> Manifest:
    """Write the manifests, and delete what no manifest names.

    Args:
        settled: What was known before the first shard.
        out: Folder or ``Url`` of the data set.
        results: Of all tasks, in their order.

    Returns:
        The manifest of ``out`` itself.

    Raises:
        OSError: It cannot be written.
    """
    found, banks, plans = settled.found, settled.banks, settled.plans
    variants = found.options.variants()
    records: list[ShardRecord] = [each for each in results if isinstance(each, ShardRecord)]
    measured = Moments()
    for moments in results:
        if isinstance(moments, Moments) and moments.samples:
            measured.add(moments.mean, moments.std, moments.samples)
    rejected = found.rejected + [each for record in records for each in rejections_of(record)]
    stats = stats_of(records, measured)
    uses = uses_of(plans, records, found.layout, banks[0].ids)
    held = [each.samples for plan, each in zip(plans, records, strict=True) if plan.split == "val"]
    layout = found.description(sum(held))
    rules = banks[0].rules.copy()
    for record in records:
        rules.update(record.rules)
    layout["digest"] = found.digest()
    layout["masks"] = settled.meaning.mask
    layout["converted"] = dict(sorted(rules.items()))
    manifest = Manifest(
        created_by=f"shardline {version()}",
        source=sources_of(found.catalog),
        options=found.options.deciding(),
        layout=layout,
        roles={},
        backgrounds=[],
        splits={},
        rejected=tally(rejected, found.catalog),
        stats=stats,
        resolutions=[
            Resolution(res=variant.res, path=variant.folder)
            for variant in variants
            if variant.folder
        ],
    )
    for number, (variant, bank) in enumerate(zip(variants, banks, strict=True)):
        folder = out / variant.folder
        files = {REJECTED: write_rejected(folder, rejected, found.catalog)}
        if bank.sha256:
            files[BACKGROUNDS] = bank.sha256
        whole = dataclasses.replace(
            manifest,
            roles=roles_of(records, number, bank.backgrounds, variant),
            backgrounds=bank.backgrounds,
            splits=splits_of(plans, records, number, uses),
            costs=costs_of(records, number, variant),
            files=files,
            resolutions=[],
        )
        sweep(folder, whole)
        sync_folder(folder)
        whole.save(folder)
    if not manifest.resolutions:
        return whole
    manifest = dataclasses.replace(
        manifest, files={REJECTED: write_rejected(out, rejected, found.catalog)}
    )
    manifest.save(out)
    return manifest


def rejections_of(record: ShardRecord) -> list[Rejection]:
    """The samples that a shard's task left out."""
    return [
        Rejection(key=key, member=member, role=role, reason=reason)
        for key, member, role, reason in record.rejected
    ]
