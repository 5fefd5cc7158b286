import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.conversion.convert import state_of
from kerneldna.deploy import prepare
from kerneldna.network import surgery


def tiny(method=None):
    return kd.create_model("resnet18", method=method, width=0.125, stem="small", num_classes=10).eval()


def small():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    )


@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
def test_fused_is_a_copy(mode):
    model = tiny("kerneldna")
    found = prepare.fused(model, mode=mode)
    assert state_of(found)["fused"]["mode"] == mode
    assert "fused" not in state_of(model)
    assert prepare.fused(found) is found


def test_what_cannot_be_fused_stays():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    assert prepare.fused(model) is model


@pytest.mark.parametrize("method", ["odconv", "kernelwarehouse", "kerneldna"])
def test_laid_out_computes_the_same(method):
    model = tiny(method)
    x = surgery.probe(model, (3, 32, 32), batch=2)
    found = prepare.laid_out(model)
    torch.testing.assert_close(found(prepare.images((2, 3, 32, 32))), model(x), rtol=1e-4, atol=1e-4)
    assert found.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.conv1.weight.is_contiguous()


def test_precision_and_layout_of_images():
    x = prepare.images((2, 3, 8, 8), precision="bf16")
    assert x.dtype == torch.bfloat16
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert prepare.laid_out(small(), precision="bf16")(x).dtype == torch.bfloat16


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_trains(precision):
    model = small()
    before = [p.clone() for p in model.parameters()]
    step = prepare.training_step(model, prepare.images((4, 3, 8, 8)), precision=precision)
    with torch.no_grad():  # as around every timing
        step()
    assert model.training
    # the bias in front of a BatchNorm has no gradient
    assert all(
        not torch.equal(a, b)
        for i, (a, b) in enumerate(zip(before, model.parameters(), strict=True))
        if i != 1
    )
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_compiled_networks_of_one_class_do_not_share_code():
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    torch.compiler.reset()
    # without anything to fuse, no C++ is compiled
    models = [prepare.laid_out(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()) for _ in range(2)]
    x, more = prepare.images((1, 3, 8, 8)), prepare.images((2, 3, 8, 8))
    calls = [prepare.compiled(model, [x, more]) for model in models]
    entries = [len(_debug_get_cache_entry_list(call._torchdynamo_orig_callable.__code__)) for call in calls]
    assert entries == [2, 2]  # one a shape
    with torch.no_grad():
        for call, model in zip(calls, models, strict=True):
            torch.testing.assert_close(call(x), model(x), rtol=1e-4, atol=1e-5)
