"""A finished run and its images."""

from __future__ import annotations

import pytest

pytest.importorskip("lightning", reason="needs kerneldna[train]")
from torch import nn

from kerneldna.recipes.recipe import load_recipe
from kerneldna.training.opened_run import OpenedRun


@pytest.mark.parametrize(("source", "count"), [(None, 8), ("digits", 20)])
def test_the_recipe_s_limit_is_of_its_own_images(source, count, tmp_path):
    recipe = load_recipe("resnet18-digits", overrides=["data.limit_train=8", "data.workers=0"])
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    run = OpenedRun(tmp_path)
    assert sum(len(images) for images, _ in run.calibration(nn.Identity(), source=source, images=20)) == count
    assert len(run.sample(20, source=source)) == count
