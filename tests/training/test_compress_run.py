"""What a folder says of a compression is checked before it is gone on with."""

from __future__ import annotations

import pytest

from kerneldna.training.compress_run import compress_run


@pytest.mark.parametrize("text", ["[]", '{"top1": 3}', '{"asked": [1]}'])
def test_notes_that_are_none(tmp_path, text):
    (tmp_path / "compression.json").write_text(text)
    with pytest.raises(ValueError, match=r"compression.json, .*; restore the file"):
        compress_run("runs/large", run_dir=tmp_path, resume=True)


@pytest.mark.parametrize(
    ("noted", "given", "message"),
    [
        ('"budget": 0.6', {}, "holds a compression with budget=0.6, and budget=0.5 was asked for"),
        ('"asked": {"network": "a"}', {"network": "b"}, "with network='a', and network='b' was asked for"),
        ('"asked": {"images": null}', {"images": 64}, "with images=None, and images=64 was asked for"),
        ('"asked": {"refine": false}', {"refine": True}, "with refine=False, and refine=True was asked for"),
        ('"asked": {}', {"share": False}, "with share=None, and share=False was asked for"),
        ('"asked": {"weights": "x.pth"}', {"weights": "y.pth"}, "with weights='x.pth', and weights='y.pth'"),
    ],
)
def test_what_it_was_made_with(tmp_path, noted, given, message):
    (tmp_path / "compression.json").write_text("{" + noted + "}")
    with pytest.raises(ValueError, match=message):
        compress_run(**{"network": "a", "run_dir": tmp_path, "resume": True, "epochs": 0, **given})


@pytest.mark.parametrize(
    ("noted", "given"),
    [
        ('"of": "parameters", "budget": 0.5', {}),  # as 0.1 wrote it
        ('"asked": {"images": null, "refine": null}', {"share": True, "images": 256, "refine": True}),
        ('"asked": {"network": "a", "data": "digits", "weights": "x.pth", "images": 64}', {}),
    ],
)
def test_what_is_not_said_again_is_as_it_was(tmp_path, noted, given):
    (tmp_path / "compression.json").write_text("{" + noted + "}")
    assert compress_run("a", run_dir=tmp_path, resume=True, epochs=0, **given)["top1"] == {}
