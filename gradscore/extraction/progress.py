"""Who is told how far an extraction has come."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What is told how far the work has come."""

    def start(self, total: int, description: str) -> None:
        """Begin a piece of work of ``total`` images."""

    def advance(self, n: int) -> None:
        """Count ``n`` more images as done."""

    def finish(self) -> None:
        """End the piece of work, also after an error."""

    def tell(self, sentence: str) -> None:
        """Say what the user should know before the first image."""


class Silent:
    """Tells nobody."""

    def start(self, total: int, description: str) -> None:
        """Do nothing."""

    def advance(self, n: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def tell(self, sentence: str) -> None:
        """Do nothing."""


def tell(progress: Progress, sentence: str) -> None:
    """Tell a sentence, where the progress listens to any and does not only count."""
    listen = getattr(progress, "tell", None)
    if listen is not None:
        listen(sentence)


@contextmanager
def piece_of_work(progress: Progress, total: int, description: str) -> Iterator[None]:
    """Begin a piece of work, and end it whatever happens."""
    progress.start(total, description)
    try:
        yield
    finally:
        progress.finish()
