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
    "Predictor": "train.inference.predict",
    "load_trained": "train.checkpoint.trained_model",
    "read_image": "train.inference.predict",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)
