"""A student learns its teacher's answers, without labels."""

from __future__ import annotations

import copy
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

import kerneldna as kd
from kerneldna.conversion.convert import set_state
from kerneldna.data.preprocessing import Preprocessing
from kerneldna.training.imitation import check_alike
from teaching import Answering, gap


class Stream(IterableDataset):
    """Images of which nobody knows how many come."""

    def __iter__(self):
        return iter(torch.randn(8, 3, 32, 32))


class Once(list):
    """Batches that come once."""

    def __iter__(self):
        while self.batches:
            yield self.batches.pop()

    def __init__(self, batches):
        super().__init__(batches)
        self.batches = batches


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.zeros(0, 3, 32, 32)}, "there is no image to distill on"),
        ({"images": [torch.zeros(3, 32)]}, r"a batch is \(3, 32\); expected images"),
        ({"images": iter([])}, "can be gone through once an epoch"),
        ({"images": DataLoader(Stream(), 8)}, "a DataLoader without a length was given"),
        ({"images": Once([torch.randn(4, 3, 32, 32)])}, "gave no batch in epoch 2"),
        ({"epochs": -1}, "epochs is -1; expected a whole number, 0 or more"),
        ({"epochs": 1.5}, "epochs is 1.5; expected"),
        ({"batch_size": 0}, "batch_size is 0; expected a whole number, 1 or more"),
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
    with pytest.raises(TypeError, match="'runs/large' was given to distill from; expected a network"):
        kd.distill(student, teacher="runs/large", images=images)
    with pytest.raises(ValueError, match="teacher and student are one network"):
        kd.distill(student, teacher=student, images=images)


def test_what_the_student_must_be(student, teacher, images):
    with pytest.raises(
        ValueError, match=r"is torch.float16, .*distill student.float\(\), and convert it after"
    ):
        kd.distill(copy.deepcopy(student).half(), teacher=teacher, images=images)
    with pytest.raises(ValueError, match=r"no parameter that trains; call student.requires_grad_\(True\)"):
        kd.distill(copy.deepcopy(student).requires_grad_(False), teacher=teacher, images=images)
    alike = copy.deepcopy(teacher)
    alike.fc = teacher.fc
    with pytest.raises(ValueError, match=r"share parameters \('fc.weight'\), which would train in both"):
        kd.distill(alike, teacher=teacher, images=images)
    auxiliary = Answering(student, lambda y, training: (y, y) if training else y)
    with pytest.raises(
        ValueError, match="the student gives a tuple in training mode; expected a tensor of logits"
    ):
        kd.distill(auxiliary, teacher=teacher, images=images)


def test_what_is_frozen_keeps_its_statistics(teacher, images):
    teacher, student = copy.deepcopy(teacher), copy.deepcopy(teacher)
    student.conv1, student.bn1 = teacher.conv1.requires_grad_(False), teacher.bn1.requires_grad_(False)
    student.layer1.requires_grad_(False)
    before = {name: each.clone() for name, each in student.state_dict().items()}
    of_teacher, answer = copy.deepcopy(teacher.state_dict()), teacher(images)
    kd.distill(student, teacher=teacher, images=3 * images + 1, epochs=1, progress=False)
    now = student.state_dict()
    assert all(torch.equal(each, now[name]) for name, each in before.items() if name.startswith("layer1"))
    assert all(torch.equal(of_teacher[name], each) for name, each in teacher.state_dict().items())
    assert torch.equal(teacher(images), answer)
    assert not torch.equal(before["layer2.0.bn1.running_mean"], now["layer2.0.bn1.running_mean"])
    assert not any(module.training for both in (student, teacher) for module in both.modules())


AuxiliaryToo = namedtuple("AuxiliaryToo", ["logits", "aux"])


@pytest.mark.parametrize(
    "answer",
    [
        lambda y, training: SimpleNamespace(logits=y, hidden=None),  # as transformers' networks
        lambda y, training: {"out": y, "aux": -y},  # as torchvision's for segmentation
        lambda y, training: AuxiliaryToo(y, -y) if training else y,  # as its Inception
    ],
)
def test_logits_among_other_outputs(student, teacher, images, answer):
    plain = kd.distill(copy.deepcopy(student), teacher=teacher, images=images, epochs=1)
    wrapped = Answering(copy.deepcopy(student), answer)
    kd.distill(wrapped, teacher=Answering(teacher, answer), images=images, epochs=1)
    state = plain.state_dict()
    assert all(torch.equal(state[name], value) for name, value in wrapped.network.state_dict().items())


def test_a_batch_that_is_not_finite_spoils_nothing(student, teacher, images):
    calls = []

    def spoil(gradient):
        calls.append(gradient)
        return gradient * (torch.inf if len(calls) == 2 else 1)

    for bad, said in (
        (torch.full((8, 3, 32, 32), torch.nan), "the loss is nan"),
        (images[:8], "the gradient is"),
    ):
        twin = copy.deepcopy(student)
        kd.distill(twin, teacher=teacher, images=[images[:8]], epochs=1, seed=1)
        broken = copy.deepcopy(student)
        if "gradient" in said:
            broken.fc.bias.register_hook(spoil)
        with pytest.raises(RuntimeError, match=f"{said}.* in epoch 1, step 2; lower lr"):
            kd.distill(broken, teacher=teacher, images=[images[:8], bad], epochs=1, seed=1, lr=1e-3)
        assert all(torch.equal(a, b) for a, b in zip(twin.buffers(), broken.buffers(), strict=True))
        assert all(p.isfinite().all() and p.grad is None for p in broken.parameters())
        assert not broken.training


def test_a_last_batch_of_one_image_is_left_out(student, teacher, images):
    twin = copy.deepcopy(student)
    for network, loader in ((student, [images[:32], images[32:]]), (twin, images[:32].split(32))):
        kd.distill(network, teacher=teacher, images=loader, epochs=2)
    assert all(p.isfinite().all() for p in student.parameters())
    assert not torch.equal(student.fc.weight, teacher.fc.weight)
    with pytest.raises(ValueError, match="batches of one image were given.*give batches of 2 or more"):
        kd.distill(copy.deepcopy(teacher), teacher=teacher, images=images[:1])


def test_the_rate_of_a_loader_longer_than_it_says_does_not_rise_again(student, teacher, images):
    class Long(list):
        def __len__(self):
            return 1

    after_one = copy.deepcopy(student)
    kd.distill(after_one, teacher=teacher, images=[images[:8]], epochs=1)
    kd.distill(student, teacher=teacher, images=Long([images[:8]] * 4), epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(after_one.parameters(), student.parameters(), strict=True))


def test_outputs_that_mean_something_else(student, teacher, images):
    teacher = copy.deepcopy(teacher)
    set_state(student, classes=["a", "b", "c", "d", "e"])
    for classes, said in (
        (["b", "a", "c", "d", "e"], "the teacher has class 'b' at output 0, where the student has 'a'"),
        (
            ["a", "b", "c", "d"],
            "the teacher has 4 classes and the student 5; give a teacher of the student's",
        ),
    ):
        set_state(teacher, classes=classes)
        with pytest.raises(ValueError, match=said):
            kd.distill(student, teacher=teacher, images=images)


def test_a_teacher_of_images_prepared_otherwise_is_warned_of(student, teacher, images, caplog):
    teacher = copy.deepcopy(teacher)
    for network, level in ((student, 0.5), (teacher, 0.4)):
        how = Preprocessing((3, 32, 32), mean=(level,) * 3, std=(0.2,) * 3)
        set_state(network, preprocessing=how.to_dict())
    check_alike(teacher, copy.deepcopy(teacher))
    assert not caplog.records
    kd.distill(student, teacher=teacher, images=images[:8], epochs=1)
    assert "trained on images of mean (0.4, 0.4, 0.4) and std (0.2, 0.2, 0.2)" in caplog.text


def test_it_is_said_once_where_answers_alone_are_learnt(teacher, images, caplog):
    narrow = kd.create_model("resnet18", width=0.25, num_classes=5)
    kd.distill(narrow, teacher=teacher, images=images, epochs=1, batch_size=16, features=0.0)
    assert not caplog.records
    kd.distill(narrow, teacher=teacher, images=images, epochs=1, batch_size=16)
    (record,) = caplog.records
    assert (
        "the teacher's stages (layer1, layer2, layer3, layer4): the answers alone are learnt"
        in record.getMessage()
    )
