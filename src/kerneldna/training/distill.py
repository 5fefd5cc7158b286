"""`distill`: train a network to answer as another does, on images without labels.

    small = kd.compress(model, images, budget=0.5)
    kd.distill(small, teacher=model, images=loader)

For long runs that can be stopped and resumed, over several processes, with augmentation and a moving average, train by a recipe
with a section `distill`, as `kdna compress` does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from kerneldna.deploy.calibrate import batches
from kerneldna.layers.marks import check_loans
from kerneldna.network.wrapped import check_network, refuse_wrapped, unwrapped
from kerneldna.training.imitation import Imitation, check_alike, total
from kerneldna.training.optim import parameter_groups

log = logging.getLogger(__name__)


@torch.inference_mode(False)  # whatever the caller is in: this trains
@torch.enable_grad()
def distill(
    student: nn.Module,
    *,
    teacher: nn.Module,
    images: Tensor | Iterable[Any],
    epochs: int = 2,
    lr: float = 1e-3,
    batch_size: int = 64,
    temperature: float = 2.0,
    features: float = 1.0,
    weight_decay: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Train `student` in place to give the outputs of `teacher`, by AdamW with a cosine to 0. No labels are needed.

    Args:
        student: Such as `kerneldna.compress` returns it; it trains where it is, on its own device. What is frozen in it stays,
            statistics of a BatchNorm too whose scale and shift are frozen; and so does a frozen part that is the teacher's too.
        teacher: The network to imitate, with as many outputs; it is not changed, but for being put in eval mode, and moved to
            the student's device.
        images: Images `(N, C, H, W)`, or a loader of such batches or of (images, labels), whose labels are not looked at; the
            loader is gone through once an epoch.
        epochs: How often.
        lr: The highest learning rate.
        batch_size: Images a step, where `images` is a tensor.
        temperature: Of the softmax of both.
        features: Weight of the maps behind each stage in the loss (`kerneldna.training.imitation`).
        weight_decay: Of kernels; biases and norms do not decay.
        seed: Of the order of the images, where `images` is a tensor, and of dropout.
        progress: Show a progress bar.

    Returns:
        The same `student`, in eval mode.

    Raises:
        ValueError: If there is no image, the teacher is the student or shares parameters with it, the student has none that train,
            or in half precision, or the networks differ in their outputs.
        RuntimeError: If the loss or a gradient is not finite; the student is then as it was before that step.
    """
    refuse_wrapped(student, "distill")
    check_loans(student, "distill")
    _check(student, teacher, epochs=epochs, batch_size=batch_size)
    groups = parameter_groups(student, decay_norm_and_bias=False)
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    imitation = Imitation(teacher, temperature=temperature, features=features)
    imitation.to(next(student.parameters()).device)
    loader = _loader(images, batch_size, torch.Generator().manual_seed(seed))
    steps = max(1, epochs * len(loader))
    cosine = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * min(1, step / steps))) / 2
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _train_(student, unwrapped(teacher))
        try:
            for epoch in range(1, epochs + 1):
                losses = []
                text = f"distill, epoch {epoch} of {epochs}"
                most = 0
                for x in batches(student, loader, text=text, progress=progress, said="a batch is"):
                    most = max(most, len(x))
                    # BatchNorm may have nothing to normalise the one of a last batch by
                    if len(x) > 1 or most == 1:
                        losses.append(_step(student, imitation, x, optimizer, place=(epoch, len(losses) + 1)))
                    cosine.step()
                if not losses:
                    raise ValueError(
                        f"images gave no batch in epoch {epoch}; give a tensor, or a loader that can be gone through once an epoch"
                    )
                log.info("distilled epoch %d of %d: loss %.4f", epoch, epochs, mean(losses))
        finally:
            optimizer.zero_grad(set_to_none=True)
            student.eval()
    return student


def _train_(student: nn.Module, teacher: nn.Module) -> None:
    """Put a student in training mode, but for what is to stay: norms that are frozen, and modules that are the teacher's too."""
    student.train()
    shared = set(teacher.modules())
    for module in student.modules():
        own = list(module.parameters(recurse=False))
        frozen = bool(own) and not any(parameter.requires_grad for parameter in own)
        if module in shared or (frozen and module._buffers.get("running_mean") is not None):
            module.training = False


def _step(
    student: nn.Module,
    imitation: Imitation,
    x: Tensor,
    optimizer: torch.optim.Optimizer,
    *,
    place: tuple[int, int],
) -> float:
    """Train on a batch and return the loss; one that is not finite changes nothing."""
    kept = [(buffer, buffer.clone()) for buffer in student.buffers()]
    try:
        loss = total(imitation.compare(student, x)[1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        sizes = {"loss": loss.item(), "gradient": float(torch.nn.utils.get_total_norm(gradients))}
        for name, size in sizes.items():
            if not math.isfinite(size):
                epoch, step = place
                raise RuntimeError(
                    f"the {name} is {size} in epoch {epoch}, step {step}; lower lr ({optimizer.defaults['lr']:g}), and check that "
                    "the images and the teacher's outputs are finite"
                )
    except Exception as error:
        with torch.no_grad():
            for buffer, before in kept:  # running statistics, which every run in training mode changes
                buffer.copy_(before)
        if len(x) == 1 and "more than 1 value per channel" in str(error):
            raise ValueError(
                "batches of one image were given, of which BatchNorm sees maps of one pixel and has nothing to normalise by; give "
                "batches of 2 or more"
            ) from error
        raise
    optimizer.step()
    return sizes["loss"]


def _check(student: nn.Module, teacher: nn.Module, *, epochs: int, batch_size: int) -> None:
    for name, value, least in (("epochs", epochs, 0), ("batch_size", batch_size, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value}; expected a whole number, {least} or more")
    check_network(teacher, "distill from")
    if unwrapped(teacher) is student:
        raise ValueError(
            "teacher and student are one network; pass the network that the student was made of as teacher"
        )
    trained = {name: p for name, p in student.named_parameters() if p.requires_grad}
    check_alike(unwrapped(teacher), student)
    held = {id(parameter) for parameter in teacher.parameters()}
    if both := next((name for name, p in trained.items() if id(p) in held), None):
        raise ValueError(
            f"teacher and student share parameters ({both!r}), which would train in both; make the student of a copy.deepcopy"
        )
    if not trained:
        raise ValueError("the student has no parameter that trains; call student.requires_grad_(True) first")
    if short := next((n for n, p in trained.items() if p.dtype in (torch.float16, torch.bfloat16)), None):
        raise ValueError(
            f"the student's {short!r} is {trained[short].dtype}, in which small steps of training are lost; distill "
            "student.float(), and convert it after"
        )
    count, training = (sum(p.numel() for p in each) for each in (student.parameters(), trained.values()))
    if training < count:
        log.warning(
            "%s of the student's %s parameters are frozen and stay as they are; student.requires_grad_(True) trains all",
            f"{count - training:,}",
            f"{count:,}",
        )


def _loader(images: Tensor | Iterable[Any], size: int, draws: torch.Generator) -> Any:
    """Return something that gives the batches of an epoch each time it is gone through, and knows how many."""
    try:
        count = len(images)  # pyright: ignore[reportArgumentType]
    except TypeError:  # a DataLoader of an IterableDataset has a length that it does not know
        count = None
    if count == 0:
        raise ValueError("there is no image to distill on; give a tensor, or a loader of batches")
    if isinstance(images, Tensor):
        # a last batch of one image would give BatchNorm nothing to normalise by
        odd = len(images) > size and len(images) % size == 1
        return DataLoader(TensorDataset(images), size, shuffle=True, generator=draws, drop_last=odd)
    if count is None:
        raise ValueError(
            f"a {type(images).__name__} without a length was given as images; give a tensor, or a loader that knows how many "
            "batches it has and can be gone through once an epoch"
        )
    return images
