"""Which score to trust for a model, asked of its own ID images."""

from gradscore.choosing.choice import Choice
from gradscore.choosing.chooser import choose, choose_by_half, ood_aurocs
from gradscore.choosing.stored import asked_fit, read_choice

__all__ = ["Choice", "asked_fit", "choose", "choose_by_half", "ood_aurocs", "read_choice"]
