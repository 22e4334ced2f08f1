"""Weights that a run saves in place of those that learn: on the way from the dense ones to them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamicvit.errors import InputError
from dynamicvit.training import Progress, fit, loop
from dynamicvit.training.checkpoint import NEWEST
from dynamicvit.training.checkpoint_file import load_checkpoint
from dynamicvit.training.held_out import HeldOut
from memory import Memory, shallow, small

FAST = ("backbone_lr_scale=1", "learning_rate=0.01", "warmup=0")


class Seen(HeldOut):
    """Remembers the backbone's weights that it was asked about."""

    def evaluate(self, model: nn.Module, *rest: Any) -> Any:
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        vars(self).setdefault("seen", []).append(weights)
        return super().evaluate(model, *rest)


def test_they_lie_between_the_dense_weights_and_the_trained_ones(tmp_path: Path) -> None:
    dense, trained, model = shallow(), shallow(), shallow()
    fit(trained, Memory(), small(*FAST), tmp_path / "trained")
    held_out = Seen(Memory(1))
    fit(model, Memory(), small(*FAST, "interpolate=0.25"), tmp_path / "own", held_out=held_out)
    before, after = dense.state_dict(), trained.state_dict()
    moved = 0
    for name, value in model.state_dict().items():
        share = 0.25 if name.startswith("backbone.") else 1  # prediction modules start from nothing
        torch.testing.assert_close(value, before[name].lerp(after[name], share))
        moved += not torch.equal(value, before[name])
    assert moved > 20
    state = load_checkpoint(tmp_path / "own" / NEWEST)
    last = vars(held_out)["seen"][-1]
    for name, value in model.state_dict().items():
        assert torch.equal(state["model"][name], after[name]), "what learns is not touched"
        assert torch.equal(last[name], value), "what is evaluated is what is saved"
        assert torch.equal(state["ema"][name], value), "and what a checkpoint is loaded for"


def test_a_run_that_was_stopped_ends_with_the_same(tmp_path: Path) -> None:
    recipe, whole = small(*FAST, "interpolate=0.5"), shallow()
    fit(whole, Memory(), recipe, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(loop.Interrupted):
        fit(shallow(), Memory(), recipe, tmp_path / "halves", on_step=stop)
    resumed = shallow()
    # The dense weights are the run's: here others are loaded when it goes on.
    moved = copy.deepcopy(resumed.backbone.head.weight)
    with torch.no_grad():
        resumed.backbone.head.weight.add_(1)
    fit(resumed, Memory(), recipe, tmp_path / "halves", resume=True)
    ends: list[dict[str, Tensor]] = [model.state_dict() for model in (whole, resumed)]
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value), name
    assert not torch.equal(resumed.backbone.head.weight, moved)


def test_a_run_that_has_ended_can_be_saved_at_another_share(tmp_path: Path) -> None:
    """Forced, with no step left to do: from the trained weights back, and to them again."""
    ends = []
    for share, how in ((1, {}), (0.5, {"resume": True}), (1, {"resume": True})):
        model = shallow()
        recipe = small(*FAST, f"interpolate={share}")
        fit(model, Memory(), recipe, tmp_path, **how, force=bool(how))
        ends.append(model.backbone.head.weight.detach())
    trained, between, again = ends
    assert torch.equal(trained, again)
    torch.testing.assert_close(between, shallow().backbone.head.weight.lerp(trained, 0.5))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("interpolate=0",), "interpolate: .*greater than 0, got 0"),
        (("interpolate=1.5",), "interpolate: .*less than or equal to 1, got 1.5"),
        (("interpolate=0.5", "ema=0.99"), r"interpolate 0\.5 needs ema=null"),
        (("interpolate=0.5", "freeze_backbone=true"), "is for a backbone that learns"),
        (
            (
                "interpolate=0.5",
                "masking=full",
                "losses={distillation: 0, token: 0, feature: 0, guidance: 0, ratio: 1}",
            ),
            "needs the dense model among the teachers",
        ),
    ],
)
def test_what_they_need(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        small(*overrides)
