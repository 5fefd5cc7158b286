"""A small residual network that tells gratings apart, trained in seconds, and images of its kind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def gratings(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Return noisy stripes of 16 x 16 pixels, in one of eight directions, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(8, (count,), generator=generator)
    angle = label * torch.pi / 8
    phase, period = torch.rand(2, count, 1, 1, generator=generator)
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    along = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]
    stripes = (along * (0.8 + period) + 6.3 * phase).sin()
    return stripes[:, None] + 0.7 * torch.randn(count, 3, 16, 16, generator=generator), label


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    """The network, in eval mode; copy it to change it."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, part in {
        "stem": nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()),
        "stage1": nn.Sequential(*(Residual(12, 12) for _ in range(2))),
        "stage2": nn.Sequential(Residual(12, 24, 2), Residual(24, 24), Residual(24, 24)),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flat": nn.Flatten(),
        "neck": nn.Linear(24, 24),
        "act": nn.ReLU(),
        "head": nn.Linear(24, 8),
    }.items():
        model.add_module(name, part)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for step in range(60):
        x, label = gratings(48, seed=step)
        loss = nn.functional.cross_entropy(model(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def seen() -> Tensor:
    """Images to compress with."""
    return gratings(96, seed=1000)[0]


@pytest.fixture(scope="session")
def unseen() -> Tensor:
    """Images that no compression has seen."""
    return gratings(128, seed=2000)[0]
