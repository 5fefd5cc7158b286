import json

import pytest
import torch

import kerneldna as kd
from kerneldna.benchmark.networks import parse, with_accuracy
from kerneldna.files import write_text
from kerneldna.network import surgery
from kerneldna.recipes.recipe import load_recipe

TINY = {"width": 0.125, "stem": "small", "num_classes": 10}


def parameters(label, **options):
    (found,) = parse([label], **options)
    return surgery.parameters_of(found.build())


def test_names_stand_for_networks_of_the_recipe():
    assert parameters("resnet18", width=0.25) == surgery.parameters_of(
        kd.create_model("resnet18", width=0.25)
    )
    assert parameters("resnet18/kerneldna") == 9_240_798


def test_plain_has_the_layers_of_the_recipe_and_shares_nothing():
    (plain,) = parse(["resnet18/kerneldna@plain"], width=0.125)
    model = plain.build()
    shared = parse(["resnet18/kerneldna"], width=0.125)[0].build()

    def layers(network):
        return sum(hasattr(m, "stride") and hasattr(m, "weight") for m in network.modules())

    # a gate has two convolutions of its own
    gates = sum(type(m).__name__ == "ChannelAttention" for m in shared.modules())
    assert layers(model) == layers(shared) - 2 * gates
    assert not any(type(m).__module__.startswith("kerneldna") for m in model.modules())


def test_plain_of_a_backbone_without_recipe_is_the_backbone():
    assert parameters("resnet10t/kerneldna@plain") == surgery.parameters_of(kd.create_model("resnet10t"))


def test_throughput_is_a_way_to_fuse():
    plain, fast = parse(["resnet18/kerneldna", "resnet18/kerneldna@throughput"])
    assert (plain.mode, fast.mode) == ("accuracy", "throughput")


def test_no_kernel_is_zero_throughout():
    model = parse(["resnet18"], width=0.125)[0].build()
    assert not model.training
    assert all(p.any() for name, p in model.named_parameters() if name.endswith("weight"))


@torch.no_grad()
def test_an_untrained_network_gives_numbers():
    """Each layer of DCD multiplies its input by what it makes of it: without norms that have seen images it overflows."""
    model = parse(["resnet18/dcd"], width=0.25)[0].build()
    assert 1e-3 < float(model(torch.randn(2, 3, 64, 64)).abs().mean()) < 1e3


def test_all_is_the_plain_network_and_every_method():
    labels = [each.label for each in parse(["resnet18/all", "resnet18/se"])]
    assert labels == ["resnet18", *(f"resnet18/{name}" for name in kd.list_methods())]


def test_folders_know_their_accuracy(tmp_path):
    model = kd.create_model("resnet18", method="kerneldna", **TINY)
    kd.save(model, tmp_path / "run" / "model")
    (tmp_path / "run" / "result.json").write_text(json.dumps({"top1": 0.93}))
    kd.save(model, tmp_path / "other" / "run")
    run, fast, bare = parse(
        [str(tmp_path / "run"), f"{tmp_path / 'run'}@throughput", str(tmp_path / "other" / "run")]
    )
    assert (run.label, run.accuracy) == ("run", 0.93)
    assert run.mode is None
    assert (fast.label, fast.accuracy, fast.mode) == ("run@throughput", None, "throughput")
    assert (bare.label, bare.accuracy) == (str(tmp_path / "other" / "run"), None)
    torch.testing.assert_close(run.build().state_dict(), model.state_dict())


def test_accuracies_by_label():
    found = with_accuracy(parse(["resnet18", "resnet18/se"]), {"resnet18/se": 0.7})
    assert [each.accuracy for each in found] == [None, 0.7]


@pytest.mark.parametrize(
    ("accuracy", "message"),
    [
        ({"resnet18/see": 0.7}, "did you mean 'resnet18/se'"),
        ({"resnet18": 70.25}, "the accuracy of 'resnet18' is 70.25; give a fraction 0-1, 0.7025 for 70.25 %"),
    ],
)
def test_wrong_accuracies(accuracy, message):
    with pytest.raises(ValueError, match=message):
        with_accuracy(parse(["resnet18", "resnet18/se"]), accuracy)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("resnt18", "did you mean 'resnet18'.* 'resnt18' is neither a folder nor NETWORK"),
        ("resnet18/odcnv", "did you mean 'odconv'"),
        ("resnet18/kerneldna@fast", "unknown variant 'fast'"),
        ("resnet18/odconv@plain", "only kerneldna has variants: resnet18/kerneldna@plain"),
        ("{folder}@plain", "a folder holds one trained network"),
    ],
)
def test_wrong_labels(label, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse([label.format(folder=tmp_path)])


def test_a_run_of_a_detector(tmp_path):
    write_text(tmp_path / "recipe.yaml", load_recipe("maskrcnn-resnet50-coco").to_yaml())
    with pytest.raises(ValueError, match="has the task 'detection'; benchmarks compare class"):
        parse([str(tmp_path)])
