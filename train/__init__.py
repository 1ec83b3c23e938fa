"""Train networks on shards, and use trained ones.

Public names are imported on first use, so that the command line starts without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.checkpoint.trained_model import load_trained
    from train.inference.predict import Predictor, read_image

__all__ = ["Predictor", "load_trained", "read_image"]

_EXPORTS = {
    "Predictor": "train.inference.predict:Predictor",
    "load_trained": "train.checkpoint.trained_model:load_trained",
    "read_image": "train.inference.predict:read_image",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _EXPORTS[name].partition(":")
    return getattr(import_module(module), attribute)
