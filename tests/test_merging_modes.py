"""A model that merges dropped tokens, in the modes and precisions in which models are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dynamicvit import MaskedOutput
from dynamicvit.core.decisions import best_k_sampler
from families import DEIT, Family, assert_agree, few_families

both_leaves = pytest.mark.parametrize("masking", ["full", "compact"])


class Learner(nn.Module):
    """The masked path on the best k: what it does is no matter of chance."""

    def __init__(self, family: Family, masking: Any, **arguments: Any) -> None:
        super().__init__()
        self.model = family.sparse(keep_ratio=0.6, policy="merged", **arguments).train()
        self.masking = masking

    def forward(self, images: Tensor) -> MaskedOutput:
        return self.model.forward_masked(images, sampler=best_k_sampler, masking=self.masking)


def learned(learner: Learner, images: Tensor, call: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of a loss on them and on the scores."""
    learner.zero_grad()
    output = (learner if call is None else call)(images)
    scores = sum(odds[odds.isfinite()].sigmoid().sum() for odds in output.keep_scores)
    (output.logits.float().square().sum() + scores).backward()
    gradients = {
        name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None
    }
    return output.logits.detach(), gradients


def assert_same(
    found: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> None:
    assert_agree(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    assert any("predictors" in name for name in expected[1])
    for name, gradient in expected[1].items():
        assert_agree(found[1][name], gradient, tolerance=1e-4)


@few_families
@pytest.mark.parametrize("masking", ["full", "lagged", "compact"])
@torch.no_grad()
def test_training_on_the_best_k_sees_what_inference_sees(family: Family, masking: Any) -> None:
    """Scores at later stages included: likeness to tokens that have left counts for nothing."""
    learner, images = Learner(family, masking), family.images(3)
    masked, pruned = learner(images), learner.model.forward_pruned(images)
    assert_agree(masked.logits, pruned.logits)
    for decision, survived in zip(masked.decisions, pruned.kept, strict=True):
        assert torch.equal(decision > 0.5, survived)


@both_leaves
@few_families
def test_grad_checkpointing_gives_the_same_gradients(family: Family, masking: Any) -> None:
    learner, images = Learner(family, masking), family.images()
    expected = learned(learner, images)
    learner.model.set_grad_checkpointing()
    assert_same(learned(learner, images), expected)


# Compilation takes seconds for each block, so this model has one.


# Where a graph breaks, torch looks at gradients of what it hands on.
@pytest.mark.extended
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_training() -> None:
    """Where tokens leave at once; tests/test_model.py compiles the other way."""
    learner, images = Learner(DEIT, "compact", depth=1, stages=[0]), DEIT.images()
    expected = learned(learner, images)
    torch._dynamo.reset()
    # How many tokens leave, the graph does not know before it runs: it may break there.
    compiled = torch.compile(learner, backend="eager")
    assert_same(learned(learner, images, compiled), expected)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.extended)]
)
@both_leaves
@few_families
def test_half_precision(family: Family, masking: Any, dtype: torch.dtype) -> None:
    """Finite, also where all patches are the same; near to full precision.

    Not nearer: to a half, another token may be the most alike one.
    """
    learner, images, decisions = Learner(family, masking), family.images(), family.decisions()
    model = learner.model
    images = torch.cat([images, torch.zeros_like(images[:1])])
    decisions = [torch.cat([each, each[:1]]) for each in decisions]
    exact = model.forward_masked(images, decisions).logits.detach()
    with torch.autocast("cpu", dtype):
        for path in (model.forward_masked, model.forward_pruned):
            assert_agree(path(images, decisions).logits.float(), exact, tolerance=0.15)
        logits, gradients = learned(learner, images)
        assert model.eval()(images).isfinite().all()
    assert logits.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@few_families
@torch.no_grad()
def test_double_precision(family: Family) -> None:
    """Shares and sizes are in single precision, and exact for what both paths have in common."""
    model = family.sparse(policy="merged").double()
    images, decisions = family.images().double(), family.decisions()
    masked, pruned = (
        path(images, decisions).logits for path in (model.forward_masked, model.forward_pruned)
    )
    assert masked.dtype == pruned.dtype == torch.float64
    assert_agree(masked, pruned, tolerance=1e-6)
