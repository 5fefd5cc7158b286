"""What a network is made of, for methods that work layer by layer: its convolutions with their places, and its blocks.

A block is a member of a sequence that is a module of its own and holds two convolutions or more: ResNet's BasicBlock,
MobileNetV2's InvertedResidual, ConvNeXt's block. Where no sequence holds any, a class that occurs twice counts.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from torch import nn

from kerneldna.layers.dynamic import ConvOrLinear
from kerneldna.network import surgery
from kerneldna.network.layer_kinds import NORMS, is_pixel, kind_of
from kerneldna.network.shortcuts import shortcuts_in
from kerneldna.network.surgery import Call, Trace

_SEQUENCES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Skip:
    """One layer that a method leaves as it is although it looks at such layers, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Block:
    """One block of a network.

    Attributes:
        name: Its qualified name.
        stage: Counted from 0; a new one starts wherever the maps change their shape.
        input: Shape of its input, `(1, C, H, W)`.
        output: Shape of its output.
        end: The last convolution of its main path, or the norm behind it: what comes out of it is added to the shortcut.
    """

    name: str
    stage: int
    input: tuple[int, ...]
    output: tuple[int, ...]
    end: str

    @property
    def changes_shape(self) -> bool:
        """Whether channels or resolution change from its input to its output."""
        return self.input != self.output


@dataclass(frozen=True)
class Convolution:
    """One convolution, or a Linear on channels-last maps.

    Attributes:
        name: Its qualified name.
        kind: "dense", "pointwise", "depthwise", or "grouped" for any other group count.
        role: "stem" before the first block, "block" on a block's main path, "shortcut" beside it, "between" blocks,
            "head" behind the last. Without blocks all but the first are "between".
        block: The block it is in.
    """

    name: str
    kind: str
    role: str
    block: Block | None = None


@dataclass(frozen=True)
class Survey:
    """What a network is made of.

    Attributes:
        convolutions: In execution order.
        blocks: In execution order.
        classifier: The last Linear on vectors, if a method can replace it.
        skipped: Layers that no method can replace, and why.
    """

    convolutions: tuple[Convolution, ...]
    blocks: tuple[Block, ...]
    classifier: str | None
    skipped: tuple[Skip, ...]


def survey(model: nn.Module, traced: Trace) -> Survey:
    """Find the convolutions and blocks of a network.

    Args:
        model: The network, or its skeleton.
        traced: One run of it.
    """
    modules = dict(model.named_modules())
    calls = {call.name: call for call in traced.calls if call.name in modules}
    layers = {name: call for name, call in calls.items() if kind_of(modules[name], call.input)}
    shortcuts = shortcuts_in(model, traced)
    blocks = _blocks(modules, calls, layers, shortcuts)
    convolutions: list[Convolution] = []
    skipped: list[Skip] = []
    last: Block | None = None
    for name, call in layers.items():
        module = modules[name]
        block = _block_of(name, blocks)
        last = block or last
        if _may_be_gate(module, call) and not (last and is_pixel(last.output)):
            skipped.append(Skip(name, "it sees one pixel: a gate or a classifier"))
        elif name in traced.irreplaceable:
            skipped.append(Skip(name, traced.irreplaceable[name]))
        else:
            role = "shortcut" if name in shortcuts else _role(name, blocks, order=list(layers))
            convolutions.append(Convolution(name, kind_of(module, call.input) or "", role, block))
    vectors = [n for n, c in calls.items() if isinstance(modules[n], nn.Linear) and len(c.input) == 2]
    last_ones = (
        name
        for name in reversed(vectors)
        if not _block_of(name, blocks)
        and not any(traced.lineage.follows(name, other) for other in (*layers, *vectors))
    )
    classifier = next(last_ones, None)
    if classifier is not None and classifier in traced.irreplaceable:
        skipped.append(Skip(classifier, traced.irreplaceable[classifier]))
        classifier = None
    return Survey(tuple(convolutions), blocks, classifier, tuple(skipped))


def get(model: nn.Module, name: str) -> ConvOrLinear:
    """Return the convolution, or Linear, called `name`.

    Raises:
        ValueError: If there is none of that name.
    """
    layer = surgery.get(model, name)
    if not isinstance(layer, (nn.Conv2d, nn.Linear)):
        raise ValueError(
            f"{name!r} is a {type(layer).__name__}, not a convolution; the plan was made for another network"
        )
    return layer


def sort_out(
    convolutions: Iterable[Convolution], why_static: Callable[[Convolution], str]
) -> tuple[list[Convolution], list[Skip]]:
    """Return the convolutions that a method changes, and those that stay static, each in the order given.

    Args:
        convolutions: Those that it looks at.
        why_static: Returns the reason why one stays static, "" for one to change.
    """
    changed, static = [], []
    for conv in convolutions:
        if reason := why_static(conv):
            static.append(Skip(conv.name, reason))
        else:
            changed.append(conv)
    return changed, static


def replace_each_(
    model: nn.Module, names: Iterable[str], make: Callable[[str, ConvOrLinear], nn.Module]
) -> None:
    """Put a new layer in the place of each convolution, in the mode (training or eval) of the one it replaces.

    Args:
        model: The network.
        names: Of the convolutions, or Linears.
        make: Returns the new layer for a name and the layer of that name.

    Raises:
        ValueError: If a name is not that of a convolution or a Linear.
    """
    for name in names:
        replaced = get(model, name)
        training = replaced.training  # before the new layer, which may hold it, is put into another mode
        surgery.replace_(model, name, make(name, replaced).train(training))


def branch_ends(model: nn.Module, traced: Trace) -> tuple[str, ...]:
    """Return the end of every block's branch: what methods that gate the branch before the shortcut is added stand behind.

    Raises:
        ValueError: If the network has no blocks.
    """
    ends = tuple(block.end for block in survey(model, traced).blocks)
    if not ends:
        raise ValueError(
            f"{type(model).__name__} has no blocks to put gates in; a block is a module of two convolutions or more, "
            "in a sequence or one of several of its class"
        )
    return ends


def put_behind_(model: nn.Module, name: str, gate: nn.Module) -> None:
    """Put `gate` behind the layer called `name`, which becomes the part called "before" of a sequence."""
    before = surgery.get(model, name)
    like = next(chain(before.parameters(), model.parameters()))
    gate.to(like.device, like.dtype)
    surgery.replace_(model, name, nn.Sequential(OrderedDict(before=before, gate=gate)))


def out_channels_of(layer: nn.Module) -> int:
    """Return the channels that come out of a convolution, a Linear or a norm."""
    for attribute in ("out_channels", "out_features", "num_features", "num_channels"):
        if hasattr(layer, attribute):
            return getattr(layer, attribute)
    if isinstance(layer, nn.LayerNorm):
        return layer.normalized_shape[0]
    raise TypeError(
        f"a {type(layer).__name__} has no channels to read; expected a convolution, a Linear or a norm"
    )


def is_channels_last(layer: nn.Module) -> bool:
    """Whether maps come out of `layer` as `(B, H, W, C)`: a Linear, or a LayerNorm over channels, of torch or of timm."""
    if not isinstance(layer, nn.LayerNorm):
        return isinstance(layer, nn.Linear)
    kinds = type(layer).__mro__
    known = type(layer).__module__.partition(".")[0] in ("torch", "timm")
    # timm's LayerNorm2d and its like take (B, C, H, W), as a LayerNorm over (C, H, W) does
    return known and len(layer.normalized_shape) == 1 and not any("2d" in kind.__name__ for kind in kinds)


def _blocks(
    modules: Mapping[str, nn.Module],
    calls: Mapping[str, Call],
    layers: Mapping[str, Call],
    shortcuts: Collection[str],
) -> tuple[Block, ...]:
    """Return the blocks in execution order, each with its stage and the end of its branch."""
    blocks: list[Block] = []
    main = {name: call for name, call in calls.items() if name not in shortcuts}
    for name in _block_names(modules, layers):
        call = calls.get(name)
        end = call and _branch_end(name, call, modules, main)
        if call is None or end is None:
            continue
        starts = not blocks or call.input != blocks[-1].output or call.input != call.output
        stage = (blocks[-1].stage if blocks else -1) + starts
        blocks.append(Block(name, stage, call.input, call.output, end))
    return tuple(blocks)


def _block_names(modules: Mapping[str, nn.Module], layers: Mapping[str, Call]) -> list[str]:
    candidates = []
    for name, module in modules.items():
        inside = [n for n in layers if name and n.startswith(f"{name}.")]
        real = any(not _may_be_gate(modules[n], layers[n]) for n in inside)
        if len(inside) > 1 and real and not isinstance(module, _SEQUENCES):
            candidates.append(name)
    found = [n for n in candidates if isinstance(modules[n.rpartition(".")[0]], _SEQUENCES)]
    if not found:
        classes = Counter(type(modules[n]) for n in candidates)
        found = [n for n in candidates if classes[type(modules[n])] > 1]
    innermost = [n for n in found if not any(other.startswith(f"{n}.") for other in found)]
    order = list(layers)
    return sorted(innermost, key=lambda n: next(i for i, x in enumerate(order) if x.startswith(f"{n}.")))


def _branch_end(
    name: str, call: Call, modules: Mapping[str, nn.Module], calls: Mapping[str, Call]
) -> str | None:
    end = None
    for inner, made in calls.items():
        module = modules[inner]
        if not inner.startswith(f"{name}."):
            continue
        if not (kind_of(module, made.input) or isinstance(module, NORMS)):
            continue
        if is_pixel(made.output) and not is_pixel(call.output):
            continue
        if len(made.output) == 4 and out_channels_of(module) == call.output[1]:
            end = inner
    return end


def _role(name: str, blocks: Sequence[Block], *, order: Sequence[str]) -> str:
    """Return the role of the convolution `name`; `order` are all, as they run."""
    if _block_of(name, blocks):
        return "block"
    place = order.index(name)
    inside = [i for i, other in enumerate(order) if _block_of(other, blocks)]
    if place == 0 or (inside and place < inside[0]):
        return "stem"
    return "head" if inside and place > inside[-1] else "between"


def _block_of(name: str, blocks: Sequence[Block]) -> Block | None:
    return next((block for block in blocks if name.startswith(f"{block.name}.")), None)


def _may_be_gate(module: nn.Module, call: Call) -> bool:
    """Whether a 1x1 layer sees one pixel, as in squeeze-and-excitation."""
    return is_pixel(call.input) and getattr(module, "kernel_size", (1, 1)) == (1, 1)
