"""What runs as in training alone in a network is named."""

from __future__ import annotations

import pytest
from torch import nn

from kerneldna.network.mode import refuse_training


def test_a_part_in_training_mode_is_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"^the network is in training mode.*call model.eval\(\)"):
        refuse_training(model)
    model.eval()
    refuse_training(model)
    model[1].train()
    with pytest.raises(ValueError, match="^'1' of the network is in training mode"):
        refuse_training(model)
