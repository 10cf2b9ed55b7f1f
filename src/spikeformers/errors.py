"""One small tree of exceptions; every message names the cause and the likely fix.

Errors are raised at the public boundary, before work starts. The command line prints the message
of any `SpikeformersError` as one sentence and exits with code 2.
"""


class SpikeformersError(Exception):
    """Base of all errors that a user can cause and mend."""


class InputError(SpikeformersError, ValueError):
    """A tensor or an argument does not have the shape, dtype or value that was expected."""


class ConfigError(SpikeformersError, ValueError):
    """A name, recipe key or option is unknown, missing or mistyped."""


class DataError(SpikeformersError):
    """A data set is missing, empty, truncated or unreadable."""


class CheckpointError(SpikeformersError):
    """A checkpoint is missing, damaged, unsafe or belongs to another architecture."""


class ExportError(SpikeformersError):
    """A format cannot express a model, or a written file does not compute what the model does."""


class TrainingError(SpikeformersError):
    """Training cannot go on, for example because the loss stopped being finite."""


class ClaimError(SpikeformersError):
    """Data contradicts what was proved of a model, or what was claimed about its input."""


class StoppedError(SpikeformersError):
    """A signal stopped a run that has saved its state; the same command goes on.

    Args:
        message: Where it stopped.
        signal: Number of the signal; the exit code is 128 more, as in a shell.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class MissingExtraError(SpikeformersError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}: pip install 'spikeformers[{extra}]'",
            name=package,
        )
