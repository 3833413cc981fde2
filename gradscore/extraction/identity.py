"""What a run is about, found out from the model and held to what the run already says."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscore.errors import InvalidArgument, RunError
from gradscore.layers.groups import parameter_groups
from gradscore.layers.head import Head, find_head
from gradscore.models import create_model
from gradscore.models.libraries import IMAGENET
from gradscore.models.preprocessing import CHANGEABLE, Preprocessing
from gradscore.models.weights import absolute, weights_sha256
from gradscore.outputs import OutputWatch, check_classes, logits_of
from gradscore.run import HeadInfo, RunInfo, RunStore, require_newest
from gradscore.selection import differentiable_parameters

LIBRARIES = (
    "gradscore",
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "scikit-learn",
    "h5py",
    "pillow",
)
IDENTITY = (
    "model",
    "weights_sha256",
    "preprocessing",
    "precision",
    "classes",
    "features",
    "input_shape",
)
"""Fields of ``run.json`` in which every extraction into a run must agree."""


@dataclass(frozen=True)
class Subject:
    """The model that is asked, and how pictures are made ready for it.

    Attributes:
        assumed: Whether the preprocessing is a guess, as the model says nothing of it.
    """

    model: nn.Module
    preprocessing: Preprocessing
    spec: str
    weights: str | None
    assumed: bool = False


def resolve_model(
    model: str | nn.Module,
    weights: str | os.PathLike | None,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
) -> Subject:
    """Return the model behind a spec, or a given one, with its preprocessing.

    A mapping overrides some fields of the model's own preprocessing.

    Raises:
        InvalidArgument: If a module comes without preprocessing, or with a weight file.
        ModelError: If the spec is unknown.
        WeightsError: If the weights do not fit.
    """
    if isinstance(model, str):
        network = create_model(model, weights)
        text = None if weights is None else absolute(weights)
    elif isinstance(model, nn.Module):
        if weights is not None:
            raise InvalidArgument(f"Expected weights with a model's spec only, got {weights!r}.")
        network, text = model, None
    else:
        raise InvalidArgument(f"Expected a model's spec or an nn.Module, got {model!r}.")
    chosen, overrides = getattr(network, "preprocessing", None), {}
    if isinstance(chosen, Mapping):
        chosen = Preprocessing.from_dict(chosen)
    if isinstance(preprocessing, Mapping) and chosen is None:
        chosen = Preprocessing.from_dict(preprocessing)
    elif isinstance(preprocessing, Mapping):
        overrides = _known_fields(preprocessing)
    elif preprocessing is not None:
        chosen = preprocessing
    if not isinstance(chosen, Preprocessing):
        raise InvalidArgument(
            "Expected preprocessing with a module of your own, such as `preprocessing={'resize': "
            f"32, 'crop': 32, 'mean': 0.5, 'std': 0.5}}`, got {chosen!r}."
        )
    kind = type(network)
    spec = getattr(network, "spec", None) or f"{kind.__module__}.{kind.__qualname__}"
    assumed = chosen is IMAGENET
    return Subject(network, chosen.with_overrides(**overrides), spec, text, assumed)


def _known_fields(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in overrides:
        if name not in CHANGEABLE:
            raise InvalidArgument(
                f"Expected preprocessing with fields of {', '.join(CHANGEABLE)}, got {name!r}."
            )
    return overrides


def describe(
    subject: Subject,
    image: Tensor,
    *,
    precision: str,
    blocks: Mapping[str, str | Sequence[str]],
) -> tuple[RunInfo, Head, dict[str, NDArray]]:
    """Return what the run's file is to say, the last layer, and its weights.

    Args:
        subject: The model, on the device it will run on.
        image: One preprocessed image, shape ``[1, channels, height, width]``, on that device.
        precision: The type of the forward.
        blocks: The user's groups of parameters.

    Raises:
        ModelError: If the model does not return two or more logits, or is in train mode.
        InvalidArgument: If ``blocks`` cannot be.
    """
    model = subject.model
    images = torch.cat([image, image.flip(-1)])
    head = find_head(model, images)
    with torch.no_grad():
        logits = logits_of(model(images), len(images))
    check_classes(logits)
    parameters = differentiable_parameters(model)
    arrays = {}
    if head.closed_form:
        module = model.get_submodule(head.module)
        arrays["weight"] = module.weight.detach().float().flatten(1).cpu().numpy()
        if module.bias is not None:
            arrays["bias"] = module.bias.detach().float().cpu().numpy()
    info = RunInfo(
        model=subject.spec,
        weights=subject.weights,
        weights_sha256=weights_sha256(model),
        preprocessing=subject.preprocessing.to_dict(),
        precision=precision,
        classes=logits.shape[1],
        features=arrays["weight"].shape[1] if arrays else 0,
        input_shape=tuple(image.shape[1:]),
        head=HeadInfo(head.module, head.weights, head.bias, head.closed_form, head.reason),
        parameters={name: parameter.numel() for name, parameter in parameters.items()},
        groups=parameter_groups(model, head, blocks),
        versions=library_versions(),
        notice=OutputWatch().told(logits),
    )
    return info, head, arrays


def library_versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def check_format(path: Path) -> None:
    """Refuse a run of an older format before any work is done for it.

    Raises:
        RunError: If there is such a run, or one that is damaged.
    """
    if os.path.lexists(path / "run.json"):
        require_newest(RunStore(path).info, path)


def open_run(path: Path, info: RunInfo, head: Mapping[str, NDArray], *, blocks: bool) -> RunStore:
    """Make a run, or open the one that is there if it agrees; the writer's lock is held.

    What was deleted from the run that is there, for being damaged, is recorded again.

    Args:
        path: The run's directory.
        info: What this extraction is about.
        head: The last layer's weights.
        blocks: Whether the user gave groups; then they must agree too.

    Raises:
        RunError: If the run there differs in a field (both values are named), is damaged, is
            being written, or cannot be written.
    """
    if not os.path.lexists(path / "run.json"):
        return RunStore.create(path, info, head)
    store = RunStore.open_for_writing(path)
    try:
        for field in (*IDENTITY, *(("groups",) if blocks else ())):
            require_equal(
                f"The run {path}", field, _plain(getattr(store.info, field)), getattr(info, field)
            )
        store.repair(head)
    except BaseException:
        store.close()
        raise
    return store


def require_equal(what: str, field: str, old: Any, new: Any) -> None:
    """Raise unless what is recorded agrees with what is asked.

    Raises:
        RunError: Naming the field and both values; of mappings only where they differ.
    """
    new = _plain(new)
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                field, old, new = f"{field}.{key}", old.get(key), new.get(key)
                break
    raise RunError(
        f"{what} has {field} {old!r}, got {new!r}; give the same, or choose another run."
    )


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON would give it back."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
