"""What is returned: per-sample gradient norms, however they were computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from gradscore.norms import combine_norms
from gradscore.selection import select


@dataclass(frozen=True)
class GradientNorms:
    """Per-sample gradient norms of parameter tensors.

    Attributes:
        parameters: Names of the ``K`` parameter tensors.
        norms: L_p norm of each sample's gradient with respect to each tensor, shape
            ``[batch, K]``, in nats per unit of weight, never negated.
        p: The order they were taken with.
        rules: What served each parameter, by its name.
        groups: Names of groups of parameters, such as ``block4``, and what they hold.
        logits: The model's outputs, shape ``[batch, classes]``, detached; of an empty batch
            ``[0, 0]``. None from the reference and from vmap, which keep none.
    """

    parameters: tuple[str, ...]
    norms: Tensor
    p: float
    rules: Mapping[str, str]
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict, repr=False)
    logits: Tensor | None = field(default=None, repr=False)

    def group(self, layers: str) -> Tensor:
        """Return the norm of the gradient with respect to several tensors together.

        Args:
            layers: A group's name, ``all``, or a comma list of names and globs.

        Returns:
            Norms, shape ``[batch]``.

        Raises:
            InvalidArgument: If nothing of that name was asked for.
        """
        chosen = set(select(self.parameters, self.groups, layers))
        columns = [i for i, name in enumerate(self.parameters) if name in chosen]
        return combine_norms(self.norms[:, columns].unbind(dim=1), self.p)
