"""kerneldna: convolutional networks with fewer parameters and smaller files (KernelDNA, arXiv 2503.23379).

    model = kd.create_model("resnet18", method="kerneldna", num_classes=10)

A child is a convolution whose kernel is its parent's times two small learned tensors; its input is gated per channel; that is all.
"""

import warnings
from importlib.metadata import version
from typing import Any

from kerneldna import analysis, detection, figures
from kerneldna.checkpoint import load, save
from kerneldna.compression.compress import compress
from kerneldna.compression.plan import CompressionPlan, plan_compression
from kerneldna.conversion.convert import Description, Method, convert_, describe, plan, plan_of
from kerneldna.conversion.plan import Family, Plan
from kerneldna.deploy.expand import expand
from kerneldna.deploy.export import Exported, export, load_exported
from kerneldna.deploy.fuse import fuse_
from kerneldna.deploy.speed_up import Fast, speed_up
from kerneldna.detection.detectors import create_detector
from kerneldna.layers.child import ChildConv2d, ChildLinear
from kerneldna.layers.dynamic import step_schedules
from kerneldna.methods.kerneldna import KernelDNA
from kerneldna.methods.sharedbasis import Group, SharedBasis
from kerneldna.models import create_model, list_methods, list_models
from kerneldna.training.distill import distill

__version__ = version("kerneldna")
__all__ = [
    "ChildConv2d",
    "ChildLinear",
    "CompressionPlan",
    "Description",
    "Exported",
    "Family",
    "Fast",
    "Group",
    "KernelDNA",
    "Method",
    "Plan",
    "SharedBasis",
    "analysis",
    "compress",
    "convert_",
    "create_detector",
    "create_model",
    "describe",
    "detection",
    "distill",
    "expand",
    "export",
    "figures",
    "fuse_",
    "list_methods",
    "list_models",
    "load",
    "load_exported",
    "plan",
    "plan_compression",
    "plan_of",
    "save",
    "speed_up",
    "step_schedules",
]


def __getattr__(name: str) -> Any:
    if name == "hydrate":
        warnings.warn(
            "kd.hydrate is now kd.expand; the old name goes in 0.2", DeprecationWarning, stacklevel=2
        )
        return expand
    raise AttributeError(f"module 'kerneldna' has no attribute {name!r}")
