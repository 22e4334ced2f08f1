"""The fused form of attention under a decision: the explicit one's values and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dynamicvit.layers import attention, masked_attention
from dynamicvit.layers.masked_attention import (
    KEYS_PER_WIDTH,
    MAX_DROPPED_GAP,
    explicit_attention,
    fused_attention,
    fused_form_fits,
)

Form = Callable[..., Tensor]

DECISION = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def heads(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, gap: float = 10.0):
    """Query, key and value ``(B, H, N, D)``; the logits of a query differ by ``gap`` at most."""
    query, key, value = (draw(*shape, seed=seed + part, dtype=dtype) for part in range(3))
    logits = query @ key.transpose(-2, -1) * shape[-1] ** -0.5
    widest = (logits.amax(dim=-1, keepdim=True) - logits.amin(dim=-1, keepdim=True)).clamp(min=1.0)
    return query * (gap / widest), key, value


def outcome(form: Form, decision: Tensor, *inputs: Tensor, **kwargs: Any) -> list[Tensor]:
    """Output, and the gradients of query, key, value and decision."""
    leaves = [tensor.clone().requires_grad_() for tensor in (*inputs, decision)]
    out = form(*leaves, **kwargs)
    probe = draw(*out.shape, seed=99).to(out.dtype)
    return [out.detach(), *torch.autograd.grad((out * probe).sum(), leaves)]


def assert_same(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each tensor, relative to its own largest entry."""
    for ours, right in zip(actual, expected, strict=True):
        assert (ours - right).abs().max() <= tolerance * max(1.0, right.abs().max().item())


@pytest.fixture
def explicit_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the fused form left to the explicit one, call by call."""
    calls: list[int] = []

    def spy(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(len(query))
        return explicit_attention(query, *args, **kwargs)

    monkeypatch.setattr(masked_attention, "explicit_attention", spy)
    return calls


# ---------------------------------------------------------------- the same as the explicit form


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 12),
    width=st.integers(1, 9),
    gap=st.sampled_from([0.0, 1.0, 5.0, 9.0, 10.0]),
    share=st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0]),
    keep_self=st.booleans(),
    products=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients_are_the_explicit_ones(
    batch: int,
    tokens: int,
    width: int,
    gap: float,
    share: float,
    keep_self: bool,
    products: bool,
    seed: int,
) -> None:
    random = torch.Generator().manual_seed(seed)
    decision = (torch.rand(batch, tokens, generator=random) < share).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "products_beat_the_kernel", lambda query: products)
        inputs = heads(batch, 2, tokens, width, seed=seed, dtype=torch.float64, gap=gap)
        ours = outcome(fused_attention, decision, *inputs, keep_self=keep_self)
        right = outcome(explicit_attention, decision, *inputs, keep_self=keep_self)
        assert_same(ours, right, 1e-12)
        inputs = [tensor.float() for tensor in inputs]
        ours = outcome(fused_attention, decision.float(), *inputs, keep_self=keep_self)
        right = outcome(explicit_attention, decision.float(), *inputs, keep_self=keep_self)
        assert_same(ours, right, 1e-5)


@pytest.mark.parametrize("keep_self", [True, False])
def test_it_is_the_fused_form_that_was_compared(explicit_calls: list[int], keep_self: bool) -> None:
    inputs = heads(2, 3, 5, 8, gap=9.0)
    fused_attention(*inputs, DECISION, keep_self=keep_self)
    assert explicit_calls == []


@pytest.mark.parametrize("keep_self", [True, False])
def test_gradcheck(keep_self: bool) -> None:
    inputs = [t.requires_grad_() for t in heads(2, 2, 5, 4, dtype=torch.float64, gap=6.0)]
    decision = DECISION.double().requires_grad_()

    def function(*inputs: Tensor) -> Tensor:
        return fused_attention(*inputs, keep_self=keep_self)

    assert torch.autograd.gradcheck(function, (*inputs, decision))


@pytest.mark.parametrize("products", [True, False])
def test_bfloat16_is_as_right_as_the_explicit_form(
    monkeypatch: pytest.MonkeyPatch, products: bool
) -> None:
    monkeypatch.setattr(attention, "products_beat_the_kernel", lambda query: products)
    exact = heads(4, 3, 40, 16, gap=5.0)
    decision = (draw(4, 40, seed=7) > 0).float()
    right = outcome(explicit_attention, decision, *exact)
    rounded = [tensor.bfloat16() for tensor in exact]
    errors = []
    for form in (fused_attention, explicit_attention):
        results = outcome(form, decision, *rounded)
        assert results[0].dtype == torch.bfloat16
        errors.append(
            [(a.float() - b).norm() / b.norm() for a, b in zip(results, right, strict=True)]
        )
    for ours, theirs in zip(*errors, strict=True):
        assert ours < 1.5 * theirs + 1e-3


def test_queries_that_are_not_the_keys() -> None:
    """Attention pooling: one latent query."""
    _, key, value = heads(2, 3, 5, 8)
    query = draw(2, 3, 1, 8, seed=5)
    inputs = query, key, value
    assert_same(
        outcome(fused_attention, DECISION, *inputs, keep_self=False),
        outcome(explicit_attention, DECISION, *inputs, keep_self=False),
        1e-5,
    )


# ---------------------------------------------------------------- beyond what it can hold


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gap", [MAX_DROPPED_GAP + 1, 30.0, 1e4])
def test_a_dropped_key_far_above_the_kept_ones(
    gap: float, dtype: torch.dtype, explicit_calls: list[int]
) -> None:
    """The image where it happens is run by the explicit form, the others are not."""
    query, key, value = heads(3, 2, 5, 8, gap=3.0)
    decision = torch.cat([DECISION[:1]] * 3)
    query[1, :, :, 0], key[1, :, :, 0] = 8**0.5, 0.0
    key[1, :, 1, 0] = gap + 4  # key 1 is dropped
    inputs = [tensor.to(dtype) for tensor in (query, key, value)]
    ours = outcome(fused_attention, decision, *inputs)
    assert explicit_calls == [1]
    kept = decision[1] > 0.5
    gone = F.scaled_dot_product_attention(
        inputs[0][1:2, :, kept], inputs[1][1:2, :, kept], inputs[2][1:2, :, kept]
    )
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(ours[0][1:2, :, kept], gone, rtol=tolerance, atol=tolerance)
    right = outcome(explicit_attention, decision, *inputs)
    for mine, theirs in zip(ours, right, strict=True):
        assert mine.isfinite().all()
        torch.testing.assert_close(mine[1], theirs[1])
        torch.testing.assert_close(mine, theirs, rtol=10 * tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("size", [800.0, -800.0])
def test_large_logits_of_a_token_with_itself_do_not_overflow(size: float) -> None:
    """exp(P_ii) alone is beyond any float; beside the other logits of its row it is not."""
    query, key, value = heads(2, 2, 5, 8, dtype=torch.float64, gap=5.0)
    query[..., 0] += 8**0.5
    key[..., 0] += size  # shifts all logits alike but for what the query had there before
    query[..., 0] = 8**0.5
    ours, right = (
        outcome(form, DECISION.double(), query, key, value)
        for form in (fused_attention, explicit_attention)
    )
    assert_same(ours, right, 1e-9)


def test_an_image_that_keeps_nothing_is_zero(explicit_calls: list[int]) -> None:
    decision = torch.stack([torch.zeros(5), DECISION[0]])
    out, *gradients = outcome(fused_attention, decision, *heads(2, 3, 5, 8), keep_self=False)
    assert explicit_calls == [1]
    assert (out[0] == 0).all()
    assert (out[1] != 0).any()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_what_is_not_a_number_stays_so() -> None:
    """The share of NaN is not below any bound: it must not be taken for a good one either."""
    query, key, value = heads(2, 3, 5, 8)
    query[0, 0, 2, 0] = float("nan")
    out = fused_attention(query, key, value, DECISION)
    assert out[0, 0, 2].isnan().all()
    assert out[1].isfinite().all()


# ---------------------------------------------------------------- no matrix


class Largest(TorchDispatchMode):
    """Remembers the most elements that any tensor had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for out in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(out, Tensor):
                self.elements = max(self.elements, out.numel())
        return result


def test_no_matrix_is_built_forward_or_backward() -> None:
    batch, count, tokens, width = 2, 3, 150, 8
    inputs = heads(batch, count, tokens, width, gap=5.0)
    decision = (draw(batch, tokens) > 0).float()
    largest = {}
    for form in (fused_attention, explicit_attention):
        with Largest() as mode:
            outcome(form, decision, *inputs)
        largest[form] = mode.elements
    matrix = batch * count * tokens**2
    assert largest[explicit_attention] >= matrix
    assert largest[fused_attention] < matrix / 4


# ---------------------------------------------------------------- the choice


def fits(tokens: int = KEYS_PER_WIDTH * 8, dtype: torch.dtype = torch.float32, **kwargs: Any):
    inputs = [torch.zeros(1, 1, tokens, 8, dtype=dtype) for _ in range(3)]
    return fused_form_fits(*inputs, **{"bias": None, "dropout_p": 0.0, **kwargs})


def test_the_fused_form_is_taken_from_a_size_on() -> None:
    assert fits()
    assert not fits(tokens=KEYS_PER_WIDTH * 8 - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_precisions_of_the_fused_form(dtype: torch.dtype) -> None:
    assert fits(dtype=dtype)


def test_half_precision_bias_and_dropout_are_explicit() -> None:
    assert not fits(dtype=torch.float16)
    assert not fits(bias=torch.zeros(1))
    assert not fits(dropout_p=0.1)


def test_mixed_precision_inputs_are_explicit() -> None:
    query = torch.zeros(1, 1, 16, 8)
    assert not fused_form_fits(query, query, query.bfloat16(), bias=None, dropout_p=0.0)


def test_without_values_it_is_explicit(monkeypatch: pytest.MonkeyPatch) -> None:
    meta = torch.zeros(1, 1, 16, 8, device="meta")
    assert not fused_form_fits(meta, meta, meta, bias=None, dropout_p=0.0)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fits()


@pytest.mark.parametrize(("tokens", "expected"), [(16, "fused"), (15, "explicit")])
def test_the_form_is_taken_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch, tokens: int, expected: str
) -> None:
    taken = []
    for name in ("fused", "explicit"):
        form = getattr(masked_attention, f"{name}_attention")

        def spy(*args: Any, name: str = name, form: Form = form, **kwargs: Any) -> Tensor:
            taken.append(name)
            return form(*args, **kwargs)

        monkeypatch.setattr(masked_attention, f"{name}_attention", spy)
    inputs = heads(2, 3, tokens, 8)
    decision = (draw(2, tokens) > 0).float()
    out = masked_attention.masked_attention(*inputs, decision)
    assert taken == [expected]
    torch.testing.assert_close(out, explicit_attention(*inputs, decision))
