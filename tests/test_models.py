import pytest
import timm
import torch
from torch import nn

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


@pytest.mark.parametrize("name", ["resnet18d", "resnet26t", "resnetblur18"])
def test_width_keeps_all_layers_of_a_network(name):
    half, whole = (list(kd.create_model(name, width=width, num_classes=4).modules()) for width in (0.5, 1))
    assert [type(m) for m in half] == [type(m) for m in whole]
    convs = zip(half, whole, strict=True)
    assert {b.out_channels / a.out_channels for a, b in convs if isinstance(a, torch.nn.Conv2d)} == {2}


@pytest.mark.parametrize("arguments", [{"width": 0.125}, {"stem": "small"}])
def test_width_and_stem_are_of_the_type_and_device_asked_for(arguments):
    try:
        timm.create_model("resnet18", dtype=torch.bfloat16, device="meta")
    except TypeError:
        pytest.skip("this version of timm makes networks in float32 on the current device")
    for name in ("resnet18", "mobilenetv2_050", "convnext_tiny"):
        model = kd.create_model(name, dtype=torch.bfloat16, device="meta", num_classes=4, **arguments)
        assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "meta")}


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
        (
            dict(name="mobilenetv2_120d", width=0.5),
            "was given for 'mobilenetv2_120d'; it works for resnet18, mobilenetv2_100",
        ),
        (dict(name="resnetv2_50", width=0.5), "was given for 'resnetv2_50'; it works for resnet18"),
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


@pytest.mark.parametrize("name", ["densenet121", "resnetv2_18"])
def test_a_small_stem_has_no_pooling_wherever_it_stands(name):
    model = kd.create_model(name, num_classes=3, stem="small").eval()
    with torch.device("meta"):
        whole = kd.create_model(name, num_classes=3)
    assert model.forward_features(torch.randn(1, 3, 32, 32)).shape[-1] == 4
    assert isinstance(
        whole.get_submodule({"densenet121": "features.pool0"}.get(name, "stem.pool")), nn.MaxPool2d
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nf_resnet26", "but ScaledStdConv2d has a forward of its own"),
        ("repvgg_a0", "is not all of its stem"),
    ],
)
def test_a_stem_of_another_kind_is_not_made_small(name, message):
    with pytest.raises(ValueError, match=message):
        kd.create_model(name, stem="small")
