import copy
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kerneldna as kd
from kerneldna.analysis.cka import feature_cka, kernel_cka, linear_cka
from kerneldna.analysis.features import features_of
from kerneldna.analysis.hsic import cka_at_once, cka_over_batches
from kerneldna.network import surgery


@pytest.fixture(scope="module")
def model(settle):
    torch.manual_seed(0)
    net = kd.create_model("resnet18", method="kerneldna", width=0.25, num_classes=10, stem="small")
    return settle(net, torch.randn(8, 3, 32, 32))


def naive_cka(x, y):
    """HSIC by the centring matrix, in numpy."""
    x, y = (np.asarray(side, dtype=float) for side in (x, y))
    h = np.eye(len(x)) - np.ones((len(x), len(x))) / len(x)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    hsic = lambda a, b: np.trace(a @ h @ b @ h)  # noqa: E731
    return hsic(k, l) / np.sqrt(hsic(k, k) * hsic(l, l))


def stretched(kernel, filters):
    """Each column interpolated linearly to so many filters."""
    places = np.linspace(0, len(kernel) - 1, filters)
    return np.stack([np.interp(places, np.arange(len(kernel)), column) for column in kernel.T], axis=1)


def kernel(net, name):
    weight = surgery.get(net, name).weight
    return weight.detach().double().flatten(1).numpy()


def test_kernels_in_effect_are_compared_by_the_formula(model):
    found = kernel_cka(model, across="equal")
    rows = {name: kernel(model, name) for name in found.rows}
    assert found.of == "kernels"
    assert found.rows == found.columns
    assert "layer3.0.conv2" in rows  # a child
    for a, line in list(zip(found.rows, found.values, strict=True))[::3]:
        for b, value in zip(found.columns, line, strict=True):
            if len(rows[a]) != len(rows[b]):
                assert np.isnan(value)
            else:
                assert value == pytest.approx(naive_cka(rows[a], rows[b]), rel=1e-9)
    np.testing.assert_allclose(np.diag(found.values), 1, atol=1e-12)


def test_kernels_of_different_width_are_interpolated(model):
    found = kernel_cka(model)
    assert not np.isnan(found.values).any()
    np.testing.assert_array_equal(found.values, np.transpose(found.values))
    narrow, wide = found.rows.index("conv1"), found.rows.index("layer4.0.conv2")
    x, y = kernel(model, "conv1"), kernel(model, "layer4.0.conv2")
    assert (len(x), len(y)) == (16, 128)
    assert found.values[narrow][wide] == pytest.approx(naive_cka(stretched(x, 128), y), rel=1e-9)


def test_two_networks_each_way(model):
    other = kd.create_model("resnet18", width=0.5, num_classes=10)
    there, back = kernel_cka(model, other), kernel_cka(other, model)
    assert (there.rows, there.columns) == (back.columns, back.rows)
    np.testing.assert_allclose(there.values, np.transpose(back.values), rtol=1e-12)
    x, y = kernel(model, "layer3.0.conv2"), kernel(other, "conv1")  # 64 and 32 filters
    value = there.values[there.rows.index("layer3.0.conv2")][0]
    assert value == pytest.approx(naive_cka(x, stretched(y, 64)), rel=1e-9)
    np.testing.assert_allclose(np.diag(kernel_cka(model, copy.deepcopy(model)).values), 1, atol=1e-12)


def test_a_new_child_is_its_parent_and_a_fused_network_has_kernels_too():
    net = kd.create_model("resnet18", method="kerneldna", width=0.25, num_classes=10, stem="small").eval()
    found = kernel_cka(net, kinds=("dense",))
    place = found.rows.index
    assert found.values[place("layer3.0.conv2")][place("layer3.1.conv2")] == pytest.approx(1, abs=1e-12)
    fused = kernel_cka(kd.fuse_(copy.deepcopy(net)))
    assert len(fused.rows) == len(found.rows)
    assert "layer3.0.conv2.conv" in fused.rows


def test_the_note_says_how_kernels_were_compared(model):
    assert kernel_cka(model).note == (
        "a kernel's filters are the samples; where two kernels differ in filters, the one of fewer is interpolated along them; "
        "plain estimate, up to 0.90 for unrelated random kernels"
    )
    assert "blank: the two kernels differ in filters" in kernel_cka(model, across="equal").note
    alike = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    one = kernel_cka(alike, unbiased=True, input_size=(3, 8, 8))
    assert one.note == "a kernel's filters are the samples; unbiased estimate, about 0 for unrelated kernels"


def test_what_the_note_says_of_unrelated_kernels_is_so():
    convs = nn.Sequential(*(nn.Conv2d(64, 64, 3) for _ in range(2)))
    plain, unbiased = (kernel_cka(convs, unbiased=u, input_size=(64, 8, 8)) for u in (False, True))
    noted = float(plain.note.split("up to ")[1].split()[0])
    assert plain.values[0][1] == pytest.approx(noted, abs=0.01)
    assert abs(unbiased.values[0][1]) < 0.1
    x, y = (conv.weight.detach().flatten(1) for conv in convs)
    assert unbiased.values[0][1] == pytest.approx(linear_cka(x, y, unbiased=True), rel=1e-9)


def test_layers_of_a_shared_basis_have_kernels_and_those_made_for_each_image_have_none():
    small = {"num_classes": 4, "width": 0.125, "stem": "small"}
    plain, shared, dynamic, gated = (
        kd.create_model("resnet18", method=method, **small).eval()
        for method in (None, "sharedbasis", "odconv", "cgc")
    )
    assert kernel_cka(shared, plain).rows == kernel_cka(plain).rows
    some = kernel_cka(dynamic, plain)
    assert some.rows == ("conv1",)
    assert "samples; 16 layers that make a kernel for each image are left out; where" in some.note
    with pytest.raises(
        ValueError, match="all 17 dense layers of this ResNet make a kernel for each image.*by feature_cka"
    ):
        kernel_cka(gated)
    images = torch.randn(4, 3, 32, 32)
    for net in (shared, dynamic, gated):
        assert feature_cka(net, images, plain).rows == kernel_cka(plain).rows


def test_kernels_of_too_few_filters_or_all_alike_are_blank():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 1, 3), nn.Conv2d(1, 8, 3))
    nn.init.constant_(net[2].weight, 0.3)
    values = np.array(kernel_cka(net, input_size=(3, 9, 9)).values)
    assert np.isnan(values).tolist() == [[False, True, True], [True] * 3, [True] * 3]
    assert np.isnan(kernel_cka(net, input_size=(3, 9, 9), unbiased=True).values).all()


def test_a_similarity_is_json(model):
    found = kernel_cka(model, across="equal")
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["values"][0][-1] is None
    assert data["values"][0][0] == found.values[0][0]
    assert {**data, "values": 0} == {
        "rows": list(found.rows), "columns": list(found.columns), "values": 0, "of": "kernels", "note": found.note,
    }  # fmt: skip


def test_wrong_kernels_and_arguments(model):
    with pytest.raises(ValueError, match="unknown across 'equals'; did you mean 'equal'"):
        kernel_cka(model, across="equals")
    with pytest.raises(
        ValueError, match="no depthwise convolution; name kinds that it has: 21 dense, 3 pointwise"
    ):
        kernel_cka(model, kinds=("depthwise",))
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.conv1.weight[0] = torch.nan
    with pytest.raises(RuntimeError, match="the kernel of layer 'conv1' is not finite"):
        kernel_cka(broken)


def outputs(net, name, x):
    """What a layer gives, one image at a time."""
    seen = []
    handle = surgery.get(net, name).register_forward_hook(lambda _, __, y: seen.append(y[0].clone()))
    with torch.no_grad():
        for image in x:
            net(image[None])
    handle.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("positions", ["pool", "flatten"])
def test_features_by_the_formula(model, positions):
    x = torch.randn(20, 3, 16, 16)
    names = ["conv1", "layer3.0.conv2", "layer4.2"]
    found = feature_cka(model, x.split(7), layers=names, positions=positions, minibatch=False)
    maps = [outputs(model, name, x) for name in names]
    rows = [m.mean((2, 3)) if positions == "pool" else m.flatten(1) for m in maps]
    expected = [[naive_cka(a, b) for b in rows] for a in rows]
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    assert "plain estimate on 20 images" in found.note
    assert found.of == "features"


@pytest.mark.parametrize("minibatch", [False, True])
def test_a_network_is_like_itself_and_put_back(model, minibatch):
    net = copy.deepcopy(model).train()
    before = copy.deepcopy(net.state_dict())
    images = DataLoader(TensorDataset(torch.randn(11, 3, 16, 16), torch.zeros(11)), batch_size=6)
    found = feature_cka(net, images, minibatch=minibatch)
    assert len(found.rows) == 21
    np.testing.assert_allclose(np.diag(found.values), 1, atol=1e-9)
    np.testing.assert_allclose(found.values, np.transpose(found.values), atol=1e-12)
    across = feature_cka(net, images, copy.deepcopy(net), minibatch=minibatch)
    np.testing.assert_allclose(across.values, found.values, atol=1e-6)
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_fusing_leaves_the_features_of_children_alike(model):
    x = torch.randn(16, 3, 16, 16)
    fused = kd.fuse_(copy.deepcopy(model))
    child = "layer3.0.conv2"  # gate and convolution in one sequence after fusing; the norm is folded in, a scale a channel
    norm = surgery.get(model, "layer3.0.bn2")
    found = feature_cka(fused, x, model, layers=[child, "layer4.2", "layer3.0.bn2"], minibatch=False)
    scaled = outputs(model, "layer3.0.bn2", x).mean((2, 3))
    assert isinstance(norm, nn.BatchNorm2d)
    assert found.values[0][2] == pytest.approx(1, abs=1e-6)
    assert found.values[1][1] == pytest.approx(1, abs=1e-6)
    plain = outputs(model, child, x).mean((2, 3))
    assert found.values[0][0] == pytest.approx(naive_cka(scaled, plain), rel=1e-4)


def test_layers_that_the_other_network_lacks_are_left_out(model):
    plain = kd.create_model("resnet18", width=0.25, num_classes=10, stem="small")
    x = torch.randn(6, 3, 16, 16)
    found = feature_cka(model, x, plain, layers=["layer3.2.conv1", "layer4.1.conv1"])
    assert (found.rows, found.columns) == (("layer3.2.conv1", "layer4.1.conv1"), ("layer4.1.conv1",))
    with pytest.raises(
        ValueError, match="a ResNet, has none of the layers layer3.2.conv1; add names of its own"
    ):
        feature_cka(model, x, plain, layers=["layer3.2.conv1"])


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "images has no batch; pass images"),
        (torch.randn(3, 3, 16, 16), {}, "no batch has 4 images, .* of 3 in all"),
        (torch.randn(1, 3, 16, 16), {"minibatch": False}, "1 samples were given; the plain estimate"),
        (torch.randn(8, 3, 16), {}, r"gave \(8, 3, 16\); expected images"),
        (torch.randn(8, 3, 16, 16), {"positions": "pol"}, "unknown positions 'pol'; did you mean 'pool'"),
        (torch.randn(8, 3, 16, 16), {"layers": []}, "layers is empty; name modules, or leave layers out"),
        (torch.randn(8, 3, 16, 16), {"layers": ["layer9"]}, "no module 'layer9'"),
        (torch.randn(8, 3, 16, 16), {"kinds": ("dens",)}, "did you mean 'dense'"),
    ],
)
def test_wrong_features(model, images, options, message):
    with pytest.raises(ValueError, match=message):
        feature_cka(model, images, **options)


@pytest.mark.slow
def test_batches_agree_with_all_images_at_once(data_dir):
    from torchvision.transforms.functional import to_tensor

    from kerneldna.data.dataset import open_data

    model = kd.create_model("resnet18", method="kerneldna", width=0.25, num_classes=10, stem="small")
    val = open_data(str(data_dir / "cifar10")).val
    order = torch.randperm(len(val), generator=torch.Generator().manual_seed(0))[:1000]
    x = torch.stack([to_tensor(val[i][0]) for i in order.tolist()]) * 4 - 2
    batched = feature_cka(model, x.split(100))
    rows = features_of(model.eval(), batched.rows, x)
    at_once, *_ = cka_over_batches([(rows, rows)])
    plain, _ = cka_at_once([(rows, rows)])
    # measured: 0.007, 0.008 and 0.001
    np.testing.assert_allclose(batched.values, at_once, atol=0.02)
    np.testing.assert_allclose(batched.values, plain, atol=0.03)
    np.testing.assert_allclose(at_once, plain, atol=0.01)
