"""OOD scores from a recorded run, one file a family; higher always means more ID."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

from gradscore.errors import InvalidArgument, near_name
from gradscore.methods.base import OPTIONS, Method, Plan, RecordedRun, ScoreSpec
from gradscore.methods.confidence import ENERGY, GEN, KL, MAX_LOGIT, MSP, ODIN
from gradscore.methods.gradnorm import GRADNORM, U, V
from gradscore.methods.learned import LEARNED
from gradscore.methods.lee_alregib import LEE_ALREGIB
from gradscore.methods.mahalanobis import MAHALANOBIS, MAHALANOBIS_STAGES

__all__ = [
    "METHODS",
    "Method",
    "Plan",
    "RecordedRun",
    "ScoreSpec",
    "column_names",
    "find_method",
    "make_spec",
    "make_specs",
]

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        *(GRADNORM, U, V, KL),
        *(MSP, MAX_LOGIT, ENERGY, GEN, ODIN),
        *LEARNED,
        *(MAHALANOBIS, MAHALANOBIS_STAGES, LEE_ALREGIB),
    )
}
"""Every method by name."""

_SHORT = {"temperature": "T"}
"""What an option is called in a column's name, where it is not by its own name."""


def find_method(name: str) -> Method:
    """Return the method called ``name``.

    Raises:
        InvalidArgument: If there is none; the message lists all.
    """
    if name not in METHODS:
        own = "; it is imported only where you give it: `method='python:MODULE:FUNCTION'`"
        own = own if name.startswith("python:") else ""
        near = near_name(name, METHODS)
        raise InvalidArgument(f"Unknown method {name!r}; known: {', '.join(METHODS)}{own}.{near}")
    return METHODS[name]


def make_spec(method: str, **options: Any) -> ScoreSpec:
    """Return the spec of one method, its options as keywords.

    Raises:
        InvalidArgument: If an option is unknown; the message lists all. Else as
            :class:`ScoreSpec`.
    """
    _refuse_unknown(options)
    return ScoreSpec(method, **options)


def make_specs(methods: Iterable[str], **options: Any) -> list[ScoreSpec]:
    """Return a spec for each method, each with those options that it honours.

    Args:
        methods: Names of methods; repeated ones count once.
        **options: Options of :class:`ScoreSpec`; None stands for one not given, a tuple for
            several values, each with a spec of its own.

    Raises:
        InvalidArgument: If a method or an option is unknown, or no method honours an option.
    """
    chosen = [find_method(name) for name in dict.fromkeys(methods)]
    _refuse_unknown(options)
    for option, value in options.items():
        if value is not None and not any(option in method.options for method in chosen):
            raise InvalidArgument(
                f"None of the chosen methods ({', '.join(m.name for m in chosen)}) "
                f"honours {option}."
            )
    specs = []
    for method in chosen:
        honoured = {
            name: value if isinstance(value, tuple) else (value,)
            for name, value in options.items()
            if name in method.options
        }
        for values in product(*honoured.values()):
            specs.append(ScoreSpec(method.name, **dict(zip(honoured, values, strict=True))))
    return specs


def _refuse_unknown(options: Iterable[str]) -> None:
    for option in options:
        if option not in OPTIONS:
            raise InvalidArgument(f"Unknown option {option}; known: {', '.join(OPTIONS)}.")


def column_names(specs: Sequence[ScoreSpec]) -> list[str]:
    """Return one column name a spec: its method, with settings where they would collide.

    >>> column_names([ScoreSpec("gradnorm", p=2), ScoreSpec("gradnorm"), ScoreSpec("msp")])
    ['gradnorm[p=2]', 'gradnorm[p=1]', 'msp']
    """
    together = defaultdict(list)
    for spec in specs:
        together[spec.method].append(spec.settings())
    names = []
    for spec in specs:
        rivals = together[spec.method]
        differing = [
            f"{_SHORT.get(option, option)}={text}"
            for option, text in spec.settings().items()
            if any(other.get(option) != text for other in rivals)
        ]
        names.append(spec.method + (f"[{','.join(differing)}]" if differing else ""))
    return names
