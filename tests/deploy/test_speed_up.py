import copy

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.conversion.convert import state_of
from kerneldna.deploy import prepare
from kerneldna.deploy import speed_up as module
from kerneldna.deploy.speed_up import AS_GIVEN, speed_up


@pytest.fixture(scope="module")
def model(settle):
    torch.manual_seed(0)
    model = kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.125, stem="small")
    return settle(model, torch.randn(8, 3, 32, 32))


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


def tiny():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()


def quick(model, images, **options):
    return speed_up(model, images, **{"compile": False, "rounds": 1, "progress": False, **options})


def rows_of(fast):
    return {row.name: row for row in fast.rows}


def test_the_picked_form_is_the_fastest_and_gives_the_same_outputs(model, images):
    fast = quick(model, images)
    rows = rows_of(fast)
    assert list(rows) == [AS_GIVEN, "fused, contiguous", "fused, channels_last"]
    assert rows[AS_GIVEN].speed == 1
    assert rows[fast.picked].speed == max(row.speed for row in fast.rows)
    assert all(row.milliseconds > 0 and row.difference < 1e-4 for row in fast.rows)
    torch.testing.assert_close(fast(images), model(images), rtol=1e-4, atol=1e-5)
    assert not fast(images).requires_grad


def test_the_given_model_stays_as_it_is(model, images):
    before, expected = copy.deepcopy(model.state_dict()), model(images)
    quick(model, images, precision="auto")
    assert not state_of(model).get("fused")
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(model(images), expected)
    twin = copy.deepcopy(model)
    fast = quick(twin, images)
    with torch.no_grad():
        twin.fc.weight.zero_()
    torch.testing.assert_close(fast(images), expected, rtol=1e-4, atol=1e-5)


def test_every_form_returns_what_the_network_does(model, images, monkeypatch):
    calls = {}
    timed = module._timed
    monkeypatch.setattr(
        module,
        "_timed",
        lambda found, *args, **kwargs: calls.update(found) or timed(found, *args, **kwargs),
    )
    quick(model, images, precision="auto", tolerance=0.2)
    assert len(calls) == 5
    expected = model(torch.cat([images, images]))
    for name, call in calls.items():
        found = call(torch.cat([images, images]))  # another batch size
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() < (0.2 if "bf16" in name else 1e-4) * expected.abs().max()


def test_a_network_with_nothing_to_fuse(images):
    assert list(rows_of(quick(tiny(), images))) == [AS_GIVEN, "contiguous", "channels_last"]


def test_a_fused_network_is_not_fused_again(model, images):
    fused = kd.fuse_(copy.deepcopy(model))
    assert list(rows_of(quick(fused, images))) == [AS_GIVEN, "contiguous", "channels_last"]


def test_feature_maps_come_back_as_they_were(images):
    features = kd.create_model("resnet18", width=0.125, features_only=True).eval()
    fast = quick(features, images)
    for found, expected in zip(fast(images), features(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_bf16_only_when_asked(model, images):
    assert not any("bf16" in row.name for row in quick(model, images).rows)
    fast = quick(model, images, precision="bf16", tolerance=0.2)
    assert "bf16" in fast.picked
    assert all("bf16" in row.name for row in fast.rows if row.name != AS_GIVEN)
    assert rows_of(fast)[fast.picked].difference > 1e-4


def test_auto_stays_in_fp32_where_bf16_moves_the_outputs(model, images):
    fast = quick(model, images, precision="auto", tolerance=1e-6)
    assert "bf16" not in fast.picked
    dropped = [row for row in fast.rows if row.dropped]
    assert [row.dropped for row in dropped] == ["outputs differ by more than 1e-06 of the largest"] * 2
    assert all(row.difference > 1e-6 and row.speed is None for row in dropped)
    assert dropped[0].dropped in str(fast)


def test_bf16_alone_with_no_form_left_is_refused(model, images):
    with pytest.raises(RuntimeError, match=r"no form in bf16 is left; use precision='fp32'(.|\n)*1e-06"):
        quick(model, images, precision="bf16", tolerance=1e-6)


def test_a_form_that_fails_is_dropped_with_the_reason(images, monkeypatch):
    def fail(*_):
        raise RuntimeError("the backend is on strike\nand a long trace")

    monkeypatch.setattr(prepare, "compiled", fail)
    fast = quick(tiny(), images, compile=True)
    assert rows_of(fast)["contiguous, compiled"].dropped == "failed: the backend is on strike"
    assert "compiled" not in fast.picked


def test_without_a_compiler_the_compiled_forms_are_dropped(images, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/no/such/compiler",))
    fast = quick(tiny(), images, compile=True)
    dropped = [row for row in fast.rows if row.dropped]
    assert [row.name for row in dropped] == ["contiguous, compiled", "channels_last, compiled"]
    assert all("install g++, or set CXX" in row.dropped for row in dropped)


def test_prints_a_table(images):
    fast = quick(tiny(), images)
    lines = str(fast).splitlines()
    assert lines[0].split() == ["ms", "speed", "difference"]
    assert [line.split("  ")[0] for line in lines[1:4]] == [AS_GIVEN, "contiguous", "channels_last"]
    assert [line for line in lines if line.endswith("<- picked")] == [
        line for line in lines if line.startswith(f"{fast.picked}  ")
    ]
    assert "images (2, 3, 32, 32) on cpu, 1 thread" in lines


def test_training_mode_is_refused(model, images):
    with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        quick(copy.deepcopy(model).train(), images)


def test_a_single_image_is_refused(model):
    with pytest.raises(ValueError, match=r"images are \(3, 32, 32\); expected a batch .*images\[None\]"):
        quick(model, torch.randn(3, 32, 32))


def test_images_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match=r"(?s)does not run on images \(2, 4, 32, 32\).*\(B, 3, H, W\)"):
        quick(model, torch.randn(2, 4, 32, 32))


def test_an_unknown_precision_is_refused(model, images):
    with pytest.raises(ValueError, match="did you mean 'bf16'"):
        quick(model, images, precision="bf61")


def test_no_rounds_are_refused(model, images):
    with pytest.raises(ValueError, match="rounds is 0; a time needs 1 or more"):
        quick(model, images, rounds=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "precision"),
    [("resnet18", "auto"), ("mobilenetv2_050", "fp32"), ("convnext_tiny", "fp32")],
)
def test_compiled_forms_give_the_same_outputs(backbone, precision, settle, images):
    model = kd.create_model(backbone, method="kerneldna", num_classes=4, width=0.125)
    model = settle(model, torch.randn(8, 3, 32, 32))
    fast = quick(model, images, precision=precision, compile=True, tolerance=0.2)
    compiled = [row for row in fast.rows if "compiled" in row.name]
    assert len(compiled) == 2 * len(module.PRECISIONS[precision])
    assert not any(row.dropped for row in compiled), str(fast)
    expected = model(images)
    for found, wanted in ((fast(images), expected), (fast(images[:1]), expected[:1])):
        assert (found - wanted).abs().max() < 0.2 * expected.abs().max()
