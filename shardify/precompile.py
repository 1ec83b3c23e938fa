"""Compile the fast copy and cache it anew: ``python -m shardify.precompile``.

Run it once for an installation, so that the first large build need not; or to replace a cache that
is damaged.
"""

import sys
from pathlib import Path

from shardify.writer import fast_copy

__all__: list[str] = []

if __name__ == "__main__":
    try:
        from shardify.writer import fast_copy_kernel

        for function in (fast_copy_kernel.is_whole, fast_copy_kernel.copy):
            function.recompile()  # Empties its cache; nothing is loaded yet that it would compile.
        fast_copy.load()
    except ImportError as error:
        sys.exit(f"Error: {error}; expected numba and deflate; run pip install numba deflate")
    except (OSError, RuntimeError) as error:
        sys.exit(
            f"Error: {Path(fast_copy.__file__).parent}: {error}; expected a folder that can be "
            "written; set NUMBA_CACHE_DIR to one, here and for builds"
        )
