"""Combine the workers' records into manifests and write them, after all other files.

Sums are taken in the order of the tasks, so that rounding does not depend on which worker finished
first.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from shardify.conversion.backgrounds import BackgroundTar
from shardify.conversion.label_encoding import mask_warnings
from shardify.conversion.output_folder import move_to_final_names
from shardify.conversion.rejects import count_rejected, write_rejected
from shardify.conversion.source_encoding import depth_warnings, describe_encoding
from shardify.conversion.splits import ShardPlan
from shardify.conversion.survey import MEMBERS, BuildPlan, manifest_sources
from shardify.dataset.manifest import (
    BACKGROUNDS,
    REJECTED,
    Background,
    Manifest,
    Role,
    Shard,
    Split,
    Stats,
    StoredResolution,
)
from shardify.errors import BuildError
from shardify.images.codecs import Variant
from shardify.images.depth import DepthEncoding
from shardify.images.mask_values import MISFIT
from shardify.images.parser import MASK_THRESHOLD
from shardify.images.pixels import LabelEncoding
from shardify.layout.detect import Layout, Rejection
from shardify.storage.paths import PathOrUrl
from shardify.version import version
from shardify.writer.tasks import ChannelSums, ShardRecord, staging_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildInputs:
    """Inputs of the shard tasks, known once masks and backgrounds have been read."""

    plan: BuildPlan
    """The plan without samples on bad backgrounds."""
    label_encoding: LabelEncoding
    mask_values: dict[str, Any]
    """What was seen of the masks; empty without masks."""
    background_tars: list[BackgroundTar]
    shard_plans: list[ShardPlan]


def publish(
    inputs: BuildInputs, out: PathOrUrl, results: Sequence[ShardRecord | ChannelSums]
) -> Manifest:
    """Move the files to their final names, and write ``rejected.jsonl`` and the manifests.

    Args:
        inputs: Inputs of the shard tasks.
        out: Folder or ``Url`` of the data set.
        results: Results of all tasks, in task order.

    Returns:
        The manifest of ``out`` itself.

    Raises:
        OSError: A file cannot be written.
    """
    plan, background_tars, shard_plans = inputs.plan, inputs.background_tars, inputs.shard_plans
    variants = plan.options.variants()
    records: list[ShardRecord] = [each for each in results if isinstance(each, ShardRecord)]
    measured = ChannelSums()
    for moments in results:
        if isinstance(moments, ChannelSums) and moments.samples:
            measured.add(moments.mean, moments.std, moments.samples)
    rejected = plan.listed_rejections(
        [each for record in records for each in shard_rejections(record)]
    )
    stats = _average_stats(records, measured)
    uses = _count_background_uses(shard_plans, records, plan.layout, background_tars[0].ids)
    val_samples = [
        each.samples
        for shard_plan, each in zip(shard_plans, records, strict=True)
        if shard_plan.split == "val"
    ]
    layout = plan.description(sum(val_samples))
    rules = background_tars[0].rules.copy()
    for record in records:
        rules.update(record.rules)
    layout["digest"] = plan.digest()
    layout.update(describe_encoding(inputs.label_encoding))
    misfits = sum(each.role == "mask" and each.reason.startswith(MISFIT) for each in rejected)
    warnings = mask_warnings(inputs.mask_values) + depth_warnings(inputs.label_encoding)
    if misfits and not inputs.label_encoding.check_masks and plan.options.verify != "decode":
        warning = (
            f"{misfits} of the few masks that were decoded do not fit the rule of the others and "
            "were left out; pass --verify decode to check every mask"
        )
        warnings.append(warning)
    if warnings:
        layout["warnings"] = [*cast("list[str]", layout.get("warnings", [])), *warnings]
    if inputs.mask_values:
        layout["masks"] = inputs.label_encoding.mask
        layout["mask_values"] = inputs.mask_values
    layout["converted"] = dict(sorted(rules.items()))
    manifest = Manifest(
        created_by=f"shardline {version()}",
        source=manifest_sources(plan.catalog),
        options=plan.options.output_options(),
        layout=layout,
        roles={},
        backgrounds=[],
        splits={},
        rejected=count_rejected(rejected, plan.catalog),
        stats=stats,
        resolutions=[
            StoredResolution(res=variant.res.to_json(), path=variant.folder)
            for variant in variants
            if variant.folder and variant.res
        ],
    )
    manifests: list[Manifest] = []
    for number, (variant, background_tar) in enumerate(zip(variants, background_tars, strict=True)):
        staged = staging_folder(out, variant.folder)
        files = {REJECTED: write_rejected(staged, rejected, plan.catalog)}
        if background_tar.sha256:
            files[BACKGROUNDS] = background_tar.sha256
        manifests.append(
            dataclasses.replace(
                manifest,
                roles=_summarize_roles(
                    records,
                    number,
                    background_tar.backgrounds,
                    variant,
                    inputs.label_encoding.depth,
                ),
                backgrounds=background_tar.backgrounds,
                splits=_summarize_splits(shard_plans, records, number, uses),
                costs=_average_costs(records, number, variant),
                files=files,
                resolutions=[],
            )
        )
    for variant, each in zip(variants, manifests, strict=True):
        shards = [shard for split in each.splits.values() for shard in split.shards]
        names = [name for shard in shards for name in (shard.name, shard.index)]
        move_to_final_names(out, variant.folder, [*names, *each.files])
    for variant, each in zip(variants, manifests, strict=True):
        each.save(out / variant.folder)
    if not manifest.resolutions:
        return manifests[0]
    manifest = dataclasses.replace(
        manifest, files={REJECTED: write_rejected(out, rejected, plan.catalog)}
    )
    manifest.save(out)
    return manifest


def shard_rejections(record: ShardRecord) -> list[Rejection]:
    """Return the samples that the task of a shard rejected."""
    return [
        Rejection(key=key, member=member, role=role, reason=reason)
        for key, member, role, reason in record.rejected
    ]


def _summarize_roles(
    records: Sequence[ShardRecord],
    number: int,
    backgrounds: Sequence[Background],
    variant: Variant,
    depth_encoding: DepthEncoding,
) -> dict[str, Role]:
    """Summarize kinds, sizes, channels and bits of each role in variant ``number``.

    Raises:
        BuildError: The codec is raw, and a role has images of several sizes; or depth maps of 8
            and of 16 bits.
    """
    roles: dict[str, Role] = {}
    if backgrounds:
        extensions = Counter(each.member.rpartition(".")[2] for each in backgrounds)
        sizes = Counter((each.width, each.height) for each in backgrounds)
        roles["bg"] = Role(
            extensions=_by_count(extensions),
            channels=3,
            sizes=_sizes_by_count(sizes),
            codec=variant.codec,
        )
    for role in MEMBERS:
        kinds: Counter[str] = Counter()
        sizes = Counter()
        channels: Counter[int] = Counter()
        bits: Counter[int] = Counter()
        for record in records:
            for text, count in record.parts[number].pictures.get(role, {}).items():
                kind, *numbers = text.split(" ")
                width, height, channel_count, depth = map(int, numbers)
                kinds[kind] += count
                if width:
                    sizes[width, height] += count
                    channels[channel_count] += count
                    bits[depth] += count
        if role == "depth" and len(bits) > 1:
            counts = " and ".join(f"{count} of {each} bits" for each, count in bits.most_common())
            raise BuildError(
                f"depth maps with values of two kinds, {counts}; expected one, because their steps "
                "differ; save all with the same bits, or build two data sets"
            )
        if kinds:
            roles[role] = Role(
                extensions=_by_count(kinds),
                channels=channels.most_common(1)[0][0] if channels else 0,
                sizes=_sizes_by_count(sizes),
                bits=most if (most := max(bits, default=0)) in (1, 16) else 8,
                threshold=MASK_THRESHOLD if role == "mask" else None,
                codec=variant.codec,
            )
            if role == "depth":
                roles[role] = dataclasses.replace(
                    roles[role],
                    unit=depth_encoding.unit or None,
                    scale=depth_encoding.scale,
                    max=depth_encoding.maximum,
                    invalid=0 if depth_encoding.has_holes else None,
                )
    if variant.codec == "raw":
        for name, each in roles.items():
            if len(each.sizes) > 1:
                raise BuildError(
                    f"{name} has images of {len(each.sizes)} sizes; the raw codec needs one; "
                    "pass --res"
                )
    return roles


def _summarize_splits(
    shard_plans: Sequence[ShardPlan],
    records: Sequence[ShardRecord],
    number: int,
    uses: Mapping[str, list[int]],
) -> dict[str, Split]:
    """Return the written shards of variant ``number`` by split."""
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
            for shard_plan, record in zip(shard_plans, records, strict=True)
            if shard_plan.split == name and record.samples
        ]
        samples = sum(shard.samples for shard in shards)
        splits[name] = Split(samples=samples, shards=shards, backgrounds=uses[name])
    return splits


def _count_background_uses(
    shard_plans: Sequence[ShardPlan],
    records: Sequence[ShardRecord],
    layout: Layout,
    ids: Sequence[str],
) -> dict[str, list[int]]:
    """Map each split to its number of written samples per background, in the order of ``ids``."""
    index = {name: number for number, name in enumerate(ids)}
    index_by_number = np.array([index.get(name, -1) for name in layout.background_ids], np.int64)
    uses = {split: np.zeros(len(ids), np.int64) for split in ("train", "val")}
    for shard_plan, record in zip(shard_plans, records, strict=True) if ids else ():
        bad = {key for key, *_ in record.rejected}
        rows = [
            row for row in shard_plan.samples.tolist() if not bad or layout.keys[row] not in bad
        ]
        indexes = index_by_number[layout.background[rows]]
        uses[shard_plan.split] += np.bincount(indexes, minlength=len(ids))
    return {split: counts.tolist() for split, counts in uses.items()}


def _average_stats(records: Sequence[ShardRecord], backgrounds: ChannelSums) -> dict[str, Stats]:
    """Average the channel statistics of each role over its measured images."""
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


def _average_costs(
    records: Sequence[ShardRecord], number: int, variant: Variant
) -> dict[str, dict[str, float]]:
    """Average the loss of re-encoding over the measured samples; empty without re-encoding."""
    if variant.unchanged:
        return {}
    sums: dict[str, list[float]] = {}
    for record in records:
        for role, (total, count) in record.parts[number].costs.items():
            entry = sums.setdefault(role, [0.0, 0])
            entry[0] += total
            entry[1] += count
    return {
        role: {("iou" if role == "mask" else "rmse"): round(total / count, 6), "samples": count}
        for role, (total, count) in sums.items()
        if count
    }


def _by_count(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda name: (-counts[name], name))


def _sizes_by_count(counts: Counter[tuple[int, int]]) -> list[list[int]]:
    return [
        [*size, counts[size]] for size in sorted(counts, key=lambda each: (-counts[each], each))
    ]
