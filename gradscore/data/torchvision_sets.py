"""Datasets of torchvision, by name and split: ``torchvision:CIFAR10:test@ROOT``."""

import inspect
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.data.decode import load_image
from gradscore.errors import DataError

DEFAULT_ROOT = "data"
UNSAFE = ("LSUN", "LSUNClass")
"""They unpickle whatever file of the right name lies below their root."""


def open_dataset(source: str) -> tuple[Any, NDArray[np.int64] | None]:
    """Return a torchvision dataset and its labels, where they are listed.

    What is not below ROOT (``data`` by default) is fetched, where torchvision can.

    Raises:
        DataError: If there is no such dataset or split, or it cannot be had.
    """
    from torchvision import datasets

    text, _, root = source.partition("@")
    _, _, rest = text.partition(":")
    name, _, split = rest.partition(":")
    if name not in datasets.__all__ or not isinstance(getattr(datasets, name), type):
        known = ", ".join(sorted(datasets.__all__))
        raise DataError(f"Expected a dataset of torchvision ({known}), got {name!r}.")
    if name in UNSAFE:
        raise DataError(f"torchvision:{name} would run code that its files may hold.")
    family = getattr(datasets, name)
    accepted = inspect.signature(family).parameters
    options: dict[str, Any] = {}
    if "split" in accepted and split:
        options["split"] = split
    elif "train" in accepted and split in ("train", "test"):
        options["train"] = split == "train"
    elif split not in ("", "all"):
        raise DataError(f"Expected torchvision:{name} (it has no such split), got {source!r}.")
    if "loader" in accepted:
        options["loader"] = load_image
    if "root" in accepted:
        options["root"] = root or DEFAULT_ROOT
    try:
        dataset = _construct(family, options, fetch="download" in accepted)
        return dataset, _labels(dataset)
    except Exception as error:  # each dataset has its own kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"Cannot open {source}: {reason}") from error


def _labels(dataset: Any) -> NDArray[np.int64] | None:
    """Return a label an item, where they are listed as whole numbers."""
    for attribute in ("targets", "labels", "_labels"):
        labels = np.asarray(getattr(dataset, attribute, ()))
        if labels.shape == (len(dataset),) and np.issubdtype(labels.dtype, np.integer):
            return labels.astype(np.int64)
    return None


def _construct(family: type, options: dict[str, Any], fetch: bool) -> Any:
    try:
        return family(**options)
    except (RuntimeError, FileNotFoundError):
        if not fetch:
            raise
        return family(**options, download=True)
