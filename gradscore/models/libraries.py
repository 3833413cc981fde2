"""Models of libraries and of the user's own factories: preprocessing, downloads, class names."""

import difflib
import importlib
import inspect
import math
import os
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from torch import nn

from gradscore.errors import ModelError, WeightsError
from gradscore.models.preprocessing import Preprocessing

IMAGENET = Preprocessing(
    resize=256, crop=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)

LOADING = {
    *("checkpoint_path", "cache_dir"),
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_model_args"),
}
"""Arguments that lead timm to files and addresses, some of which it unpickles."""

PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
IMAGENET_FAMILIES = ("timm", "torchvision")
IMAGENET_CLASSES = 1000


def build_timm(name: str, arguments: dict, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return a timm model and the preprocessing of its data config.

    Args:
        name: A name that timm knows, with or without a tag: ``resnet18``, ``resnet18.a1_in1k``.
        arguments: Keyword arguments of ``timm.create_model``.
        pretrained: Whether timm is to fetch its own weights.

    Raises:
        ModelError: If timm does not know the name, or refuses the arguments.
        WeightsError: If the weights cannot be fetched.
    """
    import timm

    if not timm.is_model(name):
        known = timm.list_models() + timm.list_models(pretrained=True)
        raise ModelError(f"timm knows no model {name!r}{_suggest(name, known)}")
    own = sorted(LOADING & set(arguments))
    if own:
        raise ModelError(
            f"timm:{name} takes its weights from `weights='FILE'` alone, not from {own[0]}."
        )
    with cache_alone_if_offline():
        model = _created(
            lambda fetch: timm.create_model(name, pretrained=fetch, **arguments),
            f"timm:{name}",
            pretrained,
        )
    config = timm.data.resolve_model_data_config(model)
    channels, *size = config["input_size"]  # of the pretrained model, whatever the arguments
    side = arguments.get("img_size", size)
    size = [side, side] if isinstance(side, int) else side
    config["input_size"] = (arguments.get("in_chans", channels), *size)
    return model, _timm_preprocessing(config)


def _timm_preprocessing(config: dict[str, Any]) -> Preprocessing:
    channels, *size = config["input_size"]
    if channels not in (1, 3):
        raise ModelError(f"Expected a model of 1 or 3 channels, got one of {channels}.")
    grey = channels == 1
    mean, std = config["mean"], config["std"]
    resize = [math.floor(side / config["crop_pct"]) for side in size]
    square = size[0] == size[1]
    return Preprocessing(
        # timm squashes where it says so; a rectangular input has no one short side either.
        resize=resize[0] if square and config["crop_mode"] != "squash" else tuple(resize),
        crop=tuple(size),
        mean=(sum(mean) / len(mean),) if grey else tuple(mean),
        std=(sum(std) / len(std),) if grey else tuple(std),
        interpolation=config["interpolation"],
        mode="L" if grey else "RGB",
    )


def build_torchvision(
    name: str, arguments: dict, pretrained: bool
) -> tuple[nn.Module, Preprocessing]:
    """Return a torchvision classifier and the preprocessing of its default weights.

    GoogLeNet and Inception v3 rescale their input only where torchvision loads the weights
    itself; here they always do, so that the same file gives the same model.

    Raises:
        ModelError: If torchvision does not know the name, or refuses the arguments.
        WeightsError: If the weights cannot be fetched.
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ModelError(f"torchvision knows no classifier {name!r}{_suggest(name, known)}")
    weights = models.get_model_weights(name).DEFAULT
    accepted = inspect.signature(models.get_model_builder(name)).parameters
    if not pretrained and name in ("googlenet", "inception_v3"):
        arguments = {"transform_input": True, "init_weights": False, **arguments}
    if "weights" not in accepted or "weights" in arguments:
        raise ModelError(f"torchvision:{name} takes its weights from `weights='FILE'` alone.")
    model = _created(
        lambda fetch: models.get_model(name, weights=weights if fetch else None, **arguments),
        f"torchvision:{name}",
        pretrained,
    )
    return model, _torchvision_preprocessing(weights.transforms())


def _torchvision_preprocessing(transforms: Any) -> Preprocessing:
    return Preprocessing(
        resize=_side(transforms.resize_size),
        crop=_side(transforms.crop_size),
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        interpolation=transforms.interpolation.value,
    )


def build_python(name: str, arguments: dict, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return what the user's own factory makes, ``package.module:factory``, called once.

    A ``preprocessing`` attribute of the model says what its images undergo: a
    :class:`Preprocessing`, a mapping of its fields, or what torchvision's weights hold as
    ``transforms()``. Without one the common ImageNet one is assumed, to be overridden. Without
    ``weights`` the model is taken with the weights that the factory gives it.

    Raises:
        ModelError: If there is no such module or factory, it fails, or makes no module.
    """
    module_name, colon, factory_name = name.partition(":")
    if not colon or not factory_name:
        raise ModelError(f"Expected python:package.module:factory, got 'python:{name}'.")
    try:
        factory = getattr(importlib.import_module(module_name), factory_name)
    except ImportError as error:
        raise ModelError(f"Cannot import {module_name!r} of python:{name}: {error}") from error
    except AttributeError:
        raise ModelError(f"Module {module_name!r} has no {factory_name!r}.") from None
    model = _created(lambda _: factory(**arguments), f"python:{name}", pretrained=False)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"Expected python:{name} to return a torch.nn.Module, got {type(model).__name__}."
        )
    return model, _own_preprocessing(model, f"python:{name}")


def _own_preprocessing(model: nn.Module, spec: str) -> Preprocessing:
    """Return what a model's images undergo, from its attribute, which is then free.

    Raises:
        ModelError: If the attribute is something else, which would be passed over in silence.
    """
    own = getattr(model, "preprocessing", None)
    if own is None:
        return IMAGENET
    if isinstance(own, Preprocessing):
        return own
    if isinstance(own, Mapping):
        return Preprocessing.from_dict(own)
    if all(hasattr(own, field) for field in ("resize_size", "crop_size", "mean", "std")):
        del model.preprocessing  # torchvision's is a module, and would count as one of the model's
        return _torchvision_preprocessing(own)
    what = "part" if isinstance(own, nn.Module) else "attribute"
    raise ModelError(
        f"Expected `preprocessing` in {spec} as a gradscore.models.preprocessing.Preprocessing "
        "or a mapping of its fields (resize, crop, mean, std), or none, got the "
        f"{what} {type(own).__name__}; rename it."
    )


def _created(create: Any, spec: str, pretrained: bool) -> nn.Module:
    """Return ``create(pretrained)``, with whatever it raises said in one line."""
    try:
        return create(pretrained)
    except Exception as error:  # libraries, downloads and factories raise whatever they like
        reason = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}"
        if pretrained and not isinstance(error, TypeError):
            raise WeightsError(
                f"Cannot fetch the pretrained weights of {spec}: give `weights='FILE'`, or "
                f"`weights='random'`. {reason}"
            ) from error
        raise ModelError(f"Cannot build {spec}. {reason}") from error


def _side(sizes: list[int]) -> int | tuple[int, int]:
    return sizes[0] if len(sizes) == 1 else (sizes[0], sizes[1])


def _suggest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f"; close ones are {', '.join(close)}." if close else f" among its {len(known)}."


@contextmanager
def cache_alone_if_offline() -> Iterator[None]:
    """Let the hub's client look into its cache alone where the hub cannot be found.

    Otherwise it asks again and again, for 46 seconds, before it says so.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def reachable(address: str) -> bool:
    """Say whether the host of a web address is known here, or a proxy may know it."""
    if any(os.environ.get(name) for name in PROXIES):
        return True
    try:
        socket.getaddrinfo(urlsplit(address).hostname, 443)
    except OSError:
        return False
    return True


def known_class_names(model: nn.Module, classes: int) -> dict[str, int] | None:
    """Return the number of each class by its name, or None where no names are known.

    Names are those of the model's ``class_names`` attribute, or of timm's ``pretrained_cfg``. The
    classes of a model of timm or torchvision with 1,000 of them are ImageNet's: WordNet's
    identities and torchvision's names.
    A name that two classes share stands for neither.

    Args:
        model: The classifier.
        classes: The number of its classes.
    """
    names = getattr(model, "class_names", None)
    if names is None:
        names = (getattr(model, "pretrained_cfg", None) or {}).get("label_names")
    if isinstance(names, Mapping):
        names = [str(names[place]) for place in range(classes)] if 0 in names else list(names)
    if names is not None and len(names) == classes:
        return _numbered([str(name) for name in names])
    family = str(getattr(model, "spec", "")).partition(":")[0]
    if classes == IMAGENET_CLASSES and family in IMAGENET_FAMILIES:
        return _imagenet()
    return None


def class_names_of(model: nn.Module, classes: int) -> tuple[str, ...] | None:
    """Return a name for each class in the order of the logits, or None where none are known.

    A class whose name another shares has its number as its name.

    Args:
        model: The classifier.
        classes: The number of its classes.
    """
    known = known_class_names(model, classes)
    if known is None:
        return None
    names: dict[int, str] = {}
    for name, place in known.items():
        names.setdefault(place, name)
    return tuple(names.get(place, str(place)) for place in range(classes))


def _imagenet() -> dict[str, int]:
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet18_Weights

    categories = _numbered(ResNet18_Weights.DEFAULT.meta["categories"])
    return categories | _numbered(ImageNetInfo("imagenet-1k").label_names())


def _numbered(names: list[str]) -> dict[str, int]:
    times = Counter(names)
    return {name: place for place, name in enumerate(names) if times[name] == 1}
