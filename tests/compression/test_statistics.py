"""Covariances against numpy's, over every position."""

import numpy as np
import pytest
import torch
from torch import nn

from kerneldna.compression.candidates import Candidate
from kerneldna.compression.statistics import RIDGE, collect


@pytest.mark.parametrize("filters", [3, 40])  # fewer filters than numbers, and more
def test_covariance_of_columns(filters):
    model = nn.Sequential(nn.Conv2d(4, filters, 3, padding=1), nn.ReLU(), nn.Conv2d(filters, 4, 3, padding=1))
    images = torch.randn(40, 4, 5, 5)
    candidate = Candidate(("0",), (filters, 4, 3, 3), (25,))
    (found,) = collect(model, images, [candidate], progress=False)
    columns = nn.functional.unfold(images, 3, padding=1).transpose(1, 2).flatten(0, 1).double().numpy()
    plain = np.cov(columns.T, bias=True)
    expected = plain + RIDGE * plain.diagonal().mean() * np.eye(36)
    assert found.samples == 1000
    if found.frame is None:
        assert filters == 40
    else:
        kernel = model[0].weight.detach().flatten(1).double().numpy()
        expected = kernel @ expected @ kernel.T
    np.testing.assert_allclose(found.covariances[0].numpy(), expected, atol=1e-5)


def test_inputs_that_are_not_finite():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(
        RuntimeError, match="what layer '0' sees is not finite; check the network and the images"
    ):
        collect(
            model,
            torch.full((1, 3, 8, 8), torch.inf),
            [Candidate(("0",), (4, 3, 3, 3), (36,))],
            progress=False,
        )
