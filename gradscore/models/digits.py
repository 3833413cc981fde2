"""The embedded model: a small network that knows the handwritten digits 0 to 5.

It comes with its weights, so that everything can be tried without a download. How they were
trained is ``benchmarks/train_digits.py``; the sets that go with it are ``gradscore.data.named``.
"""

from importlib.resources import as_file, files

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from gradscore.errors import ModelError
from gradscore.models.preprocessing import Preprocessing
from gradscore.models.weights import fit_weights, load_weights

CLASSES = 6
CHANNELS = (16, 24, 32, 64)
PREPROCESSING = Preprocessing(resize=8, crop=8, mean=(0.3,), std=(0.38,), mode="L")
"""Mean and deviation of the training digits' pixels, rounded."""


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, ``[batch, channels, h / stride, w / stride]``."""
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))))


class DigitsNet(nn.Module):
    """A stem, four blocks, the mean over the picture, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, CHANNELS[0], 3, padding=1, bias=False), nn.BatchNorm2d(CHANNELS[0])
        )
        self.block1 = Block(CHANNELS[0], CHANNELS[0], 1)
        self.block2 = Block(CHANNELS[0], CHANNELS[1], 2)
        self.block3 = Block(CHANNELS[1], CHANNELS[2], 1)
        self.block4 = Block(CHANNELS[2], CHANNELS[3], 2)
        self.fc = nn.Linear(CHANNELS[3], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[batch, 6]`` of normalised grey pictures ``[batch, 1, 8, 8]``."""
        x = relu(self.stem(x))
        x = self.block4(self.block3(self.block2(self.block1(x))))
        return self.fc(torch.mean(x, dim=(2, 3)))


def build(name: str, arguments: dict, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return the embedded model, with its packaged weights if ``pretrained``.

    Raises:
        ModelError: If a name or arguments are given: there is only one.
    """
    if name or arguments:
        raise ModelError("Expected the model spec digits alone: it takes no name or arguments.")
    model = DigitsNet()
    if pretrained:
        with as_file(files("gradscore") / "assets" / "digits.safetensors") as path:
            fit_weights(model, load_weights(path))
    return model, PREPROCESSING
