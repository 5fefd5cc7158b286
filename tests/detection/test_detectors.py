"""Detectors on networks of ours: maps and anchors, saving, fusing in both modes, wrong use."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn
from torchvision.models import detection

import kerneldna as kd
from kerneldna.conversion.convert import network_of, state_of
from kerneldna.detection.detectors import KINDS, BackboneImages, class_names, foreground, stem_and_stages

CLASSES = ("cat", "dog", "bird")
SMALL = {"image_size": 96, "max_size": 160, "anchor_sizes": (8, 16, 32, 64, 96)}


def fresh():
    return kd.create_model("mobilenetv2_050", method="kerneldna", width=0.5)


def network():
    """A network whose norms have seen images: with those of a fresh one its maps are next to nothing."""
    model = fresh()
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.rand(4, 3, 64, 64))
    return model


def lively(detector: nn.Module) -> nn.Module:
    """Spread the scores of a fresh detector, so that it finds something, and move its gates away from 0.5."""
    draw = torch.Generator().manual_seed(1)
    for name, parameter in detector.named_parameters():
        last = name.endswith(
            ("cls_score.weight", "cls_logits.weight", "bbox_pred.weight", "mask_fcn_logits.weight")
        )
        if last or ".gate." in name:
            with torch.no_grad():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
        if name.endswith("cls_logits.bias"):  # RetinaNet starts with every score at 0.01
            with torch.no_grad():
                parameter.fill_(-2.0)
    return few(detector.eval())


def few(detector: nn.Module) -> nn.Module:
    """Let a detector look at 30 proposals an image, not 1,000: its heads are most of its cost."""
    if hasattr(detector, "rpn"):
        detector.rpn._post_nms_top_n = {"training": 30, "testing": 30}
        detector.roi_heads.detections_per_img = 10
    return detector


@pytest.fixture(scope="module")
def images():
    draw = torch.Generator().manual_seed(2)
    return [torch.rand(3, 96, 128, generator=draw), torch.rand(3, 150, 90, generator=draw)]


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return lively(kd.create_detector(network(), classes=CLASSES, **SMALL))


def same(first, second, tolerance=0.0):
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(
                a[key], b[key], rtol=0, atol=tolerance * max(1.0, float(a[key].abs().max()))
            )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_trains_and_finds(kind, images):
    detector = kd.create_detector(network(), kind, classes=CLASSES, **SMALL)
    targets = [
        {
            "boxes": torch.tensor([[8.0, 8, 60, 70]]),
            "labels": torch.tensor([2]),
            "masks": torch.ones(1, 96, 128, dtype=torch.uint8),
        },
        {
            "boxes": torch.zeros(0, 4),
            "labels": torch.zeros(0, dtype=torch.int64),
            "masks": torch.zeros(0, 150, 90, dtype=torch.uint8),
        },
    ]
    losses = few(detector)(images, targets)
    assert all(loss.isfinite() for loss in losses.values())
    assert ("loss_mask" in losses) == (kind == "maskrcnn")
    found = lively(detector)(images)
    assert len(found[0]["boxes"])
    assert (kind == "maskrcnn") == ("masks" in found[0])
    assert class_names(detector) == CLASSES


def test_the_parts_are_torchvisions():
    """The detector on timm's plain ResNet50 has torchvision's layers."""
    with torch.device("meta"):
        ours = kd.create_detector(kd.create_model("resnet50"), classes=[str(i) for i in range(90)])
        theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    heads = [
        {n: tuple(p.shape) for n, p in d.named_parameters() if not n.startswith("backbone.body")}
        for d in (ours, theirs)
    ]
    assert heads[0] == heads[1]


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenetv2_100", "convnext_tiny"])
def test_maps_have_strides_4_to_32(name):
    with torch.device("meta"):
        detector = kd.create_detector(kd.create_model(name, method="kerneldna"), classes=CLASSES)
        levels = detector.backbone(torch.empty(2, 3, 256, 192))
    assert [tuple(x.shape[2:]) for x in levels.values()] == [(64, 48), (32, 24), (16, 12), (8, 6), (4, 3)]


def test_saved_and_loaded(tmp_path, trained, images):
    kd.save(trained, tmp_path)
    again = kd.load(tmp_path)
    with torch.no_grad():
        same(trained(images), again(images))
    assert state_of(again)["detector"] == state_of(trained)["detector"]
    assert str(kd.plan_of(again)) == str(kd.plan_of(trained))


@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
def test_fused_in_both_modes(tmp_path, trained, images, mode):
    fused = copy.deepcopy(trained)
    given = {} if mode == "accuracy" else {"calibrate": BackboneImages(trained, [images])}
    kd.fuse_(fused, mode=mode, progress=False, **given)
    assert state_of(network_of(fused))["fused"]["mode"] == mode
    left = {type(module).__name__ for module in fused.backbone.body.model.modules()}
    assert "ChildConv2d" not in left
    assert "BatchNorm2d" not in left
    with torch.no_grad():
        levels = [
            d.backbone(torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(3)))
            for d in (trained, fused)
        ]
        if mode == "accuracy":
            same([dict(levels[0])], [dict(levels[1])], tolerance=1e-5)
            assert len(trained(images)[0]["boxes"]) == len(fused(images)[0]["boxes"])
        kd.save(fused, tmp_path)
        same(fused(images), kd.load(tmp_path)(images))


def test_the_backbone_sees_resized_normalised_padded_images(trained):
    image = torch.full((3, 96, 120), 0.485)
    seen = list(BackboneImages(trained, [[image], ([image, image], "targets"), [[image], ["targets"]]]))
    assert [tuple(x.shape) for x in seen] == [(1, 3, 96, 128), (2, 3, 96, 128), (1, 3, 96, 128)]
    torch.testing.assert_close(seen[0][0, 0, :, :120], torch.zeros(96, 120), atol=1e-6, rtol=0)
    assert (seen[0][0, 1, :, :120] > 0).all()
    assert not seen[0][..., 120:].any()


def test_described(trained):
    described = kd.describe(trained)
    assert described.size.parameters == sum(p.numel() for p in trained.parameters())
    assert described.before is None
    assert "of the backbone" in str(described)


@pytest.mark.parametrize(
    ("name", "first_free"),
    [("resnet18", "layer2"), ("mobilenetv2_100", "blocks.2"), ("convnext_tiny", "stages.1")],
)
def test_stem_and_first_stage(name, first_free):
    with torch.device("meta"):
        detector = kd.create_detector(kd.create_model(name), classes=CLASSES)
    frozen = stem_and_stages(detector, 1)
    names = [name for name, _ in network_of(detector).named_parameters()]
    assert names[len(frozen)].startswith(first_free)
    assert not any(name.startswith(first_free) for name in names[: len(frozen)])
    assert stem_and_stages(detector, 0) == []


@pytest.mark.parametrize(("name", "layers", "free"), [
    ("resnet50", ("layer2.0.conv1", "layer2.0.downsample.0"), 1),
    ("mobilenetv2_100", ("blocks.2.0.conv_pw", "blocks.2.0.conv_dw", "blocks.2.0.conv_pwl"), 2),
])  # fmt: skip
def test_cells_that_layers_behind_the_frozen_stages_share_stay_trainable(name, layers, free):
    with torch.device("meta"):
        detector = kd.create_detector(kd.create_model(name, method="kernelwarehouse"), classes=CLASSES)
    network, frozen = network_of(detector), {id(parameter) for parameter in stem_and_stages(detector, 1)}
    cells = {id(network.get_submodule(layer).warehouse.cells) for layer in layers}
    assert len(cells) == free
    assert not cells & frozen
    names = [name for name, own in network.named_parameters() if id(own) in frozen]
    assert all(
        name.startswith(("conv1", "bn1", "conv_stem", "layer1", "blocks.0", "blocks.1")) for name in names
    )
    first = [
        own for name, own in network.named_parameters() if name.startswith(("layer1", "blocks.0", "blocks.1"))
    ]
    assert {id(own) for own in first} - frozen == cells


def test_a_kernel_that_a_layer_behind_the_frozen_stages_borrows_stays_trainable():
    model = kd.create_model("resnet18", width=0.125)
    parent = model.layer1[0].conv1
    object.__setattr__(model.layer2[0].conv1, "_parent", parent)  # as a child holds it
    frozen = stem_and_stages(kd.create_detector(model, classes=CLASSES), 1)
    assert not any(own is parent.weight for own in frozen)
    assert any(own is model.layer1[0].conv2.weight for own in frozen)


def test_scales_are_drawn_in_training_only(images):
    detector = kd.create_detector(fresh(), classes=CLASSES, image_size=96, max_size=400, scales=(64, 80))
    sizes = {min(detector.transform([images[0]])[0].image_sizes[0]) for _ in range(40)}
    assert sizes == {64, 80, 96}
    detector.eval()
    assert {min(detector.transform([images[0]])[0].image_sizes[0]) for _ in range(10)} == {96}


def test_foreground():
    found = {"labels": torch.tensor([0, 2]), "scores": torch.tensor([0.9, 0.8])}
    assert {k: v.tolist() for k, v in foreground(found).items()} == {
        "labels": [2],
        "scores": [pytest.approx(0.8)],
    }


def test_wrong_use():
    network = fresh()
    with pytest.raises(ValueError, match="unknown detector 'maskrcn'; did you mean 'maskrcnn'"):
        kd.create_detector(network, "maskrcn", classes=CLASSES)
    with pytest.raises(ValueError, match="no classes were given; pass their names"):
        kd.create_detector(network, classes=())
    with pytest.raises(ValueError, match=r"anchor_sizes are \(32, 64\); give five"):
        kd.create_detector(network, classes=CLASSES, anchor_sizes=(32, 64))
    with pytest.raises(
        ValueError, match="has maps of strides 2, 4, 8, none of 16; a detector needs 4, 8, 16, 32"
    ):
        kd.create_detector(timm.create_model("resnet18", output_stride=8), classes=CLASSES)
    with pytest.raises(ValueError, match="does not tell its maps as timm's networks do"):
        kd.create_detector(nn.Sequential(nn.Conv2d(3, 8, 3)), classes=CLASSES)
    with pytest.raises(ValueError, match="which is no detector; expected one of create_detector"):
        class_names(network)
