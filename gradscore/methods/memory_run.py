"""A run in memory: features and logits of some sets, read by methods as a run on disk is."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradscore.errors import InvalidArgument, NotRecorded
from gradscore.methods.base import ROWS
from gradscore.run import BASE, FitInfo, HeadInfo, PassInfo, RunInfo, SetInfo, Shard

Arrays = dict[str, NDArray]
WEIGHT, BIAS = "head.weight", "head.bias"


class MemoryRun:
    """Answers every method of features, logits and last layer; inner gradients are not recorded.

    Args:
        weight: Of the last layer, shape ``[classes, features]``.
        bias: Shape ``[classes]``, or None.

    Attributes:
        path: A name for messages.
        model: None: nothing is run again.
        info: What a run on disk says of its model.

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
        self.path, self.model = Path("memory"), None
        self._head = {"weight": np.asarray(weight)}
        if bias is not None:
            self._head["bias"] = np.asarray(bias)
        names = (WEIGHT,) if bias is None else (WEIGHT, BIAS)
        sizes = dict(zip(names, (values.size for values in self._head.values()), strict=True))
        self.info = RunInfo(
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
        self._rows: dict[str, Arrays] = {}
        self._fits: dict[str, Arrays] = {}

    @property
    def sets(self) -> Mapping[str, SetInfo]:
        """The sets by name."""
        return self.info.sets

    def add_set(
        self, name: str, role: str | None, features: NDArray, logits: NDArray | None = None
    ) -> None:
        """Add a set, in the place of one of its name.

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
        passes = {BASE: [Shard("", "", 0, len(index), len(index))]}
        self.info.sets[name] = SetInfo(name, role, "memory", "", len(index), passes=passes)

    def drop_rows(self, name: str) -> None:
        """Forget the rows of a set; what was learned from it stays."""
        del self._rows[name]

    def head(self) -> Arrays:
        """Return the last layer's ``weight`` and, if it has one, ``bias``."""
        return dict(self._head)

    def find_norms(self, *asked: Any) -> PassInfo:
        """Raise: no gradient is recorded.

        Raises:
            NotRecorded: Always.
        """
        raise NotRecorded("Gradient norms of inner layers need the model, not its features.")

    def read_fit(self, name: str) -> Arrays | None:
        """Return what a method learned, or None where it did not yet."""
        return self._fits.get(name)

    def keep_fit(self, entry: FitInfo, arrays: Mapping[str, NDArray]) -> None:
        """Keep what a method learned as long as this object."""
        self._fits[entry.name] = dict(arrays)

    def require_complete(self, set_name: str, passes: Sequence[str] = (BASE,)) -> SetInfo:
        """Return a set's entry, or raise NotRecorded where a pass is asked that is not held."""
        for name in passes:
            if name != BASE:
                raise NotRecorded(f"A run in memory holds features and logits, and no {name}.")
        return self.info.sets[set_name]

    def blocks(
        self,
        set_name: str,
        fields: Sequence[str] = ("index",),
        norms: Sequence[str] = (),
        rows: int = ROWS,
    ) -> Iterator[Arrays]:
        """Yield a set in index order, at most ``rows`` rows at a time."""
        self.require_complete(set_name, norms)
        whole = self._rows[set_name]
        for start in range(0, len(whole["index"]), rows):
            yield {name: whole[name][start : start + rows] for name in fields}

    def fit_blocks(
        self, set_name: str, fields: Sequence[str] = ("index",), norms: Sequence[str] = ()
    ) -> Iterator[Arrays]:
        """Yield the rows of a set that methods learn from."""
        return self.blocks(set_name, fields, norms)
