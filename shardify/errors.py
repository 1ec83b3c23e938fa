"""All errors that shardify raises on purpose.

Each message is one line, ``WHERE: what was found; what was expected; REMEDY``. The command line
turns a ``ShardifyError`` into exit code 1.

::

    ShardifyError
    ├── SourceError         SRC as a whole cannot be used
    │   └── ArchiveError        not a zip, truncated, encrypted, overlapping, over a limit
    ├── EntryError          one entry is damaged or refused; its sample is rejected
    │   └── ImageError          the bytes are complete, but not a supported image
    ├── LayoutError         the names do not determine which files form a sample
    ├── PlanError           samples and options give no usable splits
    ├── BuildError          too much was rejected, a worker died, the disk is full
    ├── StoreError          an object store is not reachable, has no such bucket, or denies access
    ├── OutputError         OUT is a file, or holds other files
    ├── ManifestError       manifest.json is missing, unreadable or of another version
    ├── VerifyError         a published file differs from what the manifest says
    └── DataError           the loader cannot use a data set or one of its samples
"""


class ShardifyError(Exception):
    """Base class: an error in the user's data or environment, in one line."""


class SourceError(ShardifyError):
    """SRC as a whole cannot be used."""


class ArchiveError(SourceError):
    """A zip is invalid, truncated, overlaps itself or exceeds a limit."""


class EntryError(ShardifyError):
    """One entry is damaged or refused; the rest of the source may be fine.

    The message is the reason alone, without the entry's name, so that equal reasons count as one.
    """


class ImageError(EntryError):
    """The bytes of an entry are complete, but not a supported image."""


class LayoutError(ShardifyError):
    """The names do not determine which files form a sample.

    Args:
        message: The line for the user.
        layout_file: Text of a layout file to begin with; empty if there is none.
    """

    def __init__(self, message: str, *, layout_file: str = "") -> None:
        super().__init__(message)
        self.layout_file = layout_file


class PlanError(ShardifyError):
    """Samples and options give no usable splits."""


class BuildError(ShardifyError):
    """A build cannot finish: too many rejected samples, a dead worker, a full disk."""


class StoreError(ShardifyError):
    """An object store cannot be reached or used, or the package for it is missing."""


class OutputError(ShardifyError):
    """OUT cannot be written to, or holds something that must not be overwritten."""


class ManifestError(ShardifyError):
    """``manifest.json`` is missing, unreadable, or of another schema version."""


class VerifyError(ShardifyError):
    """A file of a data set differs from the manifest."""


class DataError(ShardifyError):
    """The loader cannot use the shards, a split, a role or a decoded sample."""
