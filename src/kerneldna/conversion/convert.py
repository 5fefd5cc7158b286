"""The three verbs: `plan` what a method would change in a network, `convert_` it, `describe` what came out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from kerneldna.conversion import reparameterize
from kerneldna.conversion.additions import check_run
from kerneldna.conversion.choice import costs_in, with_savings
from kerneldna.conversion.counting import size_before, size_of
from kerneldna.conversion.description import Description
from kerneldna.conversion.plan import Plan
from kerneldna.conversion.rehearsal import known_to, rehearse
from kerneldna.layers.marks import Borrower, check_loans
from kerneldna.network import surgery
from kerneldna.network.layer_kinds import has_parts
from kerneldna.network.replaceable import irreplaceable
from kerneldna.network.surgery import InputSize
from kerneldna.network.unserved import refuse_unserved
from kerneldna.network.wrapped import check_network, refuse_wrapped, unwrapped
from kerneldna.reading.typed import typed
from kerneldna.registry import methods

_STATE = "_kerneldna"


class Method(Protocol):
    """What a method is: a frozen value of options that lays out its changes on a network and applies them."""

    name: ClassVar[str]

    def options(self) -> dict[str, Any]:
        """Return the arguments that make this method again, as JSON takes them."""
        ...

    def lay_out(self, skeleton: nn.Module, traced: surgery.Trace, *, input_size: InputSize) -> Plan:
        """Return the plan for a network (given on the meta device, with one traced run), its sizes left open."""
        ...

    def apply_(self, model: nn.Module, plan: Plan) -> None:
        """Carry the plan out on `model`, in place."""
        ...


@torch.random.fork_rng(devices=[])
def plan(
    model: nn.Module,
    method: Method | str,
    *,
    input_size: InputSize | None = None,
    counted_on: InputSize | None = None,
    example_inputs: Any = None,
) -> Plan:
    """Lay out what `method` would change in `model`, without touching it or torch's random state.

    Args:
        model: Any convolutional network.
        method: For example `KernelDNA(patterns={"layer4": "FS-SF"})`, or the name of one, which stands for its defaults.
        input_size: `(C, H, W)` of one image; by default what the network says itself, else 224 x 224.
        counted_on: `(C, H, W)` of the image to count multiply-accumulates for; by default the same.
        example_inputs: What the network's forward takes, where that is not one batch of images: a tuple of arguments, or a dict of
            named ones. Multiply-accumulates are counted for each of its images.

    Returns:
        The plan: print it to see parents, children, what was left out and why, and the sizes before and after.

    Raises:
        ValueError: If the network is converted already, or the method does not fit it or is unknown.
        TypeError: If it is no method.

    Example:
        >>> print(plan(model, KernelDNA(patterns={"layer4": "FS-SF"})))  # doctest: +SKIP
    """
    method = _method(method)
    refuse_wrapped(model, "convert")
    _check_unconverted(model)
    refuse_unserved(model)
    skeleton = surgery.skeleton(model)
    size = _size_for(model, input_size, example_inputs)
    runs, traced = surgery.first_run(model, skeleton, size, example=example_inputs)
    # of the network itself: hooks on tensors are not copied
    traced = replace(traced, irreplaceable=irreplaceable(model, known=known_to(method)))
    counted = counted_on or size
    macs = traced.macs if counted == size else None
    before = size_of(skeleton, runs, counted, macs=macs, example=example_inputs)
    laid = method.lay_out(skeleton, traced, input_size=size)
    method = _planned(laid)  # a method may leave to the plan what it is to change
    rehearse(model, skeleton, method, laid)
    if runs is not skeleton:  # a copy with the numbers
        method.apply_(runs, laid)
    ran = surgery.trace(runs, counted, example=example_inputs)
    check_run(laid.stages, ran)
    after = size_of(skeleton, runs, counted, macs=ran.macs, example=example_inputs)
    laid = replace(laid, before=before, after=after, counted_on=None if counted == size else counted)
    return with_savings(laid, costs_in(skeleton))


def convert_(
    model: nn.Module,
    plan_or_method: Plan | Method | str,
    *,
    input_size: InputSize | None = None,
    example_inputs: Any = None,
) -> nn.Module:
    """Change `model` in place as planned; weights are kept.

    A KernelDNA child starts as a copy of its parent's kernel and drops its own, so a trained network loses accuracy until it is
    trained further; `kd.compress` keeps what trained weights compute. What a plan adds (blocks, kernels of the peers) starts
    untrained.

    Args:
        model: The network the plan was made for, or one built alike.
        plan_or_method: A plan, or a method or its name to plan with first.
        input_size: As for `plan`, when a method is given.
        example_inputs: As for `plan`, when a method is given.

    Returns:
        The same `model`.

    Raises:
        ValueError: If the plan does not fit; the model is then untouched.
    """
    refuse_wrapped(model, "convert")
    laid = plan_or_method
    if not isinstance(laid, Plan):
        laid = plan(model, laid, input_size=input_size, example_inputs=example_inputs)
    elif state_of(model).get("plan") or surgery.parameters_of(model) != laid.before.parameters:
        raise ValueError(
            f"the plan was made for a network of {laid.before.parameters:,} parameters, this {type(model).__name__} has "
            f"{surgery.parameters_of(model):,}; plan on the network that is to be converted, before it is"
        )
    carry_out_(model, laid, rehearsed=laid is not plan_or_method)
    return model


def _method(given: Any) -> Method:
    if isinstance(given, str):
        return methods.get(given)()
    if isinstance(given, type) or not hasattr(given, "lay_out"):
        said = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise TypeError(f"method is {said}; give a method such as kerneldna.KernelDNA(), or its name")
    return given


def _planned(laid: Plan) -> Method:
    return typed(laid.options, methods.get(laid.method), "plan.options")


def carry_out_(model: nn.Module, laid: Plan, *, rehearsed: bool = False) -> None:
    """Change `model` as a plan says that was made for it or for one built alike, without a look at its size.

    Args:
        model: The network, not converted yet.
        laid: The plan.
        rehearsed: Whether it was just made for this very network, and so carried out on its skeleton.

    Raises:
        ValueError: If the plan does not fit, or would lose hooks and the like; the model is then untouched.
    """
    method = _planned(laid)
    laid.check()
    if not rehearsed:
        with torch.random.fork_rng(devices=[]):
            rehearse(model, surgery.skeleton(model), method, laid)
    modes = {name: module.training for name, module in model.named_modules(remove_duplicate=False)}
    kept = {module: module.training for module in model.modules()}
    method.apply_(model, laid)
    for name, module in model.named_modules():  # what was frozen stays so, with what comes into its place
        modes.setdefault(name, modes[name.rpartition(".")[0]])
        module.training = kept.get(module, modes[name])
    reparameterize.refuse_(model)
    set_state(model, plan=laid.to_dict())


def plan_of(model: nn.Module) -> Plan | None:
    """Return the plan that `model` was converted with, None for a network as it was."""
    data = state_of(network_of(unwrapped(model))).get("plan")
    return None if data is None else Plan.from_dict(data)


def network_of(model: nn.Module) -> nn.Module:
    """Return the convolutional network that `model` is, or that a detector has as its backbone."""
    inside = state_of(model).get("network")
    return model if inside is None else surgery.get(model, inside)


def input_size_of(model: nn.Module) -> InputSize:
    """Return the `(C, H, W)` of one image: as trained, of the plan, of the creation by name, or what the network says itself."""
    state = state_of(model)
    trained = (state.get("preprocessing") or {}).get("input_size")
    laid = state.get("plan", {})
    noted = trained or laid.get("counted_on") or laid.get("input_size") or state.get("input_size")
    if noted is None:
        return surgery.input_size_of(model)
    channels, height, width = noted
    return channels, height, width


def state_of(model: nn.Module) -> dict[str, Any]:
    """Return what this library noted on `model`: plain data (how it was made, its plan, whether it is fused)."""
    return dict(getattr(model, _STATE, {}))


def classes_of(network: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that a network, a detector or the function of an exported file was trained for.

    In the order of its outputs, of a detector label 1 first; None where nothing was noted, as training by a recipe does.
    """
    noted = getattr(network, "classes", None)
    if isinstance(network, nn.Module):
        state = state_of(network)
        noted = state.get("detector", state).get("classes")
    return None if noted is None else tuple(noted)


def set_state(model: nn.Module, **entries: Any) -> None:
    """Add entries to what this library noted on `model`."""
    setattr(model, _STATE, {**state_of(model), **entries})


def describe(
    model: nn.Module, *, input_size: InputSize | None = None, example_inputs: Any = None
) -> Description:
    """Count the parameters, stored bytes and multiply-accumulates of `model`; for a converted one, also before.

    A classifier that was replaced after the conversion counts as replaced before, too.

    Args:
        model: Any convolutional network, or a detector: its MACs are those of its backbone, since those of its heads depend on
            what they find.
        input_size: `(C, H, W)` of one image; by default that which the network was trained with, of the plan, or what the network
            says itself.
        example_inputs: As for `plan`.
    """
    check_network(model, "describe")
    model = unwrapped(model)
    refuse_wrapped(model, "describe")
    check_loans(model, "describe")
    laid = plan_of(model)
    network = network_of(model)
    size = _size_for(network, input_size, example_inputs)
    whole = surgery.skeleton(model)
    runs, traced = surgery.first_run(network, network_of(whole), size, example=example_inputs)
    layers: dict[str, int] = {}
    for module in model.modules():
        if not has_parts(module):
            layers[type(module).__name__] = layers.get(type(module).__name__, 0) + 1
    pairs = state_of(network).get("fused", {}).get("split", ())
    counted = size_of(whole, runs, size, pairs=pairs, macs=traced.macs, example=example_inputs)
    part = "" if network is model else "the backbone"
    fused = state_of(network).get("fused", {}).get("mode")
    unfused = laid.after if laid and fused and network is model else None
    before = None
    if laid and size == (laid.counted_on or laid.input_size) and network is model:
        before = laid.before if fused else size_before(laid, counted, whole)
    return Description(laid and laid.method, counted, before, size, layers, part, fused, unfused)


def recount_(model: nn.Module) -> None:
    """Let the plan that is noted on a network, not fused, say the sizes that it has by now, where it was changed since."""
    laid = plan_of(model)
    if laid is None or surgery.parameters_of(model) == laid.after.parameters:
        return
    described = describe(model, input_size=laid.counted_on or laid.input_size)
    if described.before is not None:
        set_state(model, plan=replace(laid, before=described.before, after=described.size).to_dict())


def _size_for(model: nn.Module, input_size: InputSize | None, example: Any) -> InputSize:
    if example is not None:
        return surgery.image_size_in(example)
    return input_size or input_size_of(model)


def _check_unconverted(model: nn.Module) -> None:
    if state_of(model).get("fused"):
        raise ValueError(f"this {type(model).__name__} is fused; plan on the network as it was before")
    for name, module in model.named_modules():
        noted = state_of(module).get("plan")
        if noted or isinstance(module, Borrower):
            made = f"method {noted['method']!r}" if noted else f"{name!r} is a {type(module).__name__}"
            raise ValueError(
                f"this {type(model).__name__} is converted already ({made}); plan on the network as it was before"
            )
