"""A network with the BatchNorm of several processes is saved by name, and opened with that of one."""

from __future__ import annotations

import pytest
import timm.layers
import torch
from torch import nn

import kerneldna as kd

NETWORKS = {
    "BatchNorm2d": ("resnet18", nn.SyncBatchNorm.convert_sync_batchnorm),
    "BatchNormAct2d": ("mobilenetv2_100", timm.layers.convert_sync_batchnorm),
}


def made(name):
    return kd.create_model(name, method="kerneldna", num_classes=4, width=0.125).eval()


@pytest.mark.parametrize("norm", NETWORKS)
def test_the_batchnorm_of_several_processes(norm, tmp_path):
    name, synchronised = NETWORKS[norm]
    model = synchronised(made(name)).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    opened = kd.load(kd.save(model, tmp_path))
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in opened.modules())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(opened(images), model(images))


def test_one_that_lost_its_activations_is_refused(tmp_path):
    """torch makes a plain norm of timm's, which has the activation in it."""
    model = nn.SyncBatchNorm.convert_sync_batchnorm(made("mobilenetv2_100")).eval()
    with pytest.raises(ValueError, match="is a SyncBatchNorm instead of a BatchNormAct2d"):
        kd.save(model, tmp_path)
    assert not list(tmp_path.iterdir())
