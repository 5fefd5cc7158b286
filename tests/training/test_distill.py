"""A student learns its teacher's answers, without labels."""

from __future__ import annotations

import copy

import pytest
import torch

import kerneldna as kd
from kerneldna.training.imitation import Imitation, total


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


def gap(student, teacher, images):
    with torch.no_grad():
        return float(total(Imitation(teacher).compare(student, images)[1]))


def test_the_student_comes_nearer_and_the_teacher_stays(student, teacher, images):
    before, state = gap(student, teacher, images), copy.deepcopy(teacher.state_dict())
    assert kd.distill(student, teacher=teacher, images=images, epochs=16, batch_size=16, lr=3e-3) is student
    assert gap(student, teacher, images) < 0.5 * before
    assert not any(module.training for module in student.modules())
    assert all(torch.equal(state[name], value) for name, value in teacher.state_dict().items())


def test_a_loader_of_images_and_labels_will_do(student, teacher, images):
    loader = [(images[:16], torch.zeros(16)), (images[16:], torch.zeros(17))]
    before = gap(student, teacher, images)
    kd.distill(student, teacher=teacher, images=loader, epochs=2)
    assert gap(student, teacher, images) < before


def test_the_same_seed_gives_the_same_weights(student, teacher, images):
    twin = copy.deepcopy(student)
    for network in (student, twin):
        torch.rand(1)
        kd.distill(network, teacher=teacher, images=images, epochs=1, batch_size=16, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), twin.parameters(), strict=True))


def test_a_network_that_answers_alike_loses_nothing(teacher, images):
    assert gap(copy.deepcopy(teacher), teacher, images) < 1e-6


def test_the_terms_are_what_the_formulas_say(student, teacher, images):
    imitation = Imitation(teacher, temperature=3.0, features=0.5)
    assert imitation.stages == ["layer1", "layer2", "layer3", "layer4"]
    with torch.no_grad():
        logits, terms = imitation.compare(student, images)
        p, q = (torch.softmax(found / 3, dim=1) for found in (teacher(images), logits))
        assert float(terms["logits"]) == pytest.approx(9 * float((p * (p / q).log()).sum(1).mean()), rel=1e-4)
        maps = {}
        for network in (teacher, student):
            x = network.maxpool(network.act1(network.bn1(network.conv1(images))))
            for name in imitation.stages:
                x = getattr(network, name)(x)
                maps.setdefault(name, []).append(x)
        errors = [float((b - a).square().mean() / a.var()) for a, b in maps.values()]
    assert float(terms["features"]) == pytest.approx(0.5 * sum(errors) / 4, rel=1e-4)
    assert set(terms) == {"logits", "features"}
    assert torch.equal(logits, student(images).detach())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(0, 3, 32, 32)}, "there is no image to distill on"),
        ({"images": [torch.zeros(3, 32)]}, r"a batch is \(3, 32\); expected images"),
        ({"images": iter([])}, "can be gone through once an epoch"),
        ({"temperature": 0.0}, "temperature is 0 and features 1"),
        ({"images": torch.full((8, 3, 32, 32), torch.nan)}, "the loss is nan in epoch 1, step 1; lower lr"),
    ],
)
def test_what_it_cannot_do(student, teacher, images, arguments, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        kd.distill(student, **{"teacher": teacher, "images": images, "progress": False, **arguments})


def test_other_classes_and_the_student_itself(student, teacher, images):
    other = kd.create_model("resnet18", width=0.125, num_classes=4)
    with pytest.raises(ValueError, match=r"logits \(33, 4\), the student \(33, 5\)"):
        kd.distill(student, teacher=other, images=images)
    with pytest.raises(ValueError, match="teacher and student are one network"):
        kd.distill(student, teacher=student, images=images)
