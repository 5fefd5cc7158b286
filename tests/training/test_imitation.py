"""What a student is compared with its teacher by."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import kerneldna as kd
from kerneldna.training.imitation import Imitation
from teaching import Answering, gap


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


@pytest.mark.parametrize("flat", [False, True])
def test_one_output_alone_is_learnt(images, flat):
    """The softmax of one output is always 1: it would say nothing."""
    torch.manual_seed(0)
    teacher = kd.create_model("resnet18", width=0.125, num_classes=1).eval()
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.fc.weight.mul_(0.5)
        student.fc.bias.add_(1.0)
    if flat:
        teacher, student = (Answering(each, lambda y, _: y[:, 0]) for each in (teacher, student))
    before = gap(student, teacher, images)
    assert before > 1
    kd.distill(student, teacher=teacher, images=images, epochs=12, lr=3e-2, features=0.0, batch_size=16)
    assert gap(student, teacher, images) < 0.5 * before
    assert gap(student, teacher, images[:1]) < 1e6


def test_a_teacher_that_writes_over_its_input(teacher, images):
    class Halving(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = copy.deepcopy(teacher)

        def forward(self, x):
            return self.network(x.mul_(0.5))

    before = images.clone()
    assert gap(Halving(), Halving().eval(), images) == pytest.approx(
        gap(teacher, copy.deepcopy(teacher), images)
    )
    assert torch.equal(images, before)


def test_a_teacher_in_half_precision(student, teacher, images):
    half = gap(student, copy.deepcopy(teacher).half(), images)
    assert half == pytest.approx(gap(student, teacher, images), rel=0.02)


@pytest.mark.parametrize(
    "wrap", [torch.nn.DataParallel, lambda m: torch.compile(m, backend="eager"), AveragedModel]
)
def test_networks_in_wrappers(student, teacher, images, wrap):
    """By the names that parts have inside a wrapper, no map of the student would be compared."""
    with torch.no_grad():
        plain, wrapped = (Imitation(each).compare(student, images)[1] for each in (teacher, wrap(teacher)))
    assert set(wrapped) == {"logits", "features"}
    for name, loss in plain.items():
        torch.testing.assert_close(wrapped[name], loss)
    with pytest.raises(ValueError, match="which wraps a network; distill that"):
        kd.distill(wrap(student), teacher=teacher, images=images)
    with pytest.raises(ValueError, match="teacher and student are one network"):
        kd.distill(teacher, teacher=torch.nn.DataParallel(teacher), images=images)
