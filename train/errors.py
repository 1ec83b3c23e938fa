"""Every error that ``train`` raises for a reason outside its own code.

    TrainError            base: exit 1, its message is one line
    ├── ConfigError       a setting is unknown, mistyped, out of range, or contradicts another
    ├── RunError          the run's folder holds something else, or nothing to go on from
    │   └── CheckpointError   a checkpoint is missing, foreign, or of another schema version
    │       └── DamagedError  a checkpoint's bytes are not those that were written
    ├── DivergedError     the loss is no longer a finite number
    ├── FitError          a batch does not fit into memory
    └── PeerError         another rank of a distributed run ended or does not answer

A message is one line: ``WHERE: what was found; what was expected; REMEDY``.
``Interrupted`` stands beside the tree: a stop that was asked for is no fault, and exits 130.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DamagedError",
    "DivergedError",
    "FitError",
    "Interrupted",
    "PeerError",
    "RunError",
    "TrainError",
]


class TrainError(Exception):
    """Base of every error in this package; ``str(error)`` is one line for the user."""


class ConfigError(TrainError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class RunError(TrainError):
    """The run's folder holds something else, or nothing to go on from."""


class CheckpointError(RunError):
    """A checkpoint is missing, foreign, or of another schema version."""


class DamagedError(CheckpointError):
    """A checkpoint's bytes are not those that were written."""


class DivergedError(TrainError):
    """The loss is no longer a finite number."""


class FitError(TrainError):
    """A batch does not fit into memory; the message says which would."""


class PeerError(TrainError):
    """Another rank of a distributed run ended or does not answer."""


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the state is saved and ``--resume`` goes on from it."""
