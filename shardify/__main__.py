"""``python -m shardify``: the same as the ``shardify`` command."""

from shardify.cli import main

if __name__ == "__main__":
    main()
