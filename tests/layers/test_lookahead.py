"""One gate a stage: the formula, the handing over, and what must not break it."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_attention import randomise
from torch import nn

from kerneldna.layers.attention import ChannelAttention
from kerneldna.layers.child import ChildConv2d, ChildLinear
from kerneldna.layers.lookahead import LaterGate, StageGate, stage_gates


class Last(nn.Module):
    """A module on channels-last maps, in a network of channels-first ones."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x.movedim(1, -1)).movedim(-1, 1)


def make_stage(*, linear=False, **options):
    """A stage of three children, 8 -> 6 -> 4 -> 5 channels, as a sequence; the last one may be a Linear."""
    pairs = [
        [nn.Conv2d(8, 6, 3, padding=1) for _ in range(2)],
        [nn.Conv2d(6, 4, 1) for _ in range(2)],
        [nn.Linear(4, 5) if linear else nn.Conv2d(4, 5, 3, padding=1) for _ in range(2)],
    ]
    names = ["0.first", "1.second", "2.third"]
    replaced = dict(zip(names, (pair[1] for pair in pairs), strict=True))
    gates = stage_gates(replaced, reduction=2, **options)
    layers = []
    for name, (parent, layer) in zip(names, pairs, strict=True):
        kind = ChildLinear if isinstance(layer, nn.Linear) else ChildConv2d
        child = kind(name, parent, layer, gate=gates[name])
        layers.append(Last(child) if kind is ChildLinear else child)
    randomise(gates[names[0]])
    return Stage([parent for parent, _ in pairs], layers).eval()


class Stage(nn.Module):
    def __init__(self, parents, layers):
        super().__init__()
        self.parents, self.layers = nn.ModuleList(parents), nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

    @property
    def gates(self):
        return [getattr(layer, "module", layer).gate for layer in self.layers]


def naive_gates(gate, image):
    """All gates of a stage for the first child's input (C, H, W), as loops."""
    pooled = [image[c].mean() for c in range(len(image))]
    hidden = []
    for h in range(gate.fc1.out_channels):
        z = sum(gate.fc1.weight[h, c, 0, 0] * pooled[c] for c in range(len(pooled)))
        if gate.fc1.bias is not None:
            z = z + gate.fc1.bias[h]
        else:
            norm = gate.norm
            z = (z - norm.running_mean[h]) / (norm.running_var[h] + norm.eps).sqrt()
            z = z * norm.weight[h] + norm.bias[h]
        hidden.append(torch.relu(z))
    logits = [
        sum(gate.fc2.weight[c, h, 0, 0] * hidden[h] for h in range(len(hidden))) + gate.fc2.bias[c]
        for c in range(gate.fc2.out_channels)
    ]
    return torch.sigmoid(torch.stack(logits))


@pytest.fixture
def stage():
    return make_stage()


@pytest.fixture
def x():
    return torch.randn(3, 8, 5, 6)


def left(stage):
    """How many gates wait for their child."""
    return sum(gate.handover is key[0] for gate in stage.gates[1:] for key in gate.handover.passes.waiting)


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("linear", [False, True])
def test_equals_the_formula_as_loops(norm, linear, x):
    stage = make_stage(norm=norm, linear=linear)
    rows = []
    for image in x:
        gates = naive_gates(stage.gates[0], image).split([8, 6, 4])
        y = image
        for layer, a in zip(stage.layers, gates, strict=True):
            y = y * a[:, None, None]
            child = getattr(layer, "module", layer)
            if linear and child is not layer:
                y = torch.einsum("oc,chw->ohw", child.weight, y) + child.bias[:, None, None]
            else:
                y = nn.functional.conv2d(y[None], child.weight, child.bias, padding=child.padding)[0]
        rows.append(y)
    torch.testing.assert_close(stage(x), torch.stack(rows), rtol=1e-4, atol=1e-5)


def test_it_is_computed_once_and_owned_by_the_first_child(stage, x):
    calls = []
    stage.gates[0].fc1.register_forward_hook(lambda *_: calls.append(1))
    stage(x)
    assert calls == [1]
    assert [type(gate) for gate in stage.gates] == [StageGate, LaterGate, LaterGate]
    assert (stage.gates[0].fc1.out_channels, stage.gates[0].fc2.out_channels) == (4, 18)
    assert not list(stage.gates[1].parameters())
    assert {name.split(".")[1] for name in stage.state_dict() if "gate" in name} == {"0"}


def test_an_only_child_has_a_gate_of_its_own():
    (gate,) = stage_gates({"conv": nn.Conv2d(8, 8, 3)}, reduction=4).values()
    assert type(gate) is ChannelAttention
    assert gate.fc1.out_channels == 2


def test_another_layer_is_refused():
    with pytest.raises(ValueError, match="child 'pool' is a MaxPool2d; expected a Conv2d or a Linear"):
        stage_gates({"conv": nn.Conv2d(8, 8, 3), "pool": nn.MaxPool2d(2)}, reduction=4)


# the handing over


def test_nothing_is_left_after_a_pass(stage, x):
    stage(x)
    assert left(stage) == 0


def test_a_later_child_before_the_first_one_or_twice(stage, x):
    message = r"'1.second' takes its gate from child '0.first', which has not run before it .*gate='child'"
    with pytest.raises(RuntimeError, match=message):
        stage.layers[1](torch.randn(3, 6, 5, 6))
    stage(x)
    with pytest.raises(RuntimeError, match=message):
        stage.layers[1](torch.randn(3, 6, 5, 6))


def test_what_an_interrupted_pass_left_is_not_used(stage, x):
    stage.layers[0](x[:2])
    with pytest.raises(
        RuntimeError, match=r"a batch of 3, .* by child '0.first' for a batch of 2; run the stage"
    ):
        stage.layers[1](torch.randn(3, 6, 5, 6))
    stage.layers[0](x[:2])
    expected = copy.deepcopy(stage)(x)
    torch.testing.assert_close(stage(x), expected)


def test_a_pass_half_without_gradients_is_refused(stage, x):
    with torch.no_grad():
        y = stage.layers[0](x)
    with pytest.raises(
        RuntimeError, match=r"runs with gradients, child '0.first', .* ran without; .*reentrant"
    ):
        stage.layers[1](y)
    stage.requires_grad_(False)
    with torch.no_grad():
        y = stage.layers[0](x)
    stage.layers[1](y)  # nothing trains, nothing is lost


def test_a_batch_of_one_in_training_names_the_first_child(stage, x):
    with pytest.raises(ValueError, match=r"'0.first': a batch of 1 .*norm='none'"):
        stage.train()(x[:1])
    make_stage(norm="none").train()(x[:1])


def test_threads_do_not_mix(stage):
    inputs = [torch.randn(2, 8, 5, 6) for _ in range(64)]
    expected = [stage(each) for each in inputs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(stage, inputs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("interrupted", [False, True])
def test_copies_are_empty_and_keep_the_tie_inside_the_copy(way, interrupted, stage, x):
    expected = stage(x)
    if interrupted:
        stage.layers[0](x)
        assert left(stage) == 2
    if way == "deepcopy":
        twin = copy.deepcopy(stage)
    else:
        file = io.BytesIO()
        torch.save(stage, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert left(twin) == 0
    torch.testing.assert_close(twin(x), expected)
    with torch.no_grad():
        twin.gates[0].fc2.bias.add_(1)
    assert not torch.allclose(twin(x), expected)
    torch.testing.assert_close(stage(x), expected)


def test_under_autocast_all_gates_are_computed_in_float32(stage, x):
    seen = []
    stage.gates[0].fc1.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    stage.gates[1].register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    expected = stage(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = stage(x.bfloat16())
    assert seen[2:] == [torch.float32, torch.bfloat16]
    assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_dropped_gates_are_the_batch_s_mean_in_training():
    stage = make_stage(drop_rate=0.5)
    assert all(torch.equal(gate.mean, torch.full_like(gate.mean, 0.5)) for gate in stage.gates[1:])
    x = torch.randn(64, 8, 5, 6)
    own = torch.stack([naive_gates(stage.gates[0], image) for image in x])[:, 8:14]
    first, second = stage.gates[:2]
    y = torch.rand(64, 6, 2, 2) + 1
    first(x)
    torch.testing.assert_close(second(y), y * own[:, :, None, None])
    second.training = True
    first(x)
    found = (second(y) / y)[:, :, 0, 0]
    kept = (found - own).abs().amax(1) < 1e-4
    dropped = (found - own.mean(0)).abs().amax(1) < 1e-4
    assert (kept | dropped).all()
    assert 20 < kept.sum() < 44
    torch.testing.assert_close(second.mean, 0.9 * 0.5 + 0.1 * own.mean(0))
