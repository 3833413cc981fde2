"""What opening a source of images gives, whatever the images are kept in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradscore.data.labels import ClassNames
from gradscore.data.readers import Reader


@dataclass(frozen=True)
class Wanted:
    """What is known of the model that a set is opened for.

    Attributes:
        class_names: Its class names in order, or each name's number; None where unknown.
        classes: The number of its classes; None where unknown.
        labelled: Whether folders mean classes.
    """

    class_names: ClassNames | None = None
    classes: int | None = None
    labelled: bool = True


@dataclass(frozen=True)
class Opened:
    """The images of a source.

    Attributes:
        paths: A name for each image.
        labels: Class numbers ``[n]``, int64, -1 unknown; None where the source has none.
        reader: What fetches an image.
        contents: What identifies the content of each image, or empty.
        whole: What identifies the content of all of them together.
        notices: What the user should know, a clause each.
    """

    paths: Sequence[str]
    labels: NDArray[np.int64] | None
    reader: Reader
    contents: Sequence[str] = ()
    whole: Sequence[str] = ()
    notices: Sequence[str] = ()
