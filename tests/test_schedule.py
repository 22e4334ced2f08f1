"""The schedule: default stages, powers of ρ, exact counts, and clear refusals."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from dynamicvit import InputError, Schedule, sparsify
from families import DEIT


@pytest.mark.parametrize(
    ("depth", "stages"),
    [(4, (1, 2, 3)), (8, (2, 4, 6)), (12, (3, 6, 9)), (16, (4, 8, 12)), (20, (5, 10, 15))],
)
def test_default_stages_lie_at_the_quarters(depth: int, stages: tuple[int, ...]) -> None:
    assert Schedule.for_depth(depth).stages == stages


def test_the_ratios_are_powers_of_rho() -> None:
    schedule = Schedule.for_depth(12, 0.7)
    assert schedule.keep_ratios == pytest.approx((0.7, 0.49, 0.343))
    assert schedule.kept(196) == (137, 96, 67)
    assert schedule.keep_ratio == 0.7


def test_any_number_of_stages_and_any_ratios() -> None:
    assert Schedule.for_depth(12, 0.5, stages=[2, 5]).keep_ratios == (0.5, 0.25)
    assert Schedule.for_depth(12, 0.5, stages=range(12)).kept(4096)[-1] == 1
    assert Schedule.for_depth(12, [0.9, 0.9, 0.3]).keep_ratios == (0.9, 0.9, 0.3)
    assert Schedule.for_depth(12, [0.9, 0.9, 0.3]).keep_ratio is None
    assert Schedule.for_depth(12, (1, 1, 1)).keep_ratio == 1.0
    assert Schedule.for_depth(2, 0.5, stages=[0]).stages == (0,)
    nothing = Schedule.for_depth(12, 0.5, stages=[])
    assert nothing.kept(196) == ()
    assert nothing.keep_ratio == 1.0


@pytest.mark.parametrize("rho", [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize("patches", [100, 196, 256, 576, 1000])
def test_the_count_is_the_exact_floor(rho: float, patches: int) -> None:
    """0.7 ** 2 * 100 is 48.99999... in floating point, but 49 are meant."""
    tenths = round(rho * 10)
    exact = tuple(max(1, patches * tenths**s // 10**s) for s in (1, 2, 3))
    assert Schedule.for_depth(12, rho).kept(patches) == exact


def test_at_least_one_patch_stays() -> None:
    assert Schedule.for_depth(12, 0.01).kept(50) == (1, 1, 1)
    assert Schedule.for_depth(12, 1e-9).kept(196) == (1, 1, 1)


def test_numpy_numbers_are_numbers() -> None:
    schedule = Schedule.for_depth(
        12, [np.float32(0.5), np.float64(0.25)], [np.int64(3), np.int64(6)]
    )
    assert schedule == Schedule((3, 6), (0.5, 0.25))
    assert all(type(value) is float for value in schedule.keep_ratios)
    assert all(type(value) is int for value in schedule.stages)


@pytest.mark.parametrize(
    "ratio", [0, 0.0, -0.1, 1.0001, 70, math.nan, math.inf, True, "0.7", None, 0.7j, {0.7}]
)
def test_a_keep_ratio_that_can_not_be(ratio: Any) -> None:
    """Alone, in a sequence, and when the budget is changed at run time."""
    message = re.escape(f"(0, 1], got {ratio!r}")
    with pytest.raises(InputError, match=message):
        Schedule.for_depth(12, ratio)
    with pytest.raises(InputError, match=message):
        Schedule.for_depth(12, [1.0, ratio, 0.1])
    with pytest.raises(InputError, match=message):
        Schedule((3, 6), (1.0, ratio))
    with pytest.raises(InputError, match=message):
        sparsify(DEIT.backbone(), keep_ratio=ratio, method="dynamicvit")
    model = sparsify(DEIT.backbone(), keep_ratio=0.6, method="dynamicvit")
    with pytest.raises(InputError, match=message):
        model.keep_ratio = ratio
    assert model.keep_ratio == 0.6


def test_ratios_that_grow() -> None:
    with pytest.raises(InputError, match=r"can't grow.*\(0.5, 0.6, 0.3\)"):
        Schedule.for_depth(12, [0.5, 0.6, 0.3])


def test_another_number_of_ratios_than_stages() -> None:
    with pytest.raises(InputError, match=r"3 stages \(3, 6, 9\) need 3 keep ratios, got 2"):
        Schedule.for_depth(12, [0.5, 0.4])
    with pytest.raises(InputError, match="need 3 keep ratios, got 0"):
        Schedule.for_depth(12, [])
    model = sparsify(DEIT.backbone(), method="dynamicvit")
    with pytest.raises(InputError, match="need 3 keep ratios, got 1"):
        model.keep_ratio = [0.5]


@pytest.mark.parametrize("stage", [12, -1, 100, 3.0, 3.5, "3", True, None])
def test_a_stage_outside_the_depth(stage: Any) -> None:
    message = re.escape(f"stage {stage!r} is not a block index: 0 to 11 exist")
    with pytest.raises(InputError, match=message):
        Schedule.for_depth(12, 0.7, [stage])


@pytest.mark.parametrize("stages", [[3, 3, 6], [6, 3], [0, 9, 6]])
def test_stages_twice_or_out_of_order(stages: Sequence[int]) -> None:
    with pytest.raises(InputError, match=re.escape(f"not repeat, got {tuple(stages)}")):
        Schedule.for_depth(12, 0.7, stages)


@pytest.mark.parametrize("stages", [3, "369"])
def test_stages_that_are_no_sequence(stages: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"block indices, got {stages!r}")):
        Schedule.for_depth(12, 0.7, stages)


def test_too_few_blocks_for_default_stages() -> None:
    with pytest.raises(InputError, match="3 blocks are too few"):
        Schedule.for_depth(3)


@torch.no_grad()
def test_the_budget_of_a_model_changes_at_run_time() -> None:
    model, images = DEIT.sparse(keep_ratio=0.7), DEIT.images()

    def kept() -> list[int]:
        return [int(stage[0].sum()) for stage in model.forward_pruned(images).kept]

    assert model.keep_ratio == 0.7
    assert kept() == [14, 9, 6]
    model.keep_ratio = 0.5
    assert model.keep_ratio == 0.5
    assert kept() == [10, 5, 2]
    model.keep_ratio = [0.9, 0.5, 0.5]
    assert model.keep_ratio is None
    assert kept() == [18, 10, 10]
    model.keep_ratio = 1
    assert kept() == [20, 20, 20]
    assert model.schedule.stages == (1, 2, 3)
