import copy

import pytest
import timm
import torch
from torch import nn

import kerneldna as kd
from kerneldna.conversion.convert import state_of
from kerneldna.deploy import calibrate, fold, fuse
from kerneldna.network.outputs import relative_difference


@pytest.fixture(scope="module")
def trained():
    """A small network with adapters and statistics that are not at their start."""
    torch.manual_seed(0)
    model = kd.create_model("resnet18", method="kerneldna", num_classes=4, width=0.25, stem="small")
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 or name.endswith(("spatial", "filter", "position", "input", "left")):
            nn.init.normal_(parameter, 0.5, 0.2)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 32, 32))
    return model.eval()


def relative(a, b):
    return relative_difference([b], [a])


@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
def test_no_library_class_and_no_norm_is_left(trained, mode):
    model = copy.deepcopy(trained)
    images = torch.randn(4, 3, 32, 32) if mode == "throughput" else None
    assert kd.fuse_(model, mode=mode, calibrate=images, progress=False) is model
    classes = {type(module) for module in model.modules()}
    assert not [kind for kind in classes if kind.__module__.startswith("kerneldna")]
    assert nn.BatchNorm2d not in classes
    assert (timm.layers.SqueezeExcite in classes) == (mode == "accuracy")
    assert state_of(model)["fused"]["difference"] < 1e-5


def test_accuracy_mode_keeps_the_outputs(trained):
    x = torch.randn(2, 3, 32, 32)
    assert relative(kd.fuse_(copy.deepcopy(trained))(x), trained(x)) < 1e-5


def test_throughput_mode_computes_with_the_mean_gates(trained):
    x, images = torch.randn(2, 3, 32, 32), torch.randn(6, 3, 32, 32)
    model = kd.fuse_(
        copy.deepcopy(trained), mode="throughput", calibrate=[images[:4], images[4:]], progress=False
    )
    means = calibrate.gate_means(trained, images, progress=False)
    constant = copy.deepcopy(trained)
    for name, gate in calibrate.gates_of(constant).items():
        gate.gate = lambda x, mean=means[name]: mean.float()[None, :, None, None]
    assert relative(model(x), constant(x)) < 1e-5
    noted = state_of(model)["fused"]
    assert noted["mode"] == "throughput"
    assert 1e-5 < noted["moved"] < 0.5


def test_the_means_may_be_given(trained):
    images = torch.randn(4, 3, 32, 32)
    means = calibrate.gate_means(trained, images, progress=False)
    a = kd.fuse_(copy.deepcopy(trained), mode="throughput", calibrate=means)
    b = kd.fuse_(copy.deepcopy(trained), mode="throughput", calibrate=images, progress=False)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_network_trained_for_both_modes_has_its_means(settle):
    options = {"gate_drop_rate": 0.5}
    model = kd.create_model(
        "resnet18", method="kerneldna", num_classes=4, width=0.125, stem="small", options=options
    )
    settle(model, torch.randn(32, 3, 32, 32), rounds=60)
    known = kd.fuse_(copy.deepcopy(model), mode="throughput")
    again = kd.fuse_(
        copy.deepcopy(model), mode="throughput", calibrate=torch.randn(64, 3, 32, 32), progress=False
    )
    x = torch.randn(4, 3, 32, 32)
    assert relative(known(x), again(x)) < 0.05


def test_norms_are_recalibrated_and_put_back_if_fusing_fails(trained, monkeypatch):
    images = torch.randn(16, 3, 32, 32) * 3 + 1
    plain = kd.fuse_(copy.deepcopy(trained), mode="throughput", calibrate=images, progress=False)
    model = copy.deepcopy(trained)
    kd.fuse_(model, mode="throughput", calibrate=images, recalibrate_norms=True, progress=False)
    assert state_of(model)["fused"]["difference"] < 1e-5
    assert relative(model(images), plain(images)) > 1e-3
    model = copy.deepcopy(trained)
    monkeypatch.setattr("kerneldna.deploy.fuse.TOLERANCE", -1)
    with pytest.raises(RuntimeError, match="left unfused"):
        kd.fuse_(model, mode="throughput", calibrate=images, recalibrate_norms=True, progress=False)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "throughput"}, r"none was given; pass calibrate=, some hundred training images"),
        ({"calibrate": torch.randn(1, 3, 32, 32)}, "accuracy mode keeps the gates"),
        ({"recalibrate_norms": True}, "accuracy mode keeps the gates"),
        ({"mode": "throughput", "recalibrate_norms": True}, "recalibrate_norms needs images"),
        ({"mode": "throughput", "calibrate": []}, "without an image"),
        ({"mode": "acuracy"}, "did you mean 'accuracy'"),
    ],
)
def test_wrong_use(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        kd.fuse_(copy.deepcopy(trained), progress=False, **arguments)


@pytest.mark.parametrize("mode", ["accuracy", "throughput"])
def test_saved_and_loaded(trained, mode, tmp_path):
    images = torch.randn(4, 3, 32, 32) if mode == "throughput" else None
    model = kd.fuse_(copy.deepcopy(trained), mode=mode, calibrate=images, progress=False)
    x = torch.randn(2, 3, 32, 32)
    again = kd.load(kd.save(model, tmp_path))
    assert torch.equal(again(x), model(x))
    assert state_of(again)["fused"] == state_of(model)["fused"]
    with pytest.raises(ValueError, match=f"fused already, in {mode} mode"):
        kd.fuse_(again)


def test_a_plain_network_s_norms_are_folded():
    model = timm.create_model("mobilenetv3_small_050", num_classes=2).eval()
    x = torch.randn(2, 3, 64, 64)
    before = model(x)
    kd.fuse_(model)
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert relative(model(x), before) < 1e-5


QUICK = ("regnety_002", "repvgg_a0", "tf_efficientnet_lite0", "skresnet18")
OTHERS = (
    "resnext50_32x4d",
    "regnetx_002",
    "efficientnet_b0",
    "mobilenetv3_small_100",
    "densenet121",
    "vgg11_bn",
    "ghostnet_100",
    "mnasnet_small",
    "res2net50_26w_4s",
    "cspresnet50",
    "hrnet_w18_small",
    "xception41",
    "dpn48b",
    "ese_vovnet19b_dw",
    "darknet53",
    "fbnetc_100",
    "inception_v3",
    "resnetv2_50",
    "seresnet18",
    "edgenext_xx_small",
)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_any_network_of_timm(name, settle):
    model = timm.create_model(name, num_classes=4)
    # the gates of dpn48b's children would not pay as they are
    options = {"reduction": "auto"} if name == "dpn48b" else {}
    kd.convert_(model, kd.KernelDNA(eligible=("dense", "pointwise"), **options))
    x = torch.randn(4, 3, 96, 96)
    settle(model, x)
    before = model(x)
    fused = kd.fuse_(copy.deepcopy(model))
    assert relative(fused(x), before) < 1e-5
    fast = kd.fuse_(model, mode="throughput", calibrate=x, progress=False)
    assert state_of(fast)["fused"]["difference"] < 1e-5


NO_GATES = {"plain": None, "no channel attention": kd.KernelDNA(channel=False)}


@pytest.mark.parametrize("fused", ["accuracy", "throughput"])
@pytest.mark.parametrize("asked", [None, "accuracy", "throughput"])
@pytest.mark.parametrize("gate", ["child", "stage", *NO_GATES])
def test_the_mode_asked_of_a_fused_network(fused, asked, gate, settle):
    method = NO_GATES[gate] if gate in NO_GATES else kd.KernelDNA.recipe("resnet18", gate=gate)
    model = kd.create_model("resnet18", method=method, num_classes=4, width=0.125, stem="small")
    settle(model, torch.randn(4, 3, 32, 32), rounds=1)
    assert fuse.settled_mode(model, asked) == (asked or "accuracy")
    images = torch.randn(4, 3, 32, 32) if fused == "throughput" else None
    kd.fuse_(model, mode=fused, calibrate=images, progress=False)
    if gate in NO_GATES or asked in (None, fused):
        assert fuse.settled_mode(model, asked) == (asked or fused)
        assert fuse.fused_copy(model, mode=asked) is model
        return
    left = "its 6 gates kept" if fused == "accuracy" else "its gates replaced by their means"
    expected = f"mode '{asked}' was asked for, and this network is fused already, in {fused} mode, {left}; give the network as"
    with pytest.raises(ValueError, match=expected):
        fuse.fused_copy(model, mode=asked)


@pytest.mark.parametrize("is_fused", [False, True])
def test_an_unknown_mode(trained, is_fused):
    model = kd.fuse_(copy.deepcopy(trained)) if is_fused else trained
    with pytest.raises(ValueError, match="unknown mode 'acuracy'; did you mean 'accuracy'"):
        fuse.settled_mode(model, "acuracy")


def test_parent_and_child_are_independent_afterwards(trained):
    model = kd.fuse_(copy.deepcopy(trained))
    model.layer4[1].conv2.weight.data.zero_()
    assert model.layer4[0].conv2.conv.weight.abs().max() > 0


def test_training_mode_is_refused(trained):
    with pytest.raises(ValueError, match=r"training mode.*model.eval\(\)"):
        kd.fuse_(copy.deepcopy(trained).train())


def test_fusing_twice_is_refused(trained):
    with pytest.raises(ValueError, match="fused already"):
        kd.fuse_(kd.fuse_(copy.deepcopy(trained)))


def test_a_network_with_nothing_to_fuse_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    with pytest.raises(ValueError, match="nothing to fuse: .* neither a child layer nor a BatchNorm"):
        kd.fuse_(model, probe=torch.randn(1, 3, 8, 8))
    assert fuse.fused_copy(model, probe=torch.randn(1, 3, 8, 8)) is model


@pytest.mark.parametrize("method", [None, "se", "kerneldna"])
def test_pairs_are_searched_once(method, monkeypatch):
    searched, search = [], fold.find_pairs
    monkeypatch.setattr(fold, "find_pairs", lambda *given: searched.append(given) or search(*given))
    model = kd.create_model("resnet18", method=method, num_classes=4, width=0.125, stem="small").eval()
    assert fuse.fused_copy(model) is not model
    assert len(searched) == 1


def test_a_network_that_branches_on_numbers_keeps_its_norms_and_computes_the_same_on_every_branch():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.parent, plain = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)
            self.child, self.norm = kd.ChildConv2d("child", self.parent, plain), nn.BatchNorm2d(3)

        def forward(self, x):
            y = self.child(self.parent(x))
            return self.norm(y if y.sum() > 0 else -y)  # a meta tensor has no sum to compare

    model = Branches().eval()
    nn.init.normal_(model.norm.running_mean)
    images = [torch.randn(1, 3, 8, 8) for _ in range(8)]
    before = [model(x) for x in images]
    assert len({model.child(model.parent(x)).sum() > 0 for x in images}) > 1
    kd.fuse_(model, probe=images[0])
    assert not isinstance(model.child, kd.ChildConv2d)
    assert isinstance(model.norm, nn.BatchNorm2d)
    for x, expected in zip(images, before, strict=True):
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


def test_a_result_that_differs_is_refused_and_the_model_left_as_it_was(trained, monkeypatch):
    model = copy.deepcopy(trained)
    wrong = kd.ChildConv2d.fused
    monkeypatch.setattr(kd.ChildConv2d, "fused", lambda child: nn.Sequential(wrong(child), nn.ReLU()))
    with pytest.raises(RuntimeError, match="left unfused"):
        kd.fuse_(model)
    assert isinstance(model.layer4[0].conv2, kd.ChildConv2d)
    assert isinstance(model.layer4[0].bn2, nn.BatchNorm2d)
    monkeypatch.undo()
    kd.fuse_(model)


def test_outputs_that_are_not_finite_are_refused(trained):
    model = copy.deepcopy(trained)
    model.fc.weight.data.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="finite"):
        kd.fuse_(model)


def test_a_probe_of_your_own(trained):
    kd.fuse_(copy.deepcopy(trained), probe=torch.randn(3, 3, 48, 48))
    small = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 6 * 6, 2)).eval()
    with pytest.raises(ValueError, match=r"does not run on images \(2, 3, 224, 224\): .* to fuse_ as probe="):
        kd.fuse_(copy.deepcopy(small))
    assert isinstance(kd.fuse_(small, probe=torch.randn(1, 3, 8, 8))[1], nn.Identity)


@pytest.mark.gpu
def test_on_a_gpu_where_tf32_is_allowed(trained):
    kd.fuse_(copy.deepcopy(trained).cuda())


def test_features_are_compared_too():
    features = timm.create_model("kdna_resnet18", features_only=True, out_indices=(2, 4)).eval()
    kd.fuse_(features)
    assert len(features(torch.randn(1, 3, 64, 64))) == 2
