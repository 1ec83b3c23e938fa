"""Every error that shardify raises on purpose, as one tree.

Each message is one line, ``WHERE: what was found; what was expected; REMEDY``. Nothing here
formats, logs or exits; the command line turns a ``ShardifyError`` into exit code 1.

::

    ShardifyError
    ├── SourceError         SRC as a whole cannot be used
    │   └── ArchiveError        not a zip, cut, encrypted throughout, overlapping, over a limit
    ├── EntryError          one entry's bytes are damaged or refused: it is quarantined
    │   └── ImageError          its bytes are whole, but no picture that is taken
    ├── LayoutError         the names do not say what belongs together
    ├── PlanError           samples and options make no usable splits
    ├── BuildError          too much was rejected, a worker died, the disk is full
    ├── StoreError          a URL's store is not reachable, has no such bucket, or denies access
    ├── OutputError         OUT is a file, or holds something else
    ├── ManifestError       manifest.json is missing, unreadable or of another version
    ├── VerifyError         a published file differs from what the manifest says
    └── DataError           a data set, or a sample of it, is not what a loader needs
"""

__all__ = [
    "ArchiveError",
    "BuildError",
    "DataError",
    "EntryError",
    "ImageError",
    "LayoutError",
    "ManifestError",
    "OutputError",
    "PlanError",
    "ShardifyError",
    "SourceError",
    "StoreError",
    "VerifyError",
]


class ShardifyError(Exception):
    """Base of all: the user's data or environment is at fault, in one line."""


class SourceError(ShardifyError):
    """SRC as a whole cannot be used."""


class ArchiveError(SourceError):
    """A zip is no zip, is cut, overlaps itself or is over a limit."""


class EntryError(ShardifyError):
    """One entry is damaged or refused; the rest of the source may be fine.

    The message is the reason alone, without the entry's name, so that equal reasons count as one.
    """


class ImageError(EntryError):
    """An entry's bytes arrived whole, but are no picture that is taken."""


class LayoutError(ShardifyError):
    """The names do not say what belongs together."""


class PlanError(ShardifyError):
    """Samples and options together make no usable splits."""


class BuildError(ShardifyError):
    """A build cannot be finished: too much rejected, a dead worker, a full disk."""


class StoreError(ShardifyError):
    """An object store cannot be reached or used; or the package that knows it is missing."""


class OutputError(ShardifyError):
    """OUT cannot be written to, or holds something that must not be overwritten."""


class ManifestError(ShardifyError):
    """``manifest.json`` is missing, unreadable, or of another schema version."""


class VerifyError(ShardifyError):
    """A published file is not what the manifest says."""


class DataError(ShardifyError):
    """The shards, a split, a role or a decoded sample is not what a loader needs."""
