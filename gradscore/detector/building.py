"""Score and model of a detector, given or named by a file; its images as a run in memory."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gradscore.detector.calibration import Calibration, calibrate_run, learns
from gradscore.detector.file import DetectorInfo
from gradscore.detector.live import RowSource, device_of, example, rows_in_memory
from gradscore.detector.wanted import Wanted
from gradscore.errors import (
    DetectorError,
    GradScoreError,
    InvalidArgument,
    ModelError,
    reason_of,
)
from gradscore.extraction.classifier import Classifier
from gradscore.extraction.plan import stages_pass
from gradscore.extraction.resolved import describe, resolve_model
from gradscore.methods import METHODS, RecordedRun, find_method, make_spec
from gradscore.methods.custom import OWN, import_method, own_digest
from gradscore.methods.memory_run import MemoryRun, set_entry
from gradscore.models import FAMILIES, ModelSpec, create_model
from gradscore.models.preprocessing import Preprocessing
from gradscore.run import model_of
from gradscore.run.hints import must_be_named
from gradscore.run.layout import BLOCKS

BATCH = 64
"""Images of a tensor that are computed at once."""
UNKNOWN = (
    "nothing is known of how pictures become the model's input: their pixels are taken as numbers "
    "of 0 to 1; calibrate with `preprocessing=...` if that is not so"
)
IMAGES, FIT = "images", "fit"
"""Sets of a run in memory."""


def run_model(run: RecordedRun, model: nn.Module | str | None) -> nn.Module:
    """Return the model of a run: the given one, or what the run names.

    Raises:
        RunError: If the user must name the model and did not, or named another.
        ModelError: If it cannot be built.
        WeightsError: If its weights cannot be had.
    """
    given = model if model is not None else run.model
    if isinstance(given, nn.Module):
        return given
    return create_model(*model_of(run.path, run.info, given))


def import_score(path: Path, info: DetectorInfo, method: str | None) -> None:
    """Import the score of a file, where it is a function of the user's own and is named again.

    Raises:
        DetectorError: If another score is named, none where one is needed, or its functions are
            no longer those that were calibrated.
        InvalidArgument: If there is no such function.
    """
    if method is not None and method != info.method:
        raise DetectorError(
            f"Expected the score of the detector {str(path)!r}, {info.method!r}, got "
            f"{method!r}; leave out `method`, or name that score."
        )
    own = info.method.startswith(OWN)
    if own and method is None and info.method not in METHODS:
        raise DetectorError(
            f"The detector {str(path)!r} names the score {info.method!r}, which is code: it "
            f"is imported only where you give it, too: add `method={info.method!r}` if you trust "
            "it."
        )
    if own:
        import_method(info.method)
    if info.own and info.own != own_digest(find_method(info.method)):
        raise DetectorError(
            f"The score {info.method!r} is not the function that was calibrated: its code, or "
            f"what it refers to, is not that of the detector {str(path)!r}; calibrate again."
        )


def model_for(
    path: Path,
    info: DetectorInfo,
    model: nn.Module | str | None,
    weights: str | os.PathLike | None,
) -> nn.Module:
    """Return the model of a detector's file: the given one, or what the file names.

    Args:
        path: The file.
        info: What it says.
        model: A module or a spec; None for the file's.
        weights: Weight file; None for the file's.

    Raises:
        DetectorError: If the user must name the model and did not, or makes pictures ready
            otherwise.
        InvalidArgument: If weights come with a module.
        ModelError: If it cannot be built.
        WeightsError: If its weights cannot be had.
    """
    if isinstance(model, nn.Module):
        if weights is not None:
            raise InvalidArgument(f"Expected weights with a model's spec only, got {weights!r}.")
        _require_same_preprocessing(path, info, model)
        return model
    if model is None and must_be_named(info.model):
        spec = info.model if _is_spec(info.model) else "SPEC"
        raise DetectorError(
            f"The detector {str(path)!r} names the model {info.model!r}, which could run code or "
            f"fetch files, and is built only where you name it, too: add `model={spec!r}` if you "
            "trust it."
        )
    built = create_model(model or info.model, info.weights if weights is None else weights)
    built.preprocessing = Preprocessing.from_dict(info.preprocessing)
    return built


@contextmanager
def told_of_other(path: Path, info: DetectorInfo, model: nn.Module | str | None) -> Iterator[None]:
    """Say first that another model was named than a detector's, where that does not serve.

    Args:
        path: The file.
        info: What it says.
        model: A module or a spec; None for the file's.

    Raises:
        DetectorError: In place of our errors, where the spec is another than the file's.
    """
    try:
        yield
    except GradScoreError as error:
        named = str(ModelSpec.parse(model)) if isinstance(model, str) else info.model
        if named == info.model or not _is_spec(info.model):
            raise
        raise DetectorError(
            f"The detector {str(path)!r} is of the model {info.model!r}, you named {model!r}. "
            f"{error}"
        ) from error


def _is_spec(model: str) -> bool:
    """Return whether the model that a file names is a spec, not the class of a module."""
    return model.partition("?")[0].partition(":")[0] in FAMILIES


def _require_same_preprocessing(path: Path, info: DetectorInfo, model: nn.Module) -> None:
    """Raise where a model says that its pictures are made ready otherwise than at the calibration.

    Raises:
        DetectorError: With both ways.
    """
    own = getattr(model, "preprocessing", None)
    own = own.to_dict() if isinstance(own, Preprocessing) else own
    kept = Preprocessing.from_dict(info.preprocessing).to_dict()
    if own is not None and Preprocessing.from_dict(own).to_dict() != kept:
        raise DetectorError(
            f"Expected a model of the preprocessing of the detector {str(path)!r}, {kept}, got "
            f"{own}; set the model's `preprocessing` to the first, and make images ready by it."
        )


@contextmanager
def told_damaged(path: Path) -> Iterator[None]:
    """Say that a detector's file is damaged where what it holds makes a score impossible.

    Raises:
        DetectorError: In place of errors that are not ours: what a file holds may be anything.
    """
    try:
        yield
    except GradScoreError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise DetectorError(
            f"The detector {str(path)!r} is damaged: its score cannot be computed "
            f"({reason_of(error)}); make it again with `gradscore calibrate`."
        ) from error


def require_working(path: Path, detector: nn.Module, info: DetectorInfo) -> None:
    """Try a detector of a file once.

    Raises:
        DetectorError: If its model has another number of classes.
    """
    logits = detector(example(info.input_shape).to(device_of(detector))).logits
    if logits.shape[1] != info.classes:
        raise DetectorError(
            f"Expected a model of {info.classes} classes, as the detector {str(path)!r} says, got "
            f"one of {logits.shape[1]}."
        )


def calibrate_model(
    model: nn.Module,
    images: Any,
    fit: Any,
    wanted: Wanted,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
) -> Calibration:
    """Return the threshold that images in memory give.

    Args:
        model: The classifier, in evaluation mode.
        images: ID images: a tensor, or batches of these, alone or with class numbers.
        fit: Images that the score learns from, or None.
        wanted: What the detector shall keep; without ``fit``.
        preprocessing: How a picture becomes the model's input; by default the model's own.

    Raises:
        InvalidArgument: If there are no images, or they have several shapes.
    """
    wanted = wanted.of_model()
    if fit is not None:
        wanted = replace(wanted, options={**wanted.options, "fit": FIT})
    if images is None:
        raise InvalidArgument("Expected ID images to calibrate from, got none; give `images`.")
    learns(wanted)
    batches = iter(_batches(images))
    begin = next(batches, None)
    first = begin[0] if isinstance(begin, tuple | list) and begin else begin
    if not isinstance(first, Tensor) or first.ndim < 2 or not len(first):
        raise InvalidArgument(
            "Expected images as a tensor [n, ...] or batches of such, got "
            f"{type(images).__name__} of {type(first).__name__}."
        )
    shape = tuple(first.shape[1:])
    run, source = _empty_run(model, shape, wanted, preprocessing)
    rows = {IMAGES: rows_in_memory(source, chain([begin], batches), shape)}
    if fit is not None:
        rows[FIT] = rows_in_memory(source, _batches(fit), shape)
    for name, arrays in rows.items():
        role, count = "fit" if name == FIT else "id", len(arrays["index"])
        run.info.sets[name] = set_entry(name, role, count, tuple(run.info.passes))
    filled = MemoryRun(run.info, run.head(), rows)
    return calibrate_run(filled, wanted)


def _batches(images: Any) -> Iterable[Any]:
    return images.split(BATCH) if isinstance(images, Tensor) else images


def _empty_run(
    model: nn.Module,
    shape: tuple[int, ...],
    wanted: Wanted,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
) -> tuple[MemoryRun, RowSource]:
    """Return a run of the model without rows, and what computes rows for it."""
    assumed = preprocessing
    if assumed is None and getattr(model, "preprocessing", None) is None:
        assumed = {"resize": None, "crop": None, "mean": [0.0] * shape[0], "std": [1.0] * shape[0]}
        assumed["mode"] = "L" if shape[0] == 1 else "RGB"
    resolved = resolve_model(model, None, assumed)
    device = device_of(model)
    drawn = example(shape).to(device)
    info, head, arrays = describe(resolved, drawn[:1], precision="float32", blocks={})
    if assumed is not preprocessing:
        info.notice = info.notice or UNKNOWN
    classifier = Classifier(model, head, device, "float32")
    with suppress(ModelError):  # a model without stages has no block means
        info.passes[BLOCKS] = stages_pass(classifier, drawn)
    run = MemoryRun(info, arrays)
    if "layers" in find_method(wanted.method).options:
        spec = make_spec(wanted.method, **wanted.options)
        spec.definition.plan(spec, run)  # adds the norms that it reads
    return run, RowSource(classifier, list(info.passes.values()), shape)
