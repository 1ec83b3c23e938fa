"""``python -m train``, as ``torchrun -m train`` needs it, and what the ``train`` command calls."""

from collections.abc import Callable

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
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
