"""``python -m train``, as ``torchrun -m train`` needs it; the same as the ``train`` command."""

from train.cli import main

if __name__ == "__main__":
    main()
