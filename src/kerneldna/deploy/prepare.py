"""A network made ready to run: fused, laid out, cast; compiled; as one step of training.

The form that is timed is the best one each network has, found by the same rule for all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kerneldna.conversion.convert import input_size_of
from kerneldna.deploy.fuse import fused_copy
from kerneldna.network import copies, surgery

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def fused(model: nn.Module, *, mode: str | None = None, prefer: str | None = None) -> nn.Module:
    """Return a fused copy of `model`, or `model` itself if it is fused or there is nothing to fuse.

    Args:
        model: A network in eval mode.
        mode: "accuracy", the default, keeps its gates; "throughput" replaces them by their means over random images, which is
            right for a timing and nothing else. For a network that is fused already, the one it was fused in.
        prefer: "macs", the default, or "one_conv": as `fuse_` takes it.

    Raises:
        ValueError: If the mode or the way is unknown, or the network is fused in the other one.
    """
    calibrate = surgery.probe(model, input_size_of(model), batch=8) if mode == "throughput" else None
    return fused_copy(model, mode=mode, prefer=prefer, calibrate=calibrate, progress=False)


def laid_out(
    model: nn.Module, *, device: str = "cpu", precision: str = "fp32", channels_last: bool = True
) -> nn.Module:
    """Return a copy of `model` on `device`, its weights in `precision`, its kernels channels-last.

    Args:
        model: Any network.
        device: "cpu" or "cuda".
        precision: Of the weights: "fp32" or "bf16".
        channels_last: Lay every 4-D parameter out so; what convolutions on most hardware are fastest with.
    """
    model = copies.copied(model).to(device, DTYPES[precision])
    # by hand: Module.to(memory_format=...) refuses the 5-D parameters some methods have
    for parameter in model.parameters():
        if channels_last and parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def images(
    shape: tuple[int, ...], *, device: str = "cpu", precision: str = "fp32", channels_last: bool = True
) -> Tensor:
    """Return a random batch of `shape`, `(B, C, H, W)`, the same at every call."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), device="cpu").to(
        device, DTYPES[precision]
    )
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def compiled(model: nn.Module, shapes: list[Tensor]) -> Callable[[Tensor], Any]:
    """Compile `model` for the shapes of some inputs, without a graph break.

    On a CPU: inductor with freezing (the weights become constants and are packed for the convolution library). On a GPU:
    mode="reduce-overhead" (CUDA graphs).

    Args:
        model: A network in eval mode.
        shapes: One input of each shape it will be called with.
    """
    from torch._inductor import config

    frozen = nullcontext()
    if shapes[0].is_cuda:
        call = _a_step_each(
            torch.compile(_own_code(model), fullgraph=True, dynamic=False, mode="reduce-overhead")
        )
    else:
        call = torch.compile(_own_code(model), fullgraph=True, dynamic=False)
        frozen = config.patch(freezing=True)
    # compiling happens in the first call; freezing needs gradients off
    with frozen, torch.no_grad():
        for x in shapes:
            call(x)
    return call


def training_step(
    model: nn.Module, x: Tensor, *, precision: str = "fp32", compile: bool = False
) -> Callable[[], Any]:
    """Return one step of training as a function: forward, cross-entropy, backward, SGD with momentum.

    Args:
        model: A network; it is put in training mode, and trained.
        x: The images of every step, `(B, C, H, W)`, on the network's device.
        precision: "bf16" runs the forward pass under autocast, with weights in float32.
        compile: Compile the network (forward and backward) first.
    """
    model.train()
    call: Callable[[Tensor], Any] = (
        torch.compile(_own_code(model), fullgraph=True, dynamic=False) if compile else model
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    labels = torch.arange(len(x), device=x.device)
    cast = {"device_type": x.device.type, "dtype": torch.bfloat16, "enabled": precision == "bf16"}

    def step() -> None:
        with torch.enable_grad():
            with torch.autocast(**cast):
                logits = call(x)
            loss = F.cross_entropy(logits.float(), labels % logits.shape[1])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _a_step_each(graphs: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """Return a function that begins a new step of CUDA graphs: all networks' graphs share one pool of memory."""

    def call(x: Tensor) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return graphs(x)

    return call


def _own_code(model: nn.Module) -> Callable[[Tensor], Any]:
    """Return a function that calls `model` and has a code object that no other function has.

    The compiler keeps what it compiled by code object and looks through it at every call: networks of one class would wait for
    each other's checks, and hit the limit on recompiling.
    """

    def call(x: Tensor) -> Any:
        return model(x)

    call.__code__ = call.__code__.replace()
    return call
