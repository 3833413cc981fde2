"""One model of each architecture family that runs in a second or so; benchmarks/ has them all."""

import families
import pytest
import timm

SAMPLE = (
    *("convnext", "efficientnet", "vision_transformer", "nfnet", "mambaout", "byobnet", "resnet"),
    *("starnet", "maxxvit", "vision_transformer_relpos", "dla", "squeezenet1_1", "mobilevit"),
    *("edgenext", "shufflenet_v2_x0_5", "mobilenetv3", "vovnet", "repghost", "efficientvit_msra"),
    *("ghostnet", "regnet", "iformer", "efficientvit_mit", "convit", "levit"),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", SAMPLE)
def test_equals_autograd(family):
    model = dict(families.models())[family]
    if model.startswith("timm:") and not timm.is_model(model.removeprefix("timm:")):
        pytest.skip(f"timm {timm.__version__} has no {model}")
    outcome = families.examine(family, model)
    print(f"{outcome.model}: generic {outcome.generic or 'none'}, ", end="")
    print(f"reference {outcome.reference or 'none'}")
    assert max(outcome.error_p1, outcome.error_p2) < families.TOLERANCE
    assert outcome.zero <= outcome.parameters // 4


def test_the_table_names_every_family_of_timm():
    assert {f for f, model in families.models() if model.startswith("timm:")} >= set(
        timm.list_modules()
    )
