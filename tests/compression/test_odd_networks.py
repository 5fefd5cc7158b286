"""Networks that are no plain chain of convolutions on images: windows and tokens, layers run twice, stems without gradients."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kerneldna as kd
from kerneldna.compression.compress import carried_out
from kerneldna.compression.damage import damage
from kerneldna.compression.images import answers
from kerneldna.compression.importance import row_weights
from kerneldna.compression.measure import measure
from kerneldna.compression.plan import planned


class Network(nn.Module):
    """Parts, and a forward of one's own."""

    def __init__(self, run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def made(run: Callable[[Any, Tensor], Any], **parts: nn.Module) -> Network:
    torch.manual_seed(0)
    convs = {name: nn.Conv2d(3 if name == "a" else 16, 16, 3, padding=1) for name in "abc"}
    for layer in convs.values():
        layer.reset_parameters()
    return Network(run, **convs, head=nn.Linear(16, 5), **parts).eval()


def plain(self: Any, x: Tensor) -> Tensor:
    for layer in (self.a, self.b, self.c):
        x = torch.relu(layer(x))
    return self.head(x.mean((2, 3)))


def moved(model: nn.Module, small: nn.Module, images: Tensor) -> float:
    return damage(answers(model, images), answers(small, images))


def windows(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    cut = x.view(count, channels, 4, height // 4, 4, width // 4).permute(0, 2, 4, 3, 5, 1)
    return cut.reshape(count * 16, -1, channels)


LAYOUTS = {
    "windows": (windows, lambda w, count: w.reshape(count, -1, 16).mean(1)),
    "rows": (
        lambda x: x.flatten(2).transpose(1, 2).flatten(0, 1),
        lambda w, count: w.view(count, -1, 16).mean(1),
    ),
    "tokens first": (lambda x: x.flatten(2).permute(2, 0, 1), lambda w, _: w.mean(0)),
    "rows by place": (
        lambda x: x.flatten(2).permute(2, 0, 1).flatten(0, 1),
        lambda w, count: w.view(-1, count, 16).mean(0),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_linears_whose_first_axis_is_not_that_of_images(layout: str, seen: Tensor):
    lay, gather = LAYOUTS[layout]

    def run(self: Any, x: Tensor) -> Tensor:
        w = lay(torch.relu(self.a(x)))
        w = w + self.down(torch.relu(self.up(w)))
        return self.head(gather(w, len(x)))

    torch.manual_seed(1)
    model = made(run, up=nn.Linear(16, 48), down=nn.Linear(48, 16))
    measured = measure(model, seen[:40], layers=["up", "down"], progress=False)
    laid = planned(measured, budget=0.9)
    fitted, refined = (carried_out(measured, laid, refine=rounds, progress=False) for rounds in (0, 1))
    assert moved(model, refined, seen) < 0.5 * moved(model, fitted, seen)


def test_a_budget_that_is_said_to_be_in_reach_is(seen: Tensor):
    for layers in ("a", "b", "*"):
        measured = measure(made(plain), seen, layers=layers, progress=False)
        with pytest.raises(ValueError, match="out of reach") as caught:
            planned(measured, budget=0.01)
        said = float(re.search(r"reach: (\S+) are left", str(caught.value))[1])
        assert planned(measured, budget=said).groups


@pytest.mark.parametrize("sizes", [1, 2])
def test_all_runs_of_a_layer_are_counted(seen: Tensor, sizes: int):
    def run(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        y = self.b(x) + nn.functional.interpolate(self.b(nn.functional.avg_pool2d(x, sizes)), x.shape[2:])
        return self.head(y.mean((2, 3)))

    model = made(run)
    laid = kd.plan_compression(model, seen, budget=0.6, of="macs", progress=False)
    small = kd.compress(model, seen, budget=0.6, of="macs", refine=0, progress=False)
    before, after = (kd.describe(each, input_size=(3, 16, 16)).size.macs for each in (model, small))
    assert laid.macs == (before, after)
    assert 0.5 < after / before <= 0.6


def test_refining_what_runs_several_times_does_no_harm(seen: Tensor, unseen: Tensor):
    """Refitted to what its first run sees alone, its further runs would lose a multiple."""

    def run(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        for _ in range(3):
            x = x + torch.relu(self.b(x))
        return self.head(x.mean((2, 3)))

    model = made(run)
    measured = measure(model, seen, layers="b", progress=False)
    laid = planned(measured, budget=0.6)
    fitted, once, twice = (carried_out(measured, laid, refine=n, progress=False) for n in range(3))
    assert torch.equal(fitted.b.mix, once.b.mix)
    assert torch.equal(fitted.b.bias, once.b.bias)
    assert moved(model, twice, unseen) < 1.2 * moved(model, fitted, unseen)


def test_a_round_that_damages_answers_is_not_kept(trained: nn.Module, seen: Tensor, monkeypatch):
    from kerneldna.compression import compress

    measured = measure(trained, seen, layers="stage2.*", progress=False)
    laid = planned(measured, budget=0.6)
    fitted = carried_out(measured, laid, refine=0, progress=False)
    original, damages = compress.damage, iter([0.5, 0.2, 0.3, 0.4])
    first = carried_out(measured, laid, refine=1, progress=False)
    monkeypatch.setattr(compress, "damage", lambda *_: next(damages))
    best = carried_out(measured, laid, refine=3, progress=False)
    damages = iter([0.1, 0.2, 0.3])
    none = carried_out(measured, laid, refine=2, progress=False)
    assert original is damage
    for one, other in ((first, best), (fitted, none)):
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_what_matters_is_known_behind_a_stem_without_gradients(seen: Tensor):
    def stopped(self: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.relu(self.a(x))
        x = torch.relu_(self.b(x))
        return self.head(torch.relu_(self.c(x)).mean((2, 3)))

    expected, found, frozen = (
        row_weights(network, seen, ["b", "c"], variances=[1.0], progress=False)
        for network in (made(plain), made(stopped), made(stopped).requires_grad_(False))
    )
    for name in ("b", "c"):
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=0)
        torch.testing.assert_close(frozen[name], expected[name], rtol=1e-4, atol=0)


def test_a_network_that_looks_at_its_numbers(seen: Tensor):
    def run(self: Any, x: Tensor) -> Tensor:
        return plain(self, x / 2 if x.mean().item() > 1e3 else x)

    one, other = (kd.compress(made(each), seen, budget=0.6, progress=False) for each in (run, plain))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_channels_made_out_of_pixels_before_the_first_convolution(seen: Tensor):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(256, 4)
    ).eval()
    small = kd.compress(model, seen, budget=0.8, progress=False)
    assert small(seen).isfinite().all()
    with pytest.raises(ValueError, match="images of 1 channels were given; this Sequential takes 3"):
        kd.compress(model, seen[:, :1], progress=False)


def test_a_layer_that_takes_its_input_by_name_is_left_as_it_is(seen: Tensor):
    def run(self: Any, x: Tensor) -> Tensor:
        x = torch.relu(self.c(torch.relu(self.b(input=torch.relu(self.a(x))))))
        return self.head(x.mean((2, 3)))

    laid = kd.plan_compression(made(run), seen, budget=0.9, progress=False)
    assert ("b", "it does not run by itself, on one tensor") in {(s.name, s.reason) for s in laid.skipped}
    assert not any("b" in each.layers for each in laid.sets)


def test_an_output_that_is_the_same_for_all_images_counts_for_nothing(seen: Tensor):
    def run(self: Any, x: Tensor) -> Any:
        return {
            "classes": plain(self, x),
            "anchors": torch.full((len(x), 3), 7.0),
            "ids": torch.arange(len(x)),
        }

    alone = kd.plan_compression(made(plain), seen, budget=0.6, progress=False)
    images = torch.cat([seen[:1]] * 20)
    with pytest.raises(ValueError, match="answers all 20 images alike.*give images that differ"):
        kd.plan_compression(made(plain), images, progress=False)
    only = kd.plan_compression(made(lambda m, x: (plain(m, x), torch.ones(len(x), 2))), seen, budget=0.6)
    assert only.damage == pytest.approx(alone.damage)
    assert [each.rank for each in only.sets] == [each.rank for each in alone.sets]
    assert kd.plan_compression(made(run), seen, budget=0.6, progress=False).damage > 0


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, x: plain(m, x).mean(), r"gives \(\) for 16 images; expected tensors \(N, ...\)"),
        (lambda m, x: type("Answer", (), {"logits": plain(m, x)})(), "gives a Answer for 16 images"),
    ],
)
def test_answers_that_are_not_one_for_each_image(seen: Tensor, run: Any, message: str):
    with pytest.raises(ValueError, match=message):
        kd.compress(made(run), seen, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0; expected how many images to look at, 1 or more"),
        ({"limit": -5}, "limit is -5; expected"),
        ({"refine": -1}, "refine is -1; expected True, False, or a number of rounds, 0 or more"),
        ({"refine": 1.5}, "refine is 1.5; expected"),
        ({"layers": ["b", "d.*"]}, r"unknown convolution or Linear in layers=...: 'd.\*'; .*Known: a, b, c, head"),
        ({"layers": "relu"}, "unknown convolution or Linear in layers=...: 'relu'"),
    ],
)  # fmt: skip
def test_options_that_would_do_something_else(seen: Tensor, options: Any, message: str):
    with pytest.raises(ValueError, match=message):
        kd.compress(made(plain), seen, progress=False, **options)


def test_one_kind_and_what_layers_are_in(trained: nn.Module, seen: Tensor):
    laid = kd.plan_compression(
        trained, seen, budget=0.995, layers="stage2", kinds="pointwise", progress=False
    )
    assert {name for each in laid.sets for name in each.layers} == {"stage2.0.shortcut"}


def test_a_network_that_writes_over_its_input(seen: Tensor):
    images = seen.clone()
    kept, over = (
        kd.compress(made(run), images, budget=0.6, progress=False)
        for run in (lambda m, x: plain(m, x * 0.5), lambda m, x: plain(m, x.mul_(0.5)))
    )
    assert torch.equal(images, seen)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), over.parameters(), strict=True))


def test_a_norm_of_own_code_keeps_its_statistics(seen: Tensor):
    """Its channels may be on the last axis, as many as there are rows."""

    class Last(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.permute(0, 3, 1, 2))

    def run(self: Any, x: Tensor) -> Tensor:
        return self.head(
            self.norm(torch.relu(self.b(torch.relu(self.a(x)))).permute(0, 2, 3, 1)).mean((2, 3))
        )

    torch.manual_seed(0)
    model = made(run, norm=Last(16))
    model.norm.running_mean.normal_()
    small = kd.compress(model, seen, budget=0.6, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(model.norm.buffers(), small.norm.buffers(), strict=True))


def test_a_loader_that_fills_the_same_memory_again(seen: Tensor):
    def loader() -> Any:
        memory = torch.empty(8, 3, 16, 16)
        for part in seen.split(8):
            yield memory.copy_(part)

    plans = [kd.plan_compression(made(plain), each, progress=False) for each in (seen, loader())]
    assert plans[0].damage == plans[1].damage


@pytest.mark.parametrize("filters", [1, 3])
def test_kernels_of_low_rank_are_tried_where_fewer_filters_say_something(seen, filters):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(2304, 4)
    )
    before = measure(model.eval(), seen, layers="2", progress=False).scales
    left, values, right = torch.linalg.svd(model[2].weight.detach().flatten(1), full_matrices=False)
    with torch.no_grad():
        low = (left[:, :filters] * values[:filters]) @ right[:filters]
        model[2].weight.copy_(low.view_as(model[2].weight))
    (scale,) = measure(model, seen, layers="2", progress=False).scales
    assert scale == 1.0 if filters == 1 else 0.2 < scale / before[0] < 5
