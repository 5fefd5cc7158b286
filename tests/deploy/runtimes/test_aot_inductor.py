"""Compiled code looks at no image: what is given to it is looked at before, in files of a fixed batch and of any."""

import json
from zipfile import ZipFile

import numpy as np
import pytest
import torch

import kerneldna as kd


def opened(monkeypatch, path, **facts):
    """A file of AOTInductor as far as it is read here, whose code adds nothing and refuses nothing."""
    monkeypatch.setattr("torch._inductor.aoti_load_package", lambda _: lambda x: (x, x.is_contiguous()))
    with ZipFile(path, "w") as archive:
        archive.writestr("m/data/aotinductor/model/m_metadata.json", json.dumps(facts))
    return kd.load_exported(path, runtime="aot_inductor")


SIZE = json.dumps([3, 8, 6])
WRONG = {
    "size": (torch.ones(2, 3, 6, 8), r"takes float32 \(2, 3, 8, 6\), given float32 \(2, 3, 6, 8\)"),
    "batch": (torch.ones(3, 3, 8, 6), r"takes float32 \(2, 3, 8, 6\), given float32 \(3, 3, 8, 6\)"),
    "dtype": (torch.ones(2, 3, 8, 6).double(), r"given float64 \(2, 3, 8, 6\)"),
    "image": (torch.ones(3, 8, 6), r"given float32 \(3, 8, 6\)"),
    "array": (np.ones((2, 3, 8, 6), np.float32), "does not run on a ndarray"),
}


@pytest.mark.parametrize(("images", "said"), WRONG.values(), ids=WRONG)
def test_images_that_the_code_was_not_compiled_for(images, said, monkeypatch, tmp_path):
    run = opened(monkeypatch, tmp_path / "m.pt2", input_size=SIZE, batch="2", dtype="float32")
    with pytest.raises(ValueError, match=said):
        run(images)


def test_images_of_any_batch_and_layout(monkeypatch, tmp_path):
    run = opened(monkeypatch, tmp_path / "m.pt2", input_size=SIZE, dtype="float32")
    for batch in (1, 5):
        images = torch.randn(batch, 8, 6, 3).permute(0, 3, 1, 2)
        found, contiguous = run(images)
        assert contiguous
        assert torch.equal(found, images)
    with pytest.raises(ValueError, match=r"takes float32 \(B, 3, 8, 6\)"):
        run(torch.ones(1, 3, 8, 8))


def test_a_file_that_says_nothing_of_its_images_is_run(monkeypatch, tmp_path):
    assert opened(monkeypatch, tmp_path / "m.pt2")(torch.ones(1, 3, 8, 8))[1]
