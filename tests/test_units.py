import pytest

from kerneldna.units import count, duration, rate, signed, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(512, "512"), (999_600, "1.00 M"), (9_240_798, "9.24 M"), (11_689_512, "11.7 M"), (139_000, "139 k")],
)
def test_count(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(900, "900 B"), (1_048_500, "1.0 MiB"), (37_014_528, "35.3 MiB"), (250 * 2**20, "250 MiB")],
)
def test_size(value, text):
    assert size(value) == text


@pytest.mark.parametrize(("value", "text"), [(12.345, "12.3"), (99.97, "100"), (1234.5, "1,234")])
def test_rate(value, text):
    assert rate(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59, "59 s"),
        (75, "1 min 15 s"),
        (3600, "1 h 0 min"),
        (4010, "1 h 6 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_signed_writes_a_true_minus():
    assert signed(-0.451, 2) == "−0.45"
    assert signed(3.0, 0) == "+3"
