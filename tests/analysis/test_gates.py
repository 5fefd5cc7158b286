import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kerneldna as kd
from kerneldna.analysis.gates import gate_statistics
from kerneldna.deploy.calibrate import gates_of

LABELS = torch.tensor([0, 2, 2, 0, 2, 0, 2])


@pytest.fixture
def images():
    return torch.randn(len(LABELS), 3, 16, 16) * torch.linspace(0.5, 3, len(LABELS))[:, None, None, None]


def gates(model, images):
    """Every gate, an image at a time, `(N, channels)`."""
    seen = {name: [] for name in gates_of(model)}
    handles = [
        gate.register_forward_hook(
            lambda g, x, _, name=name: seen[name].append(g.gate(x[0]).flatten().double())
        )
        for name, gate in gates_of(model).items()
    ]
    with torch.no_grad():
        for image in images:
            model(image[None])
    for handle in handles:
        handle.remove()
    return {name.removesuffix(".gate"): torch.stack(rows) for name, rows in seen.items()}


def test_statistics_by_a_loop(tiny, images):
    loader = DataLoader(TensorDataset(images, LABELS), batch_size=3)
    found = gate_statistics(tiny, loader, classes=("cat", "dog", "bird"))
    expected = gates(tiny, images)
    assert list(found) == ["stage.0.conv1", "stage.0.conv2", "stage.1.conv1"]
    for name, statistics in found.items():
        all_of = expected[name]
        assert statistics.classes == ("cat", "dog", "bird")
        assert statistics.images == (3, 0, 4)
        assert statistics.mean[1].isnan().all()
        assert statistics.std[1].isnan().all()
        within = torch.zeros(())
        for c in (0, 2):
            of = all_of[c == LABELS]
            torch.testing.assert_close(statistics.mean[c], of.mean(0), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(statistics.std[c], of.std(0, correction=0), rtol=1e-3, atol=1e-5)
            within = within + ((of - of.mean(0)) ** 2).sum()
        total = ((all_of - all_of.mean(0)) ** 2).sum()
        torch.testing.assert_close(statistics.deviation, all_of.std(0, correction=0), rtol=1e-3, atol=1e-5)
        assert statistics.between_classes == pytest.approx((1 - within / total).item(), abs=1e-3)
        assert statistics.within_image == pytest.approx(all_of.std(1, correction=0).mean().item(), rel=1e-4)
        constant = (all_of.std(0, correction=0) < 0.01).double().mean().item()
        assert statistics.constant == pytest.approx(constant)


@pytest.mark.parametrize("frames", [False, True])
def test_a_gate_that_runs_twice_for_an_image_counts_once_and_one_of_frames_has_no_class(tiny, images, frames):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = copy.deepcopy(tiny)

        def forward(self, x):
            return self.inner(torch.cat([x, x])) if frames else self.inner(x) + self.inner(2 * x)

    if frames:
        with pytest.raises(ValueError, match=r"sees 14 maps where 7 images were given"):
            gate_statistics(Twice(), [(images, LABELS)])
        return
    once, again = gates(tiny, images), gates(tiny, 2 * images)
    for name, found in gate_statistics(Twice(), [(images, LABELS)]).items():
        each = (once[name.removeprefix("inner.")] + again[name.removeprefix("inner.")]) / 2
        assert found.images == (3, 0, 4)
        torch.testing.assert_close(found.mean[0], each[LABELS == 0].mean(0), rtol=1e-5, atol=1e-6)


def test_classes_are_counted_where_they_have_no_names(tiny, images):
    batches = [(images[:1], [1]), (images[1:], LABELS[1:].tolist())]
    statistics = gate_statistics(tiny, batches)["stage.0.conv1"]
    assert statistics.classes == ("0", "1", "2")
    assert statistics.images == (2, 1, 4)


def test_a_gate_that_never_varies_and_one_that_follows_the_class(tiny, images):
    still = copy.deepcopy(tiny)
    for gate in gates_of(still).values():
        nn.init.zeros_(gate.fc2.weight)
    statistics = gate_statistics(still, [(images, LABELS)])["stage.1.conv1"]
    assert statistics.constant == 1
    assert statistics.between_classes != statistics.between_classes  # nothing varies
    assert statistics.within_image > 0
    same = images[:1] * (1 + LABELS[:, None, None, None])
    statistics = gate_statistics(tiny, [(same, LABELS)])["stage.0.conv1"]
    assert statistics.between_classes == pytest.approx(1, abs=1e-4)
    assert "100% of the variance between 3 classes" in str(statistics)


def test_statistics_are_json(tiny, images):
    statistics = gate_statistics(tiny, [(images, LABELS)])["stage.0.conv1"]
    data = json.loads(json.dumps(statistics.to_dict(), allow_nan=False))
    assert data["mean"][1] == [None] * 32
    assert data["mean"][0] == statistics.mean[0].tolist()
    assert data["constant"] == statistics.constant


def test_gates_written_on_channels_last_maps():
    model = kd.create_model("convnext_tiny", method="kerneldna", num_classes=4, width=0.25)
    found = gate_statistics(model, [(torch.randn(3, 3, 64, 64), [0, 1, 1])])
    assert found.keys() == {name.removesuffix(".gate") for name in gates_of(model)}
    assert all(each.mean.shape[0] == 2 for each in found.values())


def test_one_gate_for_a_stage_gives_each_child_its_own(settle):
    torch.manual_seed(0)
    model = kd.create_model(
        "resnet18", method="kerneldna", num_classes=4, width=0.125, stem="small", options={"gate": "stage"}
    )
    x = torch.randn(8, 3, 16, 16)
    settle(model, x)
    seen = {}

    def noting(name):
        def hook(_, inputs, y):
            (before,) = inputs
            seen[name] = ((y * before).sum((2, 3)) / before.square().sum((2, 3))).double()

        return hook

    handles = [gate.register_forward_hook(noting(name)) for name, gate in gates_of(model).items()]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    found = gate_statistics(model, [(x, [0] * 8)])
    assert list(found) == [name.removesuffix(".gate") for name in gates_of(model)]
    for name, statistics in found.items():
        expected = seen[f"{name}.gate"].mean(0)
        alive = expected.isfinite()
        assert alive.double().mean() > 0.5
        torch.testing.assert_close(statistics.mean[0][alive], expected[alive], rtol=1e-4, atol=1e-5)


def test_the_network_is_put_back_with_no_hook(tiny, images):
    net = copy.deepcopy(tiny).train()
    before = copy.deepcopy(net.state_dict())
    gate_statistics(net, [(images, LABELS)])
    with pytest.raises(RuntimeError, match="gate 'stage.0.conv1.gate' is not finite"):
        gate_statistics(net, [(images * torch.nan, LABELS)])
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize(
    ("loader", "classes", "message"),
    [
        ([], None, r"loader gave no image; pass batches of \(images, labels\)"),
        ([torch.randn(2, 3, 16, 16)], None, r"a batch is a Tensor; .* expected \(images, labels\)"),
        (
            [(torch.randn(2, 3, 16, 16), torch.rand(2, 4))],
            None,
            r"2 images and labels \(2, 4\) of torch.float32",
        ),
        ([(torch.randn(2, 3, 16, 16), torch.rand(2))], None, "expected one class number an image"),
        ([(torch.randn(2, 3, 16), [0, 1])], None, r"gave \(2, 3, 16\); expected images"),
        (
            [(torch.randn(2, 3, 16, 16), [0, 2])],
            ["a", "b"],
            "run from 0 to 2, but classes names 2; name every",
        ),
        ([(torch.randn(2, 3, 16, 16), [-1, 0])], None, "run from -1 to 0, but classes are counted from 0"),
    ],
)
def test_wrong_batches(tiny, loader, classes, message):
    with pytest.raises(ValueError, match=message):
        gate_statistics(tiny, loader, classes=classes)


def test_networks_without_gates(tiny):
    with pytest.raises(
        ValueError, match=r"this Sequential has no gate; give a network converted with KernelDNA\(ch"
    ):
        gate_statistics(kd.fuse_(copy.deepcopy(tiny)), [])
