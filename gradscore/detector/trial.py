"""Real images that an exported file is tried with."""

import os
from dataclasses import replace

import torch
from torch import Tensor

from gradscore.data import open_set
from gradscore.detector.file import DetectorInfo
from gradscore.errors import GradScoreError, InvalidArgument
from gradscore.models.preprocessing import Preprocessing


def trial_images(
    info: DetectorInfo, path: str | os.PathLike | None, takes: str, most: int
) -> tuple[Tensor | None, str]:
    """Return images as an exported file takes them, or None and the reason.

    Args:
        info: What the detector's file says.
        path: Where images are; None for those of the calibration, where they can be opened.
        takes: ``normalized`` or ``uint8``.
        most: How many, at most.

    Raises:
        DataError: If the images of a given path cannot be read.
    """
    if path is not None:
        return _read(info, path, takes, most), ""
    for source in info.calibration:
        # What runs code is opened only where the user names it.
        if not source.source or source.source.startswith(("python:", "torchvision:")):
            continue
        try:
            return _read(info, source.source, takes, most), ""
        except (GradScoreError, OSError):
            continue
    return None, "the images of the calibration cannot be opened; `data='PATH'` names others."


def _read(info: DetectorInfo, path: str | os.PathLike, takes: str, most: int) -> Tensor:
    images = open_set(path)
    count = min(most, len(images))
    places = [place * len(images) // count for place in range(count)]
    prepare = Preprocessing.from_dict(info.preprocessing)
    if takes == "uint8":
        channels = len(prepare.mean)
        prepare = replace(prepare, mean=(0.0,) * channels, std=(1.0,) * channels)
    rows = torch.stack([prepare(images[place]) for place in places])
    if tuple(rows.shape[1:]) != tuple(info.input_shape):
        raise InvalidArgument(
            f"Expected images that become {list(info.input_shape)}, got {list(rows.shape[1:])} "
            f"from {str(path)!r}."
        )
    if takes == "normalized":
        return rows
    return (rows * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
