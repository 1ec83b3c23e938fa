"""Convert zips of aligned images to checked, reproducible WebDataset shards, and load them.

Public names are imported on first use, so that the command line and the workers start quickly. Only
``shardify.loader`` imports torch and DALI.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shardify.conversion.build import BuildReport, build
    from shardify.conversion.survey import BuildOptions
    from shardify.dataset.manifest import Manifest
    from shardify.loader.augmentation import Augmentation
    from shardify.loader.loader import Loader

__all__ = ["Augmentation", "BuildOptions", "BuildReport", "Loader", "Manifest", "build"]

_HOMES = {
    "Augmentation": "shardify.loader.augmentation",
    "BuildOptions": "shardify.conversion.survey",
    "BuildReport": "shardify.conversion.build",
    "Loader": "shardify.loader.loader",
    "Manifest": "shardify.dataset.manifest",
    "build": "shardify.conversion.build",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
