"""What a score is: a method, a method with its settings, and how it follows from a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor

from gradscore.errors import InvalidArgument
from gradscore.methods.block import Block
from gradscore.norms import number_name
from gradscore.objective import Objective, check_epsilon
from gradscore.run import FitInfo, PassInfo, RunInfo, SetInfo

OPTIONS = (
    *("layers", "p", "temperature", "target", "epsilon", "fit"),
    *("k", "dimension", "percentile", "two_sided", "clip"),
)
_OF_OBJECTIVE = ("p", "temperature", "target")

ROWS = 1024
"""Rows read at once; the outputs of 21,843 classes then take 90 MB."""


class RecordedRun(Protocol):
    """A run as scores read it.

    Attributes:
        path: The run's directory.
        model: The run's model, or its spec, as its user named it; None where nobody did.
    """

    path: Path
    model: Any

    @property
    def info(self) -> RunInfo:
        """What the run says of its model and of what is recorded."""

    @property
    def sets(self) -> Mapping[str, SetInfo]:
        """The recorded sets by name."""

    def find_norms(
        self, objective: Objective, parameters: Sequence[str], layers: str = "all"
    ) -> PassInfo:
        """Return the pass that holds the norms of ``parameters``, or raise NotRecorded."""

    def head(self) -> dict[str, NDArray]:
        """Return the last layer's ``weight`` and, if it has one, ``bias``, float32."""

    def read_fit(self, name: str) -> dict[str, NDArray] | None:
        """Return what a method learned, or None where the run does not hold it."""

    def keep_fit(self, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
        """Store what a method learned, where the run can be written."""

    def require_complete(self, set_name: str, passes: Sequence[str] = ...) -> SetInfo:
        """Return a set's entry, or raise NotRecorded unless those passes are finished."""

    def blocks(
        self,
        set_name: str,
        fields: Sequence[str] = ...,
        norms: Sequence[str] = (),
        rows: int = ...,
    ) -> Iterator[dict[str, NDArray]]:
        """Yield a set in index order, at most ``rows`` rows at a time."""

    def fit_blocks(
        self, set_name: str, fields: Sequence[str] = ..., norms: Sequence[str] = ()
    ) -> Iterator[dict[str, NDArray]]:
        """Yield the rows of a set that methods learn from."""


@dataclass(frozen=True)
class ScoreSpec:
    """A method with its settings; options left out take the method's defaults.

    An option that the method does not honour stays None.

    Args:
        method: A name of :data:`gradscore.methods.METHODS`.
        layers: Parameters whose gradient is scored: a group, or a glob over names.
        p: Order of the norm.
        temperature: Softmax temperature.
        target: ``uniform`` or ``one-hot``.
        epsilon: Magnitude of the input perturbation, in units of the normalised input.
        fit: Name of the ID set that a fitted method learns from, labelled where it needs labels.
        k: Number of neighbours.
        dimension: Of the principal subspace of the features.
        percentile: At which features are clipped or pruned, 0 to 100.
        two_sided: Whether to be nearer than ID inputs usually are counts as evidence.
        clip: Percentile of all features at which they are clipped first, 0 to 100.

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
    k: int | None = None
    dimension: int | None = None
    percentile: float | None = None
    two_sided: bool | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        """Fill in the method's defaults and check every option."""
        method = self.definition
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
                wanted = f"`{option}={option.upper()}`"
                raise InvalidArgument(
                    f"Method {self.method} needs the option {option}; give {wanted}."
                )
            object.__setattr__(self, option, value)
        objective = self.objective
        for option in _OF_OBJECTIVE:
            if getattr(self, option) is not None:
                object.__setattr__(self, option, getattr(objective, option))
        if self.epsilon is not None:
            object.__setattr__(self, "epsilon", check_epsilon(self.epsilon))
        for option, least, most in (("k", 1, inf), ("dimension", 0, inf)):
            _check_range(option, getattr(self, option), least, most, int)
        for option in ("percentile", "clip"):
            _check_range(option, getattr(self, option), 0, 100, int | float)

    @property
    def definition(self) -> "Method":
        """The method itself."""
        from gradscore.methods import find_method  # which imports this module

        return find_method(self.method)

    @property
    def objective(self) -> Objective:
        """The gradient that is scored; what the method does not honour has its default."""
        given = {option: getattr(self, option) for option in _OF_OBJECTIVE}
        return Objective(**{option: value for option, value in given.items() if value is not None})

    def settings(self) -> dict[str, str]:
        """Return the honoured options as canonical text, in a fixed order."""
        texts = {}
        for option in OPTIONS:
            value = getattr(self, option)
            if isinstance(value, bool):
                texts[option] = "yes" if value else "no"
            elif value is not None:
                texts[option] = value if isinstance(value, str) else number_name(value)
        return texts

    def changed(self) -> dict[str, str]:
        """Return those settings that are not the method's defaults, as :meth:`settings` does."""
        usual = self.definition.options
        texts = self.settings().items()
        return {name: text for name, text in texts if getattr(self, name) != usual.get(name)}

    def title(self) -> str:
        """Return the method with the settings that are not its defaults.

        >>> ScoreSpec("gradnorm", p=2).title(), ScoreSpec("energy").title()
        ('gradnorm (p 2)', 'energy')
        """
        words = [
            name.replace("_", "-") if text == "yes" else f"{name} {text}"
            for name, text in self.changed().items()
        ]
        return f"{self.method} ({', '.join(words)})" if words else self.method

    def fit_sets(self) -> tuple[str, ...]:
        """Return the names of the sets that the method learns from; most learn from none."""
        fit_sets = self.definition.fit_sets
        return fit_sets(self.fit) if fit_sets else ()


def _check_range(option: str, value: Any, least: float, most: float, kind: Any) -> None:
    """Raise unless an option is None or a number in its range.

    Raises:
        InvalidArgument: If it is another.
    """
    number = isinstance(value, kind) and not isinstance(value, bool)
    if value is not None and not (number and least <= value <= most):
        wanted = f"{least} or more" if most == inf else f"{least} to {most}"
        raise InvalidArgument(f"Expected {option} of {wanted}, got {value!r}.")


@dataclass(frozen=True)
class Plan:
    """How one score follows from a run.

    Attributes:
        score: ``(state, block) -> scores [rows]``, float64; higher means more ID.
        fields: What it reads of the base pass, of ``features`` and ``logits``.
        passes: Names of the passes that it reads beside it.
        feature_orders: Orders of the norms of the features that it takes from the block.
        deviations: Objectives of the deviations whose norms it takes from the block.
        fit: Learns, or loads, the state once for all rows; without it the state is None.
        rows: Most rows to read at once.
        notice: What the user should know of how the score was learned, or empty.
        learned_from: Names of the sets that are learned from without their labels.
        remarks: What the user should know of a state, a clause each.
    """

    score: Callable[[Any, Block], Tensor]
    fields: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    feature_orders: tuple[float, ...] = ()
    deviations: tuple[Objective, ...] = ()
    fit: Callable[[], Any] | None = None
    rows: int = ROWS
    notice: str = ""
    learned_from: tuple[str, ...] = ()
    remarks: Callable[[Any], Sequence[str]] | None = None

    def find_remarks(self) -> Sequence[str]:
        """Return what the user should know of what was learned, a clause each."""
        return self.remarks(self.fit()) if self.remarks and self.fit else ()


@dataclass(frozen=True)
class Method:
    """A family of scores: higher means more ID.

    Attributes:
        name: As users write it.
        summary: One line for help and documentation.
        plan: From a spec and a run to how the score follows; raises NotRecorded where it cannot.
        options: Honoured options with their defaults; None has no default.
        required: Options without which the method means nothing.
        fit_sets: From the option ``fit`` to the names of the sets that are learned from.
        functions: The user's own functions of a score of theirs; empty for gradscore's.
    """

    name: str
    summary: str
    plan: Callable[[ScoreSpec, RecordedRun], Plan]
    options: Mapping[str, Any] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    fit_sets: Callable[[str], tuple[str, ...]] | None = None
    functions: tuple[Callable[..., Any], ...] = ()
