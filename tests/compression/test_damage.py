"""Damage by its formula; kernels that are tried are taken back; what matters predicts what a change does."""

import pytest
import torch
from torch import nn

from kerneldna.compression.damage import damage, damage_of, variances
from kerneldna.compression.images import answers
from kerneldna.compression.importance import row_weights


def test_damage_is_the_share_of_what_differs_between_images():
    a, b = torch.randn(10, 4), torch.randn(10, 4)
    expected = float((a - b).square().sum() / (a - a.mean(0)).square().sum())
    assert damage([a], [b]) == pytest.approx(expected, rel=1e-5)
    assert damage([a, b], [a, b]) == 0
    assert damage([a, a], [a, a.mean(0).expand_as(a)]) == pytest.approx(0.5)


def test_what_is_tried_is_taken_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).eval()
    before = model[0].weight.detach().clone()
    x = torch.randn(20, 3, 4, 4)
    expected = answers(model, x)
    assert damage_of(model, x, {"0": torch.zeros(4, 27)}, expected=expected) > 0.9
    assert torch.equal(model[0].weight, before)
    with pytest.raises(RuntimeError, match="are not finite"):
        damage_of(model, x, {"0": torch.full((4, 27), torch.nan)}, expected=expected)
    assert torch.equal(model[0].weight, before)


def test_weights_predict_the_damage_of_a_linear_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 2), nn.Flatten()).eval()
    x = torch.randn(512, 3, 2, 2)
    expected = answers(model, x)
    (weight,) = row_weights(model, x, ["1"], variances=variances(expected), progress=False).values()
    change = 0.01 * torch.randn(5, 24)
    kernel = model[1].weight.detach().flatten(1) + change
    columns = model[0](x).flatten(1).detach().double()
    predicted = float((weight * (columns @ change.double().T).square().mean(0)).sum())
    real = damage_of(model, x, {"1": kernel}, expected=expected)
    assert predicted == pytest.approx(real, rel=0.2)  # the directions are drawn


def test_a_layer_without_a_gradient_is_left_out():
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.conv(x).detach())

    found = row_weights(
        Cut().eval(), torch.randn(4, 3, 2, 2), ["conv", "head"], variances=[1.0], progress=False
    )
    assert "conv" not in found
