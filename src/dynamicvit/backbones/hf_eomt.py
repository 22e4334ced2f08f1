"""transformers' ``EomtForUniversalSegmentation`` (Kerssies et al., CVPR 2025): an encoder-only ViT.

Its last blocks hold queries beside the patches. Tokens are dropped before these; there all patches
are back, and transformers' own code goes on from them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.eomt.modeling_eomt import (
    EomtAttention,
    EomtDropPath,
    EomtForUniversalSegmentation,
    EomtForUniversalSegmentationOutput,
    EomtLayer,
)

from dynamicvit.backbones.hf_base import CROPPED, HFBackbone
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Tokens


class HFEomtBackbone(HFBackbone):
    """The blocks without queries; the head is the rest: blocks with queries, masks, classes.

    Its logits are what transformers' ``post_process_semantic_segmentation`` takes the argmax of:
    for each class ``(B, classes, rows, columns)`` the sum over queries of class probability times
    mask probability.
    """

    family = "transformers EoMT for universal segmentation"
    model_classes = (EomtForUniversalSegmentation,)
    block_classes = (EomtLayer,)
    attention_classes = (EomtAttention,)
    processing: ClassVar = {**CROPPED, "crop_pct": 1.0, "interpolation": "bilinear"}
    reads_map = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self._masked: tuple[float, ...] | None = None

    # ---------------------------------------------------------------- its parts

    @property
    def encoder(self) -> Any:
        return self.module

    @property
    def blocks(self) -> nn.ModuleList:
        return self.module.layers[: len(self.module.layers) - self.module.config.num_blocks]

    @property
    def num_prefix(self) -> int:
        return self.module.embeddings.num_prefix_tokens

    @property
    def classifier(self) -> nn.Module:
        return self.module.class_predictor

    @property
    def num_classes(self) -> int:
        return self.module.config.num_labels

    def attention_scale(self, attn: Any) -> float:
        return attn.scale

    def attention_dropout(self, block: Any) -> float:
        return block.attention.dropout if block.training else 0.0

    def first_norm(self, block: Any) -> nn.Module:
        return block.norm1

    # ---------------------------------------------------------------- images

    def grid(self, height: int, width: int) -> tuple[int, int]:
        if (height, width) != self.image_size:
            own = self.image_size
            raise InputError(
                f"images of {height}x{width}, but EoMT takes {own[0]}x{own[1]}, as its image "
                "processor gives them"
            )
        rows, columns = self.patch_size
        return height // rows, width // columns

    def check_image_size(self, height: int, width: int, interpolate: bool) -> None:
        del interpolate
        self.grid(height, width)

    def _interpolated(self, images: Tensor) -> dict[str, bool]:
        return {}

    # ---------------------------------------------------------------- the path of the tokens

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        mixed = block.attention.out_proj(attended.transpose(1, 2).flatten(2))
        x = x + block.drop_path(block.layer_scale1(mixed))
        return x + block.drop_path(block.layer_scale2(block.mlp(block.norm2(x))))

    def norm(self, x: Tensor) -> Tensor:
        return x  # the final norm comes after the queries

    def dense(self, images: Tensor) -> Tensor:
        return semantic_scores(self.module(images))

    def head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        if pre_logits:
            return tokens.x
        return semantic_scores(self.rest(tokens))

    def pool(self, tokens: Tokens) -> Tensor:
        return tokens.x

    def rest(self, tokens: Tokens, **labels: Any) -> EomtForUniversalSegmentationOutput:
        """What transformers computes from all patches on: by its own forward, without the start.

        Args:
            tokens: every patch in its place, before the first block with queries.
            **labels: ``mask_labels``, ``class_labels`` and the like.
        """
        if tokens.num_patches != tokens.grid_size:
            raise InputError(
                "EoMT's last blocks need every patch: take a schedule with restore_before "
                f"{len(self.blocks)}, the number of blocks before them"
            )
        module, blocks = self.module, self.module.config.num_blocks
        rest = copy.copy(module)
        vars(rest).update(
            _modules={
                **module._modules,
                "embeddings": _Given(tokens.x, self.num_prefix),
                "layers": module.layers[-blocks:],
            },
            _buffers={k: v for k, v in module._buffers.items() if k != "attn_mask_probs"},
            num_hidden_layers=blocks,
            attn_mask_probs=self._mask_probabilities(),
        )
        return rest(tokens.x, **labels)

    def _mask_probabilities(self) -> Sequence[float]:
        """As numbers: transformers branches on them, which neither shapes nor graphs can do."""
        found = self.module.attn_mask_probs
        if not (found.is_meta or torch.compiler.is_compiling()):
            self._masked = tuple(found.tolist())
        return self._masked or (0.0,) * len(found)

    # ---------------------------------------------------------------- training

    def reset_classifier(self, num_classes: int, pool: str | None) -> None:
        raise InputError("EoMT's classes are its own: load it with num_labels at transformers")

    def set_drop_path(self, rates: list[float]) -> None:
        for block, rate in zip(self.blocks, rates, strict=True):
            block.drop_path = EomtDropPath(rate) if rate else nn.Identity()


class _Given(nn.Module):
    """In place of the embedding: tokens that are there already."""

    def __init__(self, x: Tensor, num_prefix: int) -> None:
        super().__init__()
        self.x, self.num_prefix_tokens = x, num_prefix

    def forward(self, images: Tensor) -> Tensor:
        """The tokens."""
        del images
        return self.x


def semantic_scores(output: EomtForUniversalSegmentationOutput) -> Tensor:
    """``(B, classes, rows, columns)``, of which the largest is a pixel's class."""
    classes, masks = output.class_queries_logits, output.masks_queries_logits
    assert classes is not None
    assert masks is not None
    return torch.einsum("bqc,bqhw->bchw", classes.softmax(dim=-1)[..., :-1], masks.sigmoid())
