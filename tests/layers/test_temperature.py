"""The options of temperature that methods inherit, and the schedule they describe."""

import pytest
import torch

from kerneldna.layers.temperature import Temperature
from kerneldna.registry import methods

TEMPERED = [name for name in methods.names() if issubclass(methods.get(name), Temperature)]


def test_the_schedule_runs_as_the_options_say():
    schedule = Temperature(temperature_start=8, temperature_end=2, temperature_epochs=3).schedule(
        like=torch.empty(0)
    )
    reached = [schedule().item()]
    for step in range(6):
        schedule.schedule_step(step, 2)
        reached.append(schedule().item())
    assert reached == [8, 7, 6, 5, 4, 3, 2]


def test_the_methods_with_a_temperature():
    assert TEMPERED == ["dyconv", "odconv"]


@pytest.mark.parametrize("name", TEMPERED)
def test_a_method_takes_and_states_them(name):
    given = {"temperature_start": 20.0, "temperature_end": 2.0, "temperature_epochs": 4.0}
    method = methods.get(name)(**given)
    assert method.options().items() >= given.items()
    assert methods.get(name)(**method.options()) == method


@pytest.mark.parametrize("name", TEMPERED)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"temperature_end": 0},
            "the temperature runs from 30.0 to 0 in 10.0 epochs; both ends must be above 0",
        ),
        ({"temperature_start": -1}, "runs from -1 to 1.0 in 10.0 epochs"),
        ({"temperature_epochs": -1}, "in -1 epochs; both ends must be above 0 and the epochs 0 or more"),
    ],
)
def test_they_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.get(name)(**options)
