"""The choice of a keep ratio, on machines whose speed is known."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamicvit import InputError
from dynamicvit.streaming import Controller
from dynamicvit.streaming.controller import FEWEST, RAREST, WINDOW, Miss, Step

COSTS = [0.020, 0.017, 0.014, 0.012, 0.010]


def play(
    controller: Controller,
    frames: int,
    computing: Callable[[int], float],
    waiting: Callable[[int], float] = lambda frame: 0.0,
) -> list[tuple[int, Step | Miss]]:
    """What a controller decides; ``computing`` is how much slower than measured the machine is."""
    found = []
    for frame in range(frames):
        seconds = COSTS[controller.level] * computing(frame)
        verdict = controller.after(seconds + waiting(frame), seconds)
        if verdict is not None:
            found.append((frame, verdict))
    return found


def levels(found: list[tuple[int, Step | Miss]]) -> list[int]:
    return [each.after for _, each in found if isinstance(each, Step)]


@pytest.mark.parametrize(
    ("target", "level"), [(1.0, 0), (0.020 / 0.89, 0), (0.020 / 0.91, 1), (0.0135, 3), (0.001, 4)]
)
def test_it_starts_where_there_is_some_room(target: float, level: int) -> None:
    assert Controller(COSTS, target).level == level


def test_it_starts_where_frames_do_not_pile_up_if_those_that_wait_would_miss_the_target() -> None:
    assert Controller(COSTS, 0.040, period=0.015, places=2).level == 2
    assert Controller(COSTS, 0.080, period=0.015, places=2).level == 0


def test_nothing_changes_where_all_is_well() -> None:
    assert play(Controller(COSTS, 0.025), 1000, lambda frame: 1.0) == []


def test_a_slower_machine_takes_it_down_one_step_at_a_time_and_no_further_than_needed() -> None:
    controller = Controller(COSTS, 0.025)
    found = play(controller, 300, lambda frame: 1.6)
    assert levels(found) == [1, 2]  # 14 ms, now 22.4
    assert found[0][0] == FEWEST - 1
    assert found[0][1].measured == pytest.approx(0.032)


def test_it_comes_back_up_when_the_machine_is_free_again() -> None:
    controller = Controller(COSTS, 0.025)
    found = play(controller, 1000, lambda frame: 1.6 if frame < 100 else 1.0)
    assert levels(found) == [1, 2, 1, 0]
    assert found[2][0] >= 100


def test_waiting_counts() -> None:
    controller = Controller(COSTS, 0.025)
    found = play(controller, 300, lambda frame: 1.0, lambda frame: 0.009)
    assert levels(found) == [1, 2]


def test_a_hiccup_now_and_then_is_no_reason() -> None:
    controller = Controller(COSTS, 0.025)
    assert play(controller, 1000, lambda frame: 20.0 if frame % 20 == 4 else 1.0) == []
    assert play(controller, 100, lambda frame: 20.0 if frame % 5 == 4 else 1.0) != []


def test_frames_that_waited_through_the_level_before_do_not_count() -> None:
    controller = Controller(COSTS, 0.025, places=3)
    assert levels(play(controller, FEWEST, lambda frame: 1.6)) == [1]
    assert play(controller, 3, lambda frame: 100.0) == []
    assert levels(play(controller, 200, lambda frame: 0.9)) == [0]


def test_what_can_not_be_held_is_said_once() -> None:
    controller = Controller(COSTS, 0.005)
    found = play(controller, 500, lambda frame: 1.0)
    assert found == [(FEWEST - 1, Miss(pytest.approx(0.010)))]
    assert controller.level == len(COSTS) - 1


def test_with_one_level_it_can_only_say_so() -> None:
    controller = Controller([0.010], 0.005)
    assert [controller.after(0.01, 0.01) for _ in range(FEWEST)][-1] == Miss(0.01)
    assert controller.level == 0


def test_a_level_that_keeps_failing_is_tried_more_and_more_rarely() -> None:
    """The dearest costs far more than was measured, so that each try fails."""
    controller = Controller(COSTS, 0.0225)
    tries = []
    for frame in range(6000):
        slow = 2.0 if controller.level == 0 else 1.0
        seconds = COSTS[controller.level] * slow
        verdict = controller.after(seconds, seconds)
        if isinstance(verdict, Step) and verdict.after == 0:
            tries.append(frame)
    gaps = [after - before for before, after in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= RAREST * WINDOW
    assert len(tries) < 6000 / (RAREST * WINDOW) + 6


def test_it_does_not_go_up_to_where_frames_would_pile_up() -> None:
    """At 60 frames a second 17 ms are too many, though the target would allow them."""
    controller = Controller(COSTS, 0.030, period=1 / 60, places=2)
    assert controller.level == 2
    assert play(controller, 2000, lambda frame: 1.0) == []
    roomy = Controller(COSTS, 0.100, period=1 / 60, places=2)
    assert roomy.level == 0


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
    with pytest.raises(InputError, match="a target latency is positive"):
        Controller(COSTS, target)
