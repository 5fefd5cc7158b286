import pytest
import timm
import torch

import kerneldna as kd
from kerneldna.models import create_from
from kerneldna.recipes.recipe import load_recipe


def test_the_names():
    assert kd.list_models() == ["resnet18", "resnet50", "mobilenetv2_100", "mobilenetv2_050", "convnext_tiny"]
    assert "kerneldna" in kd.list_methods()


def test_timm_knows_the_networks_after_import():
    model = timm.create_model("kdna_resnet18", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 8_732_928
    features = timm.create_model("kdna_mobilenetv2_050", features_only=True, out_indices=(1, 3))
    assert features.feature_info.channels() == [16, 48]
    assert [f.shape[1] for f in features.eval()(torch.randn(1, 3, 64, 64))] == [16, 48]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2_050", "convnext_tiny"])
@pytest.mark.parametrize("method", [None, "kerneldna"])
def test_small_images_and_width(name, method):
    model = kd.create_model(name, method=method, num_classes=5, width=0.5, stem="small").eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    full = kd.create_model(name, num_classes=5)
    ratio = sum(p.numel() for p in model.parameters()) / sum(p.numel() for p in full.parameters())
    assert 0.1 < ratio < 0.5
    first = next(m for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
    assert kd.describe(model).input_size == (3, 32, 32)


def test_a_quarter_width_resnet_is_a_quarter_wide_throughout():
    model = kd.create_model("resnet18", width=0.25)
    assert model.conv1.out_channels == 16
    assert model.conv1.kernel_size == (7, 7)
    assert model.layer1[0].downsample is None


def test_options_replace_values_of_the_recipe():
    model = kd.create_model("resnet18", method="kerneldna", options={"channel": False, "spatial": False})
    assert kd.plan_of(model).after.parameters == 8_745_768


def test_a_method_object_works_too():
    model = kd.create_model("resnet18", method=kd.KernelDNA(patterns={"layer4": "FS-SF"}))
    assert len(kd.plan_of(model).changes) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="resnt18"), "unknown model 'resnt18'; did you mean 'resnet18'"),
        (dict(name="resnet18", stem="smal"), "did you mean 'small'"),
        (dict(name="vgg11", width=0.5), "width=0.5 was given for 'vgg11'; it works for resnet"),
        (dict(name="resnet18", pretrained=True, stem="small"), "pretrained weights are for width=1"),
        (dict(name="resnet18", options={"channel": False}), "without the name of a method in method="),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        kd.create_model(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            "model.args.depths=[1, 1, 1, 1]",
            "model.args: resnet18 does not take these arguments: TypeError .*depths",
        ),
        (
            "model.args.pretrained_cfg={url: x}",
            "model.args.pretrained_cfg: no argument of timm that a file may set",
        ),
        ("model.args.layers=[2000]", "model.args.layers: expected 1,024 blocks at most"),
        ("model.options.spatial=1", "options.spatial: expected true or false, given 1"),
        ("model.options.spatal=true", "unknown option of kerneldna 'spatal'; did you mean 'spatial'"),
    ],
)
def test_what_a_recipe_may_not_say_of_its_network(changes, message):
    recipe = load_recipe("resnet18-kerneldna-digits", overrides=[changes])
    with pytest.raises(ValueError, match=message):
        create_from(recipe.model, num_classes=3)
