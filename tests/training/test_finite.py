"""What is said of losses that are not finite."""

import math
from pathlib import Path

import pytest
import torch

from dynamicvit.training.finite import not_finite, what_to_try, whose_answer


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
    tensors = {name: torch.tensor(value) for name, value in losses.items()}
    assert not_finite(tensors, norm) == bad


def test_the_images_are_named() -> None:
    logits = torch.zeros(4, 3)
    assert whose_answer(logits) == "every image's logits are finite"
    logits[1, 2], logits[3, 0] = math.nan, math.inf
    assert "images 1, 3 of the batch's 4" in whose_answer(logits)
    assert "all 4 images" in whose_answer(logits / 0)


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
