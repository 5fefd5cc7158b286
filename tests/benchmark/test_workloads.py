import pytest
import torch

from kerneldna.benchmark.workloads import Setup, parse_runtime, reason


def test_batches_of_a_setup():
    assert Setup().batches == {"latency": 1, "throughput": 8}
    assert Setup(batch=0).batches == {"latency": 1}
    assert Setup(batch=3, training=True).batches == {"latency": 1, "throughput": 3, "training": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "unknown precision 'fp16'"),
        ({"device": "cua"}, "did you mean 'cuda'"),
        ({"batch": -1}, "batch is -1; it needs 0 or more"),
        ({"threads": 0}, "threads is 0; it needs 1 or more"),
        (
            {"batch": 0, "training": True},
            "training steps need images and the batch is 0; give their number by batch=",
        ),
    ],
)
def test_wrong_setups(options, message):
    with pytest.raises(ValueError, match=message):
        Setup(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu():
    with pytest.raises(ValueError, match="device 'cuda' was given and PyTorch finds no GPU"):
        Setup(device="cuda")


def test_a_reason_names_the_class_of_an_error_that_says_little():
    assert reason(ValueError("no such thing")) == "no such thing"
    assert reason(KeyError("weight")) == "KeyError: 'weight'"
    assert reason(RuntimeError()) == "RuntimeError: "


def test_a_runtime_may_have_a_form_of_its_own():
    setup = Setup(precision="bf16")
    assert parse_runtime("eager", setup) == ("eager", setup)
    runtime, own = parse_runtime("onnx:int8", setup)
    assert (runtime, own.precision, own.storage, own.compute) == ("onnx", "fp32", "int8", "int8")
    for name, message in {
        "onx": "did you mean 'onnx'",
        "onnx:int9": "did you mean 'int8'",
        "eager:int8": "Known: bf16, fp32",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_runtime(name, setup)
