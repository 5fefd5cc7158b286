"""Columns times a kernel are a layer's outputs, whatever its geometry."""

import pytest
import torch
from torch import nn

from kerneldna.compression.columns import columns, output_size, outputs, places


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (1, 5), "padding": (0, 2), "bias": False},
        {"kernel_size": 3, "padding": "same", "dilation": 2},
        {"kernel_size": 4, "padding": "same"},
        {"kernel_size": 3, "padding": "valid", "stride": (1, 2)},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 1, "stride": 2},
    ],
)
def test_columns_of_a_convolution(options):
    layer = nn.Conv2d(4, 6, **options)
    x = torch.randn(3, 4, 9, 7)
    y = layer(x)
    at = places(layer, x, most=10, seed="here")
    assert len(at) == min(10, y[0, 0].numel())
    assert output_size(layer, x.shape[2:]) == tuple(y.shape[2:])
    bias = 0 if layer.bias is None else layer.bias
    torch.testing.assert_close(
        columns(layer, x, at) @ layer.weight.flatten(1).T + bias, outputs(layer, y, at)
    )


@pytest.mark.parametrize("shape", [(5, 8), (5, 7, 8), (5, 3, 4, 8)])
def test_columns_of_a_linear(shape):
    layer = nn.Linear(8, 6)
    x = torch.randn(shape)
    at = places(layer, x, most=6, seed="here")
    torch.testing.assert_close(layer(columns(layer, x, at)), outputs(layer, layer(x), at))
    assert len(columns(layer, x, at)) == 5 * min(6, x[0].numel() // 8)


def test_places_are_a_function_of_the_seed():
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 32, 32)
    assert torch.equal(places(layer, x, most=9, seed="a"), places(layer, x, most=9, seed="a"))
    assert not torch.equal(places(layer, x, most=9, seed="a"), places(layer, x, most=9, seed="b"))
