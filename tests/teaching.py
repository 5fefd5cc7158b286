"""What tests of distillation share: a network that answers otherwise, and how far a student is from its teacher."""

import torch

from kerneldna.training.imitation import Imitation, total


class Answering(torch.nn.Module):
    """A network whose answer is made into something else."""

    def __init__(self, network, answer):
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, x):
        return self.answer(self.network(x), self.training)


def gap(student, teacher, images):
    with torch.no_grad():
        return float(total(Imitation(teacher).compare(student, images)[1]))
