"""Images that stop a graph: which of a batch does not decode, and why, in DALI's words.

Decodes by ``graph.decoder``, one by one, so that what fails here is what fails there. This module
opens no file.
"""

from collections.abc import Sequence

from shardify.loader.dali_pipeline import decoder
from shardify.loader.mapped import Bytes

__all__ = ["decode_faults", "reason_of"]

_STATUS = {3: "its file is damaged", 4: "not an image of a kind that DALI reads"}
"""What nvImageCodec's numbers say (``nvimgcodecStatus_t``); DALI hands on nothing but them."""


def decode_faults(payloads: Sequence[Bytes], role: str) -> list[str | None]:
    """DALI's reason for each payload that it does not decode, None for the others."""
    decode = decoder(batch_size=1, threads=1, colour=role in ("bg", "fg_bg"))
    found: list[str | None] = []
    for payload in payloads:
        try:
            decode([payload])
            found.append(None)
        except RuntimeError as error:
            found.append(reason_of(error))
    return found


def reason_of(error: RuntimeError) -> str:
    """What went wrong, in one line, of DALI's message of many."""
    text = str(error)
    if "encountered:" in text:
        text = text.split("encountered:", 1)[1].split("Current pipeline object", 1)[0]
    lines = [line.strip() for line in text.splitlines()]
    found = next((line.split("] ")[-1] for line in lines if "rror" in line), None)
    reason = found or " ".join(filter(None, lines))[:200]
    for status, meaning in _STATUS.items():
        reason = reason.replace(f"nvImageCodec failure: '#{status}'", meaning)
    return reason
