"""What a model's classes are called, where it is known, so that names can stand for labels."""

from collections import Counter
from collections.abc import Mapping

from torch import nn

IMAGENET_FAMILIES = ("timm", "torchvision")
IMAGENET_CLASSES = 1000


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


def _imagenet() -> dict[str, int]:
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet18_Weights

    categories = _numbered(ResNet18_Weights.DEFAULT.meta["categories"])
    return categories | _numbered(ImageNetInfo("imagenet-1k").label_names())


def _numbered(names: list[str]) -> dict[str, int]:
    times = Counter(names)
    return {name: place for place, name in enumerate(names) if times[name] == 1}
