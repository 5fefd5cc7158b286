"""What a GPU computes is what the CPU computes, for every method and for compression."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import kerneldna as kd
from kerneldna.recipes.recipe import load_recipe
from kerneldna.training.compress_run import compress_run
from kerneldna.training.trainer import train

pytestmark = pytest.mark.gpu
METHODS = [None, *kd.list_methods()]


@pytest.fixture(autouse=True)
def without_tf32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def images():
    return torch.randn(16, 3, 32, 32)


def network(method):
    return kd.create_model("resnet18", method=method, num_classes=10, width=0.25, stem="small")


def difference(output, expected):
    return float((output.detach().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_outputs_are_those_of_the_cpu(method, images):
    model = network(method).eval()
    expected = model(images)
    assert difference(model.cuda()(images.cuda()), expected) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_few_steps_in_half_precision_lower_the_loss(method, dtype, images):
    model = network(method).cuda().to(memory_format=torch.channels_last).train()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.05), torch.amp.GradScaler("cuda")
    images, labels, losses = images.cuda(), torch.randint(10, (16,)).cuda(), []
    for _ in range(8):
        with torch.autocast("cuda", dtype):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_fused_compiled_and_exported(images, tmp_path):
    model = network("kerneldna").cuda().eval()
    with torch.no_grad():
        expected = model(images.cuda()).cpu()
        assert difference(kd.fuse_(copy.deepcopy(model))(images.cuda()), expected) < 1e-5
        assert difference(torch.compile(model, fullgraph=True)(images.cuda()), expected) < 1e-5
    assert kd.export(model, tmp_path / "model.onnx").difference < 1e-5


def test_a_step_of_a_compiled_network(images):
    torch.compile(network("kerneldna").cuda().train(), fullgraph=True)(images.cuda()).sum().backward()


def test_compressed_and_distilled_on_the_device_of_the_network():
    model, images = network(None).cuda().eval(), torch.randn(256, 3, 32, 32)
    small = kd.compress(model, images, budget=0.6, progress=False)
    assert {parameter.device.type for parameter in small.parameters()} == {"cuda"}
    kd.distill(small, teacher=model, images=DataLoader(TensorDataset(images), 64), epochs=1, progress=False)


def test_kdna_compress_measures_on_the_gpu(tmp_path):
    small = (
        "model.width=0.125",
        "data.limit_train=128",
        "data.limit_val=64",
        "data.workers=0",
        "schedule.epochs=1",
    )
    train(load_recipe("resnet18-digits", overrides=small), run_dir=tmp_path / "run", progress=False)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    compress_run(tmp_path / "run", run_dir=tmp_path / "small", images=64, epochs=0, progress=False)
    assert torch.cuda.max_memory_allocated() > before + 2**20
    assert {each.device.type for each in kd.load(tmp_path / "small" / "compressed").parameters()} == {"cpu"}
