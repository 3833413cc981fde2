"""Runs in memory, read by methods as a run on disk is."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.methods.base import ROWS
from gradscore.objective import Objective
from gradscore.run import (
    BASE,
    FitInfo,
    HeadInfo,
    PassInfo,
    RunInfo,
    SetInfo,
    Shard,
    norms_name,
)

Arrays = dict[str, NDArray]
WEIGHT, BIAS = "head.weight", "head.bias"


def set_entry(name: str, role: str | None, rows: int, passes: Sequence[str] = ()) -> SetInfo:
    """Return the entry of a set of which all rows are there.

    Args:
        name: Its name.
        role: As of a run's set.
        rows: Number of its rows.
        passes: Names of its passes beside the base pass.
    """
    shards = {one: [Shard("", "", 0, rows, rows)] for one in (BASE, *passes)}
    return SetInfo(name, role, "", "", rows, passes=shards)


class MemoryRun:
    """A run whose rows, if it has any, are in memory.

    Args:
        info: What the run is about; its sets are those of ``rows``.
        head: The last layer's ``weight`` and, if it has one, ``bias``.
        rows: Set to its recorded arrays by name, each ``[rows, ...]``.
        learned: What the one method that is asked learned, where that is known.

    Attributes:
        path: What stands in messages for the run's directory.
        model: Always None: no part of the model is run again.
        info: What the run is about. Norms that are asked for are added to its passes.
        learned: What a method learned: given, or learned since.
    """

    path = Path("gradscore-run")
    model = None

    def __init__(
        self,
        info: RunInfo,
        head: Mapping[str, NDArray],
        rows: Mapping[str, Arrays] | None = None,
        learned: Mapping[str, NDArray] | None = None,
    ) -> None:
        self.info, self._head, self._rows = info, dict(head), dict(rows or {})
        self.learned = None if learned is None else dict(learned)

    @property
    def sets(self) -> Mapping[str, SetInfo]:
        """The sets by name."""
        return self.info.sets

    def find_norms(
        self, objective: Objective, parameters: Sequence[str], layers: str = "all"
    ) -> PassInfo:
        """Return the pass of some norms: whoever computes rows looks for it among the passes."""
        asked = objective.target, objective.temperature, objective.p
        name = norms_name(*asked, layers, parameters)
        entry = PassInfo(name, "norms", *asked, "rules", tuple(parameters))
        return self.info.passes.setdefault(name, entry)

    def head(self) -> Arrays:
        """Return the last layer's ``weight`` and, if it has one, ``bias``, as they were given."""
        return self._head

    def read_fit(self, name: str) -> Arrays | None:
        """Return what the method learned, or None."""
        return self.learned

    def keep_fit(self, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
        """Keep what the method learned."""
        self.learned = dict(arrays)

    def require_complete(self, set_name: str, passes: Sequence[str] = (BASE,)) -> SetInfo:
        """Return a set's entry, or raise NotRecorded where there is none."""
        if set_name not in self.sets:
            raise NotRecorded(f"Expected a set of {', '.join(self.sets)}, got {set_name!r}.")
        return self.sets[set_name]

    def blocks(
        self,
        set_name: str,
        fields: Sequence[str] = (),
        norms: Sequence[str] = (),
        rows: int = ROWS,
    ) -> Iterator[Arrays]:
        """Yield all arrays of a set, at most ``rows`` rows at a time."""
        arrays = self._rows[set_name]
        for start in range(0, self.sets[set_name].rows, rows):
            yield {name: values[start : start + rows] for name, values in arrays.items()}

    def fit_blocks(
        self, set_name: str, fields: Sequence[str] = (), norms: Sequence[str] = ()
    ) -> Iterator[Arrays]:
        """Yield the rows of a set that methods learn from: all of them."""
        return self.blocks(set_name, fields, norms)


class FeatureRun(MemoryRun):
    """Answers every method of features, logits and last layer; inner gradients are not recorded.

    Args:
        weight: Of the last layer, shape ``[classes, features]``.
        bias: Shape ``[classes]``, or None.

    Raises:
        InvalidArgument: If the shapes are others.
    """

    def __init__(self, weight: NDArray, bias: NDArray | None = None) -> None:
        shape, of_bias = np.shape(weight), None if bias is None else np.shape(bias)
        if len(shape) != 2 or of_bias not in (None, shape[:1]):
            raise InvalidArgument(
                "Expected a last layer of weight [classes, features] and bias [classes], got "
                f"{list(shape)} and {of_bias if of_bias is None else list(of_bias)}."
            )
        head = {"weight": np.asarray(weight)}
        if bias is not None:
            head["bias"] = np.asarray(bias)
        names = (WEIGHT,) if bias is None else (WEIGHT, BIAS)
        sizes = dict(zip(names, (values.size for values in head.values()), strict=True))
        info = RunInfo(
            model="memory",
            weights=None,
            weights_sha256="",
            preprocessing={},
            precision="float32",
            classes=shape[0],
            features=shape[1],
            input_shape=(shape[1],),
            head=HeadInfo("head", (WEIGHT,), None if bias is None else BIAS, True),
            parameters=sizes,
            groups={"last": (WEIGHT,), "all": names},
        )
        super().__init__(info, head)
        self._fits: dict[str, tuple[FitInfo, Arrays]] = {}

    def add_set(
        self, name: str, role: str | None, features: NDArray, logits: NDArray | None = None
    ) -> None:
        """Add a set, in the place of one of its name: what was learned from that is forgotten.

        Args:
            name: Of the set.
            role: ``id``, ``ood``, ``fit`` or None.
            features: Inputs of the last layer, shape ``[rows, features]``.
            logits: Its outputs; by default what the layer makes of the features.

        Raises:
            InvalidArgument: If the features are not as many as the last layer takes.
        """
        if features.ndim != 2 or features.shape[1] != self.info.features:
            raise InvalidArgument(
                f"Expected features [rows, {self.info.features}], as the last layer takes them, "
                f"got {list(features.shape)}."
            )
        if logits is None:
            logits = features @ self._head["weight"].T + self._head.get("bias", 0)
        index = np.arange(len(features))
        self._rows[name] = {
            "index": index,
            "path": np.array([f"{name}/{place}" for place in index], dtype=object),
            "label": np.full(len(index), -1),
            "features": np.require(features, requirements="W"),
            "logits": np.require(logits, requirements="W"),
        }
        self.info.sets[name] = set_entry(name, role, len(index))
        self._fits = {fit: one for fit, one in self._fits.items() if name not in one[0].sets}

    def drop_rows(self, name: str) -> None:
        """Forget the rows of a set; what was learned from it stays."""
        del self._rows[name]

    def find_norms(self, *asked: Any) -> PassInfo:
        """Raise: no gradient is recorded.

        Raises:
            NotRecorded: Always.
        """
        raise NotRecorded("Gradient norms of inner layers need the model, not its features.")

    def read_fit(self, name: str) -> Arrays | None:
        """Return what a method learned, or None where it did not yet."""
        return self._fits[name][1] if name in self._fits else None

    def keep_fit(self, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
        """Keep what a method learned as long as this object holds the sets that taught it."""
        self._fits[entry.name] = (entry, dict(arrays))

    def require_complete(self, set_name: str, passes: Sequence[str] = (BASE,)) -> SetInfo:
        """Return a set's entry, or raise NotRecorded where a pass is asked that is not held."""
        for name in passes:
            if name != BASE:
                raise NotRecorded(f"A run in memory holds features and logits, and no {name}.")
        return self.info.sets[set_name]
