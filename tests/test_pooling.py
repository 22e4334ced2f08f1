"""Pooling: over the kept tokens only, zero over none, in value and in gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynamicvit.layers.pooling import masked_max, masked_mean

DECISION = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0], [0.0] * 4, [1.0] * 4])

Pool = Callable[[Tensor, Tensor | None], Tensor]

both_pools = pytest.mark.parametrize(
    ("pool", "plain"),
    [(masked_mean, lambda x: x.mean(dim=0)), (masked_max, lambda x: x.amax(dim=0))],
    ids=["mean", "max"],
)


@both_pools
def test_only_kept_tokens_are_pooled(pool: Pool, plain: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(0)) - 5  # zero is no maximum
    pooled = pool(x, DECISION)
    for image in (0, 1, 3):
        torch.testing.assert_close(pooled[image], plain(x[image, DECISION[image] > 0.5]))
    torch.testing.assert_close(pool(x, None), torch.stack([plain(image) for image in x]))


@both_pools
def test_over_nothing_it_is_zero(pool: Pool, plain: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 4, 6).requires_grad_()
    decision = DECISION.clone().requires_grad_()
    pooled = pool(x, decision)
    assert (pooled[2] == 0).all()
    pooled.square().sum().backward()
    pool(x, decision)[2].sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[2] == 0).all()
    assert decision.grad is None or decision.grad.isfinite().all()
    empty = pool(torch.zeros(3, 0, 6), None)
    assert torch.equal(empty, torch.zeros(3, 6))
    assert torch.equal(pool(torch.zeros(3, 0, 6), torch.zeros(3, 0)), torch.zeros(3, 6))


@both_pools
def test_what_was_dropped_has_no_influence(pool: Pool, plain: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 4, 6)
    other = torch.where(DECISION[..., None] > 0.5, x, torch.full_like(x, 1e6))
    torch.testing.assert_close(pool(other, DECISION), pool(x, DECISION))


def test_the_mean_is_differentiable_in_the_decision() -> None:
    x = torch.randn(4, 4, 6, dtype=torch.float64).requires_grad_()
    decision = DECISION.double()[[0, 1, 3]].requires_grad_()
    assert torch.autograd.gradcheck(masked_mean, (x[[0, 1, 3]], decision))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 1e-2)])
def test_half_precision_neither_miscounts_nor_overflows(
    dtype: torch.dtype, tolerance: float
) -> None:
    """1,000 tokens are more than bfloat16 can count, and their total is more than fp16 holds."""
    x = 300 + torch.rand(2, 1000, 4)
    decision = torch.ones(2, 1000)
    decision[1, 257:] = 0
    pooled = masked_mean(x.to(dtype), decision)
    assert pooled.dtype == dtype
    expected = torch.stack([x[0].mean(dim=0), x[1, :257].mean(dim=0)])
    torch.testing.assert_close(pooled.float(), expected, rtol=tolerance, atol=0)
