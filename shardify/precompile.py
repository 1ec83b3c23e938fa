"""Compile the fast copy and replace its cache: ``python -m shardify.precompile``.

Run it once after an installation, so that the first large build does not have to compile, or to
replace a damaged cache.
"""

import sys
from pathlib import Path

from shardify.writer import fast_copy

__all__: list[str] = []

if __name__ == "__main__":
    try:
        from shardify.writer import fast_copy_kernel

        for function in (fast_copy_kernel.is_whole, fast_copy_kernel.copy):
            function.recompile()  # Empties the cache; nothing is loaded yet, so nothing compiles.
        fast_copy.load()
    except ImportError as error:
        sys.exit(f"Error: {error}; expected numba and deflate; run pip install numba deflate")
    except (OSError, RuntimeError) as error:
        sys.exit(
            f"Error: {Path(fast_copy.__file__).parent}: {error}; expected a folder that can be "
            "written; set NUMBA_CACHE_DIR to one, here and for builds"
        )
