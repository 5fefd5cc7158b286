"""A layer that is not what it looks like is left as it is, with its reason, or the call is refused: by every method."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import kerneldna as kd
from kerneldna.registry import methods

REPLACING = [name for name in kd.list_methods() if name not in ("se", "cbam", "eca")]


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, 2 * weight, bias)


class OwnCall(nn.Conv2d):
    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


def monkeypatched(conv):
    conv.forward = lambda x, whole=conv.forward: 2 * whole(x)
    return conv


def hooked(kind):
    def put(conv):
        if kind == "forward":
            conv.register_forward_hook(lambda module, args, output: 2 * output)
        elif kind == "pre":
            conv.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        else:
            conv.register_full_backward_hook(lambda module, inputs, outputs: None)
        return conv

    return put


def of_class(kind):
    def make(conv):
        made = kind(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False
        )
        return made

    return make


ODD = {
    "forward of a class": of_class(OwnForward),
    "_conv_forward of a class": of_class(OwnConvForward),
    "__call__ of a class": of_class(OwnCall),
    "forward put on it": monkeypatched,
    "forward hook": hooked("forward"),
    "forward pre-hook": hooked("pre"),
    "backward hook": hooked("backward"),
    "spectral_norm": spectral_norm,
    "weight_norm": weight_norm,
    "parametrization": parametrizations.spectral_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.3),
}


# The peers look at layers by the same function: one of each kind for them.
CASES = [("kerneldna", odd) for odd in ODD] + [
    (method, odd)
    for method in REPLACING
    if method != "kerneldna"
    for odd in ("forward of a class", "forward hook", "spectral_norm")
]


def network(make=None) -> nn.Module:
    """ResNet18 whose stage 3 has odd convolutions."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=4, channels=(16, 16, 16, 16), zero_init_last=False)
    if make is not None:
        for block in model.layer3:
            block.conv2 = make(block.conv2)
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("method", "odd"), CASES)
def test_it_is_skipped_with_its_reason_and_computes_what_it_did(method, odd):
    model = network(ODD[odd])
    before = [block.conv2 for block in model.layer3]
    x = torch.randn(2, 3, 32, 32)
    model(x)
    plan = kd.plan(model, methods.get(method)(), input_size=(3, 32, 32))
    names = {f"layer3.{index}.conv2" for index in range(2)}
    reasons = {skip.name: skip.reason for skip in plan.skipped}
    assert names <= reasons.keys(), reasons
    kd.convert_(model, plan)
    kept = {id(module) for module in model.modules()}
    assert all(id(layer) in kept for layer in before)  # CondConv wraps their blocks


def test_reparameterizing_a_converted_network_is_refused():
    model = timm.create_model("repvgg_a0", num_classes=4).eval()
    kd.convert_(model, kd.KernelDNA())
    from timm.utils import reparameterize_model

    with pytest.raises(RuntimeError, match=r"was converted\. Call kd\.fuse_\(model\)"):
        reparameterize_model(copy.deepcopy(model))


class Fused(nn.Module):
    """A block with attributes that are called as ours are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.fused, self.schedule_step, self.lent = False, 3, None

    def forward(self, x):
        return self.norm(self.conv(x))


def test_attributes_of_our_names_are_nobodys_markers(tmp_path):
    model = nn.Sequential(Fused()).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    kd.step_schedules(model, 1, 10)
    kd.fuse_(model, probe=x)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("method", ["dcd", "kernelwarehouse"])
@pytest.mark.parametrize(
    "static", [["layer1"], "layer1", ("layer1.*", "layer1.0"), ["layer1.0", "layer1.1.*"]]
)
def test_static_names_layers_in_bulk(method, static):
    model = kd.create_model("resnet18", num_classes=4, width=0.125, stem="small")
    plan = kd.plan(model, methods.get(method)(static=static))
    assert not [change.name for change in plan.changes if change.name.startswith("layer1.")]
    kept = {skip.name for skip in plan.skipped if skip.reason == "static= names it"}
    assert kept == {f"layer1.{i}.conv{j}" for i in (0, 1) for j in (1, 2)}
    assert kd.plan_of(kd.convert_(model, plan)).options["static"] == (
        [static] if static == "layer1" else list(static)
    )
