"""From a picture to what a model takes: resize, central crop, scale, normalise.

The steps and their rounding are those of torchvision's transforms on PIL pictures (antialiased),
so that published accuracies are met; only the few operations needed are kept, since decoding
workers spend their time here.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gradscore.errors import InvalidArgument

CHANNELS = {"RGB": 3, "L": 1}
INTERPOLATIONS = {
    name: Image.Resampling[name.upper()]
    for name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
}
CENTRES = ("nearest", "before")
CHANGEABLE = ("resize", "crop", "mean", "std", "interpolation")
"""Fields that users set, one by one."""

Size = int | tuple[int, int]


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a model's input; frozen, comparable, and recorded with a run.

    Attributes:
        resize: Short side in pixels, or exact ``(height, width)``; None keeps the size.
        crop: Side of the central square, or ``(height, width)``; None keeps everything. Pictures
            smaller than the crop are padded with black.
        mean: Mean of each channel, in units of a picture scaled to 0..1.
        std: Deviation of each channel, in the same units.
        interpolation: One of :data:`INTERPOLATIONS`.
        mode: ``RGB`` or ``L`` (grey): what pictures are converted to.
        centre: Where a central crop lies if the margins cannot be equal: ``nearest`` rounds half
            a pixel to even, as torchvision does, ``before`` rounds it down, as HuggingFace does.
    """

    resize: Size | None
    crop: Size | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    mode: str = "RGB"
    centre: str = "nearest"

    def __post_init__(self) -> None:
        """Bring every field to its one canonical form.

        Raises:
            InvalidArgument: If a field is not what the class describes.
        """
        known = {"mode": CHANNELS, "interpolation": INTERPOLATIONS, "centre": CENTRES}
        for name, choices in known.items():
            if (value := getattr(self, name)) not in choices:
                shown = (" or " if len(choices) == 2 else ", ").join(choices)
                raise InvalidArgument(f"Expected {name} {shown}, got {value!r}.")
        fields: dict[str, Any] = {n: _size_of(n, getattr(self, n)) for n in ("resize", "crop")}
        fields |= {n: _per_channel(n, getattr(self, n), self.mode) for n in ("mean", "std")}
        if isinstance(fields["crop"], tuple) and len(set(fields["crop"])) == 1:
            fields["crop"] = fields["crop"][0]
        if min(fields["std"]) <= 0:
            raise InvalidArgument(f"Expected std > 0, got {fields['std']}.")
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def with_overrides(
        self,
        *,
        resize: Size | str | None = None,
        crop: Size | str | None = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        interpolation: str | None = None,
    ) -> "Preprocessing":
        """Return a copy with the fields that are not None replaced.

        Args:
            resize: Short side, exact ``(height, width)``, or text: ``256``, ``256x224``.
            crop: Side of the central crop, ``(height, width)``, or such text.
            mean: One value for each channel, or one for all.
            std: Likewise.
            interpolation: One of :data:`INTERPOLATIONS`.

        Raises:
            InvalidArgument: If a value is not what the field accepts, or the crop is larger than
                what resizing leaves.
        """
        values = (resize, crop, mean, std, interpolation)
        given = {n: v for n, v in zip(CHANGEABLE, values, strict=True) if v is not None}
        changed = replace(self, **given)
        if {"resize", "crop"} & given.keys():
            _refuse_padding(changed.resize, changed.crop)
        return changed

    def input_shape(self, side: int = 224) -> tuple[int, int, int]:
        """Return ``(channels, height, width)`` of what a square picture becomes.

        Args:
            side: Of the picture; it matters only where the size is kept.
        """
        size = self.crop or self.resize or side
        return (CHANNELS[self.mode], *(size if isinstance(size, tuple) else (size, size)))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values that JSON keeps; :meth:`from_dict` reads them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing that :meth:`to_dict` wrote.

        Raises:
            InvalidArgument: If a field is missing, unknown or malformed.
        """
        try:
            return cls(**fields)
        except TypeError as error:
            raise InvalidArgument(f"Expected the fields of a preprocessing, {error}.") from None

    def __call__(self, picture: Image.Image | np.ndarray) -> Tensor:
        """Return the model's input for one picture.

        Args:
            picture: PIL image; or uint8 array ``[h, w]`` or ``[h, w, c]``; or floating array
                ``[c, h, w]`` with values in 0..1, which is resized by tensor interpolation.

        Returns:
            Normalised float32 tensor, shape ``[c, height, width]``.

        Raises:
            InvalidArgument: If an array has another shape or type.
        """
        if isinstance(picture, np.ndarray) and np.issubdtype(picture.dtype, np.floating):
            tensor = self._from_floats(picture)
        else:
            tensor = self._from_picture(picture)
        mean, std = (torch.tensor(v, device="cpu").view(-1, 1, 1) for v in (self.mean, self.std))
        return tensor.sub_(mean).div_(std)

    def _from_picture(self, picture: Image.Image | np.ndarray) -> Tensor:
        if isinstance(picture, np.ndarray):
            picture = _as_image(picture)
        picture = _converted(picture, self.mode)
        width, height = picture.size
        new_height, new_width = _resized(self.resize, height, width)
        if (new_height, new_width) != (height, width):
            method = INTERPOLATIONS[self.interpolation]
            picture = picture.resize((new_width, new_height), method)
        if self.crop is not None:
            top, left, rows, columns = _crop_box(self.crop, new_height, new_width, self.centre)
            if (rows, columns) != (new_height, new_width):
                picture = picture.crop((left, top, left + columns, top + rows))  # pads with 0
        pixels = np.array(picture, dtype=np.uint8)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        return tensor.to(torch.float32, memory_format=torch.contiguous_format).div_(255)

    def _from_floats(self, array: np.ndarray) -> Tensor:
        channels = CHANNELS[self.mode]
        if array.ndim != 3 or array.shape[0] not in (1, channels):
            raise InvalidArgument(
                f"Expected a floating picture [{channels}, height, width] for mode {self.mode}, "
                f"got {list(array.shape)}."
            )
        tensor = torch.from_numpy(array.astype(np.float32)).expand(channels, -1, -1).contiguous()
        size = _resized(self.resize, *tensor.shape[1:])
        if size != tuple(tensor.shape[1:]):
            from torchvision.transforms import InterpolationMode
            from torchvision.transforms.functional import resize

            mode = InterpolationMode(self.interpolation)
            tensor = resize(tensor, list(size), mode, antialias=True)
        if self.crop is not None:
            top, left, rows, columns = _crop_box(self.crop, *tensor.shape[1:], self.centre)
            below, right = rows - tensor.shape[1] + top, columns - tensor.shape[2] + left
            tensor = torch.nn.functional.pad(tensor, (-left, right, -top, below))
        return tensor.clone()


def _size_of(field: str, value: Any) -> Size | None:
    """Return a size in its one form: pixels, or ``(height, width)``; None stays.

    Text is ``256`` or ``256x224``.
    """
    if isinstance(value, str):
        if not re.fullmatch(r"\d+(x\d+)?", value):
            raise InvalidArgument(f"Expected {field} as S or HxW in pixels, got {value!r}.")
        sides = [int(side) for side in value.split("x")]
        value = sides[0] if len(sides) == 1 else tuple(sides)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    if (
        isinstance(value, Sequence)
        and len(value) == 2
        and all(isinstance(side, int) and side > 0 for side in value)
    ):
        return tuple(value)
    raise InvalidArgument(f"Expected {field} as S or HxW in pixels, got {value!r}.")


def _per_channel(field: str, value: Any, mode: str) -> tuple[float, ...]:
    """Return one number for each channel, from as many or from one for all."""
    channels = CHANNELS[mode]
    try:
        values = tuple(float(v) for v in value) if isinstance(value, Sequence) else (float(value),)
    except (TypeError, ValueError):
        values = ()
    if len(values) == 1:
        values *= channels
    if len(values) != channels or not all(map(math.isfinite, values)):
        raise InvalidArgument(f"Expected {field} with {channels} numbers or one, got {value!r}.")
    return values


def _refuse_padding(resize: Size | None, crop: Size | None) -> None:
    """Raise where a crop reaches beyond every resized image, into black."""
    if resize is None or crop is None:
        return
    wanted = (crop, crop) if isinstance(crop, int) else crop
    # Of an image scaled to a short side the long one may hold any crop.
    sides = (resize, max(resize, *wanted)) if isinstance(resize, int) else resize
    wanted = sorted(wanted) if isinstance(resize, int) else wanted
    if any(side > there for side, there in zip(wanted, sides, strict=True)):
        raise InvalidArgument(
            f"Expected a crop within the resized image, got resize {_shown(resize)} and crop "
            f"{_shown(crop)}. An image is first scaled (its short side, or to height x width), "
            "then cropped; give `preprocessing={'resize': S, 'crop': S}`."
        )


def _shown(size: Size) -> str:
    return str(size) if isinstance(size, int) else f"{size[0]}x{size[1]}"


def _as_image(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)):
        raise InvalidArgument(
            "Expected a picture as uint8 [height, width], [height, width, 3] or floating "
            f"[channels, height, width], got {array.dtype} {list(array.shape)}."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _converted(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode == mode:
        return picture
    if picture.mode.startswith("I;16"):  # PIL would clip 16 bits to 8 rather than scale them
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture.convert(mode)


def _resized(resize: Size | None, height: int, width: int) -> tuple[int, int]:
    """Return the size after resizing; the long side is cut to whole pixels, as in torchvision."""
    if resize is None:
        return height, width
    if isinstance(resize, tuple):
        return resize
    short, long = sorted((height, width))
    long = int(resize * long / max(short, 1))
    if short < 1 or resize * long > (Image.MAX_IMAGE_PIXELS or math.inf):
        raise InvalidArgument(
            f"Expected a picture of at most {Image.MAX_IMAGE_PIXELS} pixels at a short side of "
            f"{resize}, got [{height}, {width}]; give `preprocessing={{'resize': 'HxW'}}`."
        )
    return (resize, long) if height <= width else (long, resize)


def _crop_box(crop: Size, height: int, width: int, centre: str) -> tuple[int, int, int, int]:
    rows, columns = crop if isinstance(crop, tuple) else (crop, crop)
    if centre == "before":
        return (height - rows) // 2, (width - columns) // 2, rows, columns
    # Python rounds half to even, and torchvision relies on it where the crop fits; where it does
    # not, torchvision pads the smaller half first.
    top = round((height - rows) / 2) if rows <= height else -((rows - height) // 2)
    left = round((width - columns) / 2) if columns <= width else -((columns - width) // 2)
    return top, left, rows, columns
