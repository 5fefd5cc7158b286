"""What the rest of the library knows a module by: a class of its own, never an attribute, which another's module may have too.

A `OneNode` is not looked into by torch.fx. A `StandIn` stands for plain modules, which its `fused()` returns. A `KernelMaker` makes
its kernel in every run. A `Scheduled` moves while a network trains. A `Startable` begins otherwise where a network is trained from
scratch. A `Borrower` computes with something that another module of the network owns, a module or what a `Lender` lends.

A network that is cut between the two has lost it without a word: `state_dict()` does not have it. So `check_loans` refuses it, and
so does a strict `load_state_dict`, where a borrower misses what its owner was not given.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from torch import Tensor, nn
from torch.fx import Proxy


class OneNode(nn.Module):
    """A module that torch.fx takes as one node of its graph, as it takes those of torch.nn: its `forward` asks about its input."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls):
            cls.forward = _as_one_node(cls.forward)


def _as_one_node(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if isinstance(given, Proxy):
                tracer: Any = given.tracer
                return tracer.create_proxy("call_module", tracer.path_of_module(self), args, kwargs)
        return forward(self, *args, **kwargs)

    return call


class StandIn(OneNode):
    """A module that stands for plain ones, which take its place when a network is fused."""

    def fused(self, mean: Tensor | None = None) -> nn.Module:
        """Return modules that compute the same in eval mode.

        Args:
            mean: The mean of the gate it has as its part "gate", one value a channel, if that is to be folded in.
        """
        raise NotImplementedError


class KernelMaker(nn.Module):
    """A module that makes its kernel, `weight`, of other tensors in every run.

    Attributes:
        made: The kernel, where it was made before (`kernels_made`).
    """

    made: Tensor | None = None


@contextmanager
def kernels_made(model: nn.Module) -> Iterator[None]:
    """Make every kernel of a network once, before the block: what counts inside it counts the work for images alone."""
    makers = [module for module in model.modules() if isinstance(module, KernelMaker)]
    found: list[Any] = [maker.weight for maker in makers]
    try:
        for maker, kernel in zip(makers, found, strict=True):
            # past nn.Module, which would take a kernel that is its parent's for a parameter of its own
            vars(maker)["made"] = kernel
        yield
    finally:
        for maker in makers:
            vars(maker).pop("made", None)


class Scheduled(nn.Module):
    """A module that is told before every training step where training stands."""

    def schedule_step(self, step: int, steps_per_epoch: int) -> None:
        """Move to where a schedule stands after `step` finished steps."""
        raise NotImplementedError


class Startable(nn.Module):
    """A module whose numbers come from the layer that it replaces, unless `numbers_follow`."""

    def start_(self) -> None:
        """Draw its numbers anew, as the kernels of a plain network start."""
        raise NotImplementedError


_follow: ContextVar[bool] = ContextVar("numbers follow", default=False)


@contextmanager
def numbers_follow() -> Iterator[None]:
    """Convert inside the block for numbers that are set afterwards, drawn anew or read: what they are before does not matter."""
    token = _follow.set(True)
    try:
        yield
    finally:
        _follow.reset(token)


def takes_over() -> bool:
    """Whether the numbers of a `Startable` come from the layer it replaces: what they cost to find is spared where they do not."""
    return not _follow.get()


class Borrower(nn.Module):
    """A module that computes with what another module owns, past `nn.Module`'s registration: it is torn where a network is cut.

    Attributes:
        name: Its qualified name, for error messages.
    """

    name: str

    @property
    def loan(self) -> tuple[str, str, object]:
        """What it borrows, in words ("its kernel"), the name of the owner, and the thing: a module, or what a `Lender` lends."""
        raise NotImplementedError

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        what, owner, thing = self.loan
        hook = _lending(thing) if isinstance(thing, nn.Module) else None
        if hook is not None and hook.loaded is not missing_keys:
            missing_keys.append(_Missing(f"{prefix}* ({what}, which {owner} owns)", thing))

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise RuntimeError(
            f"layer {self.name!r}: nn.DataParallel copies modules one by one and would tear it from {self.loan[1]}; "
            "use torch.nn.parallel.DistributedDataParallel"
        )


class Lender(nn.Module):
    """A module that owns things which others borrow and which are no modules."""

    @property
    def lent(self) -> Sequence[object]:
        """The things that it lends."""
        raise NotImplementedError


def lend_(owner: nn.Module) -> None:
    """Let an owner tell its borrowers that it is in the network that a state is loaded into."""
    if _lending(owner) is None:
        owner.register_load_state_dict_pre_hook(Lending())


def unlend_(model: nn.Module) -> None:
    """Undo `lend_` on every module of a network without borrowers."""
    for module in model.modules():
        hooks = module._load_state_dict_pre_hooks
        for key in [key for key, wrapped in hooks.items() if is_lending(wrapped)]:
            del hooks[key]


class Lending:
    """A hook on an owner, called before its tensors are loaded; copies and pickles of it know of no load."""

    def __init__(self) -> None:
        self.loaded: list[str] | None = None  # torch's list of the keys that are missing, one list a load

    def __reduce__(self) -> tuple[type[Lending], tuple[()]]:
        return Lending, ()

    def __call__(self, owner: nn.Module, *rest: Any) -> None:
        """Note that the owner is there, and that its borrowers miss nothing."""
        missing: list[str] = rest[4]
        self.loaded = missing
        missing[:] = [key for key in missing if not (isinstance(key, _Missing) and key.thing is owner)]


def is_lending(hook: object) -> bool:
    """Whether an entry of `_load_state_dict_pre_hooks` is a `Lending`."""
    return isinstance(getattr(hook, "hook", hook), Lending)


def check_loans(model: nn.Module, action: str) -> None:
    """Check that a network holds everything that its modules borrow.

    Args:
        model: Any network.
        action: What is about to be done with it, for the message: "save".

    Raises:
        ValueError: If something is borrowed from a module that is not in the network; the message names both.
    """
    modules = list(model.modules())
    held = {id(module) for module in modules}
    held |= {id(thing) for module in modules if isinstance(module, Lender) for thing in module.lent}
    for module in modules:
        if not isinstance(module, Borrower):
            continue
        what, owner, thing = module.loan
        if id(thing) not in held:
            raise ValueError(
                f"cannot {action} this {type(model).__name__}: layer {module.name!r} borrows {what} from {owner}, which "
                "is not in it (any more). Cut a network between stages that share, or fuse the whole with kd.fuse_ before it is "
                "cut; replace layers and copy parts before kd.convert_"
            )


class _Missing(str):
    """A missing key that stands for something borrowed."""

    thing: object

    def __new__(cls, text: str, thing: object) -> _Missing:
        made = super().__new__(cls, text)
        made.thing = thing
        return made


def _lending(module: nn.Module) -> Lending | None:
    hooks: Any = module._load_state_dict_pre_hooks.values()
    return next((wrapped.hook for wrapped in hooks if is_lending(wrapped)), None)
