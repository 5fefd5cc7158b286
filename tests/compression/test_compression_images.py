"""The images that a compression is measured on."""

import torch

from kerneldna.compression.images import gathered

BY_CLASS = torch.arange(4.0).repeat_interleave(25)[:, None, None, None].expand(-1, 3, 2, 2)


def test_of_a_tensor_that_lies_class_by_class_every_class_is_seen():
    found = gathered(BY_CLASS, limit=10)
    assert len(found) == 10
    assert found[:, 0, 0, 0].unique().tolist() == [0, 1, 2, 3]


def test_of_a_loader_the_first_are_seen():
    found = gathered([(batch, None) for batch in BY_CLASS.split(8)], limit=10)
    assert torch.equal(found, BY_CLASS[:10])
