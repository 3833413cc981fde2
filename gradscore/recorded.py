"""A recorded run, read: its sets, their features and logits, and any score of them."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradscore.methods.question import make_question
from gradscore.run import RunStore
from gradscore.scoring import known_sets, score_sets


class Run:
    """A run on disk.

    Args:
        path: The run's directory.
        model: The run's model, or its spec, where a part of it is run again and the run names
            what could run code (``python:``) or fetch files.

    Raises:
        RunError: If there is no run, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike, model: Any = None) -> None:
        self.path = Path(path)
        self.store = RunStore(self.path, model)

    @property
    def sets(self) -> dict[str, Any]:
        """The recorded sets by name, each with its role and number of rows."""
        return dict(self.store.sets)

    def features(self, name: str) -> Tensor:
        """Return the inputs of the last layer, shape ``[rows, in_features]``, float32.

        Raises:
            InvalidArgument: If the set is unknown.
            RunError: If the run is damaged.
        """
        return self._field(name, "features")

    def logits(self, name: str) -> Tensor:
        """Return the network's outputs, shape ``[rows, classes]``, float32.

        Raises:
            InvalidArgument: If the set is unknown.
            RunError: If the run is damaged.
        """
        return self._field(name, "logits")

    def score(self, name: str, method: str = "gradnorm", **how: Any) -> Tensor:
        """Return one set's scores; higher means more ID.

        Args:
            name: Name of the set.
            method: A method of :data:`gradscore.methods.METHODS`.
            **how: Its options, such as ``layers``, ``p``, ``temperature``, ``target``,
                ``epsilon``, ``fit``.

        Returns:
            Scores, shape ``[rows]``, float64, rows in the order of the set's manifest.

        Raises:
            InvalidArgument: If the set, the method or an option is unknown or out of range.
            NotRecorded: If the run does not hold what the question needs; the message names the
                option of ``gradscore extract`` that would.
            RunError: If the run is damaged or a recorded value is not finite.
        """
        (scores,) = score_sets(self.store, [name], [make_question(method, **how)]).values()
        (column,) = scores.columns.values()
        return torch.from_numpy(column)

    def _field(self, name: str, field: str) -> Tensor:
        known_sets(self.store, [name])
        blocks = self.store.blocks(name, fields=(field,))
        return torch.cat([torch.as_tensor(block[field], device="cpu") for block in blocks])


def open_store(run: Run | RunStore | str | os.PathLike) -> Any:
    """Return the store of a run given as an object or a directory.

    Raises:
        RunError: If there is no run, or it is damaged.
    """
    if isinstance(run, str | os.PathLike):
        return RunStore(run)
    return getattr(run, "store", run)
