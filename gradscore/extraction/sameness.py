"""Whether the pictures that a later pass sees are those of the first, told by their logits."""

import numpy as np
from numpy.typing import NDArray

from gradscore.data import ImageSet
from gradscore.errors import DataError
from gradscore.run import BASE, RunStore

TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""How far the logits of one picture may be apart, as a part of the largest of their batch."""
BETWEEN_DEVICES = 1e-2
"""The same where a GPU computed either: its convolutions keep ten bits of a float32."""


class SamePictures:
    """Compares logits with those recorded, batch after batch.

    Without it a pass that is added later could stand beside the features of another picture.

    Args:
        store: The run.
        images: The set.
        set_name: Its name in the run.
        start: First image that is compared.
        device: Where the logits are computed.
    """

    def __init__(
        self, store: RunStore, images: ImageSet, set_name: str, start: int, device: str
    ) -> None:
        self._images, self._set = images, set_name
        self._rows = store.rows(set_name, BASE, ("logits",), start)
        first = store.sets[set_name].passes[BASE][0].settings.get("device")
        self._tolerance = TOLERANCE[store.info.precision]
        if {first, device} != {"cpu"}:
            self._tolerance = max(self._tolerance, BETWEEN_DEVICES)

    def check(self, index: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Raise unless the next images are those that were recorded.

        Args:
            index: Their places, shape ``[n]``.
            logits: What the model returns for them now, shape ``[n, classes]``.

        Raises:
            DataError: Naming the first that is another.
            RunError: If the run is damaged.
        """
        recorded = self._rows(index)
        apart = np.abs(logits - recorded).max(axis=1)
        bound = self._tolerance * np.abs(recorded).max()
        changed = np.flatnonzero(~(apart <= bound))
        if len(changed):
            row = changed[0]
            place = int(index[row])
            raise DataError(
                f"{self._images.paths[place]} (image {place} of {self._set}) is not the picture "
                f"that was recorded: its logits are {apart[row]:.3g} away from those in the run, "
                f"more than {bound:.3g}. Put that picture back, or extract to another run."
            )
