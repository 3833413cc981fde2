"""Which recorded gradient-norm columns answer a question, or which option would record them."""

from dataclasses import dataclass
from typing import Any

from gradscore.errors import InvalidArgument, ModelError, NotRecorded
from gradscore.extraction.replay import kept_module
from gradscore.methods.question import Question
from gradscore.run import extract_command
from gradscore.selection import select


@dataclass(frozen=True)
class NormColumns:
    """Columns of one pass.

    Attributes:
        name: Name of the pass.
        places: Places of the chosen parameter tensors among its columns.
    """

    name: str
    places: tuple[int, ...]


def kept_below(question: Question, run: Any) -> str | None:
    """Return the kept module that answers where no recorded norms do.

    Raises:
        InvalidArgument: If ``layers`` names no parameter.
        NotRecorded: If there is none either; the message names the option that would.
    """
    try:
        norm_columns(question, run)
    except NotRecorded:
        chosen = select(tuple(run.info.parameters), run.info.groups, question.layers)
        module = kept_module(run, chosen)
        if module is None:
            raise
        return module
    return None


def closed_form_applies(run: Any) -> bool:
    """Return whether the last layer's norm follows from features and logits alone."""
    return run.info.head.closed_form


def require_closed_form(question: Question, run: Any) -> None:
    """Raise unless the last layer is linear at one position.

    Raises:
        ModelError: If U and V do not describe this model's last layer.
    """
    if not closed_form_applies(run):
        raise ModelError(
            f"Method {question.method} needs logits that are W x + b at one position, "
            f"but {run.info.model} has no such last layer: {run.info.head.reason}"
        )


def norm_columns(question: Question, run: Any) -> NormColumns:
    """Return the recorded norms that combine to the answer.

    Args:
        question: A ``gradnorm`` question.
        run: The run's store.

    Raises:
        InvalidArgument: If ``layers`` names no parameter.
        NotRecorded: If no pass holds them; the message holds the command that records them.
    """
    chosen = select(tuple(run.info.parameters), run.info.groups, question.layers)
    recorded = run.find_norms(
        question.target, question.temperature, question.p, chosen, question.layers
    )
    place = {name: k for k, name in enumerate(recorded.parameters)}
    return NormColumns(recorded.name, tuple(place[name] for name in chosen))


def recorded_groups(run: Any) -> list[str]:
    """Return the groups whose norms the run holds for p = 1, T = 1 and the uniform target.

    Returns:
        The run's groups in their order, then ``all`` and ``last``, as in the paper's Table 2.

    Raises:
        NotRecorded: If there is none beside ``last``.
    """
    inner = [group for group in run.info.groups if group not in ("all", "last")]
    recorded = []
    for group in [*inner, "all"]:
        try:
            norm_columns(Question("gradnorm", layers=group), run)
        except (NotRecorded, InvalidArgument):
            continue
        recorded.append(group)
    if not recorded:
        raise NotRecorded(
            "The run holds no gradient norms of inner layers; record them with "
            f"{extract_command(run, '--layers', 'all')}."
        )
    return [*recorded, "last"]
