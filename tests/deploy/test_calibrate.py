import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kerneldna as kd
from kerneldna.deploy.calibrate import constant_gates, gate_means, gates_of, recalibrate_norms_, tracked_means
from kerneldna.network import surgery


@pytest.fixture(scope="module")
def model(settle):
    torch.manual_seed(0)
    net = kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.125, stem="small")
    return settle(net, torch.randn(8, 3, 16, 16))


def test_means_equal_a_loop_over_single_images(model):
    images = torch.randn(5, 3, 16, 16)
    seen = {name: [] for name in gates_of(model)}
    handles = [
        gate.register_forward_hook(lambda g, x, _, name=name: seen[name].append(g.gate(x[0])))
        for name, gate in gates_of(model).items()
    ]
    with torch.no_grad():
        for image in images:
            model(image[None])
    for handle in handles:
        handle.remove()
    found = gate_means(model, images, progress=False)
    assert found.keys() == seen.keys()
    for name, mean in found.items():
        expected = torch.stack([gate.flatten().double() for gate in seen[name]]).mean(0)
        assert mean.dtype == torch.float64
        torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-6)


def test_a_loader_of_unequal_batches_counts_images(model):
    images, labels = torch.randn(5, 3, 16, 16), torch.zeros(5)
    whole = gate_means(model, images, progress=False)
    loader = DataLoader(TensorDataset(images, labels), batch_size=2)
    for name, mean in gate_means(model, loader, progress=False).items():
        torch.testing.assert_close(mean, whole[name], rtol=1e-5, atol=1e-6)


class Repeated(nn.Module):
    """Runs its stage on an image and on half of its size, or on the three frames of an image as a batch."""

    def __init__(self, *, frames):
        super().__init__()
        self.frames = frames
        self.stage = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)))

    def forward(self, x):
        if self.frames:
            return self.stage(x.repeat_interleave(3, 0)).unflatten(0, (-1, 3)).mean((1, 3, 4))
        return self.stage(x).mean((2, 3)) + self.stage(nn.functional.avg_pool2d(x, 2)).mean((2, 3))


@pytest.mark.parametrize("frames", [False, True])
@torch.no_grad()
def test_the_mean_of_a_layer_that_runs_several_times_is_over_its_runs(frames):
    torch.manual_seed(0)
    method = kd.KernelDNA(patterns={"stage": "S-F-S"}, norm="none")
    net = kd.convert_(Repeated(frames=frames), method, input_size=(3, 16, 16)).eval()
    gates, images = gates_of(net), torch.randn(5, 3, 16, 16)
    assert gates
    seen = {name: [] for name in gates}
    for name, gate in gates.items():
        gate.register_forward_hook(lambda g, x, _, name=name: seen[name].append(g.gate(x[0]).flatten(1)))
    net(images)
    for gate in gates.values():
        gate._forward_hooks.clear()
    for name, mean in gate_means(net, images.split(2), progress=False).items():
        torch.testing.assert_close(mean, torch.cat(seen[name]).double().mean(0), rtol=1e-5, atol=1e-6)
    kd.fuse_(copy.deepcopy(net), mode="throughput", calibrate=images, probe=images, progress=False)


def test_it_runs_in_eval_mode_and_puts_training_back(model):
    net = copy.deepcopy(model).train()
    before = copy.deepcopy(net.state_dict())
    gate_means(net, torch.randn(2, 3, 16, 16), progress=False)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "without an image"),
        (torch.empty(0, 3, 16, 16), "without an image"),
        (torch.randn(3, 16, 16), r"gave \(3, 16, 16\); expected images"),
        ([{"image": 1}], "gave dict; expected images"),
        ([()], "gave tuple; expected images"),
        (
            torch.zeros(2, 3, 16, 16, dtype=torch.uint8),
            r"gave \(2, 3, 16, 16\) of torch.uint8; .*, normalised as in training",
        ),
    ],
)
def test_wrong_data(model, data, message):
    with pytest.raises(ValueError, match=message):
        gate_means(model, data, progress=False)


def test_a_mean_that_is_not_finite_names_its_gate(model):
    with pytest.raises(RuntimeError, match=r"'layer3.*gate' is not finite"):
        gate_means(model, torch.full((2, 3, 16, 16), float("nan")), progress=False)


def test_constant_gates(model):
    x = torch.randn(2, 3, 16, 16)
    ones = {name: torch.ones(gate.fc2.out_channels) for name, gate in gates_of(model).items()}
    off = copy.deepcopy(model)
    for name in gates_of(off):
        surgery.replace_(off, name, nn.Identity())
    with constant_gates(model, ones):
        torch.testing.assert_close(model(x), off(x))
    assert not torch.allclose(model(x), off(x))


def test_norms_take_the_mean_of_the_batches(model):
    net = copy.deepcopy(model)
    loader = [torch.randn(8, 3, 16, 16) for _ in range(3)]
    first = net.conv1(torch.cat(loader)).detach()
    gate = next(iter(gates_of(net).values())).norm
    kept = gate.running_mean.clone()
    recalibrate_norms_(net, loader, progress=False)
    torch.testing.assert_close(net.bn1.running_mean, first.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    parts = torch.stack([net.conv1(x).var((0, 2, 3)) for x in loader]).mean(0)
    torch.testing.assert_close(net.bn1.running_var, parts, rtol=1e-4, atol=1e-5)
    assert torch.equal(gate.running_mean, kept)
    assert net.bn1.momentum == 0.1
    assert not any(module.training for module in net.modules())


def test_a_generator_that_is_used_up_leaves_the_norms_as_they_were(model):
    net = copy.deepcopy(model)
    with pytest.raises(ValueError, match="read twice"):
        recalibrate_norms_(net, iter([]), progress=False)

    def broken():
        yield torch.randn(4, 3, 16, 16)
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        recalibrate_norms_(net, broken(), progress=False)
    assert torch.equal(net.bn1.running_mean, model.bn1.running_mean)
    assert net.bn1.momentum == 0.1


def test_norms_that_do_not_run_stay_as_they_were():
    class Headed(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    net = Headed(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    nn.init.ones_(net[1].running_mean)
    recalibrate_norms_(nn.Sequential(nn.Conv2d(3, 3, 1), net), torch.randn(4, 3, 8, 8), progress=False)
    assert net[0].running_mean.any()
    assert net[1].running_mean.tolist() == [1, 1, 1]


def test_running_means_of_a_network_trained_without_them(model):
    assert tracked_means(model) is None
