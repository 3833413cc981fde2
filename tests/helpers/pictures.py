"""Small pictures, as files and in folders."""

import io

import numpy as np
from PIL import Image

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def encoded(picture=None, kind="PNG", **options):
    """Return an image file's bytes, by default of a picture of :data:`COLOURS`."""
    buffer = io.BytesIO()
    (picture or Image.fromarray(COLOURS)).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_of(root, *names):
    """Make image files below a folder, and return it."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded())
    return root
