"""Models by name: built, filled with weights, and given the preprocessing they expect."""

import ast
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradscore.errors import GradScoreError, ModelError
from gradscore.models import families, huggingface, libraries
from gradscore.models.weights import fit_weights, load_weights

RANDOM = "random"
SEED = 0

FAMILIES = {
    "digits": families.build_digits,
    "cifar": families.build_cifar,
    "bit": families.build_bit,
    "timm": libraries.build_timm,
    "torchvision": libraries.build_torchvision,
    "hf": huggingface.build,
    "python": libraries.build_python,
}
"""What builds the models of each family: ``(name, arguments, pretrained)`` to the model and its
preprocessing."""

RENAMED = {"bit": families.bit_names, "cifar": families.cifar_names}
"""What turns the names in a family's weight files into its models' own, where they differ."""


@dataclass(frozen=True)
class ModelSpec:
    """What a spec says; ``str`` gives its canonical text.

    Attributes:
        family: The part before the colon, or all of it.
        name: The part after the colon, or empty.
        arguments: Keyword arguments, as Python values.
    """

    family: str
    name: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "ModelSpec":
        """Return the parts of a spec.

        Values are read as Python literals where they are such (``1000``, ``0.5``, ``None``,
        ``(1, 2)``; ``true`` and ``false`` too), otherwise as text.

        >>> ModelSpec.parse("timm:mobilenetv2_100?pad_type=same&num_classes=10").arguments
        {'pad_type': 'same', 'num_classes': 10}

        Raises:
            ModelError: If an argument has no ``=`` or comes twice.
        """
        if not isinstance(text, str):
            raise ModelError(f"Expected a model spec such as timm:resnet18, got {text!r}.")
        head, _, query = text.strip().partition("?")
        family, _, name = head.partition(":")
        arguments: dict[str, Any] = {}
        for part in filter(None, query.split("&")):
            keyword, equals, value = part.partition("=")
            if not (equals and keyword.isidentifier()) or keyword in arguments:
                raise ModelError(
                    f"Expected ?keyword=value&... in the model spec {text!r}, got {part!r}."
                )
            arguments[keyword] = _literal(value)
        return cls(family, name, arguments)

    def __str__(self) -> str:
        """Return the canonical text: arguments sorted, values as Python writes them."""
        query = "&".join(f"{key}={value}" for key, value in sorted(self.arguments.items()))
        return (
            self.family + (f":{self.name}" if self.name else "") + (f"?{query}" if query else "")
        )


def _literal(value: str) -> Any:
    if value in ("true", "false"):
        return value == "true"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


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


def weights_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a model's weights, whatever file, device or order they came in.

    Taken over the persistent parameters and buffers sorted by name: name, type, shape and bytes
    of each.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, Tensor):
            continue
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return digest.hexdigest()
