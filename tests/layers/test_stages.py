"""The stages' outputs are found in networks of every family, and averaged over the right axes."""

import pytest
import torch
from torch import nn

from gradscore.errors import ModelError
from gradscore.layers.features import find_stages, observe_stages, pool
from gradscore.layers.head import find_head
from gradscore.models import create_model

CASES = {
    "digits": (["block1", "block2", "block3", "block4"], [16, 24, 32, 64]),
    "cifar:resnet20": (["layer1", "layer2", "layer3"], [16, 32, 64]),
    "timm:resnet18": (["layer1", "layer2", "layer3", "layer4"], [64, 128, 256, 512]),
    "timm:vit_tiny_patch16_224?img_size=64": (
        ["blocks.2", "blocks.5", "blocks.8", "blocks.11"],
        [192] * 4,
    ),
    "timm:swin_tiny_patch4_window7_224?img_size=64": (
        ["layers.0", "layers.1", "layers.2", "layers.3"],
        [96, 192, 384, 768],
    ),
}


def asked(model, *shape):
    images = torch.randn(2, *shape)
    head = find_head(model, images)
    stages = find_stages(model, head, images)
    with torch.inference_mode(), observe_stages(model, stages, images) as found:
        model(images)
    return stages, found


@pytest.mark.parametrize("spec", CASES)
def test_stages_of_the_libraries(spec):
    model = create_model(spec, "random")
    prepare = model.preprocessing
    side = min(64, prepare.crop)
    stages, found = asked(model, len(prepare.mean), side, side)
    modules, widths = CASES[spec]
    assert list(stages) == [f"block{number}" for number in range(1, len(modules) + 1)]
    assert list(stages.values()) == modules
    assert [found[stage].shape[1] for stage in stages] == widths
    assert not any(module._forward_hooks for module in model.modules())


def test_space_is_the_pair_of_axes_with_the_images_proportions():
    images = torch.zeros(2, 3, 12, 8)
    x = torch.randn(2, 5, 6, 4)
    torch.testing.assert_close(pool(x, images), x.mean(dim=(2, 3)))
    last = x.permute(0, 2, 3, 1)
    torch.testing.assert_close(pool(last, images), x.mean(dim=(2, 3)))
    torch.testing.assert_close(pool(torch.randn(2, 6, 6, 6), images).shape, torch.Size([2, 6]))
    torch.testing.assert_close(pool(x[:, :, :, 0], images), x[:, :, :, 0].mean(dim=1))
    assert pool(x[:, :, 0, 0].half(), images).dtype is torch.float32


class Branches(nn.Module):
    """Stages in a list that is never called; the second writes into the first's output."""

    def __init__(self, leave=()):
        super().__init__()
        self.leave = leave
        self.stages = nn.ModuleList(
            [
                nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 6)]),
                nn.ModuleList([nn.Linear(6, 8), nn.Linear(8, 8)]),
            ]
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for number, stage in enumerate(self.stages):
            if number not in self.leave:
                for layer in stage:
                    x = layer(x)
            else:
                x = nn.functional.pad(x, (0, 2))
            x = x.relu_()
        return self.head(x)


def test_a_list_of_modules_ends_with_the_last_that_is_called():
    model = Branches().eval()
    stages, found = asked(model, 4)
    assert list(stages.values()) == ["stages.0.1", "stages.1.1"]
    assert (found["block1"] < 0).any()


def test_networks_without_stages_are_refused():
    with pytest.raises(ModelError, match="network with stages, found none among its modules: 0"):
        asked(nn.Sequential(nn.Linear(4, 3)).eval(), 4)
    with pytest.raises(ModelError, match=r"forward to use block2 \(stages.1\), it does not"):
        asked(Branches(leave=(1,)).eval(), 4)


def test_an_output_that_is_no_batch_is_refused():
    class Turned(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer1 = nn.Sequential(nn.Linear(4, 8), Turn())
            self.layer2 = nn.Sequential(Turn(), nn.Linear(8, 4))
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.layer2(self.layer1(x)))

    class Turn(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1)

    with pytest.raises(ModelError, match=r"block1 \(layer1\) to put out a tensor \[2, ...\]"):
        asked(Turned().eval(), 4)
