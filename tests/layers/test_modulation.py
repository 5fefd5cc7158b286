"""The static half of an adapter: each product against loops, its start, its gradients, and its way into a file."""

import copy

import pytest
import torch
from test_child import CONVS, naive_conv
from torch import nn

import kerneldna as kd
from kerneldna.deploy.shared_kernels import shared_kernels
from kerneldna.layers.child import ChildConv2d, ChildLinear
from kerneldna.layers.modulation import MODULATIONS, NAMES, mixed, modulation_parameters

MIXES = ("mix", "mix_low_rank")
KINDS = ("dense", "grouped", "depthwise", "pointwise")
HELD = {
    "paper": {"spatial", "filter"},
    "position": {"position"},
    "position_input": {"position", "input"},
    "low_rank": {"spatial", "left", "right"},
    "mix": {"mix"},
    "mix_low_rank": {"mix_left", "mix_right"},
}


def randomise(child):
    for name in NAMES:
        if (parameter := getattr(child, name)) is not None:
            nn.init.normal_(parameter, std=0.5)
    return child.eval()


def make_conv(kind, modulation, **options):
    parent, replaced = nn.Conv2d(8, 8, **CONVS[kind]), nn.Conv2d(8, 8, **CONVS[kind])
    return parent, ChildConv2d(
        "child", parent, replaced, channel=False, modulation=modulation, rank=3, **options
    )


def make_linear(modulation, **options):
    parent, replaced = nn.Linear(8, 12), nn.Linear(8, 12)
    return parent, ChildLinear(
        "child", parent, replaced, channel=False, modulation=modulation, rank=3, **options
    )


def element(child, o, c, a, b):
    """What one element of the kernel is multiplied by: output channel o, input channel c of the group, position (a, b)."""

    def of(name, *at):
        parameter = getattr(child, name)
        return 0.0 if parameter is None else parameter[at[: parameter.ndim]].item()

    low_rank = 0.0
    if child.left is not None:
        low_rank = sum(child.left[o, r].item() * child.right[r, c].item() for r in range(len(child.right)))
    return (
        (1 + of("spatial", 0, 0, a, b))
        * (1 + of("filter", o, 0, 0, 0))
        * (1 + of("position", o, 0, a, b))
        * (1 + of("input", 0, c, 0, 0))
        * (1 + low_rank)
    )


def share(child, o, p):
    """How much of the parent's filter p is in the child's filter o."""
    groups = getattr(child, "groups", 1)
    size = len(child._parent.weight) // groups
    found = float(o == p)
    if o // size != p // size:  # filters of another group see other channels
        return found
    if child.mix is not None:
        found += child.mix[o, p % size].item()
    if child.mix_left is not None:
        rank = child.mix_left.shape[1]
        rows = child.mix_right[o // size * rank :][:rank]  # those of the group
        found += sum(child.mix_left[o, r].item() * rows[r, p % size].item() for r in range(rank))
    return found


def naive_weight(child, kernel):
    weight = torch.zeros_like(kernel)
    shape = (*kernel.shape, 1, 1)[:4]
    shares = torch.tensor([[share(child, o, p) for p in range(len(kernel))] for o in range(len(kernel))])
    for o, c, a, b in torch.cartesian_prod(*map(torch.arange, shape)).tolist():
        at = (c, a, b)[: kernel.ndim - 1]
        mixed = sum(shares[o, p].item() * kernel[(p, *at)].item() for p in range(len(kernel)))
        weight[(o, *at)] = mixed * element(child, o, c, a, b)
    return weight


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modulation", MODULATIONS)
def test_a_convolution_equals_the_formula_as_loops(modulation, kind):
    parent, child = make_conv(kind, modulation)
    randomise(child)
    held = HELD[modulation] - ({"spatial"} if kind == "pointwise" else set())
    assert {name for name in NAMES if getattr(child, name) is not None} == held
    x = torch.randn(2, 8, 6, 5)
    expected = naive_conv(x, naive_weight(child, parent.weight), child.bias, child)
    torch.testing.assert_close(child(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_a_linear_equals_the_formula_as_loops(modulation):
    parent, child = make_linear(modulation)
    randomise(child)
    assert {name for name in NAMES if getattr(child, name) is not None} == HELD[modulation] - {"spatial"}
    x = torch.randn(2, 5, 6, 8)
    torch.testing.assert_close(child(x), x @ naive_weight(child, parent.weight).T + child.bias)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_it_starts_as_the_parent_s_kernel(modulation):
    for parent, child in [*(make_conv(kind, modulation) for kind in KINDS), make_linear(modulation)]:
        assert torch.equal(child.weight, parent.weight)


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_fused_is_plain_and_equal(modulation):
    for kind in KINDS:
        _, child = make_conv(kind, modulation)
        x = torch.randn(2, 8, 6, 5)
        fused = randomise(child).fused()
        assert type(fused) is nn.Conv2d
        torch.testing.assert_close(fused(x), child(x))
    _, child = make_linear(modulation)
    x = torch.randn(2, 5, 6, 8)
    fused = randomise(child).fused()
    assert type(fused) is nn.Linear
    torch.testing.assert_close(fused(x), child(x))


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_the_mean_of_a_gate_is_folded_too(modulation):
    for kind in KINDS:
        parent, replaced = nn.Conv2d(8, 8, **CONVS[kind]), nn.Conv2d(8, 8, **CONVS[kind])
        child = randomise(ChildConv2d("child", parent, replaced, modulation=modulation))
        mean, x = torch.rand(8), torch.randn(2, 8, 6, 5)
        child.gate.gate = lambda _, mean=mean: mean[None, :, None, None]
        torch.testing.assert_close(child.fused(mean)(x), child(x))


def gradients_behind_a_norm(child, *, steps):
    """The largest gradient of each parameter of the modulation after some steps behind a BatchNorm."""
    norm = nn.BatchNorm2d(8)
    nn.init.normal_(norm.weight)
    optimizer = torch.optim.SGD(child.parameters(), 0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(16, 8, 6, 6)
        (norm(child(x)) * torch.randn(16, 8, 6, 6)).sum().backward()
        optimizer.step()
    return {name: p.grad.abs().max().item() for name, p in child.named_parameters() if name in NAMES}


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_every_parameter_learns_behind_a_batchnorm_but_the_paper_s_filter(modulation):
    _, child = make_conv("dense", modulation)
    found = gradients_behind_a_norm(child, steps=2)
    assert found.keys() == HELD[modulation]
    if modulation == "paper":  # a scale of an output channel is what the norm divides by
        assert found.pop("filter") < 1e-4 * found["spatial"]
    assert min(found.values()) > 0.1, found


@pytest.mark.parametrize("modulation", ["position_input", "low_rank", "mix", "mix_low_rank"])
def test_a_pointwise_child_learns_behind_a_batchnorm(modulation):
    _, child = make_conv("pointwise", modulation)
    found = gradients_behind_a_norm(child, steps=2)
    cancelled = found.pop("position", 0.0)  # of a 1x1 kernel it is a scale of an output channel
    assert min(found.values()) > 0.1, found
    assert cancelled < 1e-4 * min(found.values())


@pytest.mark.parametrize("modulation", MIXES)
def test_a_mix_is_a_1x1_convolution_behind_the_parent(modulation):
    for kind in ("dense", "grouped"):
        parent, child = make_conv(kind, modulation)
        randomise(child)
        x = torch.randn(2, 8, 6, 5)
        size = 8 // parent.groups
        shares = torch.tensor([[share(child, o, p) for p in range(8)] for o in range(8)])
        kernel = torch.stack([shares[o, o // size * size :][:size] for o in range(8)])[:, :, None, None]
        without_bias = nn.functional.conv2d(
            parent(x) - parent.bias[:, None, None], kernel, groups=parent.groups
        )
        torch.testing.assert_close(child(x) - child.bias[:, None, None], without_bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulation", MIXES)
def test_a_mixed_kernel_lies_in_memory_as_the_parent_s(modulation):
    parent, child = make_conv("dense", modulation)
    randomise(child)
    expected = child.weight.detach().clone()
    parent.to(memory_format=torch.channels_last)
    assert child.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(child.weight, expected)


def test_the_switches():
    _, child = make_conv("dense", "paper", spatial=False)
    assert {name for name in NAMES if getattr(child, name) is not None} == {"filter"}
    _, child = make_conv("dense", "low_rank", spatial=False)
    assert {name for name in NAMES if getattr(child, name) is not None} == {"left", "right"}
    assert not modulation_parameters((8, 8, 3, 3), spatial=False, filter=False)
    _, child = make_conv("dense", "paper", spatial=False, filter=False)
    assert child.modulation is None


# whole networks


def build(modulation, settle=None, name="resnet18", **options):
    torch.manual_seed(0)
    options = {"modulation": modulation, "rank": 2, **options}
    model = kd.create_model(name, method="kerneldna", num_classes=4, width=0.25, options=options)
    return model if settle is None else settle(model, torch.randn(4, 3, 32, 32))


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_making_the_kernel_is_not_counted_as_work_for_an_image(modulation):
    copied = kd.describe(build("paper", channel=False)).size
    found = kd.describe(build(modulation, channel=False)).size
    assert found.macs == copied.macs


@pytest.mark.parametrize(("modulation", "pattern", "parameters"), [
    ("mix", "FS-SF-SF", 579_354), ("mix", "FS-SF", 373_786), ("mix_low_rank", "FS-SF", 335_898),
])  # fmt: skip
def test_a_mix_has_a_square_matrix_or_two_thin_ones(modulation, pattern, parameters):
    patterns = {"layer3": pattern, "layer4": pattern}
    options = {"modulation": modulation, "channel": False, "patterns": patterns}
    model = kd.create_model(
        "resnet18", method="kerneldna", num_classes=10, width=0.25, stem="small", options=options
    )
    assert kd.describe(model).size.parameters == parameters


@pytest.mark.parametrize("modulation", MODULATIONS)
def test_options_make_the_method_again(modulation):
    method = kd.KernelDNA(modulation=modulation, rank=2)
    assert method.options()["modulation"] == modulation
    assert kd.KernelDNA(**method.options()).options() == method.options()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(modulation="positon"), "unknown modulation 'positon'; did you mean 'position'"),
        (dict(rank=0), "rank is 0; a low-rank factor needs 1 or more"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        kd.KernelDNA(**options)


def on_both():
    """Yield every modulation on a ResNet and a ConvNeXt; of the latter a factor and a mix are quick."""
    for modulation in MODULATIONS:
        yield pytest.param("resnet18", modulation)
        quick = modulation in ("paper", "mix")
        yield pytest.param("convnext_tiny", modulation, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(("name", "modulation"), list(on_both()))
def test_saved_fused_and_shared(name, modulation, settle, tmp_path):
    model, x = build(modulation, settle, name), torch.randn(2, 3, 32, 32)
    assert torch.equal(kd.load(kd.save(model, tmp_path))(x), model(x))
    fused = kd.fuse_(copy.deepcopy(model))
    torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-5)
    state = fused.state_dict()
    shared = shared_kernels(model, fused)
    # a mix of ConvNeXt's fc1 is larger than its kernel, and not shared
    assert any(kernel.mixes for kernel in shared) == modulation.startswith("mix")
    for kernel in shared:
        for weight, factors in kernel.users.items():
            found = mixed(kernel.kernel.double(), kernel.mixes.get(weight, ()))
            for factor in factors:
                assert factor.ndim == found.ndim
                found = found * factor
            torch.testing.assert_close(found.float(), state[weight], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("storage", ["fp32", pytest.param("int8", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "modulation", [m for m in MODULATIONS if m not in MIXES]
)  # tests/deploy/test_mixed_kernels.py
def test_an_onnx_file_derives_the_kernels(modulation, storage, make_tiny, settle, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
    model = settle(make_tiny(modulation=modulation, rank=2), torch.randn(16, 3, 16, 16))
    written = kd.export(model, tmp_path / "m.onnx", storage=storage)
    assert written.difference < {"fp32": 1e-5, "int8": 0.05}[storage]
    names = [tensor.name for tensor in onnx.load(tmp_path / "m.onnx").graph.initializer]
    for family in kd.plan_of(model).families:
        assert any(name.startswith(f"{family.parent}.kernel") for name in names)
        assert not {f"{child}.conv.weight" for child in family.children} & set(names)
