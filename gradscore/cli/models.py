"""What the commands that take a model share: building it, and images to try it on."""

from typing import Any

from gradscore.cli.console import notice

WEIGHTS = {
    "digits": "embedded",
    "python": "of the factory itself",
    "timm": "pretrained, of the library",
    "torchvision": "pretrained, of the library",
    "hf": "of the folder itself",
}
"""What weights a model has by default, by its family."""


def load(spec: str | None, weights: str | None, overrides: dict[str, Any], *, quiet: bool) -> Any:
    """Return the model of ``spec`` (the embedded one by default) with overridden preprocessing.

    What its user should know of how it was made is printed.
    """
    from gradscore.models import create_model

    model = create_model(spec or "digits", weights)
    model.preprocessing = model.preprocessing.with_overrides(**overrides)
    for line in model.notices:
        notice(line, quiet=quiet)
    return model


def preprocessing_text(about: Any) -> str:
    """Return how a run's pictures are made ready for its model."""
    return ", ".join(f"{field} {value}" for field, value in about.preprocessing.items())


def weights_text(about: Any) -> str:
    """Return where the weights of a run's model come from."""
    family = about.model.partition(":")[0]
    return about.weights or WEIGHTS.get(family, "of the model that was given")


def noise(model: Any, count: int) -> Any:
    """Return ``count`` images of uniform noise as the model takes them, from a fixed seed."""
    import numpy as np
    import torch

    prepare = model.preprocessing
    channels, *size = prepare.input_shape()
    rng = np.random.default_rng(0)
    pictures = (rng.integers(0, 256, (*size, channels), dtype=np.uint8) for _ in range(count))
    return torch.stack([prepare(picture) for picture in pictures])
