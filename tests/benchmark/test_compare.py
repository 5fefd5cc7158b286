import json

import pytest
import torch
from torch import nn

import kerneldna as kd
from kerneldna.benchmark import compare
from kerneldna.benchmark.networks import Contestant, parse
from kerneldna.benchmark.workloads import Setup

SMALL = Setup(size=16, batch=2)


def network(outputs=4):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, outputs),
    ).eval()


def contestants():
    return [Contestant("small", network, accuracy=0.5), Contestant("large", lambda: network(1000))]


def run(*entries, setup=SMALL, rounds=3, **options):
    return compare.run(entries or contestants(), setup, rounds=rounds, progress=False, **options)


class Breaks(nn.Module):
    """A network whose every call from the n-th on fails."""

    calls = 0

    def __init__(self, after):
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 4, 3), after

    def forward(self, x):
        # counted on the class: what is timed is a copy; counting shapes is no call
        Breaks.calls += not x.is_meta
        if Breaks.calls > self.after:
            raise MemoryError("no memory left")
        return self.conv(x).mean((2, 3))


def test_a_report_holds_sizes_and_speeds():
    report = run(setup=Setup(size=16, batch=2, training=True))
    small, large = report.rows
    assert small.parameters == sum(p.numel() for p in network().parameters())
    assert small.macs == 14 * 14 * 8 * 27 + 8 * 4
    assert (small.accuracy, small.input_size, small.error) == (0.5, (3, 16, 16), None)
    assert (small.latency.batch, small.throughput.batch, small.training.batch) == (1, 2, 2)
    assert small.latency.ratio == small.throughput.ratio == small.training.ratio == 1
    assert large.latency.rounds == 3
    assert report.reference == "small"
    assert report.versions["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize("fused", [False, True])
def test_sizes_are_those_of_the_classifier_that_the_network_has_now(fused):
    model = kd.create_model(
        "resnet18", method="kerneldna", num_classes=1000, width=0.125, stem="small"
    ).eval()
    model.reset_classifier(4)
    trained = kd.describe(model).size
    if fused:
        kd.fuse_(model)
    (row,) = run(Contestant("one", lambda: model), rounds=1).rows
    assert (row.parameters, row.stored_bytes) == (trained.parameters, trained.stored_bytes)


def test_the_reference_is_the_one_that_is_named():
    first, second = run(reference="large").rows
    assert second.latency.ratio == 1
    assert first.latency.ratio is not None


def test_json_takes_a_report():
    data = json.loads(json.dumps(run().to_dict()))
    row = data["rows"][0]
    assert row["throughput"]["images_per_second"] == pytest.approx(2000 / row["throughput"]["milliseconds"])
    assert data["setup"]["batch"] == 2
    assert row["training"] is None


def test_batch_zero_leaves_throughput_out():
    assert [row.throughput for row in run(setup=Setup(size=16, batch=0)).rows] == [None, None]


def test_a_network_that_cannot_be_built_loses_no_other():
    def fails():
        raise ValueError("no such layer")

    good, bad = run(contestants()[0], Contestant("bad", fails)).rows
    assert good.latency is not None
    assert (bad.error, bad.latency, bad.parameters) == ("no such layer", None, None)


def test_a_network_that_fails_later_keeps_what_was_measured():
    Breaks.calls = 0
    # 3 calls to warm up at each of the two batches, 3 rounds of one image, then batches
    bad, good = run(Contestant("bad", lambda: Breaks(after=3 + 3 + 3 + 1).eval()), contestants()[0]).rows
    assert bad.error == "MemoryError: no memory left"
    assert bad.latency.rounds == 3
    assert bad.throughput is None
    assert good.throughput.rounds == 3
    assert good.throughput.ratio is None  # the reference is gone


def test_every_part_is_handed_out_when_it_is_done():
    parts = []
    run(on_part=parts.append)
    assert [part.rows[0].throughput is None for part in parts] == [True, False]


def test_stopping_keeps_what_was_measured():
    class Stops(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            if len(x) == 2 and not x.is_meta:
                Stops.calls += 1
                if Stops.calls > 3 + 1:  # 3 calls to warm up
                    raise KeyboardInterrupt
            return self.inner(x)

    Stops.calls = 0
    report = run(Contestant("a", lambda: Stops().eval()), setup=Setup(size=16, batch=2, fuse=False))
    (row,) = report.rows
    assert report.stopped
    assert (row.latency.rounds, row.throughput.rounds) == (3, 1)


@pytest.mark.slow
def test_peak_memory_is_measured_when_asked_for():
    pytest.importorskip("onnxruntime")
    setup = Setup(size=16, batch=2, memory=True, training=True)
    eager, onnx = run(contestants()[0], setup=setup, rounds=1, runtimes=["eager", "onnx"]).rows
    assert eager.memory_bytes > 0
    assert eager.training_memory_bytes > 0
    assert onnx.memory_bytes > 0
    assert onnx.training_memory_bytes is None


def test_variants_of_kerneldna():
    labels = ["resnet18/kerneldna", "resnet18/kerneldna@throughput", "resnet18/kerneldna@plain"]
    setup = Setup(size=32, batch=2, training=True)
    own, fast, plain = run(*parse(labels, width=0.125), setup=setup, rounds=1, reference=labels[2]).rows
    assert [row.error for row in (own, fast, plain)] == [None] * 3
    assert own.parameters < plain.parameters
    assert fast.training is None
    assert own.training is not None


def test_a_network_that_is_fused_already_is_timed_in_its_own_mode_or_not_at_all():
    (named,) = parse(["resnet18/kerneldna"], width=0.125)
    fused = kd.fuse_(named.build())
    entries = [Contestant(str(mode), lambda: fused, mode) for mode in (None, "accuracy", "throughput")]
    as_it_is, accuracy, throughput = run(*entries, setup=Setup(size=32, batch=0), rounds=1).rows
    assert as_it_is.error is accuracy.error is None
    assert throughput.error.startswith("mode 'throughput' was asked for, and this network is fused already")
    assert throughput.latency is None


def test_throughput_needs_fusing():
    (row,) = run(
        *parse(["resnet18/kerneldna@throughput"], width=0.125), setup=Setup(size=32, fuse=False)
    ).rows
    assert row.error == "the throughput variant is a fused network; measure it with fusing on"


def test_runtimes_and_a_reference_in_one_of_them():
    pytest.importorskip("onnxruntime")
    rows = run(runtimes=["eager", "onnx"], reference_runtime="eager").rows
    assert [(row.label, row.runtime) for row in rows] == [
        (label, name) for label in ("small", "large") for name in ("eager", "onnx")
    ]
    assert [row.error for row in rows] == [None] * 4
    assert rows[0].latency.ratio == 1
    assert rows[1].latency.ratio != 1
    assert rows[1].stored_bytes != rows[0].stored_bytes


@pytest.mark.slow
def test_a_method_with_kernels_of_its_own_for_each_image_runs_in_onnx():
    pytest.importorskip("onnxruntime")
    (row,) = run(*parse(["resnet18/cgc"], width=0.125), setup=Setup(size=32, batch=2), runtimes=["onnx"]).rows
    assert row.error is None
    assert row.throughput.batch == 2


def test_int8_is_calibrated_at_the_batch_of_the_file():
    pytest.importorskip("onnxruntime")
    setup = Setup(size=16, batch=3, compute="int8")
    (row,) = run(contestants()[0], setup=setup, runtimes=["onnx"], rounds=1).rows
    assert row.error is None
    assert row.throughput.batch == 3


def test_onnx_refuses_bf16_and_eager_goes_on():
    pytest.importorskip("onnxruntime")
    eager, onnx = run(
        contestants()[0], setup=Setup(size=16, batch=0, precision="bf16"), runtimes=["eager", "onnx"]
    ).rows
    assert eager.latency is not None
    assert "bf16" in onnx.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtimes": ["eagre"]}, "did you mean 'eager'"),
        ({"runtimes": []}, "2 networks and 0 runtimes were given"),
        ({"reference": "smal"}, "did you mean 'small'"),
        ({"reference_runtime": "onnx"}, "unknown runtime 'onnx'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"setup": Setup(storage="int8")}, "storage 'int8', compute 'fp32' are of exported files"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_labels_are_unique():
    with pytest.raises(ValueError, match="each network needs one of its own"):
        run(contestants()[0], contestants()[0])


@pytest.mark.gpu
def test_on_a_gpu():
    setup = Setup(device="cuda", size=32, batch=4, training=True)
    rows = run(
        *parse(["resnet18", "resnet18/kerneldna"], width=0.125), setup=setup, runtimes=["eager", "compiled"]
    ).rows
    assert [row.error for row in rows] == [None] * 4
    bytes_of = [(4 * row.parameters, row.memory_bytes, row.training_memory_bytes) for row in rows]
    assert all(weights < memory < training for weights, memory, training in bytes_of), bytes_of
