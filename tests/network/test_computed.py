"""Weights that layers compute anew at every call: left out of plans, kept by files, written out by fuse_ and export."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import kerneldna as kd
from kerneldna.network import copies
from kerneldna.network.computed import computed, settled

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
SIZE = (3, 12, 12)
X = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))
PARAMETRIZED = {
    "parametrizations.weight_norm": parametrizations.weight_norm,
    "parametrizations.spectral_norm": parametrizations.spectral_norm,
    "parametrizations.orthogonal": parametrizations.orthogonal,
}
HOOKED = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned twice": lambda layer: prune.ln_structured(
        prune.l1_unstructured(layer, "weight", 0.2), "weight", 0.25, n=2, dim=0
    ),
}
ALL = {**PARAMETRIZED, **HOOKED}


def layers_with(model: nn.Module) -> tuple[str, ...]:
    """The names of the layers that compute tensors."""
    return tuple(name for name, module in model.named_modules() if computed(module))


def network(make=lambda layer: layer, where=("2",)) -> nn.Module:
    """Four convolutions of one shape with a norm behind each; some have their weight computed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
    for _ in range(4):
        model.append(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()))
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)])
    for name in where:
        make(model.get_submodule(f"{name}.0"))
    return model


def trained(model: nn.Module, settle) -> nn.Module:
    """Settled; then run once with gradients, which leaves what was computed on the layers."""
    model = settle(model, X)
    model(X)
    return model


@pytest.mark.parametrize("kind", ALL)
def test_settled_is_the_plain_layer_and_leaves_the_other_alone(kind):
    layer = ALL[kind](nn.Conv2d(8, 8, 3)).eval()
    x = torch.randn(2, 8, 6, 6)
    twin, expected, keys = copies.copied(layer), layer(x), layer.state_dict().keys()
    new = settled(layer)
    assert type(new) is nn.Conv2d
    assert new.state_dict().keys() == {"weight", "bias"}
    assert not computed(new)
    for hooks in (new._forward_pre_hooks, new._load_state_dict_pre_hooks, new._state_dict_hooks):
        assert not hooks
    assert new.bias is layer.bias
    torch.testing.assert_close(new(x), expected, rtol=0, atol=0)
    for other in (layer, twin):  # one class for both, where torch's removers would delete a property
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
        assert other.state_dict().keys() == keys


def test_settled_follows_parameters_that_moved_since_the_last_run():
    layer = weight_norm(nn.Conv2d(4, 4, 3)).eval()
    with torch.no_grad():
        layer.weight_g.mul_(2)
    held = layer.weight.detach().clone()
    torch.testing.assert_close(settled(layer).weight, 2 * held)


@pytest.mark.parametrize("kind", ALL)
def test_a_network_with_one_converts_saves_and_fuses(kind, tmp_path, settle):
    plan = kd.plan(network(ALL[kind]), kd.KernelDNA(), input_size=SIZE)
    assert [(family.parent, family.children) for family in plan.families] == [("4.0", ("3.0",))]
    reasons = [skip.reason for skip in plan.skipped if skip.name == "2.0"]
    assert "its weight is computed anew at every call" in reasons[0]
    assert "writes it out" in reasons[0]
    model = trained(kd.convert_(network(ALL[kind]), plan), settle)
    expected = model(X)
    kd.save(model, tmp_path / "saved")
    torch.testing.assert_close(kd.load(tmp_path / "saved", model=network(ALL[kind]))(X), expected)
    fused = kd.fuse_(model, probe=X)
    torch.testing.assert_close(fused(X), expected, atol=1e-4, rtol=1e-4)
    assert layers_with(fused) == ()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    kd.save(fused, tmp_path / "fused")
    again = kd.load(tmp_path / "fused", model=network(ALL[kind]))
    torch.testing.assert_close(again(X), fused(X), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["parametrizations.orthogonal", "prune"])
def test_a_file_computes_the_same_and_the_network_stays_as_it_is(kind, tmp_path, settle):
    pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
    model = trained(kd.convert_(network(ALL[kind]), kd.KernelDNA(), input_size=SIZE), settle)
    expected = model(X)
    kd.export(model, tmp_path / "a.onnx", input_size=SIZE)
    found = torch.as_tensor(kd.load_exported(tmp_path / "a.onnx")(X))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert layers_with(model) == ("2.0",)
    torch.testing.assert_close(model(X), expected, rtol=0, atol=0)


def test_a_file_has_the_kernel_of_a_parametrized_parent_once(tmp_path, settle):
    onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
    pytest.importorskip("onnxruntime", reason="needs kerneldna[export]")
    model = settle(kd.convert_(network(), kd.KernelDNA(), input_size=SIZE), X)
    for family in kd.plan_of(model).families:
        parametrizations.weight_norm(model.get_submodule(family.parent)).eval()
    kd.export(model, tmp_path / "a.onnx", input_size=SIZE)
    stored = onnx.load(tmp_path / "a.onnx").graph.initializer
    assert [list(tensor.dims) for tensor in stored].count([8, 8, 3, 3]) == 2


@pytest.mark.parametrize("kind", PARAMETRIZED)
def test_a_parent_may_be_parametrized_after_the_conversion(kind, tmp_path, settle):
    model = settle(kd.convert_(network(), kd.KernelDNA(), input_size=SIZE), X)
    parents = [family.parent.partition(".")[0] for family in kd.plan_of(model).families]
    for name in parents:
        ALL[kind](model.get_submodule(f"{name}.0")).eval()
    expected = model(X)
    kd.save(model, tmp_path / "saved")
    opened = kd.load(tmp_path / "saved", model=network(ALL[kind], parents))
    torch.testing.assert_close(opened(X), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"2\.0\.weight was computed anew at every call .* kd\.fuse_ do"):
        kd.load(tmp_path / "saved", model=network())
    kd.save(kd.fuse_(model, probe=X), tmp_path / "fused")
    for fresh in (network(), network(ALL[kind], parents)):
        opened = kd.load(tmp_path / "fused", model=fresh)
        torch.testing.assert_close(opened(X), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", HOOKED)
def test_a_parent_whose_hook_computes_too_late_is_refused(kind, tmp_path, settle):
    model = settle(kd.convert_(network(), kd.KernelDNA(), input_size=SIZE), X)
    ALL[kind](model.get_submodule("2.0"))
    for act in (
        lambda: model(X),
        lambda: kd.fuse_(model, probe=X),
        lambda: kd.export(model, tmp_path / "a.onnx"),
    ):
        with pytest.raises(
            RuntimeError, match=r"too late for the child; remove that from the parent, or use"
        ):
            act()


@pytest.mark.parametrize("kind", ALL)
def test_what_was_created_by_name_says_what_writes_the_weights_out(kind, tmp_path):
    model = kd.create_model("resnet18", method="kerneldna", num_classes=4, width=1 / 16).eval()
    ALL[kind](model.layer1[0].conv1).eval()
    with pytest.raises(
        ValueError, match=r"'layer1\.0\.conv1\.weight' is computed .*writes it out; so does kd\."
    ):
        kd.save(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_fuse_that_fails_leaves_the_weights_computed(settle):
    model = trained(network(parametrizations.weight_norm), settle)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        model[2][0].parametrizations.weight.original0.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="the model was left unfused"):
        kd.fuse_(model, probe=X)
    assert model.state_dict().keys() == before.keys()
    assert layers_with(model) == ("2.0",)


class Recurrent(nn.Module):
    """A convolution and, on what it gives, a recurrent layer whose weight is computed."""

    def __init__(self):
        super().__init__()
        self.conv = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
        self.rnn = parametrizations.weight_norm(nn.LSTM(4, 5, batch_first=True), "weight_hh_l0")

    def forward(self, x):
        return self.rnn(self.conv(x).mean(3).transpose(1, 2))[0][:, -1]


def test_a_recurrent_layer_is_left_as_it_is(tmp_path):
    model = Recurrent().eval()
    expected = model(X)
    kd.save(kd.fuse_(model, probe=X), tmp_path)
    assert layers_with(model) == ("rnn",)
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(kd.load(tmp_path, model=Recurrent())(X), expected)


def test_a_plain_network_whose_weights_are_computed_fuses():
    model = nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3))).eval()
    expected = model(X)
    torch.testing.assert_close(kd.fuse_(model, probe=X)(X), expected, rtol=0, atol=0)
    assert model.state_dict().keys() == {"0.weight", "0.bias"}
