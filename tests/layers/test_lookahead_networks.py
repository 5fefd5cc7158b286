"""Whole networks with one gate a stage: sizes, copies, fusing, exporting, compiling."""

import copy

import pytest
import timm
import torch
from test_lookahead import naive_gates
from timm.utils import ModelEmaV3
from torch import nn

import kerneldna as kd
from kerneldna.conversion.convert import state_of
from kerneldna.deploy.calibrate import constant_gates, gate_means, gates_of, tracked_means
from kerneldna.deploy.shared_kernels import shared_kernels
from kerneldna.layers.attention import ChannelAttention
from kerneldna.layers.lookahead import LaterGate, StageGate
from kerneldna.network.outputs import relative_difference

SIZES = {
    "resnet18": 9_076_190,
    "resnet50": 22_745_036,
    "mobilenetv2_100": 3_069_528,
    "convnext_tiny": 23_512_408,
}
NETWORKS = ("resnet18", "mobilenetv2_050", "convnext_tiny")
X = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))


def build(name="resnet18", **options):
    torch.manual_seed(0)
    options = {"gate": "stage", **options}
    return kd.create_model(name, method="kerneldna", num_classes=4, width=0.25, options=options)


@pytest.fixture(scope="module")
def trained(settle):
    made: dict[str, nn.Module] = {}

    def of(name):
        if name not in made:
            made[name] = settle(build(name), X)
        return made[name]

    return of


@pytest.fixture(params=["resnet18", "convnext_tiny", pytest.param("mobilenetv2_050", marks=pytest.mark.slow)])
def model(request, trained):
    return copy.deepcopy(trained(request.param))


def relative(a, b):
    return relative_difference([b.detach()], [a.detach()])


def ours(model):
    return {type(m).__name__ for m in model.modules() if type(m).__module__.startswith("kerneldna")}


@pytest.mark.parametrize("name", SIZES)
def test_parameters(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = kd.plan(model, kd.KernelDNA.recipe(name, gate="stage"))
    kd.convert_(model, plan)
    assert plan.after.parameters == SIZES[name] == kd.describe(model).size.parameters


def test_parameters_of_resnet18_by_hand():
    saved = 0
    for channels, later in ((256, (256, 256)), (512, (512, 512))):
        hidden = channels // 4
        own = [each * (each // 4) + 2 * (each // 4) + (each // 4) * each + each for each in later]
        stage = sum(hidden * each + each for each in later)  # their part of fc2
        saved += sum(own) - stage
    assert SIZES["resnet18"] == 9_240_798 - saved


def test_the_plan_names_who_looks():
    plan = kd.plan(
        timm.create_model("resnet18", num_classes=4), kd.KernelDNA.recipe("resnet18", gate="stage")
    )
    becomes = {change.name: change.becomes for change in plan.changes}
    assert becomes["layer4.0.conv2"] == "child of layer4.1.conv2"
    assert becomes["layer4.1.conv1"] == "child of layer4.1.conv2, gated by layer4.0.conv2"


def test_the_reduction_is_that_of_the_first_child_s_name():
    model = build("mobilenetv2_050")
    gates = [gate for gate in gates_of(model).values() if isinstance(gate, StageGate)]
    assert [gate.fc1.out_channels for gate in gates] == [gate.channels // 4 for gate in gates]


def test_one_gate_a_stage_is_computed(model):
    calls = []
    for gate in gates_of(model).values():
        if isinstance(gate, ChannelAttention):
            gate.fc1.register_forward_hook(lambda *_: calls.append(1))
    model(X)
    assert len(calls) == len(kd.plan_of(model).stages)


def test_options_make_the_method_again():
    method = kd.KernelDNA.recipe("resnet18", gate="stage")
    assert kd.KernelDNA(**method.options()).options() == method.options()
    assert method.options()["gate"] == "stage"
    assert kd.KernelDNA().gate == "child"
    with pytest.raises(ValueError, match="unknown gate 'stag'; did you mean 'stage'"):
        kd.KernelDNA(gate="stag")


def test_without_channel_attention_there_is_no_gate():
    assert not gates_of(build(channel=False))


def test_blocks_that_run_in_another_order_are_refused():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU()) for _ in range(3)
            )

        def forward(self, x):
            for block in reversed(self.blocks):
                x = block(x)
            return x

    method = kd.KernelDNA(patterns={"blocks": "S-S-F"}, gate="stage")
    with pytest.raises(ValueError, match=r"'blocks.1.0' takes its gate from child 'blocks.0.0'"):
        kd.plan(Backwards(), method, input_size=(3, 8, 8))


def test_saved_and_loaded(model, tmp_path):
    assert torch.equal(kd.load(kd.save(model, tmp_path))(X), model(X))


def test_an_average_of_the_weights_is_kept(model):
    model.train()
    average = ModelEmaV3(model, decay=0.5)
    for _ in range(2):
        model(X).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        average.update(model)
    average.module.eval()(X)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_in_one_graph(trained, name):
    for train in (False, True):
        torch.compiler.reset()
        model = copy.deepcopy(trained(name)).train(train)
        expected = copy.deepcopy(model)(X)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(X)
        torch.testing.assert_close(compiled, expected)
    compiled.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
def test_compiled_block_by_block(trained):
    torch.compiler.reset()
    model = copy.deepcopy(trained("resnet18"))
    expected = model(X)
    for block in model.layer4:
        block.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(model(X[:3]), expected[:3])


def test_fused_for_accuracy(model, tmp_path):
    fused = kd.fuse_(copy.deepcopy(model))
    assert relative(fused(X), model(X)) < 1e-5
    assert ours(fused) == {"StageGate", "LaterGate"}
    for gate in gates_of(fused).values():
        assert not any(isinstance(part, nn.BatchNorm2d) for part in gate.modules())
    kept = {id(gate) for gate in gates_of(model).values()}
    assert not any(id(gate) in kept for gate in gates_of(fused).values())
    assert torch.equal(kd.load(kd.save(fused, tmp_path))(X), fused(X))
    assert torch.equal(copy.deepcopy(fused)(X), fused(X))


def test_a_failed_fuse_leaves_the_gates_as_they_were(trained, monkeypatch):
    model = copy.deepcopy(trained("resnet18"))
    expected = model(X)
    wrong = kd.ChildConv2d.fused
    monkeypatch.setattr(kd.ChildConv2d, "fused", lambda child: nn.Sequential(wrong(child), nn.ReLU()))
    with pytest.raises(RuntimeError, match="left unfused"):
        kd.fuse_(model)
    assert torch.equal(model(X), expected)


def test_means_are_those_of_single_images(trained):
    model = trained("resnet18")
    found = gate_means(model, X, progress=False)
    assert {name.removesuffix(".gate") for name in found} == {c.name for c in kd.plan_of(model).changes}
    for stage in kd.plan_of(model).stages:
        first, *later = (name for name in found if name.startswith(f"{stage.name}."))
        gate, seen = gates_of(model)[first], []
        handle = gate.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0]))
        model(X)
        handle.remove()
        rows = torch.stack([naive_gates(gate, image) for image in seen[0]]).double().mean(0)
        for name, mean in zip((first, *later), rows.split(gate.widths), strict=True):
            torch.testing.assert_close(found[name], mean, rtol=1e-5, atol=1e-6)


def test_fused_for_throughput_computes_with_the_means(model, tmp_path):
    means = gate_means(model, X, progress=False)
    with constant_gates(model, means):
        expected = model(X)
    fast = kd.fuse_(copy.deepcopy(model), mode="throughput", calibrate=X, progress=False)
    assert not ours(fast)
    assert relative(fast(X), expected) < 1e-5
    assert state_of(fast)["fused"]["moved"] > 1e-6
    assert torch.equal(kd.load(kd.save(fast, tmp_path))(X), fast(X))


def test_trained_for_both_modes_needs_no_calibration(settle):
    model = settle(build(gate_drop_rate=0.5), X, rounds=20)
    assert tracked_means(model).keys() == gates_of(model).keys()
    assert isinstance(gates_of(model)["layer4.1.conv1.gate"], LaterGate)
    assert not ours(kd.fuse_(model, mode="throughput"))


@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
def test_kernel_times_factors_is_the_fused_kernel(model, mode):
    means = gate_means(model, X, progress=False) if mode == "throughput" else None
    fused = kd.fuse_(copy.deepcopy(model), mode=mode, calibrate=means)
    state = fused.state_dict()
    for kernel in shared_kernels(model, fused, means):
        for weight, factors in kernel.users.items():
            found = kernel.kernel.double()
            for factor in factors:
                found = found * factor
            torch.testing.assert_close(found.float(), state[weight], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("resnet18", "accuracy"),
        ("resnet18", "throughput"),
        pytest.param("convnext_tiny", "accuracy", marks=pytest.mark.slow),
        pytest.param("convnext_tiny", "throughput", marks=pytest.mark.slow),
        pytest.param("mobilenetv2_050", "accuracy", marks=pytest.mark.slow),
        pytest.param("mobilenetv2_050", "throughput", marks=pytest.mark.slow),
    ],
)
def test_exported_to_onnx(trained, name, mode, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
    model = trained(name)
    calibrate = X if mode == "throughput" else None
    options = {"mode": mode, "calibrate": calibrate, "progress": False, "input_size": (3, 48, 48)}
    # compared with PyTorch at batches of 1, 2 and 7
    assert kd.export(model, tmp_path / "m.onnx", **options).difference < 1e-5
    kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    stages = len(kd.plan_of(model).stages) if mode == "accuracy" else 0
    assert kinds.count("Sigmoid") == stages
    assert kinds.count("GlobalAveragePool") + kinds.count("ReduceMean") == stages + 1


def test_exported_to_int8_leaves_the_gates_in_float(trained, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs kerneldna[export]")
    model = trained("resnet18")
    options = {"compute": "int8", "calibrate": X, "progress": False, "input_size": (3, 48, 48)}
    kd.export(model, tmp_path / "m.onnx", **options)
    layers = [node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == "Conv"]
    gates = [node for node in layers if "gate" in node.input[1]]
    assert len(gates) == 4
    assert not any("Dequantize" in node.input[1] for node in gates)
