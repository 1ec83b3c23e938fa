"""Reject samples, limit their share (``--max-bad``), and write ``rejected.jsonl``."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shardify.dataset.manifest import REJECTED, Rejected
from shardify.errors import BuildError
from shardify.layout.detect import Layout, Rejection
from shardify.sources.catalog import Catalog
from shardify.storage.atomic_write import write_atomic
from shardify.storage.paths import PathOrUrl


def drop_background(
    layout: Layout,
    catalog: Catalog,
    number: int,
    reason: str,
    usable: NDArray[np.bool_],
    rejected: list[Rejection],
) -> None:
    """Reject every sample on a bad background; updates ``usable`` and ``rejected``."""
    member = catalog.names[int(layout.background_members[number])]
    for row in np.flatnonzero(usable & (layout.background == number)).tolist():
        usable[row] = False
        rejected.append(
            Rejection(
                key=layout.keys[row], member=member, role="bg", reason=f"its background: {reason}"
            )
        )


def check_rejected_share(
    where: str, rejected: Sequence[Rejection], good: int, max_bad: float
) -> None:
    """Raise BuildError if too many samples are rejected, or none is left.

    Args:
        where: Name of the source in the error.
        rejected: The rejected samples.
        good: Number of samples left.
        max_bad: Largest allowed fraction of rejected samples.
    """
    bad = len(rejected)
    share = bad / (bad + good) if bad + good else 1.0
    if share > max_bad:
        raise BuildError(
            f"{where}: {bad} of {bad + good} samples are bad, more than --max-bad "
            f"{max_bad:g} allows; mend the source, or raise --max-bad; "
            f"reasons so far: {common_reasons(rejected)}"
        )
    if not good:
        raise BuildError(f"{where}: no sample is left; reasons: {common_reasons(rejected)}")


def common_reasons(rejected: Sequence[Rejection]) -> str:
    """Describe the three most common reasons, each with a count and an example."""
    counts = Counter(each.reason for each in rejected).most_common(3)
    example = {each.reason: each.member for each in reversed(rejected)}
    return "; ".join(f"{reason} ({count}, as {example[reason]})" for reason, count in counts)


def count_rejected(rejected: Sequence[Rejection], catalog: Catalog) -> Rejected:
    """Count rejected samples and refused entries by reason, for the manifest."""
    counts = Counter(each.reason for each in rejected)
    counts.update(each.reason for each in catalog.refused)
    return Rejected(count=sum(counts.values()), by_reason=dict(sorted(counts.items())))


def write_rejected(out: PathOrUrl, rejected: Sequence[Rejection], catalog: Catalog) -> str:
    """Write ``rejected.jsonl``, sorted, and return its SHA-256.

    Raises:
        OSError: The folder is missing, not writable, or the disk is full.
    """
    lines = [
        {"key": each.key, "member": each.member, "role": each.role, "reason": each.reason}
        for each in rejected
    ]
    lines += [
        {"key": "", "member": each.member, "role": "", "reason": each.reason}
        for each in catalog.refused
    ]
    lines.sort(key=lambda line: tuple(line.values()))
    text = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_atomic(out / REJECTED, text)
    return hashlib.sha256(text).hexdigest()
