"""Check the backgrounds of a data set and write each once, in one tar per variant.

Runs in the parent process while the workers start. Samples whose background fails its check are
rejected, and the shards are planned again without them.
"""

import dataclasses
import hashlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from shardify.conversion.rejects import drop_background
from shardify.conversion.survey import BuildPlan, check_rejected, plan_splits
from shardify.dataset.manifest import BACKGROUNDS, Background
from shardify.errors import EntryError
from shardify.images.codecs import Variant, encode_pixels, resize
from shardify.images.pixels import STANDARD, LabelEncoding, pixels
from shardify.sources.catalog import OpenSources, entry_reader, entry_rows
from shardify.storage.atomic_write import AtomicFile
from shardify.storage.paths import PathOrUrl
from shardify.storage.readers import announce_reads
from shardify.writer.sample_check import check_image
from shardify.writer.tar_writer import TarWriter
from shardify.writer.tasks import staging_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundTar:
    """The backgrounds written for one variant."""

    backgrounds: list[Background] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    """Conversion rule -> number of backgrounds that it changed."""
    sha256: str = ""
    """Digest of ``backgrounds.tar``; empty if there is none."""

    @property
    def ids(self) -> list[str]:
        """Background IDs in the order of their indexes."""
        return [each.id for each in self.backgrounds]


def write_backgrounds(
    plan: BuildPlan, out: PathOrUrl, variants: tuple[Variant, ...], label_encoding: LabelEncoding
) -> tuple[BuildPlan, list[BackgroundTar]]:
    """Write ``backgrounds.tar`` into each variant's staging folder.

    Returns:
        The plan without samples on bad backgrounds, and one ``BackgroundTar`` per variant. For a
        data set without backgrounds these are empty, and no file is written.

    Raises:
        BuildError: Too many samples are rejected.
        OSError: The source cannot be read, or OUT cannot be written.
    """
    layout, catalog = plan.layout, plan.catalog
    if not layout.background_ids:
        return plan, [BackgroundTar() for _ in variants]
    bad: list[tuple[int, str]] = []
    rules: Counter[str] = Counter()
    backgrounds: list[list[Background]] = [[] for _ in variants]
    paths = [staging_folder(out, variant.folder) / BACKGROUNDS for variant in variants]
    used = (np.flatnonzero(np.bincount(1 + layout.background[plan.usable])) - 1).tolist()
    verify = "decode" if plan.options.verify == "decode" else "headers"
    with ExitStack() as stack:
        descriptors = stack.enter_context(OpenSources([each.path for each in catalog.sources]))
        files = [stack.enter_context(AtomicFile(path)) for path in paths]
        tars = [TarWriter(file.file) for file in files]
        entries = layout.background_members[used]
        announce_reads(
            descriptors, entry_rows(catalog, entries), [catalog.names.raw(int(i)) for i in entries]
        )
        read = entry_reader(catalog, descriptors)
        for number in used:
            entry = int(layout.background_members[number])
            name = catalog.names.raw(entry)
            try:
                data = read(entry)
                data, info, rule, plane, _ = check_image(data, name, "bg", verify, label_encoding)
                if plane is None and not all(variant.unchanged for variant in variants):
                    plane = pixels(data, info, "bg", STANDARD)
            except EntryError as error:
                bad.append((number, str(error)))
                continue
            rules.update([rule] if rule else [])
            for variant, tar, written in zip(variants, tars, backgrounds, strict=True):
                stored, stored_info = data, info
                if plane is not None and not variant.unchanged:
                    stored, stored_info = encode_pixels(
                        resize(plane, "bg", variant.res), "bg", info.kind, variant
                    )
                member = f"{layout.background_ids[number]}.{stored_info.kind}"
                tar.add(member.encode(), stored)
                written.append(
                    Background(
                        id=layout.background_ids[number],
                        index=len(written),
                        member=member,
                        width=stored_info.width,
                        height=stored_info.height,
                        sha256=hashlib.sha256(stored).hexdigest(),
                    )
                )
        digests = [tar.finish() for tar in tars]
        for file in files:
            file.publish()
    if bad:
        plan = _reject_samples(plan, bad)
    return plan, [
        BackgroundTar(backgrounds=each, rules=rules, sha256=digest)
        for each, digest in zip(backgrounds, digests, strict=True)
    ]


def _reject_samples(plan: BuildPlan, bad: list[tuple[int, str]]) -> BuildPlan:
    """Reject the samples on bad backgrounds and plan the shards again."""
    usable, rejected = plan.usable.copy(), list(plan.rejected)
    for number, reason in bad:
        drop_background(plan.layout, plan.catalog, number, reason, usable, rejected)
    plan = dataclasses.replace(plan, usable=usable, rejected=rejected)
    check_rejected(plan)
    shards = plan_splits(plan.layout, usable, plan.options, plan.picture)
    return dataclasses.replace(plan, shards=shards)
