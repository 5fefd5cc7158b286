"""Signals ask, then insist, and go back to whoever had them. Exactness itself: test_training.py."""

from __future__ import annotations

import logging
import signal
import threading

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from kerneldna.training.resume import StopRequest

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_and_the_second_stops_at_once(number, caplog):
    with StopRequest() as stop, caplog.at_level(logging.WARNING, logger="kerneldna"):
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked
        assert "stopping after this step; a second Ctrl-C or SIGTERM stops at once" in caplog.text
        with pytest.raises(SIGTERMException, match=f"stopped at once by {number.name}"):
            signal.raise_signal(number)


def test_the_handlers_of_before_come_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    with StopRequest():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_outside_the_main_thread_leaves_signals_alone():
    asked = []

    def run() -> None:
        with StopRequest() as stop:
            asked.append(stop.asked)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]
