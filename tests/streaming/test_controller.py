"""The choice of a keep ratio, on machines whose speed is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamicvit import InputError
from dynamicvit.streaming import Controller
from dynamicvit.streaming.controller import FEWEST, RAREST, WINDOW

COSTS = [0.020, 0.017, 0.014, 0.012, 0.010]


class Decision(NamedTuple):
    frame: int
    level: int
    measured: float


def play(
    controller: Controller, frames: int, slower: Callable[[int], float], waiting: float = 0.0
) -> list[Decision]:
    """The decisions on a machine ``slower`` than measured, as a factor by frame."""
    found = []
    for frame in range(frames):
        seconds = COSTS[controller.level] * slower(frame)
        measured = controller.after(seconds + waiting, seconds)
        if measured is not None:
            found.append(Decision(frame, controller.level, measured))
    return found


def levels(found: list[Decision]) -> list[int]:
    return [each.level for each in found]


@pytest.mark.parametrize(
    ("target", "period", "level"),
    [
        (1.0, None, 0),
        (0.020 / 0.89, None, 0),
        (0.020 / 0.91, None, 1),
        (0.0135, None, 3),
        (0.001, None, 4),
        (0.040, 0.015, 2),  # a full queue would miss the target
        (0.080, 0.015, 0),
    ],
)
def test_start(target: float, period: float | None, level: int) -> None:
    assert Controller(COSTS, target, period=period, places=2).level == level


def test_a_slower_machine_takes_it_down_and_a_free_one_up_again() -> None:
    assert play(Controller(COSTS, 0.025), 1000, lambda frame: 1.0) == []
    found = play(Controller(COSTS, 0.025), 1000, lambda frame: 1.6 if frame < 100 else 1.0)
    assert levels(found) == [1, 2, 1, 0]  # level 2: 14 ms, then 22.4
    assert found[0].frame == FEWEST - 1
    assert found[0].measured == pytest.approx(0.032)
    assert found[2].frame >= 100


def test_waiting_counts() -> None:
    assert levels(play(Controller(COSTS, 0.025), 300, lambda frame: 1.0, waiting=0.009)) == [1, 2]


def test_rare_outliers_do_not_count() -> None:
    controller = Controller(COSTS, 0.025)
    assert play(controller, 1000, lambda frame: 20.0 if frame % 20 == 4 else 1.0) == []
    assert play(controller, 100, lambda frame: 20.0 if frame % 5 == 4 else 1.0) != []


def test_frames_that_waited_through_the_level_before_do_not_count() -> None:
    controller = Controller(COSTS, 0.025, places=3)
    assert levels(play(controller, FEWEST, lambda frame: 1.6)) == [1]
    assert play(controller, 3, lambda frame: 100.0) == []
    assert levels(play(controller, 200, lambda frame: 0.9)) == [0]


@pytest.mark.parametrize("costs", [COSTS, [0.010]])
def test_a_target_below_the_cheapest_level_is_reported_once(costs: list[float]) -> None:
    controller = Controller(costs, 0.005)
    found = [controller.after(0.01, 0.01) for _ in range(500)]
    assert [(i, each) for i, each in enumerate(found) if each] == [(FEWEST - 1, 0.01)]
    assert controller.level == len(costs) - 1


def test_a_level_that_keeps_failing_is_tried_more_and_more_rarely() -> None:
    """The most expensive level costs far more than measured, so each try fails."""
    controller = Controller(COSTS, 0.0225)
    found = play(controller, 6000, lambda _: 1.0 if controller.level else 2.0)
    tries = [each.frame for each in found if each.level == 0]
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= RAREST * WINDOW
    assert len(tries) < 6000 / (RAREST * WINDOW) + 6


def test_it_does_not_go_up_to_where_frames_would_pile_up() -> None:
    """At 60 frames a second 17 ms are too many, though within the target."""
    controller = Controller(COSTS, 0.030, period=1 / 60, places=2)
    assert controller.level == 2
    assert play(controller, 2000, lambda frame: 1.0) == []


@settings(max_examples=20, deadline=None)
@given(st.floats(0.4, 2.5), st.floats(0, 0.15), st.integers(0, 9))
def test_it_settles_on_any_steady_machine(speed: float, noise: float, seed: int) -> None:
    """Where it stays, the target is held or nothing is cheaper; it hardly moves any more."""
    noisy = random.Random(seed)
    target = 0.025
    controller = Controller(COSTS, target)
    play(controller, 1000, lambda frame: speed * noisy.uniform(1 - noise, 1 + noise))
    later = play(controller, 2000, lambda frame: speed * noisy.uniform(1 - noise, 1 + noise))
    assert len(levels(later)) <= 2 * (2000 / (RAREST * WINDOW) + 1)
    cheapest = controller.level == len(COSTS) - 1
    assert cheapest or COSTS[controller.level] * speed * (1 - noise) <= target


@pytest.mark.parametrize("target", [0.0, -1.0, float("nan")])
def test_no_target(target: float) -> None:
    with pytest.raises(InputError, match="target latency"):
        Controller(COSTS, target)
