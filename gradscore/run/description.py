"""What a run's own facts are called where people read them."""

from gradscore.run.layout import RunInfo

WEIGHTS = {
    "digits": "embedded",
    "python": "of the factory itself",
    "timm": "pretrained, of the library",
    "torchvision": "pretrained, of the library",
    "hf": "of the folder itself",
}
"""What weights a model has by default, by its family."""


def preprocessing_text(about: RunInfo) -> str:
    """Return how a run's pictures are made ready for its model."""
    return ", ".join(f"{field} {value}" for field, value in about.preprocessing.items())


def weights_text(about: RunInfo) -> str:
    """Return where the weights of a run's model come from."""
    family = about.model.partition(":")[0]
    return about.weights or WEIGHTS.get(family, "of the model that was given")
