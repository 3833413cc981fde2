"""Models by name: built, filled with weights, and given the preprocessing they expect."""

from pathlib import Path

import torch
from torch import nn

from gradscore.errors import GradScoreError, ModelError
from gradscore.models import bit, cifar, digits, huggingface, libraries
from gradscore.models.spec import ModelSpec
from gradscore.models.weights import fit_weights, load_weights

RANDOM = "random"
SEED = 0

FAMILIES = {
    "digits": digits.build,
    "cifar": cifar.build,
    "bit": bit.build,
    "timm": libraries.build_timm,
    "torchvision": libraries.build_torchvision,
    "hf": huggingface.build,
    "python": libraries.build_python,
}
"""What builds the models of each family: ``(name, arguments, pretrained)`` to the model and its
preprocessing."""

RENAMED = {"bit": bit.renamed, "cifar": cifar.renamed}
"""What turns the names in a family's weight files into its models' own, where they differ."""


def create_model(spec: str, weights: str | Path | None = None) -> nn.Module:
    """Return a classifier, in evaluation mode and float32, ready to be scored.

    Args:
        spec: ``digits``, ``cifar:resnet20``, ``bit:BiT-S-R101x1``, ``timm:NAME``,
            ``torchvision:NAME``, ``hf:FOLDER`` or ``python:package.module:factory``; keyword
            arguments behind a question mark, ``timm:mobilenetv2_100?pad_type=same``.
        weights: A weight file, or ``FILE#KEY`` for one of several sets in a checkpoint;
            ``random`` for the library's own initialisation from a fixed seed, so that a spec
            always gives the same weights; None for its pretrained weights.

    Returns:
        The model, with four attributes: ``preprocessing``, a
        :class:`~gradscore.models.preprocessing.Preprocessing`; ``spec``, the canonical spec;
        ``class_names``, where they are known, else None; and ``notices``, what its user should
        know of how it was made, in sentences.

    Raises:
        ModelError: If the spec is unknown or malformed, or the model cannot be built.
        WeightsError: If the weights cannot be fetched or read, or do not fit.
    """
    parsed = ModelSpec.parse(spec)
    if parsed.family not in FAMILIES:
        raise ModelError(f"Expected a model spec of {', '.join(FAMILIES)}, got {spec!r}.")
    build = FAMILIES[parsed.family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        try:
            model, preprocessing = build(parsed.name, parsed.arguments, weights is None)
        except GradScoreError:
            raise
        except TypeError as error:  # an argument that the family's own class does not take
            raise ModelError(f"Cannot build {spec}. {error}") from error
    notices: tuple[str, ...] = ()
    if weights is not None and str(weights) != RANDOM:
        rename = RENAMED.get(parsed.family, dict)
        notices = fit_weights(model, load_weights(weights), rename)
    elif weights is None and parsed.family == "python":
        notices = (f"The weights are those that {parsed} gives; `weights='FILE'` takes others.",)
    model = model.float().eval()
    model.preprocessing, model.spec, model.notices = preprocessing, str(parsed), notices
    model.class_names = getattr(model, "class_names", None)
    return model
