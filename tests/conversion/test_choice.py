"""Children that pay, chosen by a budget and a scope."""

import json
from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn

import kerneldna as kd
from kerneldna.conversion.choice import Cost, choose
from kerneldna.conversion.plan import Plan
from kerneldna.conversion.rows import Row


def costing(adapter):
    return lambda names: {name: Cost((100, 400), (adapter[name], 4 * adapter[name])) for name in names}


def test_a_child_that_costs_more_than_it_saves_is_skipped_with_both_numbers():
    rows = [Row("s", ("a", "b", "c", "d"))]
    found = choose(rows, costing({"a": 100, "c": 99}), order="abcd")
    assert found.children == {"c"}
    assert found.saved == 1
    (skip,) = found.skipped
    assert skip.name == "a"
    assert skip.reason == (
        "a child does not pay: its adapter takes 100 parameters (400 bytes), the kernel that it saves 100 (400)"
    )


def test_bytes_count_too():
    costs = {"a": Cost((100, 400), (99, 400))}
    assert not choose([Row("s", ("a", "b"))], lambda names: costs, order="ab").children


def test_later_stages_give_first_and_of_a_stage_the_child_that_saves_most():
    rows = [Row("early", ("a", "b")), Row("late", ("c", "d")), Row("late", ("e", "f"))]
    costs = costing({"a": 0, "c": 60, "e": 10})
    taken = [choose(rows, costs, order="abcdef", wanted=wanted).children for wanted in (1, 91, 131)]
    assert taken == [{"e"}, {"c", "e"}, {"a", "c", "e"}]


def test_where_every_second_layer_is_not_enough_all_but_one_of_a_row_are_taken():
    rows = [Row("s", ("a", "b", "c", "d"))]
    costs = costing(dict.fromkeys("abcd", 0))
    assert choose(rows, costs, order="abcd", wanted=200).children == {"a", "c"}
    assert choose(rows, costs, order="abcd", wanted=201).children == {"a", "b", "c"}


class Unit(nn.Module):
    """A block of its own class: its parts one after the other."""

    def __init__(self, parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


def rows_of_units(*widths):
    """A network of a stage for each width: three units of convolution and BatchNorm, called stage0.0.conv and so on."""
    model, before = nn.Sequential(), 3
    for i, width in enumerate(widths):
        model.add_module(f"enter{i}", nn.Conv2d(before, width, 1))
        parts = (
            OrderedDict(conv=nn.Conv2d(width, width, 3, padding=1), norm=nn.BatchNorm2d(width))
            for _ in range(3)
        )
        model.add_module(f"stage{i}", nn.Sequential(*map(Unit, parts)))
        before = width
    return model


def plan_units(*widths, **options):
    return kd.plan(rows_of_units(*widths), kd.KernelDNA(**options), input_size=(3, 8, 8))


def children(plan):
    return [name for family in plan.families for name in family.children]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilenetv2_050", {}),
        ("mobilenetv2_050", {"gate": "stage"}),
        ("ghostnet_050", {"eligible": ("pointwise", "depthwise")}),
        ("efficientnet_lite0", {"gate_drop_rate": 0.1}),
    ],
)
def test_a_network_never_grows(name, options):
    with torch.device("meta"):
        model = timm.create_model(name)
    plan = kd.plan(model, kd.KernelDNA(**options), input_size=(3, 64, 64))
    assert plan.after.parameters < plan.before.parameters
    assert plan.after.stored_bytes < plan.before.stored_bytes
    assert plan.skipped or "gate" in options


def narrow():
    """Two blocks of a 1x1 convolution that widens and one that narrows, as those of MobileNetV2."""
    parts = (OrderedDict(wide=nn.Conv2d(8, 64, 1), narrow=nn.Conv2d(64, 8, 1)) for _ in range(2))
    return nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 8, 1), stage=nn.Sequential(*map(Unit, parts))))


def test_the_hidden_width_shrinks_only_if_asked_and_only_until_the_child_pays():
    published = kd.plan(narrow(), kd.KernelDNA(), input_size=(3, 8, 8))
    assert children(published) == ["stage.0.wide"]
    shrunk = kd.convert_(narrow(), kd.KernelDNA(reduction="auto"), input_size=(3, 8, 8))
    assert shrunk.stage[0].wide.gate.fc1.out_channels == 8 // 4
    assert (
        shrunk.stage[0].narrow.gate.fc1.out_channels == 64 // 32
    )  # with 4 the child has more than its 512 weights
    described = kd.describe(shrunk)
    assert described.size.parameters < published.after.parameters


@pytest.mark.parametrize("budget", [0.9, 0.7, 0.6])
@pytest.mark.parametrize("gate", ["child", "stage"])
def test_a_budget_is_met(budget, gate):
    plan = plan_units(16, 16, 16, budget=budget, gate=gate)
    assert plan.after.parameters <= budget * plan.before.parameters
    without_one = plan.after.parameters + 16 * 16 * 9
    assert without_one > budget * plan.before.parameters
    assert children(plan)[-1].startswith("stage2")


def test_a_budget_that_cannot_be_met_says_what_can():
    message = (
        r"budget=0.2 asks for 4,\d+ of the 2\d,\d+ parameters of this Sequential; children of dense and pointwise layers "
        r"save 1\d,\d+, which leaves \d+,\d+: (0\.\d+) can be reached"
    )
    with pytest.raises(ValueError, match=message) as error:
        plan_units(16, 16, 16, budget=0.2)
    reached = float(str(error.value).split(" can be reached")[0].rsplit(" ", 1)[-1])
    plan = plan_units(16, 16, 16, budget=reached)
    assert plan.after.parameters <= reached * plan.before.parameters


def test_scopes_name_layers_by_name_glob_and_class():
    assert children(plan_units(16, 16, exclude="stage0")) == ["stage1.1.conv"]
    assert children(plan_units(16, 16, exclude=["stage?.1.*"])) == ["stage0.0.conv", "stage1.0.conv"]
    assert children(plan_units(16, 16, include=["stage1.*"], exclude="stage1.0.conv")) == ["stage1.1.conv"]
    with pytest.raises(ValueError, match="exclude= names it"):
        plan_units(16, 16, exclude=nn.Conv2d)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("stage2", r"exclude=...: 'stage2'; did you mean 'stage1.2'\?"),
        ("stage7.*", "write a qualified name, a glob such as 'layer4.*', or a class such as 'Linear'"),
        ("conv2d", "did you mean 'Conv2d'"),
    ],
)
def test_a_scope_that_names_nothing_is_refused(entry, message):
    with pytest.raises(ValueError, match=message):
        plan_units(16, 16, exclude=["stage0", entry])


def test_scopes_are_plain_data():
    method = kd.KernelDNA(include=nn.Linear, exclude=["a.*", nn.Conv2d])
    assert (method.include, method.exclude) == (["Linear"], ["a.*", "Conv2d"])
    assert kd.KernelDNA(**method.options()).options() == method.options()
    plan = plan_units(16, 16, exclude=nn.BatchNorm2d)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))).options["exclude"] == ["BatchNorm2d"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(budget=0.8, patterns={"layer4": "FS"}), "budget=0.8 was given beside patterns="),
        (dict(exclude="a", patterns={"layer4": "FS"}), "which name the children themselves"),
        (dict(budget=80), "budget is 80; expected the share of the parameters to keep, above 0 and below 1"),
        (dict(reduction="small"), "reduction is 'small'; .* 1 or more, or 'auto'"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        kd.KernelDNA(**options)


def test_a_budget_stands_in_for_the_patterns_of_a_recipe():
    recipe = kd.KernelDNA.recipe("mobilenetv2_100", budget=0.9)
    assert recipe.patterns is None
    assert recipe.eligible == "pointwise"
