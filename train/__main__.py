"""Entry point of ``python -m train`` and of the console script ``train``."""

from collections.abc import Callable


def main() -> None:
    """Run the command line."""
    try:
        from shardify.interrupts import run
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    run(_command)


def _command() -> Callable[[], object]:
    from train.cli import main as command

    return command


if __name__ == "__main__":
    main()
