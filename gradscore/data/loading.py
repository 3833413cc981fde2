"""Batches of preprocessed images, decoded in worker processes.

Batches are formed by the images' place in the set, whatever was skipped or is there already, so
that the same images meet in a batch whether or not a run was interrupted.
"""

import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gradscore.data.sources import ImageSet
from gradscore.errors import DataError, GradScoreError, InvalidArgument

OWN_FILES, FILES_A_WORKER = 48, 16


class Batch(NamedTuple):
    """What could be read of consecutive images of a set.

    Attributes:
        span: First image, and the one after the last.
        index: Places of the images that could be read, shape ``[n]``, int64.
        images: Shape ``[n, channels, height, width]``, float32.
        failed: Place and reason of each that could not.
    """

    span: tuple[int, int]
    index: Tensor
    images: Tensor
    failed: list[tuple[int, str]]


def batch_spans(start: int, stop: int, batch_size: int) -> list[tuple[int, int]]:
    """Return the batches that cover ``start`` to ``stop``, cut at multiples of the batch size.

    >>> batch_spans(6, 11, 4)
    [(6, 8), (8, 11)]
    """
    first = start - start % batch_size
    cuts = [start, *range(first + batch_size, stop, batch_size), stop]
    return list(pairwise(cuts)) if start < stop else []


class _Decoded(Dataset):
    def __init__(
        self,
        images: ImageSet,
        preprocessing: Callable[[Any], Tensor],
        shape: tuple[int, ...] | None,
        skipped: frozenset[int],
    ) -> None:
        self.images, self.preprocessing = images, preprocessing
        self.shape, self.skipped = shape, skipped

    def __getitem__(self, span: tuple[int, int]) -> Batch:
        places, tensors, failed = [], [], []
        for place in range(*span):
            if place in self.skipped:
                continue
            try:
                tensors.append(self._decode(place))
                places.append(place)
            except GradScoreError as error:
                failed.append((place, str(error)))
        images = (
            torch.stack(tensors) if tensors else torch.empty(0, *(self.shape or ()), device="cpu")
        )
        return Batch(span, torch.tensor(places, dtype=torch.int64, device="cpu"), images, failed)

    def _decode(self, place: int) -> Tensor:
        tensor = _prepared(self.images, place, self.preprocessing)
        if self.shape is not None and tuple(tensor.shape) != self.shape:
            raise DataError(
                f"{self.images.paths[place]}: expected {list(self.shape)} after preprocessing, as "
                f"the first image, got {list(tensor.shape)}; give "
                "`preprocessing={'resize': S, 'crop': S}`."
            )
        return tensor


def _prepared(images: ImageSet, place: int, preprocessing: Callable[[Any], Tensor]) -> Tensor:
    """Return the model's input for an image; an error names the image."""
    try:
        with torch.device("cpu"):
            return preprocessing(images[place])
    except InvalidArgument as error:
        raise DataError(f"{images.paths[place]}: {error}") from error


class _Loader(DataLoader):
    """A loader that works on the CPU, whatever device the caller makes tensors on."""

    def __iter__(self) -> Any:
        with torch.device("cpu"):
            return super().__iter__()


def _unchanged(batch: Batch) -> Batch:
    return batch


def load_batches(
    images: ImageSet,
    preprocessing: Callable[[Any], Tensor],
    spans: Sequence[tuple[int, int]],
    *,
    shape: tuple[int, ...] | None = None,
    skipped: frozenset[int] = frozenset(),
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Return a loader of :class:`Batch`, one for each span, in their order.

    Args:
        images: The set.
        preprocessing: From a picture to a tensor ``[channels, height, width]``.
        spans: First image of each batch, and the one after its last.
        shape: What every preprocessed image must have; others count as failed.
        skipped: Places that are left out without a word.
        workers: Number of processes that decode; 0 decodes in this one.
        pin_memory: Whether batches lie in page-locked memory, for copies that overlap.

    Raises:
        DataError: If this process may not open as many files as its workers take.
    """
    if workers:
        _check_descriptors(workers)
    return _Loader(
        _Decoded(images, preprocessing, shape, skipped),
        batch_size=None,
        sampler=spans,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin_memory,
    )


def _check_descriptors(workers: int) -> None:
    # A worker that cannot open what it sends a batch through drops the batch, and the main
    # process would wait for it for ever.
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OWN_FILES + FILES_A_WORKER * workers
    if 0 <= allowed < wanted:
        raise DataError(
            f"Expected to be allowed {wanted} open files for {workers} decoding processes, got "
            f"{allowed}; choose fewer `workers=N` (0 needs none), or raise the limit (ulimit -n)."
        )


@contextmanager
def decoding_processes() -> Iterator[None]:
    """Tell of a decoding process that ended, wherever the news of it arrives.

    torch raises it in whatever the main thread does at that moment, as a RuntimeError.

    Raises:
        DataError: In place of that error.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and "DataLoader worker" not in text:
            raise
        raise DataError(
            f"A decoding process ended: {text or type(error).__name__}; use fewer `workers=N`, "
            "or `workers=0`, which shows what ends it."
        ) from error


def first_readable(images: ImageSet, preprocessing: Callable[[Any], Tensor]) -> Tensor:
    """Return the first image that can be read, as a batch of one.

    Raises:
        DataError: If none can be read; the message is the first one's.
    """
    reason = None
    for place in range(len(images)):
        try:
            return _prepared(images, place, preprocessing)[None]
        except DataError as error:
            reason = reason or error
    raise DataError(f"No image of {images.source} can be read; the first: {reason}")
