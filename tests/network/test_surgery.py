import pytest
import torch
from timm.layers import ScaledStdConv2d
from torch import nn

from kerneldna.network import copies, surgery


def small():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))


def test_get_names_what_is_missing():
    with pytest.raises(ValueError, match=r"no module '7.conv': 'Sequential' has no '7'; it has 0, 1, 2, 3"):
        surgery.get(small(), "7.conv")


def test_replace():
    model = small()
    surgery.replace_(model, "2", nn.GELU())
    assert isinstance(model[2], nn.GELU)


def test_a_skeleton_takes_no_memory_and_leaves_the_model_alone():
    model = small()
    bones = surgery.skeleton(model)
    assert all(p.is_meta for p in [*bones.parameters(), *bones.buffers()])
    assert not any(p.is_meta for p in model.parameters())
    assert model.training


@pytest.mark.parametrize("meta", [True, False])
def test_trace_gives_order_shapes_and_macs(meta):
    model = small()
    traced = surgery.trace(surgery.skeleton(model) if meta else model, (3, 5, 6))
    assert [call.name for call in traced.calls] == ["0", "1", "2", "3", ""]
    assert traced.calls[0].input == (1, 3, 5, 6)
    assert traced.calls[-1].output == (1, 4, 5, 6)
    assert traced.macs == 5 * 6 * (8 * 3 * 9 + 4 * 8)
    assert model.training
    assert int(model[1].num_batches_tracked) == 0


def test_sizes_count_a_tied_tensor_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert surgery.parameters_of(model) == 16
    assert surgery.bytes_of(model) == 64


def test_a_fresh_copy_restarts():
    model = small()
    model[1].running_mean.fill_(3)
    model[1].weight.data.fill_(0)
    fresh = copies.fresh_copy(model)
    assert not torch.equal(fresh[0].weight, model[0].weight)
    assert fresh[0].bias.abs().max() == 0
    assert fresh[1].running_mean.abs().max() == 0
    assert fresh[1].weight.abs().max() == 0
    model[1].weight.data.fill_(0.5)
    assert torch.equal(copies.fresh_copy(model)[1].weight, torch.ones(8))


def test_a_fresh_copy_keeps_factors_of_channels_and_trains():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = ScaledStdConv2d(8, 8, 3, padding=1)
            self.layer_scale = nn.Parameter(torch.full((8, 1, 1), 1e-6))
            self.table = nn.Parameter(torch.randn(3, 4))

    source = Scaled().requires_grad_(False)
    fresh = copies.fresh_copy(source)
    assert torch.equal(fresh.conv.gain, torch.ones(8, 1, 1, 1))
    assert torch.equal(fresh.layer_scale, source.layer_scale)
    assert not torch.equal(fresh.conv.weight, source.conv.weight)
    assert not torch.equal(fresh.table, source.table)
    assert all(parameter.requires_grad for parameter in fresh.parameters())


def test_probe_is_the_same_each_time():
    model = small().double()
    a = surgery.probe(model, (3, 4, 4), batch=2)
    with torch.device("meta"):  # stands for another default device, as torch.set_default_device sets one
        b = surgery.probe(model, (3, 4, 4), batch=2)
    assert a.dtype == torch.float64
    assert torch.equal(a, b)
