"""Decisions: drawn with the right probabilities, exact, differentiable, never NaN."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit import PredictionModule
from dynamicvit.core.decisions import (
    Sampler,
    best_k_sampler,
    gumbel_sampler,
    gumbel_top_k_sampler,
)
from dynamicvit.layers.tokens import top_k

each_sampler = pytest.mark.parametrize(
    "sampler", [gumbel_sampler, gumbel_top_k_sampler, best_k_sampler]
)
exact_samplers = pytest.mark.parametrize("sampler", [gumbel_top_k_sampler, best_k_sampler])


def random_scores(batch: int, patches: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, patches, generator=random) * scale


# ---------------------------------------------------------------- drawing


def test_gumbel_sampler_keeps_with_the_given_probability() -> None:
    torch.manual_seed(0)
    probability = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.98])
    draws = 20_000
    keep_scores = probability.logit().expand(draws, -1)
    kept = gumbel_sampler(keep_scores, torch.ones(draws, 5), 1).mean(dim=0)
    error = (probability * (1 - probability) / draws).sqrt()
    assert ((kept - probability).abs() < 4 * error).all(), (kept, probability)


def test_gumbel_sampler_draws_tokens_one_by_one() -> None:
    """So the number kept varies; that is what the ratio loss is for."""
    torch.manual_seed(0)
    keep_scores = torch.zeros(500, 20)
    counts = gumbel_sampler(keep_scores, torch.ones(500, 20), 10).sum(dim=1)
    assert counts.var().item() == pytest.approx(20 * 0.25, rel=0.3)  # binomial


def test_gumbel_sampler_has_the_gradient_of_gumbel_softmax() -> None:
    """The same noise through torch's own function gives the same draw and the same gradient."""
    keep_scores = random_scores(3, 50)
    probe = torch.randn(3, 50)
    results = []
    for draw in (
        lambda x: gumbel_sampler(x, torch.ones(3, 50), 10),
        lambda x: torch.nn.functional.gumbel_softmax(
            torch.stack([F.logsigmoid(x), F.logsigmoid(-x)], dim=-1), tau=1.0, hard=True
        )[..., 0],
    ):
        leaf = keep_scores.clone().requires_grad_()
        torch.manual_seed(3)
        decision = draw(leaf)
        (decision * probe).sum().backward()
        results.append((decision.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 7, 19, 20])
@exact_samplers
def test_exactly_k_of_the_kept_stay(sampler: Sampler, k: int) -> None:
    torch.manual_seed(0)
    decision = torch.ones(64, 20)
    decision[:32, ::4] = 0  # 15 are left
    decision[32:40] = 0  # none is
    keep_scores = random_scores(64, 20)
    kept = sampler(keep_scores, decision, k) * decision
    assert kept[:32].sum(dim=1).tolist() == [min(k, 15)] * 32
    assert kept[32:40].sum() == 0
    assert kept[40:].sum(dim=1).tolist() == [k] * 24


def test_gumbel_top_k_favors_high_scores() -> None:
    """In the order of the keep probabilities, and more than by chance but not always."""
    torch.manual_seed(0)
    probability = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    keep_scores = probability.logit().expand(4000, -1)
    kept = gumbel_top_k_sampler(keep_scores, torch.ones(4000, 5), 2).mean(dim=0)
    assert kept.sum().item() == pytest.approx(2.0)
    assert (kept.diff() > 0.05).all(), kept
    assert 0.0 < kept[0] < 0.1
    assert kept[4] > 0.7


def test_best_k_is_the_choice_of_inference() -> None:
    keep_scores = random_scores(5, 20)
    kept = best_k_sampler(keep_scores, torch.ones(5, 20), 7)
    assert kept.nonzero()[:, 1].reshape(5, 7).tolist() == top_k(keep_scores, 7).tolist()


def test_gumbel_top_k_is_even_where_scores_are() -> None:
    torch.manual_seed(0)
    keep_scores = torch.zeros(8000, 5)
    kept = gumbel_top_k_sampler(keep_scores, torch.ones(8000, 5), 2).mean(dim=0)
    torch.testing.assert_close(kept, torch.full((5,), 0.4), rtol=0, atol=0.025)


@each_sampler
def test_draws_are_exactly_0_or_1_and_differentiable(sampler: Sampler) -> None:
    torch.manual_seed(0)
    keep_scores = random_scores(50, 20, scale=2.0).requires_grad_()
    kept = sampler(keep_scores, torch.ones(50, 20), 9)
    assert set(kept.detach().unique().tolist()) == {0.0, 1.0}
    kept.sum().backward()
    assert (keep_scores.grad > 0).all(), "a higher score is a higher decision, of dropped ones too"


def test_the_top_k_gradient_is_largest_at_the_cut() -> None:
    """A token far from the cut does not change sides by a small step."""
    torch.manual_seed(0)
    row = torch.tensor([18.0, 8.6, 4.4, 3.6, -0.6, -10.0])  # the cut is at 4, not at 0
    keep_scores = row.expand(2000, -1).clone().requires_grad_()
    gumbel_top_k_sampler(keep_scores, torch.ones(2000, 6), 3).sum().backward()
    slope = keep_scores.grad.mean(dim=0)
    assert slope[2:4].min() > 2 * slope[[1, 4]].max()
    assert slope[[1, 4]].min() > 2 * slope[[0, 5]].max()


# ---------------------------------------------------------------- never NaN


@each_sampler
def test_hundreds_of_draws_give_no_nan(sampler: Sampler) -> None:
    """Scores from flat to certain, images that lost everything, any k; forward and backward."""
    torch.manual_seed(0)
    for draw in range(500):
        scale = (0.0, 1.0, 10.0, 50.0)[draw % 4]
        keep_scores = random_scores(4, 20, scale, seed=draw).requires_grad_()
        kept_before = (torch.rand(4, 20) < torch.tensor([[0.0], [0.05], [0.5], [1.0]])).float()
        before = kept_before.requires_grad_()
        after = sampler(keep_scores, before, 1 + draw % 21) * before
        (after * torch.randn(4, 20)).sum().backward()
        assert set(after.detach().unique().tolist()) <= {0.0, 1.0}
        assert (after.detach() <= kept_before.detach()).all()
        assert keep_scores.grad.isfinite().all()
        assert before.grad.isfinite().all()


@each_sampler
@pytest.mark.parametrize("certain", [50.0, 1e4, float("inf")])
def test_certain_scores(sampler: Sampler, certain: float) -> None:
    row = torch.tensor([certain] * 10 + [-certain] * 10)
    keep_scores = row.expand(3, -1).clone().requires_grad_()
    kept = sampler(keep_scores, torch.ones(3, 20), 10)
    assert (kept[:, :10] == 1).all()
    assert (kept[:, 10:] == 0).all()
    kept.sum().backward()
    assert keep_scores.grad.isfinite().all()


@pytest.mark.parametrize("sampler", [gumbel_sampler, gumbel_top_k_sampler])
def test_infinite_noise_is_a_decision_and_not_nan(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exponential draw of exactly 0 has an infinite logarithm. Some generators give it."""

    def exponential(self: Tensor) -> Tensor:
        self.fill_(1.0)[..., 0, 0] = 0.0  # the first token's "keep"
        return self

    monkeypatch.setattr(Tensor, "exponential_", exponential)
    keep_scores = random_scores(2, 6).requires_grad_()
    kept = sampler(keep_scores, torch.ones(2, 6), 3)
    assert kept.isfinite().all()
    assert (kept[:, 0] == 1).all()
    kept.sum().backward()
    assert keep_scores.grad.isfinite().all()


@each_sampler
def test_three_stages_of_draws_and_modules_give_no_nan(sampler: Sampler) -> None:
    """The loop of the masked path without its blocks, down to images without any token left."""
    torch.manual_seed(0)
    modules = [PredictionModule(16) for _ in range(3)]
    for module in modules:
        module.head[-1].bias.data = torch.tensor([-2.0, 2.0])  # drop nearly everything
    lost_all = 0
    for _ in range(80):
        patches = (torch.randn(8, 20, 16) * 10).requires_grad_()
        decision = torch.ones(8, 20)
        for module in modules:
            decision = decision * sampler(module(patches, decision), decision, 1)
        lost_all += (decision.sum(dim=1) == 0).sum().item()
        decision.square().sum().backward()
        gradients = [parameter.grad for module in modules for parameter in module.parameters()]
        assert all(gradient.isfinite().all() for gradient in (patches.grad, *gradients))
    assert lost_all > 25 or sampler is not gumbel_sampler
