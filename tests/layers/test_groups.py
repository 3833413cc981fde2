"""Every parameter has one place: stem, a block, neck or last; and layers select among them."""

import pytest
import torch
from torch import nn

from gradscore.errors import InvalidArgument
from gradscore.layers.groups import parameter_groups
from gradscore.layers.head import Head, find_head
from gradscore.models import create_model
from gradscore.selection import select

NO_HEAD = Head(None, (), None, False, "none")


def groups_of(model, *shape, overrides=None):
    model.eval()
    head = find_head(model, torch.randn(2, *shape))
    return head, parameter_groups(model, head, overrides)


def assert_partition(model, head, groups):
    names = [name for name, _ in model.named_parameters()]
    assert groups["all"] == tuple(names)
    placed = [name for group, members in groups.items() if group != "all" for name in members]
    assert len(placed) == len(set(placed))
    rest = set(names) - set(placed)
    assert rest == {w.removesuffix("weight") + "bias" for w in head.weights} & set(names)
    for members in groups.values():
        assert list(members) == sorted(members, key=names.index)


SIDE = 64
"""Of the images at most; how modules are nested, and which is the last, any size shows."""
LIBRARIES = {
    "digits": ("stem block1 block2 block3 block4 last", "block4.conv1.weight", "block4"),
    "cifar:resnet20": ("stem block1 block2 block3 last", "layer3.0.conv1.weight", "block3"),
    "timm:resnet18": ("stem block1 block2 block3 block4 last", "layer1.0.bn1.bias", "block1"),
    "timm:vit_tiny_patch16_224?img_size=64": (
        "stem block1 block2 block3 block4 neck last",
        "blocks.9.attn.qkv.weight",
        "block4",
    ),
    "timm:convnext_atto": (
        "stem block1 block2 block3 block4 neck last",
        "stages.1.downsample.1.weight",
        "block2",
    ),
    "timm:mobilenetv2_100": (
        "stem block1 block2 block3 block4 block5 block6 block7 neck last",
        "conv_head.weight",
        "neck",
    ),
    "timm:deit_tiny_distilled_patch16_224?img_size=64": (
        "stem block1 block2 block3 block4 neck last",
        "dist_token",
        "stem",
    ),
    "timm:gmixer_12_224?img_size=64": (
        "stem block1 block2 block3 block4 neck last",
        "norm.weight",
        "neck",
    ),
    "timm:resnetv2_50x1_bit": (
        "stem block1 block2 block3 block4 neck last",
        "stages.3.blocks.2.conv3.weight",
        "block4",
    ),
    "timm:coat_tiny?img_size=64": (
        "stem block1 block2 block3 block4 neck last",
        "parallel_blocks.0.norm12.weight",
        "block1",
    ),
    "torchvision:vgg11": (
        "block1 block2 block3 block4 block5 neck last",
        "features.8.weight",
        "block3",
    ),
    "torchvision:squeezenet1_1": (
        "stem block1 block2 block3 last",
        "features.12.squeeze.weight",
        "block3",
    ),
    "torchvision:mobilenet_v2": (
        "stem block1 block2 block3 block4 neck last",
        "features.18.0.weight",
        "neck",
    ),
    "torchvision:densenet121": (
        "stem block1 block2 block3 block4 neck last",
        "features.transition1.conv.weight",
        "block2",
    ),
    "torchvision:swin_t": (
        "stem block1 block2 block3 block4 neck last",
        "features.6.reduction.weight",
        "block4",
    ),
    "torchvision:googlenet": (
        "stem block1 block2 block3 neck last",
        "inception4e.branch1.conv.weight",
        "block2",
    ),
}


@pytest.mark.parametrize("spec", LIBRARIES)
def test_groups_of_the_libraries(spec):
    model = create_model(spec, "random")
    side = min(SIDE, model.preprocessing.crop)
    head, groups = groups_of(model, len(model.preprocessing.mean), side, side)
    assert_partition(model, head, groups)
    expected, name, home = LIBRARIES[spec]
    assert list(groups) == [*expected.split(), "all"]
    assert name in groups[home]


def block(width):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def stack(*widths):
    return nn.Sequential(*(block(width) for width in widths))


@pytest.mark.parametrize(
    ("depth", "sizes"),
    [(2, [1, 1]), (4, [1, 1, 1, 1]), (6, [2, 1, 1, 2]), (12, [3, 3, 3, 3]), (13, [3, 3, 4, 3])],
)
def test_equal_blocks_are_cut_in_four_parts_by_depth(depth, sizes):
    model = nn.Sequential(stack(*[6] * depth), nn.Linear(6, 3))
    head, groups = groups_of(model, 6)
    assert_partition(model, head, groups)
    blocks = [members for group, members in groups.items() if group.startswith("block")]
    assert [len(members) // 4 for members in blocks] == sizes


def test_a_row_of_layers_is_cut_at_its_pooling():
    def conv():
        return nn.Conv2d(3, 3, 3, padding=1)

    body = nn.Sequential(conv(), nn.ReLU(), conv(), nn.MaxPool2d(2), conv(), nn.MaxPool2d(2))
    model = nn.Sequential(body, nn.Flatten(), nn.Linear(12, 2))
    _, groups = groups_of(model, 3, 8, 8)
    assert [len(groups[group]) for group in ("block1", "block2", "last")] == [4, 2, 1]


def test_without_blocks_everything_is_stem():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    head, groups = groups_of(model, 4)
    assert_partition(model, head, groups)
    assert groups == {
        "stem": ("0.weight", "0.bias"),
        "last": ("2.weight",),
        "all": ("0.weight", "0.bias", "2.weight", "2.bias"),
    }


def test_a_head_alone_has_no_other_groups():
    _, groups = groups_of(nn.Linear(4, 3), 4)
    assert groups == {"last": ("weight",), "all": ("weight", "bias")}


def test_numbered_names_come_in_the_order_of_their_numbers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            for number in (10, 9, 2):
                setattr(self, f"stage_{number}", block(4))
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.stage_10(self.stage_9(self.stage_2(x))))

    _, groups = groups_of(Net(), 4)
    firsts = [groups[f"block{number}"][0] for number in (1, 2, 3)]
    assert firsts == ["stage_2.0.weight", "stage_9.0.weight", "stage_10.0.weight"]


def digits(overrides):
    model = create_model("digits")
    return model, *groups_of(model, 1, 8, 8, overrides=overrides)


def test_overrides_take_parameters_from_other_groups():
    model, head, groups = digits({"late": "block3.*, block4.*", "first": ["stem.0.*", "block1.*"]})
    assert_partition(model, head, groups)
    assert list(groups) == ["stem", "block2", "late", "first", "last", "all"]
    assert len(groups["late"]) == 12
    assert groups["first"][0] == "stem.0.weight"


def test_an_overridden_block_holds_what_matches_alone():
    _, _, groups = digits({"block4": "block4.conv*"})
    assert groups["block4"] == ("block4.conv1.weight", "block4.conv2.weight")
    assert "block4.bn1.weight" in groups["all"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"all": "*"}, "a group other than last and all to redefine, got 'all'"),
        ({"last": "fc.*"}, "a group other than last and all to redefine, got 'last'"),
        ({"x": "nothing.*"}, "got 'nothing"),
        ({"x": "fc.weight"}, "got fc.weight in last and x"),
        ({"x": "block1.*", "y": "*.bn1.*"}, r"got block1.bn1.weight in x and y"),
    ],
)
def test_overrides_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(InvalidArgument, match=message):
        digits(overrides)


NAMES = ("a.weight", "a.bias", "b.0.weight", "b.1.weight", "head.weight", "head.bias")
GROUPS = {"stem": NAMES[:2], "block1": NAMES[2:4], "last": NAMES[4:5], "all": NAMES}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("last", ["head.weight"]),
        ("all", list(NAMES)),
        ("last,stem", ["a.weight", "a.bias", "head.weight"]),
        (["last", "stem, a.bias"], ["a.weight", "a.bias", "head.weight"]),
        ("*.bias", ["a.bias", "head.bias"]),
        ("b", ["b.0.weight", "b.1.weight"]),
        ("b.?.weight", ["b.0.weight", "b.1.weight"]),
        ("head.bias", ["head.bias"]),
        ("block1, block1,b.*", ["b.0.weight", "b.1.weight"]),
    ],
)
def test_select_takes_groups_modules_names_and_globs(layers, expected):
    assert select(NAMES, GROUPS, layers) == tuple(expected)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("blok1", r"stem, block1, last, all or a glob .* got 'blok1'. Close ones are block1"),
        ("last,none.*", r"got 'none\.\*'"),
        ("", "got none"),
        ([], "got none"),
        (" , ", "got none"),
    ],
)
def test_what_matches_nothing_is_refused_naming_the_groups(layers, message):
    with pytest.raises(InvalidArgument, match=message):
        select(NAMES, GROUPS, layers)


def test_scripted_models_have_groups():
    with pytest.warns((DeprecationWarning, FutureWarning)):
        model = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval())
    groups = parameter_groups(model, find_head(model, torch.randn(2, 4)))
    assert groups["last"] == ("2.weight",)
