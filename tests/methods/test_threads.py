"""One network in eight threads, and a network run in the middle of itself: nothing of one pass reaches another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import kerneldna as kd

CASES = [*((name, {}) for name in kd.list_methods()), ("kerneldna", {"gate": "stage"})]
THREADS, ROUNDS = 8, 4
SCALE = {"dcd": 0.05}  # untrained, it amplifies images without end: its residual is quadratic


def lively(method: str, options: dict[str, str]) -> nn.Module:
    """A network whose branches, gates and routing tell images apart."""
    torch.manual_seed(0)
    model = kd.create_model(
        "resnet18",
        method=method,
        options=options,
        num_classes=4,
        width=0.125,
        stem="small",
        zero_init_last=False,
    )
    for name, parameter in model.named_parameters():
        if (
            method != "dcd"
            and any(word in name for word in ("rout", "gate", "attention"))
            and parameter.ndim > 1
        ):
            nn.init.normal_(parameter, std=1.0)
    with torch.no_grad():
        for _ in range(5):
            model.train()(torch.randn(8, 3, 16, 16))
    return model.eval().double()  # what amplifies, amplifies rounding too


@pytest.mark.parametrize(("method", "options"), CASES, ids=[f"{m}{'-stage' * bool(o)}" for m, o in CASES])
@torch.no_grad()
def test_threads_do_not_meet(method, options):
    model = lively(method, options)
    scale = SCALE.get(method, 1.0)
    images = [scale * (index + 1) * torch.randn(2, 3, 16, 16).double() for index in range(THREADS)]
    expected = [model(x) for x in images]

    def passes(index: int) -> list[torch.Tensor]:
        with torch.no_grad():
            return [model(images[index]) for _ in range(ROUNDS)]

    with ThreadPoolExecutor(THREADS) as pool:
        for index, found in enumerate(pool.map(passes, range(THREADS))):
            for each in found:
                torch.testing.assert_close(each, expected[index])


@pytest.mark.parametrize(("method", "options"), CASES, ids=[f"{m}{'-stage' * bool(o)}" for m, o in CASES])
@torch.no_grad()
def test_a_network_run_in_the_middle_of_itself(method, options):
    model = lively(method, options)
    x, other = (SCALE.get(method, 1.0) * factor * torch.randn(2, 3, 16, 16).double() for factor in (1, 5))
    expected, of_other = model(x), model(other)
    seen = []

    def again(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        if not seen:
            seen.append(None)
            seen[0] = model(other)

    block = model.layer3[1]
    handle = block.register_forward_pre_hook(again)
    torch.testing.assert_close(model(x), expected)
    handle.remove()
    torch.testing.assert_close(seen[0], of_other)


@torch.no_grad()
def test_a_part_of_a_stage_run_in_the_middle_of_a_pass_is_an_error():
    """The gate of the stage is then of two images, and nothing says which is meant: never a wrong answer."""
    model = lively("kerneldna", {"gate": "stage"})
    x, other = torch.randn(2, 3, 16, 16).double(), 5 * torch.randn(2, 3, 16, 16).double()
    expected, seen = model(x), []

    def first_block(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        if not seen:
            seen.append(None)
            stem = model.maxpool(model.act1(model.bn1(model.conv1(other))))
            model.layer3[0](model.layer2(model.layer1(stem)))

    handle = model.layer3[1].register_forward_pre_hook(first_block)
    with pytest.raises(
        RuntimeError, match=r"ran 2 times before it in this pass .*convert with KernelDNA\(gate='child'"
    ):
        model(x)
    handle.remove()
    torch.testing.assert_close(model(x), expected)
