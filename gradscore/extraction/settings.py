"""What an extraction is asked: its settings, checked once, and who is told how far it has come."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from gradscore.choices import (
    AUTO,
    DEVICES,
    EXECUTORS,
    GRADIENTS,
    ON_ERROR,
    PRECISIONS,
    RECORDED_METHODS,
    STORED,
)
from gradscore.data import ImageSet
from gradscore.errors import InvalidArgument
from gradscore.models.preprocessing import Preprocessing
from gradscore.objective import check_epsilon
from gradscore.run import ROLES
from gradscore.run.names import check_set_name

Sets = Mapping[str, tuple[str | None, str | os.PathLike | ImageSet]]
"""Set name to its role and where its images are, or the images themselves."""


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


class Silent(Progress):
    """Tells nobody."""


@dataclass(frozen=True)
class Settings:
    """Everything that an extraction is asked.

    Each attribute is the argument of :func:`gradscore.recorded.extract` of that name; what may be
    one value or several is a tuple here, empty where nothing was given.

    Raises:
        InvalidArgument: If one is out of range; the message names it and its form.
        RunError: If a set cannot have its name.
    """

    model: str | nn.Module
    sets: Sets
    run: Path
    layers: str | Sequence[str]
    p: tuple[float, ...]
    temperature: tuple[float, ...]
    target: tuple[str, ...]
    keep: tuple[str, ...]
    keep_dtype: str
    record: tuple[str, ...]
    epsilon: tuple[float, ...]
    fit: str | None
    preprocessing: Preprocessing | Mapping[str, Any] | None
    weights: str | os.PathLike | None
    batch_size: int | str
    device: str
    precision: str
    workers: int
    limit: int | Mapping[str, int] | None
    max_pixels: int | None
    on_error: str
    gradients: str
    blocks: Mapping[str, str | Sequence[str]]
    shard_rows: int
    part: tuple[int, int] | None
    store: str
    executor: str
    actors: int | None
    progress: Progress

    def __post_init__(self) -> None:
        """Check every setting that can be checked without the model."""
        _check_sets(self)
        _one_of("device", self.device, DEVICES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("on_error", self.on_error, ON_ERROR)
        _one_of("gradients", self.gradients, GRADIENTS)
        _one_of("store", self.store, STORED)
        _one_of("executor", self.executor, EXECUTORS)
        if self.actors is not None and (type(self.actors) is not int or self.actors < 1):
            raise InvalidArgument(f"Expected 1 or more actors, got {self.actors!r}.")
        if self.executor == EXECUTORS[0] and self.actors is not None:
            raise InvalidArgument("Expected actors with executor ray only; add `executor='ray'`.")
        if self.executor != EXECUTORS[0] and self.part is not None:
            raise InvalidArgument("Expected a part or executor ray, got both; give one of them.")
        for name, least in (("workers", 0), ("shard_rows", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InvalidArgument(f"Expected {name} >= {least}, got {value!r}.")
        size = self.batch_size
        whole = isinstance(size, int) and not isinstance(size, bool) and size > 0
        if not whole and size != AUTO:
            raise InvalidArgument(f"Expected a batch size of 1 or more, or auto, got {size!r}.")
        _check_recorded(self)

    @property
    def skip(self) -> bool:
        """Whether images that cannot be read are left out instead of ending the work."""
        return self.on_error == "skip"

    def limit_of(self, name: str) -> int | None:
        """Return how many images of a set are taken; None for all."""
        return self.limit.get(name) if isinstance(self.limit, Mapping) else self.limit

    def tell(self, sentence: str) -> None:
        """Tell a sentence, where the progress listens to any and does not only count."""
        listen = getattr(self.progress, "tell", None)
        if listen is not None:
            listen(sentence)

    @contextmanager
    def piece_of_work(self, total: int, description: str) -> Iterator[None]:
        """Begin a piece of work of ``total`` images, and end it whatever happens."""
        self.progress.start(total, description)
        try:
            yield
        finally:
            self.progress.finish()


def several(values: Any) -> tuple:
    """Return one value, or several in a sequence, as a tuple; none for None."""
    if values is None:
        return ()
    alone = isinstance(values, str) or not isinstance(values, Iterable)
    return (values,) if alone else tuple(values)


def _check_sets(settings: Settings) -> None:
    """Raise where sets, their limits or groups of parameters are not given as they should be."""
    sets, limit, blocks = settings.sets, settings.limit, settings.blocks
    if not sets:
        raise InvalidArgument("Expected at least one set of images, got none.")
    if not isinstance(sets, Mapping):
        raise InvalidArgument(f"Expected sets as {{'NAME': ('id', 'PATH')}}, got {_kind(sets)}.")
    for name, entry in sets.items():
        check_set_name(name)
        if not isinstance(entry, tuple | list) or len(entry) != 2:
            got = f"{entry!r:.80}"
            raise InvalidArgument(f"Expected set {name!r} as ('id', 'PATH') or so, got {got}.")
        _one_of("role", entry[0], ROLES)
        if not isinstance(entry[1], str | os.PathLike | ImageSet):
            raise InvalidArgument(
                f"Expected the path of set {name!r}, got {_kind(entry[1])}; images in memory can "
                "be saved with numpy.savez('FILE.npz', images=..., labels=...)."
            )
    limits = limit.items() if isinstance(limit, Mapping) else [(next(iter(sets)), limit)]
    for name, most in limits:
        if name not in sets:
            raise InvalidArgument(f"Expected limits of {', '.join(sets)}, got one of {name!r}.")
        if most is not None and (not isinstance(most, int) or most < 1):
            raise InvalidArgument(f"Expected a limit of 1 or more images, got {most!r}.")
    if not isinstance(blocks, Mapping):
        raise InvalidArgument(f"Expected blocks as {{'NAME': 'GLOB'}}, got {_kind(blocks)}.")


def _check_recorded(settings: Settings) -> None:
    """Raise where a method to record is unknown or lacks its option, or an option its method."""
    methods, epsilon, fit = settings.record, settings.epsilon, settings.fit
    for method in methods:
        if method not in RECORDED_METHODS:
            raise InvalidArgument(
                f"Expected record {' or '.join(RECORDED_METHODS)}, got {method!r}."
            )
    if epsilon and "odin" not in methods:
        raise InvalidArgument(
            f"Expected epsilon with record odin only, got {epsilon[0]}; add `record='odin'`."
        )
    if fit is not None and "mahalanobis" not in methods:
        raise InvalidArgument(
            f"Expected fit with record mahalanobis only, got {fit!r}; add `record='mahalanobis'`."
        )
    if "odin" in methods and not (epsilon and all(check_epsilon(e) for e in epsilon)):
        raise InvalidArgument(
            f"Expected epsilon > 0 to record odin with, got {', '.join(map(str, epsilon)) or None}"
            "; without perturbation the logits of every run answer it, with it give `epsilon=E`."
        )
    if "mahalanobis" in methods and fit is None:
        raise InvalidArgument(
            "Expected a labelled ID set to fit to, to record mahalanobis with, got none; "
            "name it with `fit='SET'`."
        )


def _kind(value: object) -> str:
    return f"{value!r:.80}" if isinstance(value, str) else type(value).__name__


def _one_of(name: str, value: object, known: Sequence) -> None:
    if value not in known:
        raise InvalidArgument(f"Expected {name} {' or '.join(map(str, known))}, got {value!r}.")
