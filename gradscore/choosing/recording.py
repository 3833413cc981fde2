"""A run of a model and images in memory, as long as a choice is made of it."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gradscore.data import first_in_memory, images_in_memory
from gradscore.errors import InvalidArgument
from gradscore.extraction.resolved import resolve_model
from gradscore.methods import RecordedRun
from gradscore.models import create_model
from gradscore.models.preprocessing import CHANNELS, Preprocessing
from gradscore.recorded import extract

ID, FIT = "id", "fit"
"""Names of the two sets."""


@contextmanager
def recorded_images(
    model: nn.Module | str,
    images: Any,
    fit: Any,
    *,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
    layers: str,
    batch_size: int | str,
) -> Iterator[RecordedRun]:
    """Record what a model says of images and of their surrogates, in a temporary folder.

    Where it is not known how the images were normalised, no surrogates are made.

    Args:
        model: In evaluation mode, or a spec.
        images: ID images, as :func:`~gradscore.data.memory.images_in_memory` takes them.
        fit: Further ID images that methods learn from, or None.
        preprocessing: How images are normalised; by default the model's own.
        layers: Whose gradient norms are recorded.
        batch_size: Images at once.

    Raises:
        InvalidArgument: If the images are none, or a setting is out of range.
        GradScoreError: As :func:`gradscore.recorded.extract`.
    """
    network = create_model(model) if isinstance(model, str) else model
    first = first_in_memory(images)
    channels = len(first) if isinstance(first, Tensor) else CHANNELS["RGB"]
    known = _known_preprocessing(network, preprocessing, channels)
    if isinstance(first, Tensor):
        # They have the model's size already.
        chosen = replace(known, resize=None, crop=None) if known else _unchanged(len(first))
    elif known is None:
        raise InvalidArgument(
            "Expected how pictures become the model's input, got none; give `preprocessing="
            "{'resize': S, 'crop': S, 'mean': M, 'std': D}`, or tensors as the model takes them."
        )
    else:
        chosen = known
    how = {"mean": chosen.mean, "std": chosen.std} if known else {}
    sets = {ID: ("id", images_in_memory(ID, images, **how))}
    if fit is not None:
        sets[FIT] = ("fit", images_in_memory(FIT, fit, **how))
    for _, entry in sets.values():
        entry.reader.read(0)  # says at once where images are not normalised as they should be
    with tempfile.TemporaryDirectory(prefix="gradscore-") as folder:
        run = extract(
            network,
            sets,
            Path(folder) / "run",
            layers=layers,
            record=("surrogates",) if known else (),
            preprocessing=chosen,
            batch_size=batch_size,
            device=_device_of(network),
        )
        yield run.store


def _known_preprocessing(
    network: nn.Module, given: Preprocessing | Mapping[str, Any] | None, channels: int
) -> Preprocessing | None:
    """Return how images are normalised: as given, on top of the model's own; or None."""
    own = getattr(network, "preprocessing", None)
    if isinstance(own, Mapping):
        own = Preprocessing.from_dict(own)
    if isinstance(given, Preprocessing):
        return given
    if given is None:
        return own if isinstance(own, Preprocessing) else None
    if isinstance(own, Preprocessing):
        return resolve_model(network, None, given).preprocessing
    mode = _unchanged(channels).mode
    return Preprocessing.from_dict({"resize": None, "crop": None, "mode": mode, **given})


def _unchanged(channels: int) -> Preprocessing:
    """Return the preprocessing that leaves floating images as they are.

    Raises:
        InvalidArgument: If they are neither grey nor in colours.
    """
    modes = {count: mode for mode, count in CHANNELS.items()}
    if channels not in modes:
        raise InvalidArgument(f"Expected images of 1 or 3 channels, got {channels}.")
    return Preprocessing(None, None, (0.0,), (1.0,), mode=modes[channels])


def _device_of(network: nn.Module) -> str:
    """Return where the model is, and stays."""
    first = next(network.parameters(), None)
    return "cuda" if first is not None and first.is_cuda else "cpu"
