"""The families of networks that are built here, and what their weight files call the parameters.

``digits``: a small network that knows the handwritten digits 0 to 5. It comes with its weights, so
that everything can be tried without a download. How they were trained is
``benchmarks/train_digits.py``; the sets that go with it are ``gradscore.data.named``.

``cifar``: the ResNets for CIFAR of He et al., "Deep Residual Learning", CVPR 2016, Section 4.2.
Three stages of ``n`` basic blocks with 16, 32 and 64 channels, depth ``6 n + 2``. Two public
families of weights exist. ``resnet20`` has shortcuts without parameters (option A): where the
shape changes, every second pixel is taken and the new channels are zero, half of them on either
side. ``resnet20-b`` has a 1x1 convolution with batch norm there (option B).

``bit``: the BiT-S family of Kolesnikov et al., "Big Transfer", ECCV 2020, that GradNorm is tested
on. ResNet v2 with group norm and standardised weights, trained on ImageNet-1k. The networks are
timm's, with the standardisation's original epsilon. Weights come from files: Google's ``.npz``,
the GradNorm authors' checkpoint (``BiT-S-R101x1-flat-finetune.pth.tar``), or timm's names. The
authors' checkpoint has its own order of labels: the ID accuracy shows whether labels fit it.
"""

import re
from importlib.resources import as_file, files

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from gradscore.errors import ModelError, WeightsError
from gradscore.models.libraries import build_timm
from gradscore.models.preprocessing import Preprocessing
from gradscore.models.weights import fit_weights, load_weights

Built = tuple[nn.Module, Preprocessing]

DIGITS_CLASSES = 6
DIGITS_CHANNELS = (16, 24, 32, 64)
DIGITS_PREPROCESSING = Preprocessing(resize=8, crop=8, mean=(0.3,), std=(0.38,), mode="L")
"""Mean and deviation of the training digits' pixels, rounded."""

CIFAR_DEPTHS = {f"resnet{depth}": depth for depth in (20, 32, 44, 56, 110)}
PROJECTED = "-b"
"""What follows the name of a network whose shortcuts are 1x1 convolutions."""
CIFAR_PREPROCESSING = Preprocessing(
    resize=32, crop=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
CIFAR_PREPROCESSING_PROJECTED = Preprocessing(
    resize=32, crop=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
)

BIT_NAMES = {
    f"BiT-S-R{depth}x{width}": f"resnetv2_{depth}x{width}_bit"
    for depth, width in ((50, 1), (101, 1), (50, 3), (152, 2), (101, 3))
}
BIT_PREPROCESSING = Preprocessing(resize=(480, 480), crop=480, mean=(0.5,), std=(0.5,))
STANDARDISATION_EPS = 1e-10
"""Google's; timm adds 1e-8, which shows in filters whose weights vary by less than about 1e-3."""

NPZ, PAPER = "resnet/", "root."
"""How names in Google's files begin, and one of them in the paper's."""
_NPZ, _PAPER = r"block(\d+)/unit(\d+)", r"body\.block(\d+)\.unit(\d+)"
_KERNEL = "standardized_conv2d/kernel"
BIT_TENSORS = {
    "stem.conv.weight": (rf"root_block/{_KERNEL}", r"root\.conv\.weight"),
    "{unit}.downsample.conv.weight": (
        rf"{_NPZ}/a/proj/{_KERNEL}",
        rf"{_PAPER}\.downsample\.weight",
    ),
    "{unit}.conv{part}.weight": (rf"{_NPZ}/([abc])/{_KERNEL}", rf"{_PAPER}\.conv([123])\.weight"),
    "{unit}.norm{part}.weight": (
        rf"{_NPZ}/([abc])/group_norm/gamma",
        rf"{_PAPER}\.gn([123])\.weight",
    ),
    "{unit}.norm{part}.bias": (rf"{_NPZ}/([abc])/group_norm/beta", rf"{_PAPER}\.gn([123])\.bias"),
    "norm.weight": (r"group_norm/gamma", r"before_head\.gn\.weight"),
    "norm.bias": (r"group_norm/beta", r"before_head\.gn\.bias"),
    "head.fc.weight": (r"head/conv2d/kernel", r"head\.conv\.weight"),
    "head.fc.bias": (r"head/conv2d/bias", r"head\.conv\.bias"),
}
"""What timm calls each tensor, and its name in Google's files and in the paper's."""
PARTS = {"a": "1", "b": "2", "c": "3"}


class Block(nn.Module):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        """Make the layers; ``stride`` is that of the first convolution."""
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
        first, second, third, last = DIGITS_CHANNELS
        self.stem = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1, bias=False), nn.BatchNorm2d(first)
        )
        self.block1 = Block(first, first, 1)
        self.block2 = Block(first, second, 2)
        self.block3 = Block(second, third, 1)
        self.block4 = Block(third, last, 2)
        self.fc = nn.Linear(last, DIGITS_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[batch, 6]`` of normalised grey pictures ``[batch, 1, 8, 8]``."""
        x = relu(self.stem(x))
        x = self.block4(self.block3(self.block2(self.block1(x))))
        return self.fc(torch.mean(x, dim=(2, 3)))


def build_digits(name: str, arguments: dict, pretrained: bool) -> Built:
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
    return model, DIGITS_PREPROCESSING


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


class BasicBlock(Block):
    """A block to which a shortcut is added before the second ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, projected: bool) -> None:
        """Make the layers; ``stride`` is that of the first convolution."""
        super().__init__(in_channels, channels, stride)
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


def build_cifar(name: str, arguments: dict, pretrained: bool) -> Built:
    """Return a CIFAR ResNet by name, without weights, and its preprocessing.

    Raises:
        ModelError: If the name is unknown.
        WeightsError: If pretrained weights are asked for: none come with the library.
    """
    plain = name.removesuffix(PROJECTED)
    if plain not in CIFAR_DEPTHS:
        raise ModelError(
            f"Expected cifar: one of {', '.join(CIFAR_DEPTHS)}, or with {PROJECTED} behind it for "
            f"1x1 shortcuts, got {name!r}."
        )
    if pretrained:
        raise WeightsError(
            f"cifar:{name} comes without weights: give `weights='FILE'`, or `weights='random'`."
        )
    projected = plain != name
    model = ResNet(CIFAR_DEPTHS[plain], projected=projected, **arguments)
    return model, CIFAR_PREPROCESSING_PROJECTED if projected else CIFAR_PREPROCESSING


def cifar_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under the names used here, whichever of the public namings they come in."""
    return {
        re.sub(r"^fc\.", "linear.", name).replace(".downsample.", ".shortcut."): value
        for name, value in tensors.items()
    }


def build_bit(name: str, arguments: dict, pretrained: bool) -> Built:
    """Return a member of the family, without weights, and the paper's preprocessing.

    Args:
        name: One of :data:`BIT_NAMES`.
        arguments: Keyword arguments of timm, such as ``num_classes`` for a head of another size.
        pretrained: Refused: nobody hosts these weights where timm could fetch them.

    Raises:
        ModelError: If the name is unknown.
        WeightsError: If pretrained weights are asked for.
    """
    if name not in BIT_NAMES:
        raise ModelError(f"Expected bit: one of {', '.join(BIT_NAMES)}, got {name!r}.")
    if pretrained:
        raise WeightsError(
            f"bit:{name} comes without weights: give `weights='FILE'` (Google's {name}.npz or "
            "the paper's .pth.tar), or `weights='random'`."
        )
    model, _ = build_timm(BIT_NAMES[name], arguments, pretrained=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and hasattr(module, "eps"):
            module.eps = STANDARDISATION_EPS
    return model, BIT_PREPROCESSING


def bit_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under timm's names, whichever of the three namings they come in.

    Google's kernels ``[height, width, in, out]`` are turned to ``[out, in, height, width]``. What
    lies outside ``resnet/`` in a ``.npz`` is no weight of the network and is left out. Names
    that fit no rule stay as they are, so that strict loading lists them.
    """
    if any(name.startswith(NPZ) for name in tensors):
        found = {n.removeprefix(NPZ): x for n, x in tensors.items() if n.startswith(NPZ)}
        return {_name(name, 0): _from_tensorflow(x) for name, x in found.items()}
    if any(name.startswith(PAPER) for name in tensors):
        return {_name(name, 1): x for name, x in tensors.items()}
    return tensors


def _name(name: str, column: int) -> str:
    for template, patterns in BIT_TENSORS.items():
        match = re.fullmatch(patterns[column], name)
        if match:
            block, unit, part = (*match.groups(), *(None,) * 3)[:3]
            place = f"stages.{int(block) - 1}.blocks.{int(unit) - 1}" if block else ""
            return template.format(unit=place, part=PARTS.get(part, part))
    return name


def _from_tensorflow(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
