"""Errors that ``train`` raises for reasons outside its own code.

    TrainError            base: exit 1, its message is one line
    ├── ConfigError       a setting is unknown, of a wrong type, out of range, or contradictory
    ├── RunError          the run's folder cannot be used: not empty, locked, damaged or not a run
    │   └── CheckpointError   a checkpoint is missing, not readable, or of another version
    │       └── DamagedError  the digest of a checkpoint does not match
    ├── DivergedError     the loss or a weight is not finite
    ├── FitError          a batch does not fit into memory
    └── PeerError         another rank of a distributed run ended or does not respond

A message is one line: ``WHERE: what was found; what was expected; REMEDY``.
``Interrupted`` is not a `TrainError`: a requested stop is not a failure, and exits 130.
"""


class TrainError(Exception):
    """Base of every error in this package; ``str(error)`` is one line for the user."""


class ConfigError(TrainError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class RunError(TrainError):
    """The run's folder cannot be used: not empty, locked, damaged or not a run."""


class CheckpointError(RunError):
    """A checkpoint is missing, not readable, or of another version."""


class DamagedError(CheckpointError):
    """The digest of a checkpoint does not match."""


class DivergedError(TrainError):
    """The loss or a weight is not finite."""


class FitError(TrainError):
    """A batch does not fit into memory; the message names the largest that fits."""


class PeerError(TrainError):
    """Another rank of a distributed run ended or does not respond."""


class Interrupted(Exception):
    """A signal stopped the run; ``--resume`` continues from the saved state."""
