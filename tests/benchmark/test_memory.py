import pytest
import torch
from torch import nn

from kerneldna.benchmark import memory
from kerneldna.benchmark.memory import Job


def saved(folder, channels):
    path = folder / f"{channels}.pt"
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(192, channels)), path)
    return str(path)


@pytest.mark.slow
def test_the_weights_are_in_it_and_the_caller_is_not(tmp_path):
    held = torch.ones(64 << 20)  # 256 MiB that a process started from here must not be blamed for
    small, large = (memory.peak_bytes(Job(saved(tmp_path, n), (1, 3, 8, 8))) for n in (8, 64 << 10))
    weights = 4 * 192 * (64 << 10)
    assert 0.8 * weights < large - small < 3 * weights
    assert large < held.nbytes


@pytest.mark.slow
def test_training_needs_more(tmp_path):
    file = saved(tmp_path, 64 << 10)
    once, trained = (
        memory.peak_bytes(Job(file, (2, 3, 8, 8), training=training)) for training in (False, True)
    )
    assert trained > 1.5 * once  # gradients and momentum


def test_a_process_that_fails(tmp_path):
    with pytest.raises(RuntimeError, match="ended with code 1 and said: .*nowhere"):
        memory.peak_bytes(Job(str(tmp_path / "nowhere.pt"), (1, 3, 8, 8)))
