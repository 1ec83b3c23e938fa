"""What a finished build tells of itself: its manifests, put together of what the workers answered.

The last to be written, after all else is on the disk. Nothing is decided here.

From shard records to what the manifest says of roles, splits, statistics and costs.

Pure functions: sums are taken in the order of the plan, so that rounding does not depend on which
worker was done first.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shardify.conversion.backgrounds import BackgroundTar
from shardify.conversion.output_folder import remove_stale
from shardify.conversion.rejects import tally, write_rejected
from shardify.conversion.splits import ShardPlan
from shardify.conversion.survey import MEMBERS, BuildPlan, sources_of
from shardify.dataset.manifest import (
    BACKGROUNDS,
    REJECTED,
    Background,
    Manifest,
    Resolution,
    Role,
    Shard,
    Split,
    Stats,
)
from shardify.errors import BuildError
from shardify.images.codecs import Variant
from shardify.images.parser import MASK_THRESHOLD
from shardify.images.pixels import LabelEncoding
from shardify.layout.detect import Layout, Rejection
from shardify.storage.atomic_write import sync_folder
from shardify.storage.paths import PathOrUrl
from shardify.version import version
from shardify.writer.tasks import ChannelSums, ShardRecord

__all__ = [
    "BuildInputs",
    "costs_of",
    "publish",
    "rejections_of",
    "roles_of",
    "splits_of",
    "stats_of",
    "uses_of",
]


def roles_of(
    records: Sequence[ShardRecord],
    number: int,
    backgrounds: Sequence[Background],
    variant: Variant,
) -> dict[str, Role]:
    """Kinds, sizes, channels and bits of each role, in variant ``number``.

    Raises:
        BuildError: The codec is raw, and a role has pictures of several sizes.
    """
    roles: dict[str, Role] = {}
    if backgrounds:
        extensions = Counter(each.member.rpartition(".")[2] for each in backgrounds)
        sizes = Counter((each.width, each.height) for each in backgrounds)
        roles["bg"] = Role(
            extensions=_ranked(extensions),
            channels=3,
            sizes=_ranked_sizes(sizes),
            codec=variant.codec,
        )
    for role in MEMBERS:
        kinds: Counter[str] = Counter()
        sizes = Counter()
        channels: Counter[int] = Counter()
        bits = 0
        for record in records:
            for text, count in record.parts[number].pictures.get(role, {}).items():
                kind, *numbers = text.split(" ")
                width, height, planes, depth = map(int, numbers)
                kinds[kind] += count
                if width:
                    sizes[width, height] += count
                    channels[planes] += count
                    bits = max(bits, depth)
        if kinds:
            roles[role] = Role(
                extensions=_ranked(kinds),
                channels=channels.most_common(1)[0][0] if channels else 0,
                sizes=_ranked_sizes(sizes),
                bits=bits if bits in (1, 16) else 8,
                threshold=MASK_THRESHOLD if role == "mask" else None,
                codec=variant.codec,
            )
    if variant.codec == "raw":
        for name, each in roles.items():
            if len(each.sizes) > 1:
                raise BuildError(
                    f"{name} has pictures of {len(each.sizes)} sizes; the raw codec needs one; "
                    "pass --res"
                )
    return roles


def splits_of(
    plans: Sequence[ShardPlan],
    records: Sequence[ShardRecord],
    number: int,
    uses: Mapping[str, list[int]],
) -> dict[str, Split]:
    """The shards of variant ``number`` that were written, by split, with ``uses_of`` all."""
    splits = {}
    for name in ("train", "val"):
        shards = [
            Shard(
                name=f"{record.name}.tar",
                index=f"{record.name}.idx",
                samples=record.samples,
                bytes=record.parts[number].bytes,
                sha256=record.parts[number].sha256,
                index_sha256=record.parts[number].index_sha256,
            )
            for plan, record in zip(plans, records, strict=True)
            if plan.split == name and record.samples
        ]
        samples = sum(shard.samples for shard in shards)
        splits[name] = Split(samples=samples, shards=shards, backgrounds=uses[name])
    return splits


def uses_of(
    plans: Sequence[ShardPlan], records: Sequence[ShardRecord], layout: Layout, ids: Sequence[str]
) -> dict[str, list[int]]:
    """Split -> how many samples that were written stand on each background, in the order of ids."""
    index = {name: number for number, name in enumerate(ids)}
    number_of = np.array([index.get(name, -1) for name in layout.background_ids], np.int64)
    uses = {split: np.zeros(len(ids), np.int64) for split in ("train", "val")}
    for plan, record in zip(plans, records, strict=True) if ids else ():
        bad = {key for key, *_ in record.rejected}
        rows = [row for row in plan.samples.tolist() if not bad or layout.keys[row] not in bad]
        on = number_of[layout.background[rows]]
        uses[plan.split] += np.bincount(on, minlength=len(ids))
    return {split: counts.tolist() for split, counts in uses.items()}


def stats_of(records: Sequence[ShardRecord], backgrounds: ChannelSums) -> dict[str, Stats]:
    """Means over the measured pictures of each role."""
    total = {"bg": backgrounds, **{role: ChannelSums() for role in MEMBERS}}
    for record in records:
        for role, moments in record.moments.items():
            if moments.samples:
                total[role].add(moments.mean, moments.std, moments.samples)
    return {
        role: Stats(
            mean=[round(each / moments.samples, 6) for each in moments.mean],
            std=[round(each / moments.samples, 6) for each in moments.std],
            samples=moments.samples,
        )
        for role, moments in total.items()
        if moments.samples
    }


def costs_of(
    records: Sequence[ShardRecord], number: int, variant: Variant
) -> dict[str, dict[str, float]]:
    """What re-encoding lost, over the measured samples; empty where nothing is re-encoded."""
    if variant.unchanged:
        return {}
    sums: dict[str, list[float]] = {}
    for record in records:
        for role, (total, count) in record.parts[number].costs.items():
            have = sums.setdefault(role, [0.0, 0])
            have[0] += total
            have[1] += count
    return {
        role: {("iou" if role == "mask" else "rmse"): round(total / count, 6), "samples": count}
        for role, (total, count) in sums.items()
        if count
    }


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def _ranked_sizes(counts: Counter[tuple[int, int]]) -> list[list[int]]:
    return [
        [*size, counts[size]] for size in sorted(counts, key=lambda each: (-counts[each], each))
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildInputs:
    """What is known once masks and backgrounds have been looked at."""

    found: BuildPlan
    """Without samples on bad backgrounds."""
    meaning: LabelEncoding
    banks: list[BackgroundTar]
    plans: list[ShardPlan]


def publish(
    settled: BuildInputs, out: PathOrUrl, results: Sequence[ShardRecord | ChannelSums]
) -> Manifest:
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
    measured = ChannelSums()
    for moments in results:
        if isinstance(moments, ChannelSums) and moments.samples:
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
        remove_stale(folder, whole)
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
