"""What was measured is taken up again, and nothing that was measured on something else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from kerneldna.compression import measure as measuring
from kerneldna.compression import passes
from kerneldna.compression.cache import clear
from kerneldna.compression.measure import measure


class StoppedError(Exception):
    """Stands for a run that is stopped."""


def test_a_stopped_measurement_goes_on(trained, seen, tmp_path, monkeypatch):
    names, done = ["stage2.*"], []

    def stop(*args: object) -> float:
        done.append(args)
        if len(done) == 2:
            raise StoppedError
        return 3.0

    monkeypatch.setattr(measuring, "_scale", stop)
    with pytest.raises(StoppedError):
        measure(trained, seen, layers=names, cache=tmp_path, progress=False)
    monkeypatch.setattr(
        passes, "collect", lambda *args, **_: pytest.fail("what was measured is measured again")
    )
    monkeypatch.setattr(
        measuring, "row_weights", lambda *args, **_: pytest.fail("weights are measured again")
    )
    again = measure(trained, seen, layers=names, cache=tmp_path, progress=False)
    assert again.scales == (3.0,) * len(again.candidates)
    assert len(done) == 1 + len(again.candidates)
    monkeypatch.undo()
    plain = measure(trained, seen, layers=names, progress=False)
    for kept, fresh in zip(again.shared, plain.shared, strict=True):
        torch.testing.assert_close(kept.errors, fresh.errors)


def test_what_other_images_gave_is_not_taken(trained, seen, tmp_path):
    first, second = (
        measure(trained, x, layers="neck", cache=tmp_path, progress=False) for x in (seen, seen + 0.1)
    )
    assert not torch.equal(first.shared[0].errors, second.shared[0].errors)
    assert len(list(tmp_path.iterdir())) == 2


def test_what_other_code_gave_is_not_taken(seen, tmp_path):
    """Of one set of weights, which a network may use otherwise than it did."""
    torch.manual_seed(0)
    plain, other = (
        nn.Sequential(nn.Conv2d(3, 16, 3), act, nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(2304, 4)).eval()
        for act in (nn.ReLU(), nn.GELU())
    )
    other.load_state_dict(plain.state_dict())
    found = [measure(each, seen, cache=tmp_path, progress=False) for each in (plain, other)]
    fresh = measure(other, seen, progress=False)
    assert len(list(tmp_path.iterdir())) == 1
    for kept, expected in zip(found[1].shared, fresh.shared, strict=True):
        assert torch.equal(kept.errors, expected.errors)
    assert found[1].scales == fresh.scales != found[0].scales


def test_modules_with_a_state_of_their_own(trained, seen, tmp_path):
    class Counting(nn.Identity):
        count = 0

        def get_extra_state(self):
            return {"count": self.count}

        def set_extra_state(self, state):
            self.count = state["count"]

    model = copy.deepcopy(trained)
    model.add_module("counting", Counting().eval())
    for count in (0, 1):
        model.counting.count = count
        measure(model, seen, layers="neck", cache=tmp_path, progress=False)
        assert len(list(tmp_path.iterdir())) == 1 + count


def test_a_damaged_file_is_measured_again(trained, seen, tmp_path):
    first = measure(trained, seen, layers="neck", cache=tmp_path, progress=False)
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-5])
    second = measure(trained, seen, layers="neck", cache=tmp_path, progress=False)
    torch.testing.assert_close(first.shared[0].errors, second.shared[0].errors)


def test_only_what_was_kept_is_removed(trained, seen, tmp_path):
    for folder in (tmp_path / "alone", tmp_path / "beside"):
        measure(trained, seen[:16], layers="stage1", cache=folder, progress=False)
        assert len(list(folder.glob("*/*.safetensors"))) > 2
    own = tmp_path / "beside" / "notes" / "of-mine.safetensors"
    own.parent.mkdir()
    own.write_text("precious")
    (kept,) = (each for each in (tmp_path / "beside").iterdir() if each.name != "notes")
    (kept / "labels.csv").write_text("precious")
    for folder in (tmp_path / "alone", tmp_path / "beside", tmp_path / "none"):
        clear(folder)
    left = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {own.relative_to(tmp_path), (kept / "labels.csv").relative_to(tmp_path)}
    assert not (tmp_path / "alone").exists()
