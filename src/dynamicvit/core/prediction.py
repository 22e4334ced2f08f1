"""The prediction module: how much is each patch token worth? (Section 3.2 of the paper.)"""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dynamicvit.backbones import Backbone
from dynamicvit.core.method import Choice, Method
from dynamicvit.core.registry import register_method
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import is_plain, is_watched
from dynamicvit.layers.maps import CheapPath
from dynamicvit.layers.pooling import masked_mean
from dynamicvit.layers.tokens import Tokens
from dynamicvit.utils.weights import current_names

#: Column of the last layer that means "keep". The paper's text says 1, the released weights use 0.
KEEP = 0


@register_method(
    "dynamicvit",
    does="drops the tokens that a learned module scores lowest, image by image",
    paper="Rao et al., NeurIPS 2021",
)
class PredictionModule(Choice):
    """Scores every patch token from its own and from the image's features (Eq. 1-5).

    A first layer gives each token C features. Half of them stay with the token (local); the other
    half is averaged over the tokens that are still kept and given to all (global). A small MLP
    turns the two into the log-odds of keeping the token.

    Args:
        dim: C, the width of the tokens; a multiple of 4.

    Raises:
        InputError: if ``dim`` is not a multiple of 4.
    """

    default_policy = "merged"
    #: Its MLP had the classifier's name, which tools that ask for "head" took for the classifier.
    old_names: ClassVar = {"head": "mlp"}

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise InputError(f"the prediction module needs a width divisible by 4, got {dim}")
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
        )
        self.act = nn.GELU()
        self.apply(init_weights)

    @classmethod
    def for_stage(cls, bound: Backbone) -> Method:
        """As wide as the network's tokens."""
        return cls(bound.width)

    @property
    def is_fresh(self) -> bool:
        """Whether all biases are zero: the first step of training, or loaded weights, move them."""
        parts = set(map(type, self.modules())) - {CheapPath, nn.ModuleDict}
        if parts != {type(self), nn.LayerNorm, nn.Linear, nn.Sequential, nn.GELU}:
            return False  # with an adapter or quantized
        biases = [value for name, value in self.named_parameters() if name.endswith("bias")]
        return not any(bias.is_meta or bias.any() for bias in biases)  # offloaded: nobody knows

    @property
    def head(self) -> nn.Module:
        """The older name of ``mlp``."""
        return self.mlp

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        renamed = current_names(self, state_dict, prefix)
        state_dict.clear()
        state_dict.update(renamed)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def keep_scores(self, tokens: Tokens) -> Tensor:
        """What the module says of the patch tokens under the decisions so far: ``(B, M)``."""
        return self(tokens.patches, tokens.decision)

    def forward(self, patches: Tensor, decision: Tensor | None = None) -> Tensor:
        """Log-odds of keeping each token.

        The paper's log-softmax over "keep" and "drop" (Eq. 5) is the log-sigmoid of this and of its
        negative; the order is the same.

        Args:
            patches: ``(B, M, C)`` patch tokens.
            decision: ``(B, M)`` decisions so far, or ``None`` when all are kept. Only kept tokens
                enter the global feature; where none is kept it is zero.

        Returns:
            ``(B, M)``, in float32 at least.
        """
        features = self.act(self.project(self.norm(patches)))
        local_features, global_features = features.chunk(2, dim=-1)
        if decision is None:
            pooled = global_features.mean(dim=1)
        else:
            pooled = masked_mean(global_features, decision)
        scores = self._by_mlp(local_features, pooled)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores[..., KEEP] - scores[..., 1 - KEEP]

    def _by_mlp(self, local_features: Tensor, global_features: Tensor) -> Tensor:
        """What the MLP says of ``[local, global]`` (Eq. 4-5), without laying them side by side.

        Its first layer is linear: what the global half adds is the same for all tokens of an image.
        A layer that is more than its weights (quantized, with an adapter) gets them as the paper
        has them.

        Args:
            local_features: ``(B, M, C / 2)``.
            global_features: ``(B, C / 2)``.

        Returns:
            ``(B, M, 2)``.
        """
        whole = type(self.mlp) is not nn.Sequential or is_watched(self.mlp)
        if whole or not is_plain(self.mlp[0]):
            everywhere = global_features[:, None].expand_as(local_features)
            return self.mlp(torch.cat([local_features, everywhere], dim=-1))
        first, half = cast(nn.Linear, self.mlp[0]), local_features.shape[-1]
        shared = F.linear(global_features, first.weight[:, half:], first.bias)
        scores = F.linear(local_features, first.weight[:, :half]) + shared[:, None]
        for layer in islice(self.mlp, 1, None):
            scores = layer(scores)
        return scores


def init_weights(module: nn.Module) -> None:
    """Fresh values for one layer of a prediction module; others are left alone."""
    if isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
