"""Networks that torch cannot write as one graph: what is wrong, where, and what to do, in a line; and nothing is written."""

import pytest
import torch
from torch import nn
from torchvision.transforms.functional import to_pil_image

import kerneldna as kd


class Net(nn.Module):
    """A convolution and `run`."""

    def __init__(self, run):
        super().__init__()
        self.conv, self.run, self.last, self.half = nn.Conv2d(3, 4, 3), run, None, 0.0

    def forward(self, x):
        return self.run(self, self.conv(x))


def branches(net, y):
    return y.mean((2, 3)) if y.sum() > 0 else -y.mean((2, 3))


def takes_a_number(net, y):
    return y.mean((2, 3)) * float(y.max())


def leaves_torch(net, y):
    return torch.from_numpy(y.numpy().mean((2, 3)))


def leaves_torch_in_torchvision(net, y):
    return to_pil_image(y[0])


def is_for_two(net, y):
    return y.reshape(2, -1)


def remembers(net, y):
    if net.last != y.shape:  # as detectors do that keep their anchors
        net.last, net.half = y.shape, y.shape[2] / 2
    return y.mean((2, 3)) / net.half


@pytest.mark.parametrize(("path", "runtime"), [("a.onnx", "onnx"), ("a.pt2", "torch_export")])
@pytest.mark.parametrize(
    ("run", "said"),
    [
        (branches, "makes a Python number of what is in the images .*line 23.*torch.where"),
        (takes_a_number, "makes a Python number of what is in the images .*line 27.*torch.where"),
        (leaves_torch, "cannot be written as a graph: .*line 31"),
        (leaves_torch_in_torchvision, r"cannot be written as a graph: .*\(\w*functional\w*\.py, line"),
        (is_for_two, "cannot be written for a batch of any size: .* give batch="),
    ],
)
def test_what_is_wrong_and_where(run, said, path, runtime, tmp_path, capfd):
    pytest.importorskip(runtime.replace("torch_export", "torch"))
    with pytest.raises(ValueError, match=said):
        kd.export(Net(run).eval(), tmp_path / path, runtime=runtime, input_size=(3, 8, 8))
    assert not list(tmp_path.iterdir())
    assert "def forward" not in capfd.readouterr().err  # the graph as far as it came


def returns_a_number(net, y):
    return {"out": y, "size": y.shape[2]}


class Answer:
    def __init__(self, maps):
        self.maps = maps


def test_what_an_onnx_file_does_not_give(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(
        ValueError, match="Net returns 6 beside tensors, and an ONNX file gives tensors alone"
    ):
        kd.export(Net(returns_a_number).eval(), tmp_path / "a.onnx", input_size=(3, 8, 8))


def test_what_the_onnx_exporter_cannot_write(monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")

    def export(*_, **__):
        try:
            raise KeyError("no function of this name")
        except KeyError as error:
            raise RuntimeError("\x1b[96mThis is step 3/3\x1b[0m\nand much more") from error

    monkeypatch.setattr(torch.onnx, "export", export)
    with pytest.raises(
        ValueError, match=r"^Net cannot be written as ONNX: KeyError 'no function of this name'; runtime="
    ):
        kd.export(Net(is_for_any).eval(), tmp_path / "a.onnx", input_size=(3, 8, 8))


def test_an_answer_without_a_tensor_that_can_be_compared_is_not_the_fault_of_fusing():
    last = Net(lambda _, y: Answer(y))
    last.conv = nn.Identity()
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), last).eval()
    with pytest.raises(ValueError, match="^the network returns no tensor, so that nothing can be compared"):
        kd.fuse_(net, probe=torch.randn(2, 3, 8, 8))


def is_for_any(net, y):
    return y.mean((2, 3))


@pytest.mark.parametrize(("path", "runtime"), [("a.onnx", "onnx"), ("a.pt2", "torch_export")])
def test_autocast_around_it_does_not_count(path, runtime, tmp_path):
    pytest.importorskip("onnxruntime")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        written = kd.export(Net(is_for_any).eval(), tmp_path / path, runtime=runtime, input_size=(3, 8, 8))
        found = kd.load_exported(tmp_path / path, runtime=runtime)(torch.randn(2, 3, 8, 8))
    assert written.difference < 1e-6
    assert found.dtype == torch.float32


@torch.no_grad()
def test_the_network_itself_does_not_run(tmp_path):
    net = Net(counts).eval()
    net.register_buffer("runs", torch.zeros(()))
    kd.export(net, tmp_path / "a.pt2", runtime="torch_export", input_size=(3, 8, 8))
    assert not net.runs


def counts(net, y):
    net.runs += 1
    return y.mean((2, 3))


@torch.no_grad()
def test_one_that_remembers_its_last_images_is_written_for_a_batch_of_one_size(tmp_path):
    net, images = Net(remembers).eval(), torch.randn(3, 3, 8, 8)
    net(images)
    with pytest.raises(ValueError, match="remembers of the last images.* give batch="):
        kd.export(net, tmp_path / "a.pt2", runtime="torch_export", input_size=(3, 8, 8))
    kd.export(net, tmp_path / "a.pt2", runtime="torch_export", input_size=(3, 8, 8), batch=1)
    found = kd.load_exported(tmp_path / "a.pt2", runtime="torch_export")(images[:1])
    torch.testing.assert_close(found, net(images[:1]))
