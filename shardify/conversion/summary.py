"""From shard records to what the manifest says of roles, splits, statistics and costs.

Pure functions: sums are taken in the order of the plan, so that rounding does not depend on which
worker was done first.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from shardify.conversion.splits import ShardPlan
from shardify.conversion.survey import MEMBERS
from shardify.dataset.manifest import Background, Role, Shard, Split, Stats
from shardify.errors import BuildError
from shardify.images.codecs import Variant
from shardify.images.parser import MASK_THRESHOLD
from shardify.layout.detect import Layout
from shardify.writer.tasks import Moments, ShardRecord

__all__ = ["costs_of", "roles_of", "splits_of", "stats_of", "uses_of"]


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


def stats_of(records: Sequence[ShardRecord], backgrounds: Moments) -> dict[str, Stats]:
    """Means over the measured pictures of each role."""
    total = {"bg": backgrounds, **{role: Moments() for role in MEMBERS}}
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
