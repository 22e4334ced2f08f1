"""Class attention: drop the patches that the class token attends to least.

One of the paper's strategies of sparsification (Section 4). With the fused token it is EViT (Liang
et al., "Not All Patches are What You Need", ICLR 2022, Section 3): the dropped patches are not lost
but summed, each weighted by the attention that it had.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dynamicvit.core.method import Choice
from dynamicvit.core.registry import register_method
from dynamicvit.layers.attention import proportional
from dynamicvit.layers.masked_attention import decided_softmax
from dynamicvit.layers.tokens import Tokens


@register_method(
    "class-attention",
    does="drops the patches that the class token attends to least",
    paper="Rao et al., NeurIPS 2021, Section 4",
)
class ClassAttention(Choice):
    """Keeps the patches that the class token attended to most in the block before.

    Nothing is learned; it works untrained. One row of the attention is computed again, one query
    and not the whole matrix, so that the block itself keeps its fused kernel.

    """

    works_untrained = True
    looks_back = True
    needs_class_token = True

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """Log-odds of the share of the class token's attention."""
        share = class_attention(tokens)
        tiny = torch.finfo(share.dtype).tiny
        return share.clamp(min=tiny).log() - (1 - share).clamp(min=tiny).log()


@register_method(
    "evit",
    does="the same, and the dropped ones leave their sum, weighted by attention",
    paper="Liang et al., ICLR 2022",
)
class EViT(ClassAttention):
    """The dropped patches of a stage leave one token: their sum, each weighted by its attention.

    Where nothing is dropped it is zero. Unlike in the paper, it stays to the end: no later stage
    drops it or takes it up again.
    """

    adds = 1

    def summary(self, tokens: Tokens, dropped: Tensor, keep_scores: Tensor | None) -> Tensor | None:
        """The fused token."""
        share = class_attention(tokens) if keep_scores is None else keep_scores.sigmoid()
        weight = (share * dropped).to(tokens.x.dtype)
        return weight[:, None] @ tokens.patches


def class_attention(tokens: Tokens) -> Tensor:
    """``(B, M)``: attention of the first token to each patch in the block before, mean of heads.

    A token that is made of several patches gets what they all get.

    Args:
        tokens: as they left a block, with what its attention worked on; dropped ones get nothing.
    """
    heads = tokens.heads
    assert heads is not None  # the model runs a block before each stage that looks back
    query = heads.query[:, :, :1] * heads.query.shape[-1] ** -0.5
    logits = query @ heads.key.transpose(-2, -1)
    bias = None if heads.bias is None else heads.bias[..., :1, :]
    bias = proportional(bias, tokens.over_all(tokens.size), logits.dtype)
    if bias is not None:
        logits = logits + bias
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    decision = tokens.over_all(tokens.decision)
    if decision is None:
        weights = logits.softmax(dim=-1)
    else:
        weights = decided_softmax(logits, decision.to(logits.dtype), keep_self=False)
    return weights.mean(dim=1)[:, 0, tokens.num_prefix :]
