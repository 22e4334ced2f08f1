"""With a frozen backbone the prediction modules alone learn, and it is its own teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from dynamicvit import InputError, TrainingObjective, sparsify
from dynamicvit.core.losses import LossWeights
from dynamicvit.training import Recipe, load_recipe
from dynamicvit.training.checkpoint_file import load_checkpoint
from dynamicvit.training.loop import fit
from dynamicvit.training.memory import estimate_memory
from families import BY_NAME, DEIT, Family
from memory import BATCH, Memory, shallow


def frozen(*overrides: str, base: str = "frozen", steps: int = 3) -> Recipe:
    values = [f"images={BATCH * steps}", f"batch_size={BATCH}", "freeze_backbone=true"]
    return load_recipe(base, [*values, *overrides])


def bits(state: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: value.contiguous().numpy().tobytes() for name, value in state.items()}


@pytest.mark.parametrize("base", ["frozen", "deit_small"])
@pytest.mark.parametrize("family", [DEIT, BY_NAME["lvvit"]], ids=["deit", "lvvit"])
def test_the_backbone_stays_to_the_bit(family: Family, base: str, tmp_path: Path) -> None:
    """Its batch norms, averaged weights and negative zeros too."""
    model = shallow(family)
    next(model.backbone.parameters()).data.flatten()[:3] = -0.0
    before, modules = bits(model.backbone.state_dict()), bits(model.predictors.state_dict())
    fit(model, Memory(), frozen("ema=0.5", base=base), tmp_path)
    assert bits(model.backbone.state_dict()) == before
    after = bits(model.predictors.state_dict())
    assert all(after[name] != modules[name] for name in modules if "norm" not in name)
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    saved = load_checkpoint(tmp_path / "checkpoint.pt")
    assert "teacher" not in saved  # which is the backbone
    for part in ("model", "ema"):
        held = {n.removeprefix("backbone."): v for n, v in saved[part].items() if "backbone." in n}
        assert bits(held) == before


def test_no_second_dense_network_is_in_memory() -> None:
    model = DEIT.sparse()
    weights = {id(value): value.nbytes for value in model.parameters()}
    learns = sum(value.nbytes for value in model.predictors.parameters())
    memory = estimate_memory(model, frozen("ema=0.5"))
    assert (memory.weights, memory.teacher) == (sum(weights.values()), 0)
    assert memory.gradients == memory.averaged == learns
    whole = estimate_memory(model, frozen("freeze_backbone=false"))
    assert memory.activations <= whole.activations
    assert all(parameter.requires_grad for parameter in model.parameters()), "only estimated"
    objective = TrainingObjective(model, freeze_backbone=True).train()
    held = {id(p) for each in (model, *objective.teachers) for p in each.parameters()}
    assert held == weights.keys()
    assert model.training
    assert not any(part.training for part in model.backbone.modules())


def test_every_part_of_the_loss_reaches_the_modules_where_decisions_have_a_gradient() -> None:
    for part in ("distillation", "token", "feature", "ratio"):
        model = shallow()
        none = dict.fromkeys(("classification", "distillation", "token", "ratio"), 0.0)
        weights = LossWeights(**{**none, part: 1.0})
        objective = TrainingObjective(model, weights=weights, freeze_backbone=True).train()
        objective(DEIT.images()).total.backward()
        assert all(p.grad.any() for p in model.predictors[0].mlp.parameters()), part
        assert all(p.grad is None for p in model.backbone.parameters())


def test_what_can_not_learn_is_refused(tmp_path: Path) -> None:
    model = sparsify(DEIT.backbone(), method="tome")
    with pytest.raises(InputError, match="'tome' has no weights"):
        fit(model, Memory(), frozen(), tmp_path)
    for value in ("drop_path=0.1", "fresh=[head.weight]"):
        with pytest.raises(InputError, match="freeze_backbone"):
            frozen(value, "share_first_blocks=false")
