"""Sets of images, from whatever they are kept in."""

from gradscore.data.loading import (
    Batch,
    batch_spans,
    decoding_processes,
    first_readable,
    load_batches,
)
from gradscore.data.memory import first_in_memory, images_in_memory
from gradscore.data.sources import ImageSet, open_set

__all__ = [
    "Batch",
    "ImageSet",
    "batch_spans",
    "decoding_processes",
    "first_in_memory",
    "first_readable",
    "images_in_memory",
    "load_batches",
    "open_set",
]
