"""What can go wrong, by kind. The command line prints each as one line and exits with 1."""


class GradScoreError(Exception):
    """Base of every error that gradscore raises on purpose."""


class InvalidArgument(GradScoreError, ValueError):
    """An argument is outside of what the function accepts; the message names what it accepts."""


class ModelError(GradScoreError):
    """The model cannot be built, or cannot be scored as asked."""


class WeightsError(GradScoreError):
    """A weight file is missing, unreadable or does not fit the model."""


class DataError(GradScoreError):
    """A set, a manifest or an image is missing, unreadable or not what it claims to be."""


class RunError(GradScoreError):
    """A run is missing, damaged, in use, or disagrees with what is asked to be added."""


class NotRecorded(RunError):
    """The run does not hold what the question needs; the message names the option that would."""


class GradScoreWarning(UserWarning):
    """A result stands, but is hardly what was meant, or less sure; the message says why."""
