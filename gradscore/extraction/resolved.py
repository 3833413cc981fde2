"""What an extraction is about: the model, its last layer and the sets, before any is recorded."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gradscore.choices import STORED
from gradscore.data import ImageSet
from gradscore.data.surrogates import surrogate_set, surrogates_for
from gradscore.errors import InvalidArgument
from gradscore.extraction.classifier import Classifier, device_for
from gradscore.extraction.sets import Opener, first_image, open_fit_set, open_sets
from gradscore.extraction.settings import Settings
from gradscore.layers.groups import parameter_groups
from gradscore.layers.head import Head, find_head
from gradscore.models import create_model, weights_sha256
from gradscore.models.libraries import IMAGENET, class_names_of, known_class_names
from gradscore.models.preprocessing import CHANGEABLE, Preprocessing
from gradscore.models.weights import absolute
from gradscore.outputs import OutputWatch, check_classes, logits_of
from gradscore.run import HeadInfo, RunInfo, RunStore, require_newest
from gradscore.run.names import RUN_FILE
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


@dataclass(frozen=True)
class ResolvedModel:
    """The model that is asked, and how pictures are made ready for it.

    Attributes:
        assumed: Whether the preprocessing is a guess, as the model says nothing of it.
    """

    module: nn.Module
    preprocessing: Preprocessing
    spec: str
    weights: str | None
    assumed: bool = False

    @property
    def pixels(self) -> Preprocessing:
        """From a picture to values of 0..1 at the model's input size."""
        channels = len(self.preprocessing.mean)
        return replace(self.preprocessing, mean=(0.0,) * channels, std=(1.0,) * channels)

    def preprocessing_of(self, set_name: str) -> Preprocessing:
        """Return what the images of a set undergo; surrogates have the model's size already."""
        if "~" in set_name:
            return replace(self.preprocessing, resize=None, crop=None)
        return self.preprocessing

    @property
    def notices(self) -> Sequence[str]:
        """What the user should know before the first image: what images of a factory undergo."""
        if not self.spec.startswith("python:"):
            return ()
        fields = self.preprocessing.to_dict()
        how = ", ".join(f"{name} {fields[name]}" for name in CHANGEABLE)
        assumed = "; what was not given is ImageNet's, as the model has no `preprocessing`"
        return (
            f"{self.spec}: {how}{assumed if self.assumed else ''}; "
            "`preprocessing={'resize': S, 'crop': S, 'mean': M, 'std': D}` changes it.",
        )


@dataclass(frozen=True)
class Resolved:
    """What an extraction is about.

    Attributes:
        model: The model and its preprocessing.
        classifier: The model on its device.
        image: One preprocessed image on that device, shape ``[1, channels, height, width]``.
        info: What the run's file is to say.
        head: The last layer's weights by name, if it has a closed form.
        sets: The images by set name.
        left_out: What was wrong with the sets that were left out.
        labelled: The set to fit to, or None.
    """

    model: ResolvedModel
    classifier: Classifier
    image: Tensor
    info: RunInfo
    head: Mapping[str, NDArray]
    sets: Mapping[str, ImageSet]
    left_out: Sequence[str]
    labelled: ImageSet | None


def resolve(settings: Settings) -> Resolved:
    """Build the model, open the sets, and find out what the run's file is to say.

    Raises:
        InvalidArgument: If the model, its preprocessing or the groups cannot be.
        ModelError: If the model cannot be built, does not return logits, or is in train mode.
        WeightsError: If the weights do not fit.
        DataError: If a set cannot be opened.
        NotRecorded: If there is no set to fit to of that name.
        RunError: If the run that is there is damaged, or of an older format.
    """
    recorded = {}
    if os.path.lexists(settings.run / RUN_FILE):
        there = RunStore(settings.run)
        require_newest(there.info, settings.run)
        recorded = there.sets
    model = resolve_model(settings.model, settings.weights, settings.preprocessing)
    for sentence in getattr(model.module, "notices", ()):
        settings.tell(sentence)
    device = device_for(settings.device, settings.precision)
    image = first_image(settings, model.preprocessing)
    model.module.to(device)
    image = image.to(device)
    info, head, arrays = describe(
        model, image, precision=settings.precision, blocks=settings.blocks
    )
    info = replace(info, stored=settings.store)
    if settings.store != STORED[0] and not arrays:
        raise InvalidArgument(
            f"Expected store all, got {settings.store!r}: the last layer does not make the logits "
            f"of features ({info.head.reason})."
        )
    class_names = known_class_names(model.module, info.classes)
    opener = Opener(class_names, info.classes, settings.max_pixels)
    sets, left_out = open_sets(settings, opener, recorded)
    if "surrogates" in settings.record:
        sets |= surrogate_sets(settings, sets, model, info.input_shape)
    labelled = None
    if settings.fit is not None:
        labelled = open_fit_set(settings.fit, sets, recorded, opener)
    classifier = Classifier(model.module, head, device, settings.precision)
    return Resolved(model, classifier, image, info, arrays, sets, left_out, labelled)


def surrogate_sets(
    settings: Settings,
    sets: Mapping[str, ImageSet],
    model: ResolvedModel,
    shape: tuple[int, ...],
) -> dict[str, ImageSet]:
    """Return the surrogates of each ID set, by set name ``NAME~KIND``.

    Raises:
        InvalidArgument: If there is no ID set.
    """
    ids = [name for name in sets if settings.sets[name][0] == "id"]
    if not ids:
        raise InvalidArgument("Expected an ID set to make surrogates of, got none.")
    return {
        f"{name}~{kind}": surrogate_set(kind, sets[name], model.pixels)
        for name in ids
        for kind in surrogates_for(*shape[1:])
    }


def resolve_model(
    model: str | nn.Module,
    weights: str | os.PathLike | None,
    preprocessing: Preprocessing | Mapping[str, Any] | None,
) -> ResolvedModel:
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
    return ResolvedModel(network, chosen.with_overrides(**overrides), spec, text, assumed)


def _known_fields(overrides: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in overrides:
        if name not in CHANGEABLE:
            raise InvalidArgument(
                f"Expected preprocessing with fields of {', '.join(CHANGEABLE)}, got {name!r}."
            )
    return overrides


def describe(
    model: ResolvedModel,
    image: Tensor,
    *,
    precision: str,
    blocks: Mapping[str, str | Sequence[str]],
) -> tuple[RunInfo, Head, dict[str, NDArray]]:
    """Return what the run's file is to say, the last layer, and its weights.

    Args:
        model: The model, on the device it will run on.
        image: One preprocessed image, shape ``[1, channels, height, width]``, on that device.
        precision: The type of the forward.
        blocks: The user's groups of parameters.

    Raises:
        ModelError: If the model does not return two or more logits, or is in train mode.
        InvalidArgument: If ``blocks`` cannot be.
    """
    module = model.module
    images = torch.cat([image, image.flip(-1)])
    head = find_head(module, images)
    with torch.no_grad():
        logits = logits_of(module(images), len(images))
    check_classes(logits)
    parameters = differentiable_parameters(module)
    arrays = head_arrays(module, head)
    info = RunInfo(
        model=model.spec,
        weights=model.weights,
        weights_sha256=weights_sha256(module),
        preprocessing=model.preprocessing.to_dict(),
        precision=precision,
        classes=logits.shape[1],
        features=arrays["weight"].shape[1] if arrays else 0,
        input_shape=tuple(image.shape[1:]),
        head=HeadInfo(head.module, head.weights, head.bias, head.closed_form, head.reason),
        parameters={name: parameter.numel() for name, parameter in parameters.items()},
        groups=parameter_groups(module, head, blocks),
        versions=library_versions(),
        notice=OutputWatch().fault(logits),
        class_names=class_names_of(module, logits.shape[1]),
    )
    return info, head, arrays


def head_arrays(module: nn.Module, head: Head) -> dict[str, NDArray]:
    """Return the ``weight [classes, features]`` and ``bias [classes]`` of a linear last layer.

    Args:
        module: The classifier.
        head: Its last layer; where it has no closed form, nothing is returned.
    """
    if not head.closed_form:
        return {}
    last = module.get_submodule(head.module)
    arrays = {"weight": last.weight.detach().float().flatten(1).cpu().numpy()}
    if last.bias is not None:
        arrays["bias"] = last.bias.detach().float().cpu().numpy()
    return arrays


def library_versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
