"""Networks that do not run on the meta device, take more than one batch of images, or cannot be served."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import prune

import kerneldna as kd
from kerneldna.network import surgery
from kerneldna.registry import methods

SIZE = (3, 16, 16)


class Branching(nn.Module):
    """Three equal convolutions behind something that needs numbers."""

    def __init__(self, look):
        super().__init__()
        self.look = look
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.row = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)))

    def forward(self, x):
        return self.row(self.look(self.stem(x)))


LOOKS = {
    "item": lambda x: x * (1.0 if x.abs().max().item() > 0 else 2.0),
    "if": lambda x: x if (x == x).all() else -x,
    "numpy": lambda x: x * float(np.abs(x.detach().cpu().numpy()).max() > 0),
    "no device": lambda x: (
        x + torch.zeros(1, 16, 1, 1).numpy().sum() + torch.ones(1) * torch.ones(1, 16, 1, 1)
    ),
}


@pytest.mark.parametrize("look", LOOKS)
def test_what_needs_numbers_is_run_with_them(look):
    model = Branching(LOOKS[look])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plan = kd.plan(model, kd.KernelDNA(), input_size=SIZE)
    assert plan.changes
    assert plan.after.macs > plan.before.macs > 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    kd.convert_(model, plan)
    assert kd.describe(model).size.macs == plan.after.macs
    x = torch.randn(2, *SIZE)
    expected = model.eval()(x)
    torch.testing.assert_close(kd.fuse_(model, probe=x)(x), expected, atol=1e-4, rtol=1e-4)


METHODS = {
    **{name: {} for name in kd.list_methods() if name not in ("se", "eca", "cbam")},  # those want blocks
    "kerneldna mix": {"modulation": "mix"},
    "kerneldna low rank": {"modulation": "mix_low_rank"},
    "sharedbasis full": {"share": "full"},
}


@pytest.mark.parametrize("name", METHODS)
def test_numbers_that_are_needed_do_not_change_the_count(name):
    """What making a kernel takes is not for an image, wherever the network runs to be counted."""
    sizes = []
    for look in (LOOKS["item"], lambda x: x):
        options = {"norm": "none"} if name.startswith("kerneldna") else {}
        model = Branching(look)
        method = methods.get(name.split()[0])(**METHODS[name], **options)
        converted = kd.convert_(model, method, input_size=SIZE).eval()
        sizes.append(kd.describe(converted, input_size=SIZE).size)
    assert sizes[0] == sizes[1]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(
    "norm", [nn.utils.weight_norm, lambda conv: prune.l1_unstructured(conv, "weight", 0.3)]
)
def test_layers_whose_weight_is_computed_are_skipped(norm):
    model = Branching(LOOKS["item"])
    model.row.append(norm(nn.Conv2d(16, 16, 3, padding=1)))
    model(torch.randn(1, *SIZE))
    plan = kd.plan(model, kd.KernelDNA(), input_size=SIZE)
    assert [skip.name for skip in plan.skipped] == ["row.3"]


class Two(nn.Module):
    """An image and a number for each channel, in one of several forms."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.row = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)))

    def forward(self, image, scale=None):
        if self.form == "one dict":
            image, scale = image["image"], image["scale"]
        elif self.form == "one tuple":
            image, scale = image
        return {"out": self.row(image) * scale[:, :, None, None]}


IMAGE, SCALE = torch.randn(1, 16, 8, 8), torch.ones(1, 16)
EXAMPLES = {
    "two": (IMAGE, SCALE),
    "named": {"image": IMAGE, "scale": SCALE},
    "one dict": ({"image": IMAGE, "scale": SCALE},),
    "one tuple": ((IMAGE, SCALE),),
}


@pytest.mark.parametrize("form", EXAMPLES)
def test_networks_of_several_inputs(form):
    model, example = Two(form), EXAMPLES[form]
    plan = kd.plan(model, kd.KernelDNA(), example_inputs=example)
    assert plan.input_size == (16, 8, 8)
    kd.convert_(model, kd.KernelDNA(), example_inputs=example)
    assert kd.describe(model, example_inputs=example).size == plan.after
    with pytest.raises(ValueError, match=r"example_inputs=, what its forward takes"):
        kd.plan(Two(form), kd.KernelDNA())
    with pytest.raises(ValueError, match="does not run on example_inputs="):
        kd.plan(Two(form), kd.KernelDNA(), example_inputs=torch.ones(1, 3, 8, 8))


def test_an_example_without_images_is_refused():
    with pytest.raises(ValueError, match=r"holds no batch of images \(B, C, H, W\)"):
        kd.plan(Two("two"), kd.KernelDNA(), example_inputs=SCALE)


@pytest.mark.parametrize(
    ("name", "channels"), [("tresnet_m", 3), ("csatv2", 3), ("resnet18", 3), ("mobilenetv2_050", 3)]
)
def test_stems_that_make_channels_of_pixels_take_images(name, channels):
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"):
        model = timm.create_model(name)
    assert surgery.input_size_of(model)[0] == channels


@pytest.mark.parametrize("channels", [1, 13])
def test_networks_of_other_channels_say_so(channels):
    assert surgery.input_size_of(timm.create_model("resnet18", in_chans=channels))[0] == channels


class Own(nn.Module):
    def __init__(self, layer, flat):
        super().__init__()
        self.layer, self.flat = layer, flat

    def forward(self, x):
        return self.layer(x.flatten(2) if self.flat else x[:, :, None])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Sequential(nn.Conv1d(3, 3, 3), nn.Conv1d(3, 3, 3)),
            "it has 2 Conv1d, for sequences, video or",
        ),
        (
            torchvision.models.video.r3d_18,
            r"Conv3d, for sequences, video or volumes, which are not served: nn.Conv2d",
        ),
        (
            lambda: torchvision.models.detection.ssdlite320_mobilenet_v3_large(
                weights=None, weights_backbone=None
            ),
            r"convert its backbone, kd.convert_\(detector.backbone",
        ),
        (
            lambda: torch.jit.trace(nn.Sequential(nn.Conv2d(3, 3, 3)), torch.ones(1, 3, 8, 8)),
            "is scripted, so that no layer of it can be looked into or replaced; convert the network that it was made of",
        ),
        (
            lambda: nn.Sequential(torch.ao.nn.quantized.Conv2d(3, 3, 3)),
            r"is quantised \('0' is\), .* convert and train it before quantising",
        ),
    ],
)
def test_what_is_not_served_is_told_the_way(make, message):
    with pytest.raises(ValueError, match=message):
        kd.plan(make(), kd.KernelDNA())


@pytest.mark.parametrize(
    "layer", [nn.Conv1d(3, 3, 3, padding=1), nn.Conv3d(3, 3, 3, padding=1), nn.ConvTranspose2d(3, 3, 3)]
)
def test_layers_of_other_kinds_are_named_where_nothing_is_found(layer):
    kind = type(layer).__name__
    shaped = (
        nn.Identity()
        if kind == "ConvTranspose2d"
        else nn.Flatten(2)
        if kind == "Conv1d"
        else nn.Unflatten(1, (3, 1))
    )
    model = nn.Sequential(nn.Conv2d(3, 3, 1), shaped, layer, type(layer)(3, 3, 3, padding=1))
    with pytest.raises(ValueError, match=rf"2: {kind} layers are not served; nn.Conv2d"):
        kd.plan(model, kd.KernelDNA(), input_size=SIZE)
