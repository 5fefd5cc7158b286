"""What one forward pass hands from one layer to a later one: it lies in the pass, not on a module that other passes use too.

A pass belongs to a thread, and passes may lie one inside another: a hook that runs the network again in the middle of a pass
opens a pass of its own. Nothing of it is in `state_dict()`; copies and pickles are empty.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd import Variable

_FORWARD = -1  # what torch calls the graph task while no backward pass runs


class Passes:
    """The forward passes of a part of a network that are under way in a thread, the innermost last.

    A module opens a pass itself (`open`, `close`), or is watched: then each call of it is a pass. What is handed over outside of
    any lies in the thread.
    """

    def __init__(self) -> None:
        self._here = threading.local()

    def __reduce__(self) -> tuple[type[Passes], tuple[()]]:
        return Passes, ()

    @property
    def waiting(self) -> dict[Hashable, Any]:
        """What waits to be taken in the innermost pass."""
        return self._frames[-1][1]

    @property
    def inside(self) -> bool:
        """Whether a pass is open in this thread."""
        return len(self._frames) > 1

    def open(self, module: nn.Module) -> dict[Hashable, Any]:
        """Begin a pass through `module`; return what waits in it: nothing yet."""
        waiting: dict[Hashable, Any] = {}
        self._frames.append((id(module), waiting))
        return waiting

    def close(self, module: nn.Module) -> None:
        """End the innermost pass, if it is one through `module`; what was not taken is dropped."""
        frames = self._frames
        if frames[-1][0] == id(module):
            frames.pop()

    def watch(self, module: nn.Module) -> None:
        """Let every call of `module` be a pass, by hooks that copies and pickles of it keep."""
        module.register_forward_pre_hook(_Opening(self), prepend=True)
        module.register_forward_hook(_Closing(self), always_call=True)

    @property
    def _frames(self) -> list[tuple[int, dict[Hashable, Any]]]:
        frames = getattr(self._here, "frames", None)
        if frames is None:
            frames = self._here.frames = [(0, {})]
        return frames


def unwatch_(model: nn.Module) -> None:
    """Take the hooks of `Passes.watch` off every module of `model`."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if isinstance(hook, (_Opening, _Closing))]:
                del hooks[key]
                module._forward_hooks_always_called.pop(key, None)


class Handover:
    """Carries the gate of one later child from the first child to it, once in a forward pass.

    Gradient checkpointing runs single blocks again in the backward pass. For that the gate of a forward pass is kept as long as its
    graph lives, and given out again inside the backward pass, and only there. A compiled block keeps none: compile or checkpoint.

    Args:
        first: The name of the first child, for error messages.
        passes: Those of the stage.
    """

    def __init__(self, first: str, passes: Passes | None = None) -> None:
        self.first, self.passes = first, passes or Passes()
        self._kept: WeakSet[_Kept] = WeakSet()
        self._lock = threading.Lock()  # a set that grows in one thread cannot be read in another

    def __reduce__(self) -> tuple[type[Handover], tuple[str, Passes]]:
        return Handover, (self.first, self.passes)

    def put(self, gate: Tensor, *, trains: bool) -> None:
        """Hand a gate over, in the place of what an interrupted pass may have left.

        Args:
            gate: The gate, `(B, channels, 1, 1)`.
            trains: Whether it has weights that train.
        """
        task, waiting = _task(), self.passes.waiting
        key = (self, task)
        # in an open pass a gate that waits was not left by another one: there are two, and no telling which is meant
        times = waiting[key][2] + 1 if self.passes.inside and key in waiting else 1
        waiting[key] = gate, torch.is_grad_enabled() if trains else None, times
        if task != _FORWARD:  # the child may not be in the part that runs again
            Variable._execution_engine.queue_callback(lambda: waiting.pop(key, None))
        elif gate.requires_grad and not torch.compiler.is_compiling():
            kept = _Kept(gate.detach())
            gate.register_hook(kept.finish)  # the graph holds the hook, the hook what was kept
            with self._lock:
                self._kept.add(kept)

    def take(self, x: Tensor, *, name: str) -> Tensor:
        """Take the gate, which is then gone.

        Args:
            x: The child's input, of the same batch.
            name: The child's name.

        Raises:
            RuntimeError: If the first child did not hand it over in this pass, did more than once, or did for another batch or
                without gradients.
        """
        task = _task()
        key = (self, task)
        waiting = self.passes.waiting
        if key not in waiting:
            return self._again(name, task)
        gate, differentiable, times = waiting.pop(key)
        if times > 1:
            raise RuntimeError(
                f"child {name!r} takes its gate from child {self.first!r}, which ran {times} times before it in this pass (a hook "
                "that runs a part of the stage?), so that it cannot tell which is meant; run the stage whole, or convert with "
                "KernelDNA(gate='child')"
            )
        if gate.shape[0] != x.shape[0]:
            raise RuntimeError(
                f"child {name!r} was given a batch of {x.shape[0]}, its gate was computed by child {self.first!r} for a batch of "
                f"{gate.shape[0]}; run the stage whole on one batch, or convert with KernelDNA(gate='child')"
            )
        if differentiable not in (None, torch.is_grad_enabled()):
            raise RuntimeError(
                f"child {name!r} runs {_with(not differentiable)} gradients, child {self.first!r}, which computes its gate, ran "
                f"{_with(differentiable)}; run the stage whole, and checkpoint with use_reentrant=False"
            )
        return gate

    def _again(self, name: str, task: int) -> Tensor:
        """Return what was kept, for a child that runs again in a backward pass without the first one."""
        kept = [] if task == _FORWARD else self._alive()
        if not kept:
            raise RuntimeError(
                f"child {name!r} takes its gate from child {self.first!r}, which has not run before it in this pass; run the "
                "stage whole and in order (blocks may be checkpointed with use_reentrant=False, if they are not compiled), or "
                "convert with KernelDNA(gate='child')"
            )
        if len(kept) > 1:
            raise RuntimeError(
                f"child {name!r} runs again in a backward pass (gradient checkpointing) over {len(kept)} forward passes, and "
                "cannot tell them apart; call backward after each forward pass and keep no outputs of others, or convert with "
                "KernelDNA(gate='child')"
            )
        return kept[0].gate.detach().requires_grad_()

    def _alive(self) -> list[_Kept]:
        """Return what was kept for backward passes to come; failing that, for those that may come again (retain_graph)."""
        with self._lock:
            kept = list(self._kept)
        return [each for each in kept if not each.finished] or kept


class _Opening:
    """A hook that begins a pass; one that is compiled is a single pass, and needs none."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    def __call__(self, module: nn.Module, _: Any) -> None:
        if not torch.compiler.is_compiling():
            self.passes.open(module)


class _Closing(_Opening):
    """A hook that ends a pass, one that was interrupted by an error too."""

    def __call__(self, module: nn.Module, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            self.passes.close(module)


class _Kept:
    """A gate of one forward pass, for parts of the pass that run again in its backward pass."""

    def __init__(self, gate: Tensor) -> None:
        self.gate, self.finished = gate, False

    def finish(self, _: Tensor) -> None:
        """Note that the gate's gradient is known: the child ran again, if it did."""
        self.finished = True


def _task() -> int:
    """Return the number of the backward pass that this code runs in, -1 in a forward pass; a compiled part is one."""
    return _FORWARD if torch.compiler.is_compiling() else torch._C._current_graph_task_id()


def _with(gradients: bool | None) -> str:
    return "with" if gradients else "without"
