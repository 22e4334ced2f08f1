"""Class attention: drop the patches that the class token attends to least.

One of the paper's strategies of sparsification (Section 4). With the fused token it is EViT (Liang
et al., "Not All Patches are What You Need", ICLR 2022, Section 3): the dropped patches are not lost
but summed, each weighted by the attention that it had.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dynamicvit.core.method import Choice, Crowd, Grid
from dynamicvit.core.prediction import KEEP
from dynamicvit.layers.attention import decided_softmax
from dynamicvit.layers.tokens import Tokens


class ClassAttention(nn.Module, Choice):
    """Keeps the patches that the class token attended to most in the block before.

    Nothing is learned; it works untrained. One row of the attention is computed again, one query
    and not the whole matrix, so that the block itself keeps its fused kernel.

    Unlike EViT's, a fused token stays to the end: no later stage drops it or takes it up again.

    Args:
        fuse: whether the dropped patches of a stage leave one token: the sum of theirs, each
            weighted by its attention. Where nothing is dropped it is zero.
    """

    looks_back = True
    needs_class_token = True

    def __init__(self, fuse: bool = False) -> None:
        super().__init__()
        self.adds = int(fuse)

    def log_probs(self, tokens: Tokens, grid: Grid) -> Tensor:
        del grid
        share = class_attention(tokens)
        tiny = torch.finfo(share.dtype).tiny
        return torch.stack([share.clamp(min=tiny).log(), (1 - share).clamp(min=tiny).log()], dim=-1)

    def rest(self, tokens: Tokens, gone: Tensor, log_probs: Tensor | None) -> Tensor | None:
        if not self.adds:
            return None
        share = class_attention(tokens) if log_probs is None else log_probs[..., KEEP].exp()
        weight = (share * gone).to(tokens.x.dtype)
        return weight[:, None] @ tokens.patches

    def macs(self, crowd: Crowd) -> int:
        """Of one query with every key, and of the fused token."""
        row = crowd.num_heads * crowd.head_width * (crowd.num_prefix + crowd.num_patches)
        return row + self.adds * crowd.width * crowd.num_patches


def class_attention(tokens: Tokens) -> Tensor:
    """``(B, M)``: attention of the first token to each patch in the block before, mean of heads.

    Args:
        tokens: as they left a block, with what its attention worked on; dropped ones get nothing.
    """
    heads = tokens.heads
    assert heads is not None  # the model runs a block before each stage that looks back
    query = heads.query[:, :, :1] * heads.query.shape[-1] ** -0.5
    logits = query @ heads.key.transpose(-2, -1)
    if heads.bias is not None:
        logits = logits + heads.bias[..., :1, :]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    decision = tokens.key_decision()
    if decision is None:
        weights = logits.softmax(dim=-1)
    else:
        weights = decided_softmax(logits, decision.to(logits.dtype), keep_self=False)
    return weights.mean(dim=1)[:, 0, tokens.num_prefix :]
