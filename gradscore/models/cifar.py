"""The ResNets for CIFAR of He et al., "Deep Residual Learning", CVPR 2016, Section 4.2.

Three stages of ``n`` basic blocks with 16, 32 and 64 channels, depth ``6 n + 2``. Two public
families of weights exist. ``resnet20`` has shortcuts without parameters (option A): where the
shape changes, every second pixel is taken and the new channels are zero, half of them on either
side. ``resnet20-b`` has a 1x1 convolution with batch norm there (option B).
"""

import re

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from gradscore.errors import ModelError, WeightsError
from gradscore.models.preprocessing import Preprocessing

DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
PROJECTED = "-b"
"""What follows the name of a network whose shortcuts are 1x1 convolutions."""
PREPROCESSING = Preprocessing(
    resize=32, crop=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
PREPROCESSING_PROJECTED = Preprocessing(
    resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
)


class Subsampling(nn.Module):
    """The shortcut without parameters: fewer pixels, and channels of zeros."""

    def __init__(self, stride: int, added: int) -> None:
        """Take every ``stride``-th pixel, and add ``added`` channels."""
        super().__init__()
        self.stride, self.added = stride, added

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[batch, channels + added, h / stride, w / stride]``."""
        side = self.added // 2
        return pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, projected: bool) -> None:
        """Make the layers; ``stride`` is that of the first convolution."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        if in_channels == channels:
            self.shortcut: nn.Module = nn.Identity()
        elif projected:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        else:
            self.shortcut = Subsampling(stride, channels - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, ``[batch, channels, h / stride, w / stride]``."""
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """CIFAR ResNet of the given depth."""

    def __init__(self, depth: int, num_classes: int = 10, projected: bool = False) -> None:
        """Make a network of ``depth`` = ``6 n + 2`` layers with ``num_classes`` outputs."""
        super().__init__()
        blocks = (depth - 2) // 6
        self._projected = projected
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def _stage(self, in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride, self._projected)
        others = (BasicBlock(channels, channels, 1, False) for _ in range(blocks - 1))
        return nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[batch, classes]`` of normalised pictures ``[batch, 3, 32, 32]``."""
        x = relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, dim=(2, 3)))


def build(name: str, arguments: dict, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return a CIFAR ResNet by name, without weights, and its preprocessing.

    Raises:
        ModelError: If the name is unknown.
        WeightsError: If pretrained weights are asked for: none come with the library.
    """
    plain = name.removesuffix(PROJECTED)
    if plain not in DEPTHS:
        raise ModelError(
            f"Expected cifar: one of {', '.join(DEPTHS)}, or with {PROJECTED} behind it for 1x1 "
            f"shortcuts, got {name!r}."
        )
    if pretrained:
        raise WeightsError(
            f"cifar:{name} comes without weights: give `weights='FILE'`, or `weights='random'`."
        )
    projected = plain != name
    model = ResNet(DEPTHS[plain], projected=projected, **arguments)
    return model, PREPROCESSING_PROJECTED if projected else PREPROCESSING


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names used here, whichever of the public namings they come in."""
    return {
        re.sub(r"^fc\.", "linear.", name).replace(".downsample.", ".shortcut."): value
        for name, value in tensors.items()
    }
