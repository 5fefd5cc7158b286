"""What a plan prints and keeps of savings, and of the layers that it does not use."""

import pytest
import timm
import torch

import kerneldna as kd
from kerneldna.conversion.plan import Plan


def plan(name, size=64, **options):
    with torch.device("meta"):
        model = timm.create_model(name)
    return kd.plan(model, kd.KernelDNA(**options), input_size=(3, size, size))


def reasons(laid):
    return {(group.shape, group.reason.split(":")[0]): group.layers for group in laid.unused}


def test_every_child_says_what_it_saves_and_together_that_is_what_the_network_loses():
    laid = plan("resnet18", budget=0.8)
    children = [la for stage in laid.stages for b in stage.blocks for la in b.layers if la.parent]
    assert sum(child.saves for child in children) == laid.before.parameters - laid.after.parameters
    saved = laid.before.stored_bytes - laid.after.stored_bytes
    assert sum(child.saves_bytes for child in children) == saved
    text = str(laid)
    for child in children:
        assert f"child of {child.parent}  saves {child.saves:>11,}" in text
    assert "note: a child starts as a copy of its parent and drops its own kernel" in text


def test_equal_layers_that_are_not_used_have_a_reason():
    met = reasons(plan("resnet18", budget=0.8))
    assert met[(64, 64, 3, 3), "budget=0.8 is met without them"] == (
        *(f"layer1.{block}.conv{conv}" for block in (0, 1) for conv in (1, 2)),
    )
    assert not any(shape == (512, 512, 3, 3) for shape, _ in met)
    unnamed = reasons(plan("resnet18", patterns={"layer4": "FS-FF"}))
    assert ((64, 64, 3, 3), "no pattern makes one of them share") in unnamed


def test_each_reason_is_found():
    found = reasons(plan("seresnet50", exclude="layer1", eligible="dense"))
    kinds = {reason for _, reason in found}
    assert "exclude= names it" in kinds
    assert "pointwise layers are not eligible; name them by KernelDNA(eligible='pointwise')" in kinds
    assert "they see one pixel" in kinds
    small = plan("mobilenetv2_050")
    texts = [group.reason for group in small.unused if group.shape == (80, 480, 1, 1)]
    assert texts == [
        "a child does not pay: its adapter takes 116,000 parameters (464,968 bytes), the kernel that it saves 38,400 (153,600)"
    ]
    assert "unused: 2 layers of 80x480x1x1 (blocks.5.1.conv_pwl, blocks.5.2.conv_pwl): a child" in str(small)


def test_patterns_are_the_users_word_but_children_that_do_not_pay_are_noted():
    laid = plan("mobilenetv2_050", patterns={"blocks.5": "FF-FS-FF"}, eligible="pointwise")
    assert laid.after.parameters > laid.before.parameters
    assert any(
        note.startswith("child 'blocks.5.1.conv_pwl' does not pay: its adapter") for note in laid.notes
    )
    assert "saves     -77,600" in str(laid)


def test_plans_as_older_versions_saved_them_open():
    laid = plan("resnet18", budget=0.8)
    assert Plan.from_dict(laid.to_dict()) == laid
    old = laid.to_dict()
    for key in ("unused", "notes"):
        del old[key]
    for option in ("budget", "include", "exclude"):
        del old["options"][option]
    for stage in old["stages"]:
        for block in stage["blocks"]:
            for layer in block["layers"]:
                del layer["saves"], layer["saves_bytes"]
    opened = Plan.from_dict(old)
    assert opened.families == laid.families
    model = kd.convert_(timm.create_model("resnet18"), opened)
    assert sum(p.numel() for p in model.parameters()) == laid.after.parameters


@pytest.mark.parametrize("gate", ["child", "stage"])
def test_savings_add_up_with_one_gate_a_stage_too(gate):
    laid = plan("resnet18", gate=gate)
    children = [la for stage in laid.stages for b in stage.blocks for la in b.layers if la.parent]
    assert sum(child.saves for child in children) == laid.before.parameters - laid.after.parameters
