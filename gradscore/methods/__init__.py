"""OOD scores from a recorded run, one file a family; higher always means more ID."""

from gradscore.errors import InvalidArgument
from gradscore.methods.confidence import ENERGY, KL, MAX_LOGIT, MSP
from gradscore.methods.gradnorm import GRADNORM, U, V
from gradscore.methods.lee_alregib import LEE_ALREGIB
from gradscore.methods.mahalanobis import MAHALANOBIS, MAHALANOBIS_STAGES
from gradscore.methods.odin import ODIN
from gradscore.methods.question import Method, Question, column_names, make_questions

__all__ = [
    "METHODS",
    "Method",
    "Question",
    "column_names",
    "find_method",
    "make_questions",
]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(GRADNORM, U, V, KL),
        *(MSP, MAX_LOGIT, ENERGY, ODIN),
        *(MAHALANOBIS, MAHALANOBIS_STAGES, LEE_ALREGIB),
    )
}
"""Every method by name."""


def find_method(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        InvalidArgument: If there is none; the message lists all.
    """
    if name not in METHODS:
        raise InvalidArgument(f"Unknown method {name!r}; known: {', '.join(METHODS)}.")
    return METHODS[name]
