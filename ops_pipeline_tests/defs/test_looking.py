"""How often sensors look, as Dagster's daemon lets them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ops_pipeline.defs.looking import sensor_interval


def looks(minimum_interval: float, *, loop: float, late: float, seconds: float = 300) -> list[float]:
    """When a sensor looks: the daemon loops, and a tick is stamped a little after it was found to be due."""
    ticks: list[float] = []
    for number in range(int(seconds / loop)):
        now = number * loop
        if not ticks or now - ticks[-1] >= minimum_interval:
            ticks.append(now + late)
    return ticks


@pytest.mark.parametrize("late", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("seconds", [1, 3, 5, 8, 10, 12, 29, 30, 60])
def test_looks_are_as_far_apart_as_asked_for_at_most(seconds: int, late: float) -> None:
    """An interval of 10 s was 15 s: the third look was the first that came 10 s after the first tick's stamp."""
    ticks = looks(sensor_interval(seconds), loop=5.01, late=late)
    apart = {round(second - first) for first, second in pairwise(ticks)}
    assert apart == {max(5, seconds // 5 * 5)}


def test_the_interval_itself_would_be_one_look_too_long() -> None:
    ticks = looks(10, loop=5.001, late=0.05)
    assert {round(second - first) for first, second in pairwise(ticks)} == {15}
