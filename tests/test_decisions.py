"""Decisions: drawn with the right probabilities, exact, differentiable, never NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dynamicvit import PredictionModule
from dynamicvit.core.decisions import (
    Sampler,
    best_k_sampler,
    gather_patches,
    gumbel_sampler,
    gumbel_top_k_sampler,
    log_odds,
    log_probs_of,
    places_of,
    to_image,
)
from dynamicvit.core.prediction import KEEP
from dynamicvit.layers.tokens import Tokens, top_k

each_sampler = pytest.mark.parametrize(
    "sampler", [gumbel_sampler, gumbel_top_k_sampler, best_k_sampler]
)
exact_samplers = pytest.mark.parametrize("sampler", [gumbel_top_k_sampler, best_k_sampler])


def logs_of(keep_probability: Tensor) -> Tensor:
    return torch.stack([keep_probability, 1 - keep_probability], dim=-1).log()


def random_log_probs(batch: int, patches: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(batch, patches, 2, generator=random) * scale).log_softmax(-1)


# ---------------------------------------------------------------- drawing


def test_gumbel_sampler_keeps_with_the_given_probability() -> None:
    torch.manual_seed(0)
    probability = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.98])
    draws = 20_000
    log_probs = logs_of(probability).expand(draws, -1, -1)
    kept = gumbel_sampler(log_probs, torch.ones(draws, 5), 1).mean(dim=0)
    error = (probability * (1 - probability) / draws).sqrt()
    assert ((kept - probability).abs() < 4 * error).all(), (kept, probability)


def test_gumbel_sampler_draws_tokens_one_by_one() -> None:
    """So the number kept varies; that is what the ratio loss is for."""
    torch.manual_seed(0)
    log_probs = logs_of(torch.full((500, 20), 0.5))
    counts = gumbel_sampler(log_probs, torch.ones(500, 20), 10).sum(dim=1)
    assert counts.var().item() == pytest.approx(20 * 0.25, rel=0.3)  # binomial


def test_gumbel_sampler_has_the_gradient_of_gumbel_softmax() -> None:
    """The same noise through torch's own function gives the same draw and the same gradient."""
    log_probs = random_log_probs(3, 50)
    probe = torch.randn(3, 50)
    results = []
    for draw in (
        lambda x: gumbel_sampler(x, torch.ones(3, 50), 10),
        lambda x: torch.nn.functional.gumbel_softmax(x, tau=1.0, hard=True)[..., 0],
    ):
        leaf = log_probs.clone().requires_grad_()
        torch.manual_seed(3)
        decision = draw(leaf)
        (decision * probe).sum().backward()
        results.append((decision.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 7, 19, 20])
@exact_samplers
def test_exactly_k_of_the_living_are_kept(sampler: Sampler, k: int) -> None:
    torch.manual_seed(0)
    decision = torch.ones(64, 20)
    decision[:32, ::4] = 0  # 15 are left
    decision[32:40] = 0  # none is
    log_probs = random_log_probs(64, 20)
    kept = sampler(log_probs, decision, k) * decision
    assert kept[:32].sum(dim=1).tolist() == [min(k, 15)] * 32
    assert kept[32:40].sum() == 0
    assert kept[40:].sum(dim=1).tolist() == [k] * 24


def test_gumbel_top_k_favors_high_scores() -> None:
    """In the order of the keep probabilities, and more than by chance but not always."""
    torch.manual_seed(0)
    probability = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    log_probs = logs_of(probability).expand(4000, -1, -1)
    kept = gumbel_top_k_sampler(log_probs, torch.ones(4000, 5), 2).mean(dim=0)
    assert kept.sum().item() == pytest.approx(2.0)
    assert (kept.diff() > 0.05).all(), kept
    assert 0.0 < kept[0] < 0.1
    assert kept[4] > 0.7


def test_best_k_is_the_choice_of_inference() -> None:
    log_probs = random_log_probs(5, 20)
    kept = best_k_sampler(log_probs, torch.ones(5, 20), 7)
    assert kept.nonzero()[:, 1].reshape(5, 7).tolist() == top_k(log_probs[..., 0], 7).tolist()
    torch.testing.assert_close(log_odds(log_probs), torch.logit(log_probs[..., 0].exp()))


def test_gumbel_top_k_is_even_where_scores_are() -> None:
    torch.manual_seed(0)
    log_probs = logs_of(torch.full((8000, 5), 0.5))
    kept = gumbel_top_k_sampler(log_probs, torch.ones(8000, 5), 2).mean(dim=0)
    torch.testing.assert_close(kept, torch.full((5,), 0.4), rtol=0, atol=0.025)


@each_sampler
def test_draws_are_exactly_0_or_1_and_differentiable(sampler: Sampler) -> None:
    torch.manual_seed(0)
    log_probs = random_log_probs(50, 20, scale=2.0).requires_grad_()
    kept = sampler(log_probs, torch.ones(50, 20), 9)
    assert set(kept.detach().unique().tolist()) == {0.0, 1.0}
    kept.sum().backward()
    keep, drop = log_probs.grad.unbind(dim=-1)
    assert (keep > 0).all(), "a higher keep score is a higher decision, for dropped tokens too"
    assert (drop < 0).all()


def test_the_top_k_gradient_is_largest_at_the_cut() -> None:
    """A token far from the cut does not change sides by a small step."""
    torch.manual_seed(0)
    odds = torch.tensor([18.0, 8.6, 4.4, 3.6, -0.6, -10.0]).expand(2000, -1)  # cut at 4, not at 0
    log_probs = torch.stack([odds, torch.zeros_like(odds)], dim=-1).log_softmax(-1)
    log_probs = log_probs.requires_grad_()
    gumbel_top_k_sampler(log_probs, torch.ones(2000, 6), 3).sum().backward()
    slope = log_probs.grad[..., 0].mean(dim=0)
    assert slope[2:4].min() > 2 * slope[[1, 4]].max()
    assert slope[[1, 4]].min() > 2 * slope[[0, 5]].max()


# ---------------------------------------------------------------- never NaN


@each_sampler
def test_thousands_of_draws_give_no_nan(sampler: Sampler) -> None:
    """Scores from flat to certain, images that lost everything, any k; forward and backward."""
    torch.manual_seed(0)
    for draw in range(2000):
        scale = (0.0, 1.0, 10.0, 50.0)[draw % 4]
        log_probs = random_log_probs(4, 20, scale, seed=draw).requires_grad_()
        alive = (torch.rand(4, 20) < torch.tensor([[0.0], [0.05], [0.5], [1.0]])).float()
        before = alive.requires_grad_()
        after = sampler(log_probs, before, 1 + draw % 21) * before
        (after * torch.randn(4, 20)).sum().backward()
        assert set(after.detach().unique().tolist()) <= {0.0, 1.0}
        assert (after.detach() <= alive.detach()).all()
        assert log_probs.grad.isfinite().all()
        assert before.grad.isfinite().all()


@each_sampler
@pytest.mark.parametrize("certain", [50.0, 1e4, float("inf")])
def test_certain_scores(sampler: Sampler, certain: float) -> None:
    keep = torch.tensor([[0.0, -certain]]).expand(10, -1)
    drop = torch.tensor([[-certain, 0.0]]).expand(10, -1)
    log_probs = torch.stack([torch.cat([keep, drop])] * 3).requires_grad_()
    kept = sampler(log_probs, torch.ones(3, 20), 10)
    assert (kept[:, :10] == 1).all()
    assert (kept[:, 10:] == 0).all()
    kept.sum().backward()
    assert log_probs.grad.isfinite().all()


@pytest.mark.parametrize("sampler", [gumbel_sampler, gumbel_top_k_sampler])
def test_infinite_noise_is_a_decision_and_not_nan(
    sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exponential draw of exactly 0 has an infinite logarithm. Some generators give it."""

    def exponential(self: Tensor) -> Tensor:
        self.fill_(1.0)[..., 0, 0] = 0.0  # the first token's "keep"
        return self

    monkeypatch.setattr(Tensor, "exponential_", exponential)
    log_probs = random_log_probs(2, 6).requires_grad_()
    kept = sampler(log_probs, torch.ones(2, 6), 3)
    assert kept.isfinite().all()
    assert (kept[:, 0] == 1).all()
    kept.sum().backward()
    assert log_probs.grad.isfinite().all()


@each_sampler
def test_three_stages_of_draws_and_modules_give_no_nan(sampler: Sampler) -> None:
    """The loop of the masked path without its blocks, down to images without any token left."""
    torch.manual_seed(0)
    modules = [PredictionModule(16) for _ in range(3)]
    for module in modules:
        module.head[-1].bias.data = torch.tensor([-2.0, 2.0])  # drop nearly everything
    lost_all = 0
    for _ in range(300):
        patches = (torch.randn(8, 20, 16) * 10).requires_grad_()
        decision = torch.ones(8, 20)
        for module in modules:
            decision = decision * sampler(module(patches, decision), decision, 1)
        lost_all += (decision.sum(dim=1) == 0).sum().item()
        decision.square().sum().backward()
        gradients = [parameter.grad for module in modules for parameter in module.parameters()]
        assert all(gradient.isfinite().all() for gradient in (patches.grad, *gradients))
    assert lost_all > 100 or sampler is not gumbel_sampler


# ---------------------------------------------------------------- choosing and leading back


def test_top_k_gives_the_best_in_image_order() -> None:
    score = torch.tensor([[0.1, 0.9, 0.3, 0.8], [0.4, 0.3, 0.2, 0.1]])
    assert top_k(score, 2).tolist() == [[1, 3], [0, 1]]
    assert top_k(score, 4).tolist() == [[0, 1, 2, 3]] * 2
    assert top_k(score, 0).shape == (2, 0)
    assert top_k(torch.tensor([[-1.0, float("-inf"), -2.0]]), 2).tolist() == [[0, 2]]


def test_top_k_of_equal_scores_still_gives_k_different_patches() -> None:
    positions = top_k(torch.zeros(3, 50), 20)
    assert positions.shape == (3, 20)
    assert (positions.diff(dim=1) > 0).all()


def tokens_of(batch: int, prefix: int, patches: int) -> Tokens:
    """The value of each token is its place."""
    x = torch.arange(prefix + patches, dtype=torch.float32)[None, :, None]
    return Tokens(x.expand(batch, -1, 4).contiguous(), prefix)


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_gather_keeps_the_prefix_and_remembers_the_original_patch(prefix: int) -> None:
    held = gather_patches(tokens_of(2, prefix, 8), torch.tensor([[1, 3, 4, 7], [0, 2, 5, 6]]))
    held = gather_patches(held, torch.tensor([[0, 2], [1, 3]]))
    assert held.index.tolist() == [[1, 4], [2, 6]]
    assert held.x[:, :prefix, 0].tolist() == [list(range(prefix))] * 2
    assert torch.equal(held.patches[..., 0], held.index + float(prefix))
    assert held.num_patches == 2
    assert held.decision is None


def test_gather_takes_the_decision_along() -> None:
    tokens = tokens_of(1, 1, 4)
    tokens = Tokens(tokens.x, 1, None, torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    held = gather_patches(tokens, torch.tensor([[1, 2]]))
    assert held.decision.tolist() == [[0.0, 1.0]]
    assert held.key_decision().tolist() == [[1.0, 0.0, 1.0]]


def test_gather_of_nothing_leaves_the_prefix() -> None:
    held = gather_patches(tokens_of(2, 1, 4), torch.zeros(2, 0, dtype=torch.long))
    assert held.x.shape == (2, 1, 4)
    assert held.index.shape == (2, 0)


def test_to_image_is_the_inverse_of_gathering() -> None:
    values = torch.randn(2, 8)
    position = torch.tensor([[1, 3, 4], [0, 2, 7]])
    image = to_image(values.gather(1, position), position, 8, fill=-9.0)
    for row in range(2):
        for patch in range(8):
            kept = patch in position[row].tolist()
            assert image[row, patch] == (values[row, patch] if kept else -9.0)
    assert torch.equal(to_image(values, None, 8), values)


def test_to_image_passes_the_gradient() -> None:
    values = torch.randn(2, 3, requires_grad=True)
    to_image(values, torch.tensor([[1, 3, 4], [0, 2, 7]]), 8).sum().backward()
    assert torch.equal(values.grad, torch.ones(2, 3))


def test_where_the_token_is_that_a_patch_is_part_of() -> None:
    tokens = Tokens(torch.zeros(1, 3, 2), 1, index=torch.tensor([[1, 4]]))
    assert places_of(tokens) is None, "each is a patch"
    groups = torch.tensor([[1, 0, -1, 1, 1]])
    # The third patch is part of none, and stays where it was.
    assert places_of(replace(tokens, groups=groups)).tolist() == [[4, 1, 2, 4, 4]]
    whole = Tokens(torch.zeros(1, 3, 2), 0, groups=torch.tensor([[2, 1, 2]]))
    assert places_of(whole).tolist() == [[2, 1, 2]]


def test_odds_and_log_probabilities_say_the_same() -> None:
    odds = torch.linspace(-30, 30, 13)[None]
    log_probs = log_probs_of(odds)
    torch.testing.assert_close(log_odds(log_probs), odds)
    torch.testing.assert_close(log_probs.exp().sum(dim=-1), torch.ones(1, 13))
    assert (log_probs[0, :, KEEP].diff() >= 0).all()
