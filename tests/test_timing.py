import time
from itertools import count

import torch

from kerneldna import timing


def test_functions_are_called_in_turn():
    called = []
    calls = {name: lambda name=name: called.append(name) for name in "abc"}
    times, errors, stopped = timing.interleave(calls, rounds=3)
    assert "".join(called) == "abcabcabc"
    assert {name: len(own) for name, own in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert (errors, stopped) == ({}, False)


def test_a_function_that_raises_is_left_out_and_the_others_go_on():
    turns = count()

    def breaks():
        if next(turns) == 1:
            raise MemoryError("full")

    times, errors, _ = timing.interleave({"bad": breaks, "good": lambda: None}, rounds=4)
    assert len(times["good"]) == 4
    assert "bad" not in times
    assert str(errors["bad"]) == "full"
    assert next(turns) == 2


def test_stopping_keeps_the_rounds_that_were_finished():
    turns = count()

    def stops():
        if next(turns) == 2:
            raise KeyboardInterrupt

    times, errors, stopped = timing.interleave({"a": lambda: None, "b": stops}, rounds=9)
    assert {name: len(own) for name, own in times.items()} == {"a": 2, "b": 2}
    assert stopped
    assert not errors


def test_waiting_for_the_device_is_part_of_the_time():
    times, _, _ = timing.interleave({"a": lambda: None}, rounds=1, wait=lambda: time.sleep(0.02))
    assert times["a"][0] >= 20


def test_speed_is_the_median_of_the_ratios_of_each_round():
    found = timing.speed([1.0, 2.0, 9.0], [2.0, 6.0, 9.0], batch=8)
    assert found.ratio == 2.0  # of 2, 3 and 1; that of the medians is 3
    assert found.ratio_quartiles == (1.5, 2.5)
    assert (found.milliseconds, found.rounds) == (2.0, 3)
    assert found.images_per_second == 4000


def test_a_machine_that_drifts_leaves_the_ratio():
    own = [1.0, 2.0, 30.0, 7.0]
    found = timing.speed(own, [2 * value for value in own], batch=1)
    assert (found.ratio, found.ratio_quartiles) == (2.0, (2.0, 2.0))


def test_without_a_reference_there_is_no_ratio():
    found = timing.speed([1.0], None, batch=1)
    assert (found.ratio, found.ratio_quartiles) == (None, None)
    assert found.quartiles == (1.0, 1.0)


def test_the_machine_is_put_back(two_threads):
    before = 2, torch.backends.cudnn.benchmark
    with timing.machine(1, "cuda"):
        assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == (1, True)
    assert (torch.get_num_threads(), torch.backends.cudnn.benchmark) == before
