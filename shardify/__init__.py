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
    "Augmentation": "shardify.loader.augmentation:Augmentation",
    "BuildOptions": "shardify.conversion.survey:BuildOptions",
    "BuildReport": "shardify.conversion.build:BuildReport",
    "Loader": "shardify.loader.loader:Loader",
    "Manifest": "shardify.dataset.manifest:Manifest",
    "build": "shardify.conversion.build:build",
}


def __getattr__(name: str) -> object:
    """Import a public name (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    return getattr(import_module(module), attribute)
