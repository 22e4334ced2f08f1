"""The prediction module: its shape, its size, and what it may and may not see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dynamicvit import InputError, PredictionModule
from dynamicvit.core.prediction import KEEP


def make(dim: int = 16, seed: int = 0) -> PredictionModule:
    torch.manual_seed(seed)
    module = PredictionModule(dim)
    for parameter in module.parameters():  # fresh weights of 0.02 hardly see their input
        nn.init.normal_(parameter, std=0.5)
    return module


def test_three_modules_at_width_384_have_the_papers_size() -> None:
    modules = [PredictionModule(384) for _ in range(3)]
    assert sum(p.numel() for module in modules for p in module.parameters()) == 723_750


@pytest.mark.parametrize("dim", [6, 50, 383])
def test_a_width_that_can_not_be_quartered(dim: int) -> None:
    with pytest.raises(InputError, match=f"divisible by 4, got {dim}"):
        PredictionModule(dim)


def test_it_is_the_papers_formula() -> None:
    """Eq. 1-5 written out."""
    module, patches = make(), torch.randn(2, 10, 16)
    decision = (torch.rand(2, 10) < 0.5).float()
    z = nn.functional.gelu(module.project(module.norm(patches)))
    local, whole = z[..., :8], z[..., 8:]
    pooled = (whole * decision[..., None]).sum(dim=1) / decision.sum(dim=1)[:, None]
    joined = torch.cat([local, pooled[:, None].expand(-1, 10, -1)], dim=-1)
    expected = module.head(joined).log_softmax(dim=-1)[..., 0]
    torch.testing.assert_close(F.logsigmoid(module(patches, decision)), expected)


def test_a_kept_token_is_scored_as_if_the_dropped_were_not_there() -> None:
    module, patches = make(), torch.randn(2, 10, 16)
    decision = torch.tensor([[1.0] * 4 + [0.0] * 6]).expand(2, -1)
    torch.testing.assert_close(module(patches, decision)[:, :4], module(patches[:, :4]))
    other = torch.cat([patches[:, :4], torch.randn(2, 6, 16)], dim=1)
    torch.testing.assert_close(module(other, decision)[:, :4], module(patches, decision)[:, :4])


def test_the_global_feature_sees_every_kept_token() -> None:
    module, patches = make(), torch.randn(1, 10, 16)
    other = patches.clone()
    other[0, 9, 0] += 3  # not of every channel: the layer norm would take it back
    assert (module(other)[0, 0] - module(patches)[0, 0]).abs().max() > 1e-3


def test_an_image_without_any_token_left() -> None:
    """0/0 in the released code."""
    module = make()
    patches = torch.randn(2, 10, 16, requires_grad=True)
    decision = torch.stack([torch.zeros(10), torch.ones(10)]).requires_grad_()
    scores = module(patches, decision)
    assert scores.isfinite().all()
    torch.testing.assert_close(scores[1:], module(patches[1:]))
    scores.square().sum().backward()
    assert all(value.grad.isfinite().all() for value in (patches, decision, *module.parameters()))
    assert module(patches[:, :0]).shape == (2, 0)


def test_half_precision_scores_are_in_full_precision() -> None:
    module, patches = make(), torch.randn(2, 10, 16)
    half = PredictionModule(16).bfloat16()
    half.load_state_dict(module.state_dict())
    scores = half(patches.bfloat16())
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, module(patches), rtol=0, atol=0.3)
    assert module.double()(patches.double()).dtype == torch.float64


def test_fresh_modules_are_undecided() -> None:
    """Training starts near one half for every token, so both sides of a decision are drawn."""
    torch.manual_seed(0)
    keep = PredictionModule(64)(torch.randn(2, 50, 64)).sigmoid()
    torch.testing.assert_close(keep, torch.full_like(keep, 0.5), rtol=0, atol=0.05)


@torch.no_grad()
def test_scores_tell_apart_what_is_nearly_certain() -> None:
    """Of two tokens that are kept with a probability of 1 in float32, one is still the better."""
    module = make()
    module.head[-1].weight.zero_()
    module.head[-1].bias.copy_(torch.tensor([40.0, 0.0] if KEEP == 0 else [0.0, 40.0]))
    module.head[-1].weight[KEEP, 0] = 1.0
    scores = module(torch.randn(1, 9, 16))
    assert scores.unique().numel() > scores.sigmoid().unique().numel()
