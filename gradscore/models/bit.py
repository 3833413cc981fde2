"""The BiT-S family of Kolesnikov et al., "Big Transfer", ECCV 2020, that GradNorm is tested on.

ResNet v2 with group norm and standardised weights, trained on ImageNet-1k. The networks are
timm's, with the standardisation's original epsilon. Weights come from files: Google's ``.npz``,
the GradNorm authors' checkpoint (``BiT-S-R101x1-flat-finetune.pth.tar``), or timm's names. The
authors' checkpoint has its own order of labels: the ID accuracy shows whether labels fit it.
"""

import re

from torch import Tensor, nn

from gradscore.errors import ModelError, WeightsError
from gradscore.models.libraries import build_timm
from gradscore.models.preprocessing import Preprocessing

NAMES = {
    f"BiT-S-R{depth}x{width}": f"resnetv2_{depth}x{width}_bit"
    for depth, width in ((50, 1), (101, 1), (50, 3), (152, 2), (101, 3))
}
PREPROCESSING = Preprocessing(resize=(480, 480), crop=480, mean=(0.5,), std=(0.5,))
STANDARDISATION_EPS = 1e-10
"""Google's; timm adds 1e-8, which shows in filters whose weights vary by less than about 1e-3."""

NPZ = "resnet/"
NPZ_NAMES = (
    (r"root_block/standardized_conv2d/kernel", r"stem.conv.weight"),
    (r"block(\d+)/unit(\d+)/a/proj/standardized_conv2d/kernel", r"{unit}.downsample.conv.weight"),
    (r"block(\d+)/unit(\d+)/([abc])/standardized_conv2d/kernel", r"{unit}.conv{part}.weight"),
    (r"block(\d+)/unit(\d+)/([abc])/group_norm/gamma", r"{unit}.norm{part}.weight"),
    (r"block(\d+)/unit(\d+)/([abc])/group_norm/beta", r"{unit}.norm{part}.bias"),
    (r"group_norm/gamma", r"norm.weight"),
    (r"group_norm/beta", r"norm.bias"),
    (r"head/conv2d/kernel", r"head.fc.weight"),
    (r"head/conv2d/bias", r"head.fc.bias"),
)
PAPER = "root."
PAPER_NAMES = (
    (r"root\.conv\.weight", r"stem.conv.weight"),
    (r"body\.block(\d+)\.unit(\d+)\.downsample\.weight", r"{unit}.downsample.conv.weight"),
    (r"body\.block(\d+)\.unit(\d+)\.conv([123])\.weight", r"{unit}.conv{part}.weight"),
    (r"body\.block(\d+)\.unit(\d+)\.gn([123])\.weight", r"{unit}.norm{part}.weight"),
    (r"body\.block(\d+)\.unit(\d+)\.gn([123])\.bias", r"{unit}.norm{part}.bias"),
    (r"before_head\.gn\.weight", r"norm.weight"),
    (r"before_head\.gn\.bias", r"norm.bias"),
    (r"head\.conv\.weight", r"head.fc.weight"),
    (r"head\.conv\.bias", r"head.fc.bias"),
)
PARTS = {"a": "1", "b": "2", "c": "3"}


def build(name: str, arguments: dict, pretrained: bool) -> tuple[nn.Module, Preprocessing]:
    """Return a member of the family, without weights, and the paper's preprocessing.

    Args:
        name: One of :data:`NAMES`.
        arguments: Keyword arguments of timm, such as ``num_classes`` for a head of another size.
        pretrained: Refused: nobody hosts these weights where timm could fetch them.

    Raises:
        ModelError: If the name is unknown.
        WeightsError: If pretrained weights are asked for.
    """
    if name not in NAMES:
        raise ModelError(f"Expected bit: one of {', '.join(NAMES)}, got {name!r}.")
    if pretrained:
        raise WeightsError(
            f"bit:{name} comes without weights: give `weights='FILE'` (Google's {name}.npz or "
            "the paper's .pth.tar), or `weights='random'`."
        )
    model, _ = build_timm(NAMES[name], arguments, pretrained=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and hasattr(module, "eps"):
            module.eps = STANDARDISATION_EPS
    return model, PREPROCESSING


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights under timm's names, whichever of the three namings they come in.

    Google's kernels ``[height, width, in, out]`` are turned to ``[out, in, height, width]``. What
    lies outside ``resnet/`` in a ``.npz`` is no weight of the network and is left out. Names
    that fit no rule stay as they are, so that strict loading lists them.
    """
    if any(name.startswith(NPZ) for name in tensors):
        found = {n.removeprefix(NPZ): x for n, x in tensors.items() if n.startswith(NPZ)}
        return {_name(name, NPZ_NAMES): _from_tensorflow(x) for name, x in found.items()}
    if any(name.startswith(PAPER) for name in tensors):
        return {_name(name, PAPER_NAMES): x for name, x in tensors.items()}
    return tensors


def _name(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, template in rules:
        match = re.fullmatch(pattern, name)
        if match:
            block, unit, part = (*match.groups(), *(None,) * 3)[:3]
            place = f"stages.{int(block) - 1}.blocks.{int(unit) - 1}" if block else ""
            return template.format(unit=place, part=PARTS.get(part, part))
    return name


def _from_tensorflow(tensor: Tensor) -> Tensor:
    return tensor.permute(3, 2, 0, 1).contiguous() if tensor.ndim == 4 else tensor
