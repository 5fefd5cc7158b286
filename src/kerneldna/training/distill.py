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
from kerneldna.training.imitation import Imitation, total
from kerneldna.training.optim import parameter_groups

log = logging.getLogger(__name__)


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
        student: Such as `kerneldna.compress` returns it; it trains where it is, on its own device.
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
        ValueError: If there is no image, the teacher is the student, or the networks differ in their outputs.
        RuntimeError: If the loss is not finite; the student is then as it was at that step.
    """
    check_loans(student, "distill")
    if teacher is student:
        raise ValueError(
            "teacher and student are one network; pass the network that the student was made of as teacher"
        )
    groups = parameter_groups(student, decay_norm_and_bias=False)
    optimizer = torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    imitation = Imitation(teacher, temperature=temperature, features=features)
    imitation.to(next(student.parameters()).device)
    loader = _loader(images, batch_size, torch.Generator().manual_seed(seed))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.train()
        try:
            for epoch in range(1, epochs + 1):
                losses = []
                text = f"distill, epoch {epoch} of {epochs}"
                for x in batches(student, loader, text=text, progress=progress, said="a batch is"):
                    _, terms = imitation.compare(student, x)
                    loss = total(terms)
                    losses.append(loss.item())
                    if not math.isfinite(losses[-1]):
                        raise RuntimeError(
                            f"the loss is {losses[-1]} in epoch {epoch}, step {len(losses)}; lower lr ({lr:g}), and check that the "
                            "images and the teacher's outputs are finite"
                        )
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()
                    optimizer.step()
                    cosine.step()
                log.info("distilled epoch %d of %d: loss %.4f", epoch, epochs, mean(losses))
        finally:
            student.eval()
    return student


def _loader(images: Tensor | Iterable[Any], size: int, draws: torch.Generator) -> Any:
    """Return something that gives the batches of an epoch each time it is gone through, and knows how many."""
    if hasattr(images, "__len__") and not len(images):  # pyright: ignore[reportArgumentType]
        raise ValueError("there is no image to distill on; give a tensor, or a loader of batches")
    if isinstance(images, Tensor):
        # a last batch of one image would give BatchNorm nothing to normalise by
        odd = len(images) > size and len(images) % size == 1
        return DataLoader(TensorDataset(images), size, shuffle=True, generator=draws, drop_last=odd)
    if not hasattr(images, "__len__"):
        raise ValueError(
            f"a {type(images).__name__} was given as images; give a tensor, or a loader that can be gone through once an epoch"
        )
    return images
