import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.optim.swa_utils import AveragedModel

import kerneldna as kd
from kerneldna.conversion.plan import Plan

PATTERNS = {"layer3": "FS-SF-SF", "layer4": "FS-SF-SF"}


@pytest.fixture
def model():
    return timm.create_model("resnet18", num_classes=10)


def test_a_plan_prints_compares_and_saves(model):
    plan = kd.plan(model, kd.KernelDNA(patterns=PATTERNS))
    text = str(plan)
    assert "layer3.0.conv2      256x256x3x3  child of layer3.1.conv2" in text
    assert "(added)" in text
    assert "MACs: multiply-accumulates for one 3x224x224 image" in text
    assert Plan.from_dict(plan.to_dict()) == plan
    assert kd.plan(copy.deepcopy(model), kd.KernelDNA(patterns=PATTERNS)) == plan
    assert [len(family.children) for family in plan.families] == [2, 1, 2, 1]


def test_planning_leaves_the_model_alone(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kd.plan(model, kd.KernelDNA(patterns=PATTERNS))
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_weights_are_kept(model):
    before = model.state_dict()["layer3.1.conv2.weight"].clone()
    kd.convert_(model, kd.KernelDNA(patterns=PATTERNS))
    assert torch.equal(model.state_dict()["layer3.1.conv2.weight"], before)
    assert model.training


def test_an_added_block_has_parameters_of_its_own(model):
    kd.convert_(model, kd.KernelDNA(patterns=PATTERNS))
    assert not torch.equal(model.layer4[2].conv2.weight, model.layer4[1].conv2.weight)
    stds = [model.layer4[i].conv2.weight.std().item() for i in (1, 2)]
    assert stds[1] == pytest.approx(stds[0], rel=0.05)


def test_an_added_block_of_a_network_without_norms_is_alive():
    model = timm.create_model("nf_resnet26", num_classes=4, channels=(16, 16, 16, 16), ch_div=4)
    kd.convert_(model, kd.KernelDNA(patterns={"stages.1": "F-F-F"}), input_size=(3, 32, 32))
    added = model.get_submodule("stages.1.2")
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert added.conv3.gain.grad.any()  # the last gain of every block starts at 0


def test_any_network_of_your_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                *(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()) for _ in range(4))
            )

        def forward(self, x):
            return self.body(x).mean((2, 3))

    own = Own()
    kd.convert_(own, kd.KernelDNA(patterns={"body": "S-F-S-F"}), input_size=(4, 16, 16))
    assert own(torch.randn(2, 4, 16, 16)).shape == (2, 4)
    assert kd.describe(own).input_size == (4, 16, 16)


def test_describe_a_plain_and_a_converted_network(model):
    plain = kd.describe(model)
    assert plain.before is None
    assert plain.size.macs == 1_814_073_344 - 990 * 512
    kd.convert_(model, kd.KernelDNA(patterns=PATTERNS))
    described = kd.describe(model)
    assert described.before == plain.size
    assert described.layers["BatchNorm2d"] > 0
    assert "%" in str(described)


@pytest.mark.parametrize("method", kd.list_methods())
def test_a_plan_counts_what_converting_gives_and_draws_nothing(method):
    model = kd.create_model("resnet18", num_classes=4, width=0.125, stem="small")
    state = torch.get_rng_state()
    laid = kd.plan(model, method)
    assert torch.equal(torch.get_rng_state(), state)
    plain, converted = kd.describe(model).size, kd.describe(kd.convert_(model, laid))
    assert (laid.before, laid.after) == (plain, converted.size)
    assert converted.before == plain != converted.size


@pytest.mark.parametrize("method", ["kerneldna", "eca", "sharedbasis"])
def test_a_classifier_that_is_newer_than_the_conversion_counts_as_newer_before_too(method):
    made = {"width": 0.125, "stem": "small"}
    converted = kd.create_model("resnet18", method=method, num_classes=1000, **made)
    converted.reset_classifier(10)
    direct = kd.describe(kd.create_model("resnet18", method=method, num_classes=10, **made))
    described = kd.describe(converted)
    assert (described.before, described.size) == (direct.before, direct.size)
    fused = kd.describe(kd.fuse_(converted.eval()))
    assert (fused.before, fused.unfused) == (direct.before, direct.size)


def test_other_changes_since_the_conversion_leave_no_size_before(model):
    kd.convert_(model, kd.KernelDNA(patterns={"layer4": "FS-SF"}))
    assert kd.describe(model).before is not None
    assert kd.describe(copy.deepcopy(model).half()).before is None
    model.layer4[0].conv2.gate = None
    assert kd.describe(model).before is None


def test_converting_twice_is_refused(model):
    plan = kd.plan(model, kd.KernelDNA(patterns=PATTERNS))
    kd.convert_(model, plan)
    with pytest.raises(ValueError, match="converted already"):
        kd.plan(model, kd.KernelDNA(patterns=PATTERNS))
    with pytest.raises(ValueError, match="before it is"):
        kd.convert_(model, plan)


def test_a_plan_of_another_network_is_refused(model):
    plan = kd.plan(model, kd.KernelDNA(patterns=PATTERNS))
    with pytest.raises(
        ValueError, match=r"plan was made for a network of 11,181,642 parameters, this ResNet has"
    ):
        kd.convert_(timm.create_model("resnet18", num_classes=11), plan)


@pytest.mark.parametrize(
    ("parents", "why"),
    [
        (
            {"layer4.1.conv1": "layer4.1.conv2"},
            "'layer4.1.conv1', which is itself a child of 'layer4.1.conv2'",
        ),
        (
            {"layer4.0.conv2": "layer4.0.conv2"},
            "'layer4.0.conv2', which is itself a child of 'layer4.0.conv2'",
        ),
        ({"layer4.0.conv2": "layer3.1.conv1"}, "'layer3.1.conv1', which is no layer of its stages"),
    ],
)
def test_a_plan_changed_by_hand_tears_no_child_from_its_parent(model, parents, why):
    data = kd.plan(model, kd.KernelDNA(patterns={"layer4": "FS-FF"})).to_dict()
    for block in data["stages"][0]["blocks"]:
        for layer in block["layers"]:
            layer["parent"] = parents.get(layer["name"], layer["parent"])
    before = {name: id(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=f"the plan makes 'layer4.0.conv2' a child of {why}; name"):
        kd.convert_(model, Plan.from_dict(data))
    assert {name: id(module) for name, module in model.named_modules()} == before


def test_data_parallel_is_refused(model):
    with pytest.raises(ValueError, match=r"convert that, model\.module, and wrap it after"):
        kd.plan(nn.DataParallel(model), kd.KernelDNA(patterns=PATTERNS))


def test_a_method_may_be_given_by_name_and_nothing_else_is_one(model):
    assert kd.plan(model, "kerneldna") == kd.plan(model, kd.KernelDNA())
    with pytest.raises(ValueError, match="unknown method 'kernldna'; did you mean 'kerneldna'"):
        kd.plan(model, "kernldna")
    with pytest.raises(TypeError, match="the class KernelDNA; give a method"):
        kd.convert_(model, kd.KernelDNA)  # pyright: ignore
    with pytest.raises(TypeError, match="method is NoneType"):
        kd.plan(model, None)  # pyright: ignore


def test_an_input_that_does_not_fit_names_the_remedy(model):
    with pytest.raises(ValueError, match="pass input_size"):
        kd.plan(model, kd.KernelDNA(patterns=PATTERNS), input_size=(5, 224, 224))


def test_an_unknown_method():
    with pytest.raises(ValueError, match=r"unknown method 'kernldna'; did you mean 'kerneldna'\?"):
        kd.create_model("resnet18", method="kernldna")


@pytest.mark.parametrize("method", ["kerneldna", "odconv", "cbam"])
def test_what_comes_into_a_frozen_stage_is_in_its_mode(method):
    model = kd.create_model("resnet18", num_classes=3, width=0.125).train()
    model.layer4.eval()
    kd.convert_(model, method)
    assert not any(module.training for module in model.layer4.modules())
    assert all(module.training for module in model.layer3.modules())


def test_the_plan_of_a_wrapped_network_is_that_of_the_network_in_it():
    model = kd.create_model("resnet18", method="kerneldna", num_classes=3, width=0.125)
    assert kd.plan_of(AveragedModel(model)) == kd.plan_of(model) is not None


def test_a_compiled_part_is_counted():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    expected = kd.describe(model, input_size=(3, 8, 8)).size.macs
    model[0] = torch.compile(model[0])
    assert kd.describe(model, input_size=(3, 8, 8)).size.macs == expected


@pytest.mark.parametrize("method", ["odconv", "dyconv", "kernelwarehouse"])
def test_a_method_that_changes_nothing_says_why(method):
    model = nn.Sequential(
        *(spectral_norm(nn.Conv2d(a, 8, 3, padding=1)) for a in (3, 8, 8)), nn.AdaptiveAvgPool2d(1)
    )
    with pytest.raises(
        ValueError, match=r"no layer that .* changes \(.*: its weight is computed anew at every call"
    ):
        kd.convert_(model, method, input_size=(3, 8, 8))


@pytest.mark.parametrize("method", ["condconv", "dcd"])
def test_a_gate_s_linear_is_no_classifier(method):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
            self.fc1, self.fc2 = nn.Linear(8, 4), nn.Linear(4, 8)

        def forward(self, x):
            y = self.conv2(torch.relu(self.conv1(x)))
            return x + y * torch.sigmoid(self.fc2(torch.relu(self.fc1(y.mean((2, 3))))))[:, :, None, None]

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Sequential(*(Block() for _ in range(4))), nn.Conv2d(8, 5, 1))
    changed = [change.name for change in kd.plan(model, method, input_size=(3, 8, 8)).changes]
    assert changed
    assert not any(".fc" in name for name in changed)
