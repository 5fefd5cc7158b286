"""What every method must do on every backbone it serves: found through the registry, nothing to add for a new one."""

import copy
import io
from typing import NamedTuple

import pytest
import safetensors.torch
import torch
from torch import nn

import kerneldna as kd
from kerneldna.conversion import convert
from kerneldna.deploy import fuse

METHODS = kd.list_methods()
PER_IMAGE_KERNELS = {"cgc", "condconv", "dyconv", "odconv", "kernelwarehouse"}
SIZE = 48
# One backbone of each kind. A peer works layer by layer, so in the quick suite it gets the shallowest with every kind of layer and
# a block that repeats; KernelDNA's patterns name each block, so it gets the whole.
KINDS = {
    "resnet18": {"layers": (2, 1, 1, 1)},
    "mobilenetv2_050": {"depth_multiplier": 0.34},
    "convnext_tiny": {"depths": (1, 1, 2, 1)},
}
WIDER = "mobilenetv2_100"  # mobilenetv2_050 with wider layers
# choices of KernelDNA that change what its layers are; each on a backbone of every kind
CHOICES = {
    "stage-gate": {"gate": "stage"},
    "position-input": {"modulation": "position_input"},
    "low-rank": {"modulation": "low_rank"},
    "mix": {"modulation": "mix"},
    "mix-low-rank": {"modulation": "mix_low_rank"},
}


class Case(NamedTuple):
    backbone: str
    method: str
    options: dict = {}
    depth: dict = {}


def cases(*, exported=False):
    """Yield the cases.

    A few peers serve for ConvNeXt's Linears, those of the paper for MobileNetV2's layers; where networks are exported, which takes
    longest, the same few for both.
    """
    for method in METHODS:
        for backbone in kd.list_models():
            marks = () if method == "kerneldna" and backbone != WIDER else pytest.mark.slow
            yield pytest.param(Case(backbone, method), id=f"{backbone}-{method}", marks=marks)
            if method != "kerneldna" and (depth := KINDS.get(backbone)):
                quick = backbone == "resnet18" or method in ("se", "dyconv")
                if not exported:
                    quick |= method == "sharedbasis"
                    quick |= backbone.startswith("mobilenet") and method in ("odconv", "kernelwarehouse")
                marks = () if quick else pytest.mark.slow
                yield pytest.param(
                    Case(backbone, method, {}, depth), id=f"{backbone}-shallow-{method}", marks=marks
                )
    for choice, options in CHOICES.items():
        for backbone in sorted(KINDS):
            yield pytest.param(
                Case(backbone, "kerneldna", options),
                id=f"{backbone}-kerneldna-{choice}",
                marks=() if backbone == "resnet18" else pytest.mark.slow,
            )

    for backbone in sorted(KINDS):
        yield pytest.param(
            Case(backbone, "sharedbasis", {"channel": True}),
            id=f"{backbone}-sharedbasis-gated",
            marks=() if backbone == "resnet18" else pytest.mark.slow,
        )


def build(case):
    torch.manual_seed(0)
    return kd.create_model(
        case.backbone, method=case.method, num_classes=6, width=0.25, options=case.options, **case.depth
    )


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        exported = metafunc.function.__name__ == "test_export"
        metafunc.parametrize("case", list(cases(exported=exported)), scope="module")


@pytest.fixture(scope="module")
def model(case, settle):
    """A network whose every parameter and statistic is away from its start, as after training."""
    model = build(case)
    kd.step_schedules(model, 50, 10)  # half way: at tau = 1 KernelWarehouse's attention has no gradient
    return settle(model, torch.randn(4, 3, SIZE, SIZE))


@pytest.fixture
def images():
    return torch.randn(4, 3, SIZE, SIZE)


def relative(a, b):
    return float((a - b).detach().abs().max() / b.detach().abs().max())


def test_forward_shape(model, images):
    assert model(images).shape == (4, 6)
    assert model(images[:0]).shape == (0, 6)


def test_every_parameter_has_a_finite_gradient_that_is_not_zero(model, images):
    model = copy.deepcopy(model).train()
    nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_eval_is_deterministic_and_leaves_no_trace(model, images):
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(model(images), model(images))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_batch_equals_its_single_images(model, images):
    singles = torch.cat([model(image[None]) for image in images])
    assert relative(model(images), singles) < 1e-4


def test_deepcopy_is_independent_and_keeps_its_ties(model, images):
    twin = copy.deepcopy(model)
    expected = model(images)
    assert torch.equal(twin(images), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(1.5)
    assert torch.equal(model(images), expected)
    for module in twin.modules():
        for borrowed in (value for value in vars(module).values() if isinstance(value, nn.Module)):
            assert any(borrowed is other for other in twin.modules())


def test_pickle(model, images):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(images), model(images))


def test_no_parameter_stands_twice(model):
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(list(model.parameters()))


def test_save_and_load(model, images, tmp_path):
    safetensors.torch.save_file(model.state_dict(), tmp_path / "plain.safetensors")
    assert torch.equal(kd.load(kd.save(model, tmp_path))(images), model(images))


def test_assign_and_meta_load(case, model, images):
    with torch.device("meta"):
        empty = build(case).eval()
    spare = copy.deepcopy(empty)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty(images), model(images))
    empty = spare.to_empty(device="cpu")
    empty.load_state_dict(model.state_dict())
    assert torch.equal(empty(images), model(images))


def test_functional_call_leaves_the_model_alone(model, images):
    doubled = {name: parameter * 1.1 for name, parameter in model.named_parameters()}
    expected = model(images)
    assert not torch.equal(torch.func.functional_call(model, doubled, images), expected)
    assert torch.equal(model(images), expected)


def test_export(case, model, images):
    dynamic = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    if case.method not in PER_IMAGE_KERNELS:
        program = torch.export.export(model, (images[:2],), **dynamic)
        for batch in (1, 4):
            assert relative(program.module()(images[:batch]), model(images[:batch])) < 1e-5
        return
    with pytest.raises(
        ValueError, match=r"layer '.*' makes a kernel for each image .* export with a fixed batch size"
    ):
        torch.export.export(model, (images[:2],), **dynamic)
    program = torch.export.export(model, (images,))
    assert relative(program.module()(images), model(images)) < 1e-5


def test_bf16_autocast(model, images):
    with torch.autocast("cpu", torch.bfloat16):
        found = model(images)
        cast = copy.deepcopy(model).bfloat16()(images)  # weights and all
    assert found.dtype == cast.dtype == torch.bfloat16
    assert relative(found.float(), model(images)) < 0.1
    assert relative(cast.float(), model(images)) < 0.2


def test_channels_last(model, images):
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    assert relative(last(images.contiguous(memory_format=torch.channels_last)), model(images)) < 1e-4


def test_fused_equals_unfused(case, model, images):
    fused = fuse.fused_copy(model)
    if fused is model:  # no BatchNorm, or every convolution in front of one is replaced
        assert case.method != "kerneldna"
        with pytest.raises(ValueError, match="nothing to fuse"):
            kd.fuse_(copy.deepcopy(model))
        return
    assert relative(fused(images), model(images)) < 1e-5
    if case.method != "kerneldna" and not case.options.get("channel"):
        return
    ours = {type(m).__name__ for m in fused.modules() if type(m).__module__.startswith("kerneldna")}
    kept = {"ChannelAttention"} if case.backbone == "convnext_tiny" else set()
    assert ours <= ({"StageGate", "LaterGate"} if case.options.get("gate") == "stage" else kept)
    fast = kd.fuse_(copy.deepcopy(model), mode="throughput", calibrate=images, progress=False)
    assert convert.state_of(fast)["fused"]["difference"] < 1e-5
    assert not {type(m).__name__ for m in fast.modules() if type(m).__module__.startswith("kerneldna")}


@pytest.mark.slow
def test_compile_in_one_graph(case, model, images):
    torch.compiler.reset()  # or the cases before count as recompilations of the same forward
    one = case == Case("resnet18", "kerneldna")  # enough for the code generator
    backend = "inductor" if one else "aot_eager"
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    assert relative(compiled(images), model(images)) < 1e-4
