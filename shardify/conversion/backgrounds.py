"""The backgrounds of a data set, each once, in one tar a variant.

Runs in the parent while the workers start. A background that fails its check takes the samples on
it along, and the plan is made anew without them.
"""

import dataclasses
import hashlib
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardify.conversion.rejects import drop_background
from shardify.conversion.survey import BuildPlan, check_bad, plan_splits
from shardify.dataset.manifest import BACKGROUNDS, Background
from shardify.errors import EntryError
from shardify.images.codecs import Variant, resized, store
from shardify.images.pixels import STANDARD, LabelEncoding, pixels
from shardify.sources.catalog import OpenSources, entry_reader, entry_rows
from shardify.storage.atomic_write import AtomicFile
from shardify.storage.paths import PathOrUrl
from shardify.storage.readers import announce_reads
from shardify.writer.sample_check import check_picture
from shardify.writer.tar_writer import TarWriter

__all__ = ["BackgroundTar", "write_backgrounds"]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackgroundTar:
    """The backgrounds of one variant, as written."""

    backgrounds: list[Background] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    """Conversion rule -> backgrounds that it changed."""
    sha256: str = ""
    """Of ``backgrounds.tar``; empty if there is none."""

    @property
    def ids(self) -> list[str]:
        """In the order of their indexes."""
        return [each.id for each in self.backgrounds]


def write_backgrounds(
    found: BuildPlan, out: PathOrUrl, variants: tuple[Variant, ...], meaning: LabelEncoding
) -> tuple[BuildPlan, list[BackgroundTar]]:
    """Write ``backgrounds.tar`` into each variant's folder.

    Returns:
        The survey, without samples on bad backgrounds, and a bank for each variant (empty ones,
        and no file, for a data set without backgrounds).

    Raises:
        BuildError: Too many samples are left out.
        OSError: The source cannot be read, or OUT not written.
    """
    layout, catalog = found.layout, found.catalog
    if not layout.background_ids:
        return found, [BackgroundTar() for _ in variants]
    bad: list[tuple[int, str]] = []
    rules: Counter[str] = Counter()
    backgrounds: list[list[Background]] = [[] for _ in variants]
    paths = [out / variant.folder / BACKGROUNDS for variant in variants]
    used = (np.flatnonzero(np.bincount(1 + layout.background[found.usable])) - 1).tolist()
    verify = "decode" if found.options.verify == "decode" else "headers"
    with ExitStack() as stack:
        descriptors = stack.enter_context(OpenSources([each.path for each in catalog.sources]))
        drafts = [stack.enter_context(AtomicFile(path)) for path in paths]
        tars = [TarWriter(draft.file) for draft in drafts]
        entries = layout.background_members[used]
        announce_reads(
            descriptors, entry_rows(catalog, entries), [catalog.names.raw(int(i)) for i in entries]
        )
        read = entry_reader(catalog, descriptors)
        for number in used:
            entry = int(layout.background_members[number])
            name = catalog.names.raw(entry)
            plane: NDArray[Any] | None = None
            try:
                data = read(entry)
                data, picture, rule = check_picture(data, name, "bg", verify, meaning)
                if not all(variant.unchanged for variant in variants):
                    plane = pixels(data, picture, "bg", STANDARD)
            except EntryError as error:
                bad.append((number, str(error)))
                continue
            rules.update([rule] if rule else [])
            for variant, tar, done in zip(variants, tars, backgrounds, strict=True):
                stored, shown = data, picture
                if plane is not None and not variant.unchanged:
                    stored, shown = store(
                        resized(plane, "bg", variant.res), "bg", picture.kind, variant
                    )
                member = f"{layout.background_ids[number]}.{shown.kind}"
                tar.add(member.encode(), stored)
                done.append(
                    Background(
                        id=layout.background_ids[number],
                        index=len(done),
                        member=member,
                        width=shown.width,
                        height=shown.height,
                        sha256=hashlib.sha256(stored).hexdigest(),
                    )
                )
        digests = [tar.finish() for tar in tars]
        for draft in drafts:
            draft.publish()
    if bad:
        found = _without(found, bad)
    return found, [
        BackgroundTar(backgrounds=each, rules=rules, sha256=digest)
        for each, digest in zip(backgrounds, digests, strict=True)
    ]


def _without(found: BuildPlan, bad: list[tuple[int, str]]) -> BuildPlan:
    """The survey without the samples on bad backgrounds, planned anew."""
    usable, rejected = found.usable.copy(), list(found.rejected)
    for number, reason in bad:
        drop_background(found.layout, found.catalog, number, reason, usable, rejected)
    found = dataclasses.replace(found, usable=usable, rejected=rejected)
    check_bad(found)
    return dataclasses.replace(found, shards=plan_splits(found.layout, usable, found.options))
