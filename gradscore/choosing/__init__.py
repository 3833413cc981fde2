"""Which score to trust for a model, asked of its own ID images."""

from gradscore.choosing.choice import Choice
from gradscore.choosing.chooser import choose, ood_aurocs
from gradscore.choosing.stored import read_choice

__all__ = ["Choice", "choose", "ood_aurocs", "read_choice"]
