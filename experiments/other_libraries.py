"""Untrained networks of libraries that kerneldna knows nothing of, for `compress_sweep.py --others`.

pip install segmentation-models-pytorch transformers ultralytics monai pytorchcv
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Network:
    """How a network is built, and the channels of its images."""

    create: Callable[[], nn.Module]
    channels: int = 3


def _smp(name: str, encoder: str) -> Network:
    """Return a network of segmentation_models_pytorch."""
    return Network(
        lambda: _take("segmentation_models_pytorch", name)(encoder, encoder_weights=None, classes=3)
    )


def _transformers(name: str, **config: Any) -> Network:
    """Return a classifier of transformers."""

    def create() -> nn.Module:
        found = _take("transformers", f"{name}Config")(num_labels=10, **config)
        return _take("transformers", f"{name}ForImageClassification")(found)

    return Network(create)


def _ultralytics(name: str) -> Network:
    return Network(lambda: _take("ultralytics", "YOLO")(f"{name}.yaml").model)


def _monai(name: str, images: int = 3, **options: Any) -> Network:
    """Return a network of MONAI, for images of so many channels."""
    return Network(
        lambda: _take("monai.networks.nets", name)(
            spatial_dims=2, in_channels=images, out_channels=2, **options
        ),
        images,
    )


def _pytorchcv(name: str) -> Network:
    return Network(lambda: _take("pytorchcv.model_provider", "get_model")(name))


def _take(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


_WIDTHS = {"hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2]}
_RES_UNITS = {"channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2}
NETWORKS = {
    "smp Unet resnet18": _smp("Unet", "resnet18"),
    "smp UnetPlusPlus resnet18": _smp("UnetPlusPlus", "resnet18"),
    "smp DeepLabV3Plus resnet18": _smp("DeepLabV3Plus", "resnet18"),
    "smp FPN mobilenet_v2": _smp("FPN", "mobilenet_v2"),
    "smp Unet convnext_atto": _smp("Unet", "tu-convnext_atto"),
    "transformers ResNet": _transformers("ResNet", embedding_size=16, layer_type="basic", **_WIDTHS),
    "transformers RegNet": _transformers("RegNet", embedding_size=16, groups_width=16, **_WIDTHS),
    "transformers ConvNextV2": _transformers("ConvNextV2", **_WIDTHS),
    "transformers MobileNetV2": _transformers("MobileNetV2"),
    "transformers EfficientNet": _transformers(
        "EfficientNet", width_coefficient=0.5, hidden_dim=640, initializer_range=0.2
    ),
    "ultralytics yolov8n": _ultralytics("yolov8n"),
    "ultralytics yolo11n": _ultralytics("yolo11n"),
    "ultralytics yolo11n-seg": _ultralytics("yolo11n-seg"),
    "monai UNet": _monai("UNet", **_RES_UNITS),
    "monai SegResNet": _monai("SegResNet", init_filters=8),
    "monai DenseNet121": _monai("DenseNet121", images=1),
    "pytorchcv seresnet20_cifar10": _pytorchcv("seresnet20_cifar10"),
    "pytorchcv preresnet20_cifar10": _pytorchcv("preresnet20_cifar10"),
}
SIDES = {name: 32 for name in NETWORKS if name.endswith("cifar10")}  # the only one that they take
