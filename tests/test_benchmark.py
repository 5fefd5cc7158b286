import time

import torch

from kerneldna.benchmark import latency, one_thread


def test_ratios_are_against_the_first():
    x = torch.zeros(1)
    slow = {"a": lambda _: time.sleep(0.002), "b": lambda _: time.sleep(0.004)}
    found = latency(slow, x, rounds=5)
    assert found["a"].ratio == 1
    assert found["b"].ratio > 1
    low, high = found["b"].spread
    assert low <= found["b"].ratio <= high
    assert found["b"].milliseconds > 3


def test_one_thread_puts_the_number_back():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
