"""A teacher, a student and images for tests of distillation."""

import copy

import pytest
import torch

import kerneldna as kd


@pytest.fixture(scope="module")
def images():
    return torch.randn(33, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teacher(images):
    """A network whose norms know what they see, as a trained one's do."""
    torch.manual_seed(0)
    network = kd.create_model("resnet18", width=0.125, num_classes=5, zero_init_last=False)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(images)
    return network.eval()


@pytest.fixture
def student(teacher):
    return kd.convert_(copy.deepcopy(teacher), kd.KernelDNA()).eval()
