"""Anchors and boxes in float32, whatever type the maps of a detector have.

torchvision computes both in the type of the maps, and then the objects' boxes in that of the proposals. Under mixed precision
that is bfloat16, which has 8 bits: it steps by 1 pixel from 128 on, by 4 from 512 on. Boxes are moved by up to half a step, and
one that is narrower than a step can lose its width; the target of the box regression then is

    (center - center) / width = 0 / 0 = NaN
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList


class ExactAnchors(AnchorGenerator):
    """torchvision's anchors; in float32 under mixed precision."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return the anchors of each image, `(N, 4)`: left, top, right, bottom, in pixels."""
        # Of the maps their shape, device and type are read: views of one number stand for them.
        maps = [
            x.new_empty((), dtype=torch.float32).expand(x.shape) if _is_mixed(x) else x for x in feature_maps
        ]
        return super().forward(image_list, maps)


class ExactCoder(BoxCoder):
    """torchvision's coder of boxes as differences to others; in float32 under mixed precision."""

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes `(N, 4)`, in pixels, of their differences to `boxes` `(N, 4)`."""
        return super().decode_single(rel_codes.float() if _is_mixed(rel_codes) else rel_codes, boxes)


def set_exact_coders_(detector: nn.Module) -> None:
    """Let every part of a detector of torchvision that decodes boxes do it by `ExactCoder`."""
    for module in detector.modules():
        coder: Any = getattr(module, "box_coder", None)
        if isinstance(coder, BoxCoder):
            exact: Any = ExactCoder(coder.weights, coder.bbox_xform_clip)
            module.box_coder = exact


def _is_mixed(x: Tensor) -> bool:
    # A network that is 16-bit as a whole stays so: its scores have to have the type of its boxes.
    return torch.is_autocast_enabled(x.device.type) and x.element_size() < 4
