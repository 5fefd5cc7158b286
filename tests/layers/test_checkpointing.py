"""Gradient checkpointing, which runs parts of the network again in the backward pass, changes neither loss nor gradients."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import kerneldna as kd

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(4)
NETWORKS = {
    "resnet18": {},
    "resnet18 that drops gates": {"gate_drop_rate": 0.5},
    "mobilenetv2_050": {},
    "convnext_tiny": {},
    "resnet18 with one gate a stage": {"gate": "stage", "gate_drop_rate": 0.5},
    "convnext_tiny with one gate a stage": {"gate": "stage"},
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request, settle):
    torch.manual_seed(0)
    name, options = request.param.split()[0], NETWORKS[request.param]
    model = kd.create_model(name, method="kerneldna", num_classes=4, width=0.125, options=options)
    return settle(model, IMAGES).train()


def step(model, forward, *, cast=False):
    """Return the loss of one training step, the gradients it leaves, and the buffers after it."""
    torch.manual_seed(0)  # what is dropped is drawn
    with torch.autocast("cpu", torch.bfloat16) if cast else nullcontext():
        loss = nn.functional.cross_entropy(forward(IMAGES), LABELS)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return loss.detach(), gradients, dict(model.named_buffers())


def by_torch(model, x):
    return checkpoint(model, x, use_reentrant=False)


def by_timm(model, x):
    model.set_grad_checkpointing()
    return model(x)


@pytest.mark.parametrize("cast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("way", [by_torch, by_timm])
def test_loss_and_gradients_are_those_without(model, way, cast):
    plain, saving = copy.deepcopy(model), copy.deepcopy(model)
    loss, gradients, _ = step(plain, plain, cast=cast)
    found_loss, found, _ = step(saving, lambda x: way(saving, x), cast=cast)
    torch.testing.assert_close(found_loss, loss)
    assert all(
        gradient.abs().max() > 0 for gradient in gradients.values()
    )  # parents, adapters and gates among them
    torch.testing.assert_close(found, gradients)


def test_parts_do_run_again(model):
    model = copy.deepcopy(model)
    calls = []
    for child in (
        module for module in model.modules() if isinstance(module, (kd.ChildConv2d, kd.ChildLinear))
    ):
        child.register_forward_hook(lambda child, *_: calls.append(child.name))
    step(model, lambda x: by_timm(model, x))
    assert {calls.count(name) for name in calls} == {2}


@pytest.mark.parametrize("way", [by_torch, by_timm])
def test_statistics_are_updated_as_torch_does(model, way):
    """A part that runs twice updates its BatchNorm twice with the same batch: the gates' no more and no less than the network's."""
    start = {name: buffer.clone() for name, buffer in model.named_buffers()}
    plain, saving = copy.deepcopy(model), copy.deepcopy(model)
    _, _, once = step(plain, plain)
    _, _, found = step(saving, lambda x: way(saving, x))
    counted = [name for name in start if name.endswith("num_batches_tracked")]
    assert any(".gate." in name for name in counted)
    for name in counted:
        times = int(found[name] - start[name])
        assert times == 2 or (way is by_timm and times == 1 and ".gate." not in name), name
        keep = 1 - saving.get_submodule(name.rpartition(".")[0]).momentum
        for part in ("running_mean", "running_var"):
            key = name.replace("num_batches_tracked", part)
            moved = (once[key] - start[key]) * (1 + keep if times == 2 else 1)
            torch.testing.assert_close(found[key], start[key] + moved, rtol=1e-4, atol=1e-5)
