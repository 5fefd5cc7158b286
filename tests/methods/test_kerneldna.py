"""The published parameter counts: spec of the paper's Tab. 1, 3, 4, 5 (arXiv 2503.23379), each row a pattern and flags."""

import pytest
import timm
import torch

import kerneldna as kd

BACKBONES = {
    "resnet18": 9_240_798,
    "resnet50": 22_778_060,
    "mobilenetv2_100": 3_136_840,
    "mobilenetv2_050": 1_878_232,
    "convnext_tiny": 24_296_488,
}
TABLE_3 = {
    "FF-FF": 11.69,
    "FF-FFF": 14.64,
    "FF-FF-FF": 17.59,
    "FS-FSF": 9.07,
    "FS-SSF": 6.29,
    "FS-SF-SF": 9.24,
}
COPYING = dict(channel=False, spatial=False, filter=False)
R50 = {"layer3": "F-S-F-S-F-S-F", "layer4": "F-S-F"}
TABLE_4 = [
    ("resnet18", {"layer3": "FF-FF", "layer4": "FF-FF"}, {}, 11.69),
    ("resnet18", {"layer3": "FF-FFF", "layer4": "FF-FFF"}, {}, 14.64),
    ("resnet18", {"layer3": "FS-SF-SF", "layer4": "FS-SF-SF"}, COPYING, 8.74),
    ("resnet18", {"layer3": "FS-SF-SF", "layer4": "FS-SF-SF"}, {}, 9.24),
    ("resnet50", {"layer3": "F-F-F-F-F-F", "layer4": "F-F-F"}, {}, 25.56),
    ("resnet50", {"layer3": "F-F-F-F-F-F-F", "layer4": "F-F-F"}, {}, 26.67),
    ("resnet50", R50, COPYING, 22.55),
    ("resnet50", R50, {}, 22.78),
]
TABLE_5 = {
    (0, 0, 0): 8.74,
    (1, 0, 0): 9.24,
    (0, 1, 0): 8.74,
    (0, 0, 1): 8.75,
    (1, 1, 0): 9.24,
    (1, 0, 1): 9.24,
    (0, 1, 1): 8.75,
    (1, 1, 1): 9.24,
}


def count(name, method):
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = kd.plan(model, method)
    kd.convert_(model, plan)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == plan.after.parameters
    return parameters


@pytest.mark.parametrize("name", BACKBONES)
def test_recipes(name):
    assert count(name, kd.KernelDNA.recipe(name)) == BACKBONES[name]


@pytest.mark.parametrize("pattern", TABLE_3)
def test_table_3(pattern):
    both = kd.KernelDNA(patterns={"layer3": pattern, "layer4": pattern})
    assert round(count("resnet18", both) / 1e6, 2) == TABLE_3[pattern]


@pytest.mark.parametrize(("name", "patterns", "flags", "printed"), TABLE_4)
def test_table_4(name, patterns, flags, printed):
    assert round(count(name, kd.KernelDNA(patterns=patterns, **flags)) / 1e6, 2) == printed


@pytest.mark.parametrize("flags", TABLE_5)
def test_table_5(flags):
    named = dict(zip(("channel", "spatial", "filter"), map(bool, flags), strict=True))
    assert round(count("resnet18", kd.KernelDNA.recipe("resnet18", **named)) / 1e6, 2) == TABLE_5[flags]


def test_a_deepened_block_runs_and_trains():
    model = kd.create_model("resnet18", num_classes=4, stem="small", width=0.25)
    kd.convert_(model, kd.KernelDNA(patterns={"layer4": "FS-FSF"}))
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert type(model.layer4[1].conv2) is torch.nn.Sequential


def test_without_patterns_any_cnn_is_converted():
    model = timm.create_model("regnetx_002", num_classes=4)
    plan = kd.plan(model, kd.KernelDNA(eligible="pointwise"))
    assert plan.after.parameters < plan.before.parameters
    kd.convert_(model, plan)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 4)


def test_nothing_to_share_is_said():
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    with pytest.raises(ValueError, match="no stage with two depthwise layers of equal kernel shape"):
        kd.plan(model, kd.KernelDNA(eligible="depthwise"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(eligible="dens"), "did you mean 'dense'"),
        (dict(norm="bach"), "did you mean 'batch'"),
        (dict(reduction=0), "reduction is 0"),
        (dict(patterns={"layer4": "FX"}), "'X' is not a letter"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        kd.KernelDNA(**options)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"layer9": "FS"}, "no module 'layer9': 'ResNet' has no 'layer9'; it has conv1"),
        ({"layer4": "FS"}, "stage 'layer4' has 2 blocks, pattern FS has 1"),
        ({"layer4": "F-FS"}, r"block 'layer4.0' has 2 eligible layers \(layer4.0.conv1, layer4.0.conv2\)"),
        ({"layer4": "SF-FF"}, r"'layer4.0.conv1' has a \(512, 256, 3, 3\) kernel and no F of that shape"),
        ({"layer4": "FF-FF-FFF"}, "both adds block 'layer4.2' and deepens it"),
        ({"conv1": "FS"}, "stage 'conv1' is a Conv2d, not a sequence of blocks"),
    ],
)
def test_a_pattern_that_does_not_fit_says_where(patterns, message):
    with torch.device("meta"):
        model = timm.create_model("resnet18")
    with pytest.raises(ValueError, match=message):
        kd.plan(model, kd.KernelDNA(patterns=patterns))


def test_layers_with_a_forward_of_their_own_are_skipped_and_said_so():
    with torch.device("meta"):
        model = timm.create_model("tf_efficientnet_b0")
    plan = kd.plan(model, kd.KernelDNA(eligible="depthwise", channel=False))
    assert any("Conv2dSame has a forward of its own" in skip.reason for skip in plan.skipped)
    assert "skipped" in str(plan)


@pytest.mark.parametrize("name", ["conv22", "layer4.0.conv2"])
def test_a_reduction_of_no_layer_is_refused(name):
    model = kd.create_model("resnet18", num_classes=4, width=0.125)
    with pytest.raises(
        ValueError, match=f"unknown name in reduction '{name}'; did you mean .*conv1 for layer1.0.conv1"
    ):
        kd.plan(model, kd.KernelDNA(reduction={"conv1": 8, name: 16}))
