"""Sources opened for reading, in whatever process reads them.

Knows nothing of what lies in them.
"""

from shardify.errors import BuildError, ShardifyError
from shardify.storage.readers import Handle, close_source, open_source

__all__ = ["Sources"]


class Sources:
    """The zips and folders, opened for reading: by descriptor, by ranges, or by name."""

    def __init__(self, paths: list[str]) -> None:
        self._paths = paths
        self._handles: list[Handle] = []

    def __enter__(self) -> list[Handle]:
        try:
            for path in self._paths:
                self._handles.append(open_source(path))
        except ShardifyError:
            self.__exit__()
            raise
        except OSError as error:
            self.__exit__()
            raise BuildError(
                f"{error.filename}: {error.strerror}; it was there a moment ago"
            ) from error
        return self._handles

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            close_source(handle)
