"""What a recipe says: checked values, a section each. `kerneldna.recipes.recipe` reads them from a YAML file."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from kerneldna.reading.names import check_name

Fraction = Annotated[float, Field(ge=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1, lt=2**31)]
Name = Annotated[str, AfterValidator(check_name)]


class _Section(BaseModel):
    # Strict, as YAML types its values already: `epochs: yes` would otherwise mean one epoch.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSpec(_Section):
    """Which network is trained."""

    name: str
    """The backbone's timm name."""
    method: str | None = None
    """Name of the method it is converted with; null trains the plain backbone."""
    options: dict[str, Any] = {}
    """Arguments of the method; empty means the method's own recipe for this backbone."""
    width: Positive = 1.0
    """Factor on the number of channels."""
    stem: Literal["default", "small"] = "default"
    """"small" replaces the stem by one 3x3 convolution of stride 1, for images of 32 px and so."""
    pretrained: bool = False
    """Start from timm's weights."""
    weights: str | None = None
    """Start from a file of weights (.pth, .safetensors), a run folder, or a timm name; in place of `pretrained`."""
    args: dict[str, Any] = {}
    """Further arguments of timm's create_model."""


class DataSpec(_Section):
    """Which images are read, and how."""

    source: str
    """A folder, a hub name "owner/name", or the name of a built-in set such as "digits"."""
    image_size: Count
    """Side of the square the network sees, in pixels; for detection the shorter side of an image."""
    batch_size: Count
    """Images per step, all processes together."""
    workers: Annotated[int, Field(ge=0)] = 2
    """Processes that decode images; 0 decodes in the training process."""
    timeout: Positive = 600.0
    """Seconds to wait for a batch of these processes before the run ends with an error, as where one was stopped."""
    resident: bool = False
    """Decode all images once, keep them on the training device, and crop and flip them there: for sets that fit."""
    on_bad_image: Literal["error", "skip"] = "error"
    """What to do with an image that cannot be read; "skip" logs and counts it."""
    limit_train: Count | None = None
    """Use only this many training images, the same ones for every seed."""
    limit_val: Count | None = None
    """The same for validation images."""


class AugmentSpec(_Section):
    """How training images are varied, and how evaluation images are cut."""

    crop: Literal["none", "pad", "random_resized"] = "none"
    """"pad" adds 1/8 of the side around the image and cuts a square at random."""
    scale: Annotated[tuple[Positive, Fraction], Field(strict=False)] = (0.08, 1.0)
    """Smallest and largest share of the area that a random resized crop keeps."""
    flip: Fraction = 0.0
    """Probability of a horizontal flip."""
    color_jitter: NotNegative = 0.0
    """Strength of the change in brightness, contrast and saturation; not used beside `auto`."""
    auto: str | None = None
    """timm's auto-augment string, such as rand-m9-mstd0.5-inc1."""
    mixup: NotNegative = 0.0
    """Alpha of Mixup; 0 is off."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix; 0 is off."""
    erasing: Fraction = 0.0
    """Probability of erasing a random rectangle."""
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    """How images are resized."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Share of the shorter side that the centre crop keeps in evaluation, where crop is "random_resized"."""
    mean: Annotated[tuple[Fraction, Fraction, Fraction], Field(strict=False)] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue that is subtracted from pixels of 0-1; ImageNet's, as most pretrained weights want it."""
    std: Annotated[tuple[Positive, Positive, Positive], Field(strict=False)] = (0.229, 0.224, 0.225)
    """Standard deviation that the difference is divided by."""

    @model_validator(mode="after")
    def _ordered(self) -> AugmentSpec:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale is (smallest, largest), given {self.scale}; swap the two")
        return self


class OptimizerSpec(_Section):
    """What turns gradients into steps."""

    name: Literal["sgd", "adamw"]
    """The optimizer."""
    lr: Positive
    """Learning rate at its highest, for the whole batch over all processes."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD; AdamW does not read it."""
    nesterov: bool = False
    """Nesterov's momentum, in SGD."""
    weight_decay: NotNegative
    """Weight decay: added to the gradient by SGD, decoupled in AdamW."""
    decay_norm_and_bias: bool = True
    """Whether biases and the weights of norms decay too."""

    @model_validator(mode="after")
    def _fits(self) -> OptimizerSpec:
        if self.name == "sgd" and self.nesterov and not self.momentum:
            raise ValueError("nesterov is on and momentum is 0; give a momentum, or set nesterov=false")
        return self


class ScheduleSpec(_Section):
    """How long, and how the learning rate moves: a linear warm-up, then half a cosine, or steps down."""

    epochs: Count
    """Passes over the training images."""
    warmup_epochs: NotNegative = 0.0
    """Length of the warm-up, in epochs, part of `epochs`."""
    warmup_lr: NotNegative = 1e-6
    """Learning rate at the first step of the warm-up."""
    min_lr: NotNegative = 0.0
    """Learning rate at the end of the cosine."""
    milestones: Annotated[tuple[Positive, ...], Field(strict=False)] = ()
    """Epochs after which the learning rate falls to a tenth, in place of the cosine."""
    val_every: Count = 1
    """Epochs from one evaluation to the next; must divide `epochs`, so that the last is evaluated. 5 is enough for a study."""

    @model_validator(mode="after")
    def _in_order(self) -> ScheduleSpec:
        if self.warmup_epochs >= self.epochs:
            given = f"warmup_epochs is {self.warmup_epochs:g} and epochs {self.epochs}"
            raise ValueError(f"{given}; the warm-up must end first: raise epochs or lower warmup_epochs")
        if self.epochs % self.val_every:
            raise ValueError(
                f"val_every is {self.val_every} and epochs {self.epochs}; give a divisor of epochs"
            )
        marks = (self.warmup_epochs, *self.milestones, self.epochs)
        if self.milestones and any(a >= b for a, b in pairwise(marks)):
            given = f"milestones are {', '.join(f'{mark:g}' for mark in self.milestones)}"
            raise ValueError(f"{given}; they must rise, between warmup_epochs and epochs")
        return self


class DetectionSpec(_Section):
    """Which detector stands on the network, and how it is trained."""

    detector: Literal["maskrcnn", "fasterrcnn", "retinanet"] = "maskrcnn"
    """Mask R-CNN finds boxes and masks, Faster R-CNN and RetinaNet boxes."""
    weights: str | None = None
    """A run folder or model folder of a trained classifier to start from; its classifier is dropped."""
    norm: Literal["frozen", "sync"] = "frozen"
    """"frozen" keeps the backbone's BatchNorms as they are, "sync" trains them, on the whole batch over all GPUs."""
    frozen_stages: Annotated[int, Field(ge=0, le=4)] = 0
    """How many stages of the backbone do not train, counted from the image; the stem goes with the first."""
    max_size: Count = 1333
    """Largest length of the longer side, in pixels."""
    scales: Annotated[tuple[Count, ...], Field(strict=False)] = ()
    """Further lengths of the shorter side to draw from in training, in pixels, beside data.image_size."""
    anchor_sizes: Annotated[tuple[Count, ...], Field(strict=False, min_length=5, max_length=5)] = (
        32,
        64,
        128,
        256,
        512,
    )
    """Side of the anchors of each level of the pyramid, in pixels of the resized image."""
    boxes_per_image: Count = 512
    """Proposals of an image that the heads of a two-stage detector learn from, at most a quarter of them with an object."""
    keep_empty: bool = False
    """Train on images without an object too."""


class DistillSpec(_Section):
    """Which trained network is imitated, and by which: labels then serve to measure, not to train."""

    student: str
    """A run folder or model folder of the network that trains on, in place of a new one by `model`: kdna compress leaves one."""
    teacher: str
    """A run folder or model folder of the network to imitate."""
    temperature: Positive = 2.0
    """Of the softmax of both."""
    features: NotNegative = 1.0
    """Weight of the maps behind each stage in the loss."""


class Recipe(_Section):
    """Everything one training run depends on."""

    name: Name
    """Its name, that of its row in a table, and of its run folder in `runs`, so it must do as the name of a folder."""
    task: str = "classification"
    """What is learnt: the name of a task."""
    model: ModelSpec
    data: DataSpec
    augment: AugmentSpec = AugmentSpec()
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    detection: DetectionSpec | None = None
    """For the task "detection" only."""
    distill: DistillSpec | None = None
    """Learn from a teacher's answers in place of labels; for classification only."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread over all classes."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay per step of the moving average of the weights; null is off."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward and backward pass; detectors are measured in fp32 all the same."""
    clip_grad: Positive | None = None
    """Largest norm of the gradient; null is off."""
    channels_last: bool = True
    """Keep images channel-last in memory."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Where every random draw starts."""

    def on_other_images(self, source: str) -> Recipe:
        """Return the recipe with another `data.source`, all of it: the limits are of the images that it names."""
        data = self.data.model_copy(update={"source": source, "limit_train": None, "limit_val": None})
        return self.model_copy(update={"data": data})

    @model_validator(mode="after")
    def _fits_the_task(self) -> Recipe:
        if (self.task == "detection") != (self.detection is not None):
            raise ValueError(
                f"the task is {self.task!r} and the section detection is {'missing' if self.detection is None else 'given'}; "
                "they belong together: add or remove one"
            )
        if self.distill is not None:
            clashing = {
                "label_smoothing": self.label_smoothing,
                "augment.mixup": self.augment.mixup,
                "augment.cutmix": self.augment.cutmix,
                "detection": self.detection is not None,
            }
            if given := [key for key, value in clashing.items() if value]:
                raise ValueError(
                    f"{', '.join(given)}: not beside the section distill, whose loss has no labels; leave it out"
                )
        if self.detection is None:
            return self
        unused = {
            "label_smoothing": self.label_smoothing,
            "data.resident": self.data.resident,
            "augment.auto": self.augment.auto,
            "augment.mixup": self.augment.mixup,
            "augment.cutmix": self.augment.cutmix,
            "augment.erasing": self.augment.erasing,
            "augment.crop": self.augment.crop != "none",
            "augment.mean": self.augment.mean != AugmentSpec().mean,
            "augment.std": self.augment.std != AugmentSpec().std,
        }
        if given := [key for key, value in unused.items() if value]:
            raise ValueError(
                f"{', '.join(given)}: for classification only; the task is detection, leave it out"
            )
        return self

    def to_yaml(self) -> str:
        """Return the recipe as YAML that `load_recipe` reads back, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
