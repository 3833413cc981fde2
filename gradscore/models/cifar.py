"""The ResNets for CIFAR of He et al., "Deep Residual Learning", CVPR 2016, Section 4.2.

Three stages of ``n`` basic blocks with 16, 32 and 64 channels, depth ``6 n + 2``. Shortcuts have
no parameters (option A): where the shape changes, every second pixel is taken and the new
channels are zero, half of them on either side. Names are those of the well-known public state
dicts.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from gradscore.errors import ModelError, WeightsError
from gradscore.models.preprocessing import Preprocessing

DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
PREPROCESSING = Preprocessing(
    resize=32, crop=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to a parameter-free shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        """Make the layers; ``stride`` is that of the first convolution."""
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.added = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, ``[batch, channels, h / stride, w / stride]``."""
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.added:
            side = self.added // 2
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, side, side))
        return relu(out + x)


class ResNet(nn.Module):
    """CIFAR ResNet of the given depth."""

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        """Make a network of ``depth`` = ``6 n + 2`` layers with ``num_classes`` outputs."""
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(in_channels: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(in_channels, channels, stride)
        return nn.Sequential(
            first, *(BasicBlock(channels, channels, 1) for _ in range(blocks - 1))
        )

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
    if name not in DEPTHS:
        raise ModelError(f"Expected cifar: one of {', '.join(DEPTHS)}, got {name!r}.")
    if pretrained:
        raise WeightsError(
            f"cifar:{name} comes without weights: give --weights FILE, or --weights random."
        )
    return ResNet(DEPTHS[name], **arguments), PREPROCESSING
