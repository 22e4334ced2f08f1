"""What is said of losses that are not finite."""

import math
from pathlib import Path

import pytest

from dynamicvit.training.finite import not_finite, what_to_try


@pytest.mark.parametrize(
    ("losses", "norm", "bad"),
    [
        ({"total": 1.0, "token": 0.5}, 1.0, ()),
        ({"total": math.nan, "token": math.nan, "ratio": 0.1}, 1.0, ("token",)),
        ({"total": math.inf, "token": math.nan, "ratio": math.inf}, 1.0, ("token", "ratio")),
        ({"total": math.inf, "token": 3e38}, 1.0, ("total",)),
        ({"total": math.nan, "token": math.nan}, math.nan, ("token",)),
        ({"total": 1.0, "token": 0.5}, math.inf, ("gradient",)),
    ],
)
def test_the_part_is_named(losses: dict[str, float], norm: float, bad: tuple[str, ...]) -> None:
    assert not_finite(losses, norm) == bad


def test_the_advice_names_the_place_and_the_cure() -> None:
    advice = what_to_try(12, ("token", "guidance"), Path("out"))
    for said in (
        "token and guidance",
        "step 12",
        "out keeps",
        "learning_rate",
        "clip_grad",
        "fp32",
    ):
        assert said in advice
