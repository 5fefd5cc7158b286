"""From a trained network to a smaller one: nearly the same answers, a plan that is kept, errors that say what to do."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import Tensor, nn

import kerneldna as kd
from kerneldna.compression.compress import carried_out
from kerneldna.compression.damage import damage, damage_of
from kerneldna.compression.images import answers
from kerneldna.compression.measure import Measured, measure
from kerneldna.compression.plan import planned
from kerneldna.compression.refine import refine_
from kerneldna.conversion.convert import set_state
from kerneldna.layers.basis import Mixed
from kerneldna.network import surgery
from kerneldna.registry import methods


@pytest.fixture(scope="module")
def measured(trained: nn.Module, seen: Tensor) -> Measured:
    return measure(trained, seen, progress=False)


def moved(before: nn.Module, after: nn.Module, images: Tensor) -> float:
    return damage(answers(before, images), answers(after, images))


def test_candidates_are_like_layers_of_a_stage(measured: Measured):
    sets = {each.layers for each in measured.candidates}
    assert ("stage1.0.conv1", "stage1.0.conv2", "stage1.1.conv1", "stage1.1.conv2") in sets
    assert ("stage2.0.conv2", "stage2.1.conv1", "stage2.1.conv2", "stage2.2.conv1", "stage2.2.conv2") in sets
    assert {("neck",), ("stem.0",), ("stage2.0.conv1",)} <= sets
    assert not any("head" in each for each in sets)


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_a_budget_is_kept(measured: Measured, of: str):
    laid = planned(measured, budget=0.6, of=of)
    small = carried_out(measured, laid, refine=0, progress=False)
    before, after = (kd.describe(each, input_size=(3, 16, 16)).size for each in (measured.model, small))
    assert laid.parameters == (before.parameters, after.parameters)
    assert laid.macs == (before.macs, after.macs)
    sizes = laid.parameters if of == "parameters" else laid.macs
    assert 0.55 < sizes[1] / sizes[0] <= 0.6
    assert kd.plan_of(small).method == "sharedbasis"
    assert not any(module.training for module in small.modules())


def test_refinement_brings_answers_nearer_on_images_not_seen(measured: Measured, unseen: Tensor):
    laid = planned(measured, budget=0.55)
    fitted = carried_out(measured, laid, refine=0, progress=False)
    refined = carried_out(measured, laid, progress=False)
    first, second = (moved(measured.model, each, unseen) for each in (fitted, refined))
    assert second < 0.8 * first < 0.8


def test_refining_again_starts_from_the_original(measured: Measured, unseen: Tensor):
    laid = planned(measured, budget=0.55)
    small = carried_out(measured, laid, progress=False)
    first = moved(measured.model, small, unseen)
    refine_(measured.model, small, measured.images, progress=False)
    assert moved(measured.model, small, unseen) < 1.1 * first


def test_the_fit_is_nearer_than_the_kernels_alone(measured: Measured, unseen: Tensor):
    laid = planned(measured, budget=0.6)
    fitted = carried_out(measured, laid, refine=0, progress=False)
    options = kd.plan_of(fitted)
    plain = kd.convert_(copy.deepcopy(measured.model), options)
    assert moved(measured.model, fitted, unseen) < moved(measured.model, plain, unseen)


def test_predicted_and_real_damage_have_one_order(measured: Measured, unseen: Tensor):
    """Of replacing one set at a time, at several sizes."""
    expected = answers(measured.model, unseen)
    predicted, real = [], []
    for found, scale in zip(measured.shared, measured.scales, strict=True):
        for share in (0.3, 0.7):
            rank = found.rank_at(share)
            basis, mixes = found.factors(rank)
            kernels = {name: mix @ basis for name, mix in zip(found.layers, mixes, strict=True)}
            predicted.append(scale * float(found.errors[:, rank].sum()))
            real.append(damage_of(measured.model, unseen, kernels, expected=expected))
    assert len(real) >= 12
    ranks = torch.stack([torch.tensor(each).argsort().argsort().double() for each in (predicted, real)])
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.9


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_without_sharing_each_layer_has_a_basis_of_its_own(measured: Measured, unseen: Tensor, of: str):
    laid = planned(measured, budget=0.6, of=of, share=False)
    assert {len(each.layers) for each in laid.sets} == {1}
    assert sorted(each.layers[0] for each in laid.sets) == sorted(
        name for candidate in measured.candidates for name in candidate.layers
    )
    # a plan that may share has this one among its own
    assert laid.damage >= planned(measured, budget=0.6, of=of).damage
    small = carried_out(measured, laid, progress=False)
    before, after = (laid.parameters, laid.macs)[of == "macs"]
    assert after <= 0.6 * before
    assert surgery.parameters_of(small) == laid.parameters[1]
    assert moved(measured.model, small, unseen) < 0.5


def test_the_curve_falls_with_size_and_prints(measured: Measured):
    laid = planned(measured, budget=0.7)
    damages = [point.damage for point in laid.curve]
    assert damages == sorted(damages)
    assert all(point.parameters <= point.budget * laid.parameters[0] for point in laid.curve)
    text = str(laid)
    assert "compress to 0.7 of the parameters" in text
    assert "stage2.0.conv2 + 4" in text
    assert f"{laid.parameters[1]:,}" in text


def test_the_whole_budget_changes_nothing(measured: Measured, unseen: Tensor):
    small = carried_out(measured, planned(measured, budget=1.0), progress=False)
    assert kd.plan_of(small) is None
    assert moved(measured.model, small, unseen) == 0


def test_compress_leaves_the_network_and_saves_like_any_other(trained, seen, unseen, tmp_path, capsys):
    before = copy.deepcopy(trained.state_dict())
    loader = [(batch, torch.zeros(len(batch))) for batch in seen.split(32)]
    small = kd.compress(trained, loader, budget=0.6, layers=["stage*"], limit=64)
    assert "damage predicted" in capsys.readouterr().out
    assert all(torch.equal(before[key], value) for key, value in trained.state_dict().items())
    assert {name.split(".")[0] for name, part in small.named_modules() if isinstance(part, Mixed)} <= {
        "stage1",
        "stage2",
    }
    expected = small(unseen)
    kd.save(small, tmp_path / "small")
    again = kd.load(tmp_path / "small", model=copy.deepcopy(trained))
    torch.testing.assert_close(again(unseen), expected)
    fused = kd.fuse_(copy.deepcopy(small))
    torch.testing.assert_close(fused(unseen), expected, rtol=1e-3, atol=1e-3)


def test_a_tensor_and_a_loader_of_it_give_one_network(trained, seen):
    small, same = (
        kd.compress(trained, images, budget=0.7, refine=0, progress=False) for images in (seen, seen.split(7))
    )
    for one, other in zip(small.parameters(), same.parameters(), strict=True):
        assert torch.equal(one, other)


def test_no_two_like_layers_are_low_rank_alone():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Flatten(), nn.LazyLinear(4)
    ).eval()
    x = torch.randn(64, 3, 10, 10)
    model(x)
    small = kd.compress(model, x, budget=0.7, progress=False)
    assert [type(part).__name__ for part in small][2] == "MixedConv2d"
    assert len({change.group for change in kd.plan_of(small).changes}) == len(kd.plan_of(small).changes)


def test_biases_follow_the_means(seen):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3)
    ).eval()
    small = kd.compress(model, seen, budget=0.5, progress=False)
    torch.testing.assert_close(small(seen).mean((0, 2, 3)), model(seen).mean((0, 2, 3)), rtol=0.05, atol=0.01)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("train", {}, "is in training mode.*call model.eval"),
        ("convert", {}, r"is converted already \(sharedbasis\); compress the network as it was before"),
        ("parallel", {}, "DataParallel was given, which wraps a network; compress that, model.module"),
        ("detector", {}, "a detector was given; compress the network that is its backbone"),
        ("fuse", {}, "is fused; compress it as it was before"),
        (
            "",
            {"budget": 0.01},
            r"budget of 0.01 of the parameters is out of reach: 0.\d+ are left with one filter in every basis",
        ),
        ("", {"budget": 0.001, "of": "macs"}, "of the MACs is out of reach"),
        ("", {"budget": 0}, "budget is 0; expected the share to be kept, above 0 and 1 at most"),
        ("", {"budget": 50}, "budget is 50; expected"),
        ("", {"of": "parameter"}, "unknown measure of size 'parameter'; did you mean 'parameters'"),
        ("", {"kinds": ["dens"]}, "unknown kind of layer 'dens'; did you mean 'dense'"),
        ("", {"layers": "layer9.*"}, r"unknown convolution or Linear in layers=...: 'layer9.\*'"),
        (
            "",
            {"layers": "head"},
            "has no dense or pointwise or linear layer to compress among head; head: the classifier, which stays",
        ),
        (
            "",
            {"kinds": "linear", "layers": "stem"},
            "no linear layer to compress among stem; stem.0: dense layers stay",
        ),
    ],
)
def test_what_cannot_be_compressed(trained, seen, change: str, options, message: str):
    model = copy.deepcopy(trained)
    if change == "train":
        model.train()
    elif change == "convert":
        kd.convert_(model, methods.get("sharedbasis")(), input_size=(3, 16, 16))
    elif change == "parallel":
        model = nn.DataParallel(model)
    elif change == "detector":
        set_state(model, detector={"classes": ["a"]})
    elif change == "fuse":
        kd.fuse_(model, probe=seen[:2])
    with pytest.raises(ValueError, match=message):
        kd.compress(model, seen[:48], progress=False, **options)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.randn(0, 3, 16, 16), "no image was given; pass some hundred training images"),
        ([], "no image was given"),
        (torch.randn(8, 1, 16, 16), "images of 1 channels were given; this Sequential takes 3"),
        (
            [torch.randn(8, 3, 16, 16), torch.randn(8, 3, 20, 20)],
            r"images of \(3, 16, 16\) and \(3, 20, 20\) were given; give all",
        ),
        (
            torch.randn(3, 16, 16),
            r"images gave \(3, 16, 16\); expected images \(B, C, H, W\)",
        ),
        (torch.zeros(8, 3, 16, 16, dtype=torch.uint8), "normalised as in training"),
        (["photo.jpg"], "images gave str"),
        (torch.full((8, 3, 16, 16), torch.nan), "numbers that are not finite"),
    ],
)
def test_images_that_are_none(trained, images, message: str):
    with pytest.raises(ValueError, match=message):
        kd.compress(trained, images, progress=False)


def test_a_network_for_images_of_another_size(trained, seen):
    strict = nn.Sequential(trained.stem, nn.Flatten(), nn.Linear(12 * 12 * 12, 4)).eval()
    with pytest.raises(ValueError, match=r"does not run on one image of \(3, 16, 16\)"):
        kd.compress(strict, seen, progress=False)


def test_images_of_one_pixel_are_warned_of_and_do_no_harm(trained, caplog):
    small = kd.compress(trained, torch.randn(8, 3, 1, 1), progress=False)
    assert "condition number" in caplog.text
    assert small(torch.randn(2, 3, 16, 16)).isfinite().all()


def test_few_images_are_warned_of(trained, seen, caplog):
    kd.plan_compression(trained, seen[:4], budget=0.6, progress=False)
    (record,) = caplog.records
    assert re.search(
        r"condition number of their covariance is \d.*Give \d+ images or more", record.getMessage()
    )
    caplog.clear()
    kd.plan_compression(trained, seen, budget=0.6, progress=False)
    assert not caplog.records


def test_layers_of_one_bias_stay(seen: Tensor):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 16, 16, 3) for i in range(4)), nn.Flatten()).eval()
    model[2].bias = model[1].bias
    laid = kd.plan_compression(model, seen, budget=0.8, progress=False)
    assert [(each.name, each.reason) for each in laid.skipped] == [
        (name, "another layer has the same bias") for name in ("1", "2")
    ]


def test_what_is_not_asked_for_is_not_skipped(seen: Tensor):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten()
    ).eval()
    model[1].register_forward_hook(lambda *_: None)
    all_, one = (
        kd.plan_compression(model, seen, budget=0.8, layers=each, progress=False) for each in ("*", "2")
    )
    assert [each.name for each in all_.skipped] == ["1"]
    assert not one.skipped
