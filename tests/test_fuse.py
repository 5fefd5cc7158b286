import copy

import pytest
import timm
import torch
from torch import nn

import kerneldna as kd
from kerneldna.convert import state_of


@pytest.fixture(scope="module")
def trained():
    """A small network with adapters and statistics that are not at their start."""
    torch.manual_seed(0)
    model = kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.25, stem="small")
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith(("spatial", "filter")):
            nn.init.normal_(parameter, 0.5, 0.2)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    return model.eval()


def test_no_library_class_is_left_and_outputs_are_equal(trained):
    model = copy.deepcopy(trained)
    x = torch.randn(2, 3, 32, 32)
    assert kd.fuse_(model) is model
    assert not [m for m in model.modules() if type(m).__module__.startswith("kerneldna")]
    assert isinstance(model.layer4[0].conv2.gate, timm.layers.SqueezeExcite)
    torch.testing.assert_close(model(x), trained(x), rtol=1e-4, atol=1e-5)
    assert state_of(model)["fused"]["difference"] < 1e-5


def test_parent_and_child_are_independent_afterwards(trained):
    model = kd.fuse_(copy.deepcopy(trained))
    model.layer4[1].conv2.weight.data.zero_()
    assert model.layer4[0].conv2.conv.weight.abs().max() > 0


def test_training_mode_is_refused(trained):
    with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        kd.fuse_(copy.deepcopy(trained).train())


def test_fusing_twice_is_refused(trained):
    with pytest.raises(ValueError, match="fused already"):
        kd.fuse_(kd.fuse_(copy.deepcopy(trained)))


def test_a_plain_network_is_refused():
    with pytest.raises(ValueError, match="nothing to fuse"):
        kd.fuse_(timm.create_model("resnet18", num_classes=2).eval())


def test_an_unknown_mode_is_refused(trained):
    with pytest.raises(ValueError, match="did you mean 'accuracy'"):
        kd.fuse_(trained, mode="acuracy")


def test_a_result_that_differs_is_refused_and_the_model_left_as_it_was(trained, monkeypatch):
    model = copy.deepcopy(trained)
    wrong = kd.ChildConv2d.fused
    monkeypatch.setattr(kd.ChildConv2d, "fused", lambda child: nn.Sequential(wrong(child), nn.ReLU()))
    with pytest.raises(RuntimeError, match="left unfused"):
        kd.fuse_(model)
    assert isinstance(model.layer4[0].conv2, kd.ChildConv2d)
    monkeypatch.undo()
    kd.fuse_(model)


def test_outputs_that_are_not_finite_are_refused(trained):
    model = copy.deepcopy(trained)
    model.fc.weight.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="finite"):
        kd.fuse_(model)


def test_a_probe_of_your_own(trained):
    kd.fuse_(copy.deepcopy(trained), probe=torch.randn(3, 3, 48, 48))


def test_features_are_compared_too():
    features = timm.create_model("kdna_resnet18", features_only=True, out_indices=(2, 4)).eval()
    kd.fuse_(features)
    assert len(features(torch.randn(1, 3, 64, 64))) == 2
