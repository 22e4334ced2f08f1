"""A view of a model at another budget: the same weights, its own budget, in any thread."""

from __future__ import annotations

import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from dynamicvit import DynamicViT, InputError, Schedule, UntrainedWarning, sparsify
from dynamicvit.core.decisions import best_k_sampler
from dynamicvit.core.schedule import Policy
from dynamicvit.methods import METHODS
from families import DEIT, Family, assert_agree, few_families

BUDGETS = (0.9, 0.7, 0.5, 0.3)
DROPPING = sorted(n for n, kind in METHODS.items() if n != "narrow" and not kind.for_clips)


@few_families
@pytest.mark.parametrize("policy", ["removed", "merged"])
@torch.no_grad()
def test_a_view_is_the_model_made_for_its_budget(family: Family, policy: Policy) -> None:
    model, images = family.sparse(0.7, policy=policy), family.images()
    before = model(images)
    half = model.at(0.5)
    assert torch.equal(half(images), family.sparse(0.5, policy=policy)(images))
    assert_agree(half.forward_masked(images, sampler=best_k_sampler).logits, half(images))
    assert (half.keep_ratio, model.keep_ratio) == (0.5, 0.7)
    assert torch.equal(model(images), before)


@pytest.mark.parametrize("method", DROPPING)
@torch.no_grad()
def test_every_method_has_views(method: str) -> None:
    images = DEIT.images()

    def logits(model: Any) -> torch.Tensor:
        torch.manual_seed(0)  # of method random
        return model(images)

    def made(ratio: float) -> Any:
        torch.manual_seed(1)  # of fresh modules
        model = sparsify(DEIT.backbone(), ratio, method=method).eval()
        model.warns_untrained = False
        return model

    model = made(0.7)
    for ratio in (0.5, 0.9, 0.5):
        view, other = model.at(ratio), made(ratio)
        assert view.schedule == other.schedule
        assert torch.equal(logits(view), logits(other))


@pytest.mark.parametrize("method", ["dynamicvit", "lookahead", "evit"])
@torch.no_grad()
def test_threads_with_a_budget_for_each_request(method: str) -> None:
    model = DEIT.sparse(policy="merged")
    if method != "dynamicvit":
        model = sparsify(DEIT.backbone(), method=method).eval()
    before = model.schedule
    requests = [(BUDGETS[i % len(BUDGETS)], DEIT.images(2, seed=i)) for i in range(24)]
    one_by_one = [model.at(ratio)(images) for ratio, images in requests]

    def answer(request: tuple[float, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():  # of each thread its own
            return model.at(request[0])(request[1])

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(answer, requests))
    assert all(torch.equal(a, b) for a, b in zip(together, one_by_one, strict=True))
    assert model.schedule == before


def test_it_shares_every_weight() -> None:
    model = DEIT.sparse().train()
    view = model.at(0.4)
    assert isinstance(view, DynamicViT)
    theirs = dict(view.named_parameters())
    assert all(theirs[name] is value for name, value in model.named_parameters())
    assert len(theirs) == len(list(model.parameters()))
    view.forward_masked(DEIT.images()).logits.sum().backward()
    assert all(p.grad is not None for p in model.backbone.blocks.parameters())


@torch.no_grad()
def test_a_schedule_of_other_stages_moves_the_view_alone() -> None:
    model, images = sparsify(DEIT.backbone(), method="class-attention").eval(), DEIT.images()
    before = model(images)
    late = Schedule((2, 3), (0.5, 0.25))
    view = model.at(late)
    assert view.schedule == late
    assert torch.equal(model(images), before)
    expected = sparsify(DEIT.backbone(), schedule=late, method="class-attention").eval()
    assert torch.equal(view(images), expected(images))
    uneven = DEIT.sparse().at((0.8, 0.5, 0.5))
    assert uneven.keep_ratios == (0.8, 0.5, 0.5)
    with pytest.raises(InputError, match="can't be moved"):
        DEIT.sparse().at(late)


@torch.no_grad()
def test_a_method_that_was_replaced_on_the_model_does_not_run_at_its_budget() -> None:
    """As accelerate's hooks, model.compile() and training's compiled paths do."""
    model, images = DEIT.sparse(), DEIT.images()
    expected = model.at(0.4)(images)
    model.forward = types.MethodType(DynamicViT.forward, model)
    model._compiled_call_impl = model._call_impl
    assert torch.equal(model.at(0.4)(images), expected)
    assert not torch.equal(model(images), expected)


@torch.no_grad()
def test_an_untrained_view_says_so_and_a_trained_one_is_not_asked_again() -> None:
    fresh = sparsify(DEIT.backbone(), method="dynamicvit").eval()
    with pytest.warns(UntrainedWarning):
        fresh.at(0.5)(DEIT.images())
    trained = DEIT.sparse()
    assert not trained.at(0.5).warns_untrained


@pytest.mark.parametrize(
    "budget", [0.0, -0.5, 1.01, float("nan"), True, "half", (0.5,), (0.5,) * 4]
)
def test_budgets_that_can_not_be(budget: Any) -> None:
    model = DEIT.sparse()
    for _ in range(2):
        with pytest.raises(InputError):
            model.at(budget)
        model.at(1.0)
    assert model.keep_ratio == 0.7
