"""One score with its settings, what a method is, and how settings are named in tables."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from torch import Tensor

from gradscore.errors import InvalidArgument
from gradscore.methods.block import Block, Shared
from gradscore.norms import check_order, number_name
from gradscore.objective import check_epsilon, check_target, check_temperature

OPTIONS = ("layers", "p", "temperature", "target", "epsilon", "fit")
_SHORT = {"temperature": "T"}
_CHECKS = {
    "p": check_order,
    "temperature": check_temperature,
    "target": check_target,
    "epsilon": check_epsilon,
}


@dataclass(frozen=True)
class Question:
    """A method with its settings; options left out take the method's defaults.

    An option that the method does not honour stays None.

    Args:
        method: A name of :data:`gradscore.methods.METHODS`.
        layers: Parameters whose gradient is scored: a group, or a glob over names.
        p: Order of the norm.
        temperature: Softmax temperature.
        target: ``uniform`` or ``one-hot``.
        epsilon: Magnitude of the input perturbation, in units of the normalised input.
        fit: Name of the labelled ID set that a fitted method learns from.

    Raises:
        InvalidArgument: If the method is unknown, does not honour an option that is given, needs
            one that is missing, or an option is out of range.
    """

    method: str
    layers: str | None = None
    p: float | None = None
    temperature: float | None = None
    target: str | None = None
    epsilon: float | None = None
    fit: str | None = None

    def __post_init__(self) -> None:
        """Fill in the method's defaults and check every option."""
        from gradscore.methods import find_method

        method = find_method(self.method)
        for option in OPTIONS:
            value = getattr(self, option)
            if value is not None and option not in method.options:
                raise InvalidArgument(
                    f"Method {self.method} does not honour {option}; it honours "
                    f"{', '.join(method.options) or 'no option'}."
                )
            if value is None:
                value = method.options.get(option)
            if value is None and option in method.required:
                raise InvalidArgument(
                    f"Method {self.method} needs the option {option}; give `{option}=...`."
                )
            if value is not None and option in _CHECKS:
                value = _CHECKS[option](value)
            object.__setattr__(self, option, value)

    def settings(self) -> dict[str, str]:
        """Return the honoured options as canonical text, in a fixed order."""
        texts = {}
        for option in OPTIONS:
            value = getattr(self, option)
            if value is not None:
                texts[option] = value if isinstance(value, str) else number_name(value)
        return texts

    def learned_from(self) -> tuple[str, ...]:
        """Return the names of the sets that the method learns from; most learn from none."""
        from gradscore.methods import find_method

        method = find_method(self.method)
        return method.learns_from(self.fit) if method.learns_from else ()


@dataclass(frozen=True)
class Needs:
    """What answering one question takes from the run.

    Attributes:
        fields: Recorded arrays of the base pass, of ``features`` and ``logits``.
        passes: Names of the passes to read beside it.
        shared: Intermediate results that other questions may want too.
    """

    fields: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    shared: tuple[Shared, ...] = ()


@dataclass(frozen=True)
class Method:
    """A family of scores: higher means more ID.

    Attributes:
        name: As users write it.
        summary: One line for help and documentation.
        plan: ``(question, run) -> Needs``; raises NotRecorded where the run cannot answer.
        score: ``(question, block, state) -> scores [rows]``, float64.
        options: Honoured options with their defaults; None has no default.
        required: Options without which the method means nothing.
        fit: ``(question, run) -> state``, what is read or learned once for all rows.
        learns_from: From the option ``fit`` to the names of the sets that are learned from.
    """

    name: str
    summary: str
    plan: Callable[["Question", Any], Needs]
    score: Callable[["Question", Block, Any], Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    fit: Callable[["Question", Any], Any] | None = None
    learns_from: Callable[[str], tuple[str, ...]] | None = None


def column_names(questions: Sequence[Question]) -> list[str]:
    """Return one column name a question: its method, with settings where they would collide.

    >>> column_names([Question("gradnorm", p=2), Question("gradnorm"), Question("msp")])
    ['gradnorm[p=2]', 'gradnorm[p=1]', 'msp']
    """
    together = defaultdict(list)
    for question in questions:
        together[question.method].append(question.settings())
    names = []
    for question in questions:
        settings = question.settings()
        rivals = together[question.method]
        told = [
            f"{_SHORT.get(option, option)}={text}"
            for option, text in settings.items()
            if any(other.get(option) != text for other in rivals)
        ]
        names.append(question.method + (f"[{','.join(told)}]" if told else ""))
    return names


def make_question(method: str, **options: Any) -> Question:
    """Return the question of one method, its options as keywords.

    Raises:
        InvalidArgument: If an option is unknown; the message lists all. Else as
            :class:`Question`.
    """
    _refuse_unknown(options)
    return Question(method, **options)


def make_questions(methods: Iterable[str], **options: Any) -> list[Question]:
    """Return a question for each method, each with those options that it honours.

    Args:
        methods: Names of methods; repeated ones count once.
        **options: Options of :class:`Question`; None stands for one not given, a tuple for
            several values, each asked.

    Raises:
        InvalidArgument: If a method or an option is unknown, or no method honours an option.
    """
    from gradscore.methods import find_method

    chosen = [find_method(name) for name in dict.fromkeys(methods)]
    _refuse_unknown(options)
    for option, value in options.items():
        if value is not None and not any(option in method.options for method in chosen):
            raise InvalidArgument(
                f"None of the chosen methods ({', '.join(m.name for m in chosen)}) "
                f"honours {option}."
            )
    questions = []
    for method in chosen:
        honoured = {
            name: value if isinstance(value, tuple) else (value,)
            for name, value in options.items()
            if name in method.options
        }
        for values in product(*honoured.values()):
            questions.append(Question(method.name, **dict(zip(honoured, values, strict=True))))
    return questions


def _refuse_unknown(options: Iterable[str]) -> None:
    for option in options:
        if option not in OPTIONS:
            raise InvalidArgument(f"Unknown option {option}; known: {', '.join(OPTIONS)}.")
