"""Attention under a decision: right in value, right in gradient, finite at any gap."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dynamicvit.layers.attention import _varlen_attention, packed_attention, softmax_attention
from dynamicvit.layers.masked_attention import MAX_DROPPED_GAP, decided_softmax, masked_attention
from dynamicvit.layers.tokens import Heads


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def attend(
    query: Tensor, key: Tensor, value: Tensor, decision: Tensor | None = None, **kwargs: Any
) -> Tensor:
    """Attention as a block runs it."""
    if decision is None:
        return softmax_attention(query, key, value, **kwargs)
    return masked_attention(query, key, value, decision, **kwargs)


def textbook(logits: Tensor, decision: Tensor, keep_self: bool) -> Tensor:
    """Eq. 10-11 as they are printed; right where nothing overflows."""
    keep = decision[:, None, None, :].expand(logits.shape)
    if keep_self:
        itself = torch.eye(logits.shape[-1], dtype=torch.bool)
        keep = torch.where(itself, torch.ones_like(keep), keep)
    weights = logits.exp() * keep
    return weights / weights.sum(dim=-1, keepdim=True)


DECISION = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])


# ---------------------------------------------------------------- values


def test_without_self_it_is_the_softmax_over_the_kept_keys() -> None:
    logits = draw(2, 3, 4, 5) * 3
    weights = decided_softmax(logits, DECISION, keep_self=False)
    for image, decision in enumerate(DECISION):
        kept = decision > 0.5
        torch.testing.assert_close(weights[image][..., kept], logits[image][..., kept].softmax(-1))
        assert (weights[image][..., ~kept] == 0).all()


def test_with_self_a_dropped_token_sees_itself_and_the_kept_ones() -> None:
    logits = draw(2, 3, 5, 5) * 3
    weights = decided_softmax(logits, DECISION)
    for image, decision in enumerate(DECISION):
        for query in range(5):
            seen = decision > 0.5
            seen[query] = True
            expected = logits[image, :, query, seen].softmax(-1)
            torch.testing.assert_close(weights[image, :, query, seen], expected)
            assert (weights[image, :, query, ~seen] == 0).all()


def test_all_kept_is_the_usual_softmax() -> None:
    logits = draw(2, 3, 5, 5) * 3
    torch.testing.assert_close(decided_softmax(logits, torch.ones(2, 5)), logits.softmax(-1))


@pytest.mark.parametrize("gap", [30.0, 1e4])
@pytest.mark.parametrize("keep_self", [True, False])
def test_a_dropped_key_far_above_the_kept_ones(gap: float, keep_self: bool) -> None:
    """Subtracting the maximum over all keys would push every kept exponent into underflow."""
    logits = draw(2, 3, 5, 5)
    dropped = DECISION[:, None, None, :].expand(logits.shape) < 0.5
    if keep_self:  # a query that is dropped itself rightly sees itself
        dropped = dropped & ~torch.eye(5, dtype=torch.bool)
    logits = torch.where(dropped, logits + gap, logits).requires_grad_()
    decision = DECISION.clone().requires_grad_()
    weights = decided_softmax(logits, decision, keep_self=keep_self)
    really_gone = logits.masked_fill(dropped, float("-inf")).softmax(-1)
    torch.testing.assert_close(weights, really_gone, rtol=0, atol=1e-6)
    (weights * draw(2, 3, 5, 5, seed=1)).sum().backward()
    assert logits.grad.isfinite().all()
    assert decision.grad.isfinite().all()
    assert (decision.grad[DECISION < 0.5] != 0).all()


def test_a_row_that_keeps_nothing_is_zero() -> None:
    logits = (draw(1, 2, 3, 4) * 50).requires_grad_()
    decision = torch.zeros(1, 4, requires_grad=True)
    weights = decided_softmax(logits, decision, keep_self=False)
    assert (weights == 0).all()
    (weights * draw(1, 2, 3, 4, seed=1)).sum().backward()
    assert logits.grad.isfinite().all()
    assert decision.grad.isfinite().all()


def test_where_nothing_is_kept_the_loudest_key_is_still_told_apart() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).reshape(1, 1, 1, 3)
    decision = torch.zeros(1, 3, requires_grad=True)
    decided_softmax(logits, decision, keep_self=False).sum().backward()
    torch.testing.assert_close(decision.grad, logits[0, 0].exp())


def test_a_token_alone_sees_only_itself() -> None:
    weights = decided_softmax(draw(1, 2, 4, 4), torch.zeros(1, 4))
    torch.testing.assert_close(weights, torch.eye(4).expand(1, 2, 4, 4))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("keep_self", [True, False])
def test_the_gradient_is_that_of_the_textbook_formula(keep_self: bool) -> None:
    """Dropped tokens' decisions included: that is why the mask multiplies and is not added."""
    probe = draw(2, 3, 5, 5, seed=1, dtype=torch.float64)
    gradients = []
    for softmax in (decided_softmax, textbook):
        logits = draw(2, 3, 5, 5, dtype=torch.float64).requires_grad_()
        decision = DECISION.double().requires_grad_()
        (softmax(logits, decision, keep_self=keep_self) * probe).sum().backward()
        gradients.append((logits.grad, decision.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)
    assert (gradients[0][1][DECISION < 0.5].abs() > 1e-6).all()


@pytest.mark.parametrize("keep_self", [True, False])
def test_the_decision_gradient_is_a_finite_difference(keep_self: bool) -> None:
    """Towards the inside of [0, 1], where 0.5 still means the same set of kept keys."""
    logits = draw(2, 3, 5, 5, dtype=torch.float64)
    probe = draw(2, 3, 5, 5, seed=1, dtype=torch.float64)
    decision = DECISION.double().requires_grad_()

    def value(decision: Tensor) -> Tensor:
        return (decided_softmax(logits, decision, keep_self=keep_self) * probe).sum()

    (gradient,) = torch.autograd.grad(value(decision), decision)
    for image, token in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
        step = torch.zeros_like(DECISION, dtype=torch.float64)
        step[image, token] = 1e-6
        difference = (value(decision + step) - value(decision - step)) / 2e-6
        torch.testing.assert_close(gradient[image, token], difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("keep_self", [True, False])
def test_gradcheck(keep_self: bool) -> None:
    inputs = (
        draw(2, 2, 5, 4, dtype=torch.float64).requires_grad_(),
        draw(2, 2, 5, 4, seed=1, dtype=torch.float64).requires_grad_(),
        draw(2, 2, 5, 4, seed=2, dtype=torch.float64).requires_grad_(),
        DECISION.double().requires_grad_(),
        draw(1, 2, 5, 5, seed=3, dtype=torch.float64).requires_grad_(),
    )

    def function(query: Tensor, key: Tensor, value: Tensor, decision: Tensor, bias: Tensor):
        return attend(query, key, value, decision=decision, bias=bias, keep_self=keep_self)

    assert torch.autograd.gradcheck(function, inputs)


def test_the_gradient_of_a_dropped_decision_grows_up_to_the_gap() -> None:
    """The further a dropped key is above the kept ones, the louder it asks to come back."""
    asked = []
    for gap in (0.0, 5.0, MAX_DROPPED_GAP, 30.0):
        decision = torch.tensor([[1.0, 0.0]], requires_grad=True)
        logits = torch.tensor([0.0, gap]).reshape(1, 1, 1, 2)
        weights = decided_softmax(logits, decision, keep_self=False)
        weights[..., 1].sum().backward()
        asked.append(decision.grad[0, 1].item())
    expected = [math.exp(min(gap, MAX_DROPPED_GAP)) for gap in (0.0, 5.0, 10.0, 30.0)]
    assert asked == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- attend


def test_attend_equals_attention_over_the_tokens_that_are_there() -> None:
    query, key, value = (draw(2, 3, 5, 8, seed=seed) for seed in range(3))
    bias = draw(2, 3, 5, 5, seed=3)
    out = attend(query, key, value, decision=DECISION, bias=bias)
    for image, decision in enumerate(DECISION):
        kept = (decision > 0.5).nonzero().flatten()
        expected = F.scaled_dot_product_attention(
            query[image, :, kept],
            key[image, :, kept],
            value[image, :, kept],
            attn_mask=bias[image, :, kept][:, :, kept],
        )
        torch.testing.assert_close(out[image, :, kept], expected)


def test_attend_without_a_decision_is_fused_attention() -> None:
    query, key, value = (draw(2, 3, 5, 8, seed=seed) for seed in range(3))
    bias = draw(1, 3, 5, 5, seed=3)
    torch.testing.assert_close(
        attend(query, key, value, bias=bias), attend(query, key, value, bias=bias,
                                                     decision=torch.ones(2, 5))
    )  # fmt: skip
    assert torch.equal(attend(query, key, value), F.scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2), (torch.float64, 1e-6)]
)
def test_other_precisions(dtype: torch.dtype, tolerance: float) -> None:
    exact = [draw(2, 3, 5, 8, seed=seed) for seed in range(3)]
    inputs = [tensor.to(dtype).requires_grad_() for tensor in exact]
    decision = DECISION.clone().requires_grad_()
    out = attend(*inputs, decision=decision)
    assert out.dtype == dtype
    torch.testing.assert_close(
        out.float(), attend(*exact, decision=DECISION), rtol=tolerance, atol=tolerance
    )
    out.float().square().sum().backward()
    assert all(tensor.grad.isfinite().all() for tensor in (*inputs, decision))


def test_double_precision_is_not_lost_on_the_way() -> None:
    query, key, value = (draw(2, 3, 5, 8, seed=seed, dtype=torch.float64) for seed in range(3))
    kept = DECISION[:, None, None, :].expand(2, 3, 5, 5) > 0.5
    mask = kept | torch.eye(5, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    out = attend(query, key, value, decision=DECISION)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_large_dropped_logit_in_half_precision(dtype: torch.dtype) -> None:
    query = torch.full((1, 1, 3, 4), 8.0, dtype=dtype, requires_grad=True)
    key = torch.tensor([0.0, 0.1, 8.0], dtype=dtype)[None, None, :, None].expand(1, 1, 3, 4)
    value = draw(1, 1, 3, 4).to(dtype)
    decision = torch.tensor([[1.0, 1.0, 0.0]], requires_grad=True)
    out = attend(query, key, value, decision=decision)
    expected = attend(query[:, :, :2], key[:, :, :2], value[:, :, :2])
    torch.testing.assert_close(out[:, :, :2], expected, rtol=2e-2, atol=2e-2)
    out.sum().backward()
    assert query.grad.isfinite().all()
    assert decision.grad.isfinite().all()


def test_attention_dropout_drops_weights_in_both_kinds() -> None:
    query, key, value = (draw(2, 3, 5, 8, seed=seed) for seed in range(3))
    for decision in (None, DECISION):
        torch.manual_seed(0)
        out = [attend(query, key, value, decision=decision, dropout_p=0.5) for _ in range(2)]
        assert not torch.equal(*out)
    dropped = torch.stack(
        [attend(query, key, value, decision=DECISION, dropout_p=0.3) for _ in range(3000)]
    ).mean(dim=0)
    torch.testing.assert_close(
        dropped, attend(query, key, value, decision=DECISION), rtol=0, atol=0.1
    )


@pytest.mark.parametrize("with_bias", [False, True])
def test_plain_products_of_bf16_training_agree_with_the_fused_kernel(with_bias: bool) -> None:
    heads = [draw(2, 3, 9, 8, seed=seed) for seed in range(3)]
    bias = draw(1, 3, 9, 9) if with_bias else None
    results = []
    for dtype in (torch.float32, torch.bfloat16):  # fused, plain
        query, key, value = (x.to(dtype, copy=True).requires_grad_() for x in heads)
        out = attend(query, key, value, bias=None if bias is None else bias.to(dtype))
        out.float().square().sum().backward()
        results.append([out.detach(), query.grad, key.grad, value.grad])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(plain.float(), fused, rtol=0.05, atol=0.05)


def test_attention_of_any_length_is_packed_and_taken_apart_rightly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch's kernel for it runs on a GPU only: here a plain one in its place, by its contract."""
    varlen = pytest.importorskip("torch.nn.attention.varlen")

    def plain(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, ends_k: Tensor, *longest: int):
        assert torch.equal(ends, ends_k)
        assert ends.dtype == torch.int32
        assert longest == (7, 7)
        images = zip(*(x.split(ends.diff().tolist()) for x in (q, k, v)), strict=True)
        return torch.cat(
            [
                F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in image)).transpose(0, 1)
                for image in images
            ]
        )

    monkeypatch.setattr(varlen, "varlen_attn", plain)
    parts = [
        Heads(*(draw(batch, 3, length, 8, seed=seed + length) for seed in range(3)))
        for batch, length in ((2, 5), (1, 7), (3, 2))
    ]
    torch.testing.assert_close(_varlen_attention(parts), packed_attention(parts))
