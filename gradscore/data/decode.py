"""Image files to pictures of 8 bits, grey or RGB; anything doubtful is refused by name."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps

from gradscore.errors import DataError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded here; others, such as EPS, would run further programs."""


Image.init()  # registers the formats that PIL does not load by itself


def decode_image(content: bytes, name: str) -> Image.Image:
    """Return the picture in an image file's bytes.

    The orientation that a camera recorded is applied. 16-bit grey is scaled to 8 bits (PIL alone
    would clip it), an alpha channel is dropped, palettes and CMYK become RGB.

    Args:
        content: The file's bytes.
        name: What an error calls the image.

    Returns:
        A picture of mode ``L`` or ``RGB``.

    Raises:
        DataError: If it is no image, truncated, damaged, of more than ``Image.MAX_IMAGE_PIXELS``
            pixels, or of a mode without a known scale (floating point).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                picture.load()
                ImageOps.exif_transpose(picture, in_place=True)
                return _eight_bits(picture)
    except Image.UnidentifiedImageError:
        raise DataError(f"{name}: not an image ({', '.join(FORMATS)}).") from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise DataError(
            f"{name}: expected an image of at most {Image.MAX_IMAGE_PIXELS} pixels, got more."
        ) from None
    except Exception as error:  # each decoder has its own kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: damaged image: {reason}") from error


def _eight_bits(picture: Image.Image) -> Image.Image:
    mode = picture.mode
    if mode in ("L", "RGB"):
        return picture
    if mode.startswith("I"):
        values = np.asarray(picture)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise ValueError(f"expected values of 16 bits, got {values.min()} to {values.max()}")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if mode == "F":
        raise ValueError("expected 8 or 16 bits a channel, got floating point")
    if mode in ("1", "LA", "La"):
        return picture.convert("L")
    if "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert("RGB")
