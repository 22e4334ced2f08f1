"""timm's ``VisionTransformer``, and what timm's other vision transformers share with it.

DeiT (distilled too), DeiT-III, AugReg, DINOv2, CLIP and SigLIP towers, ViT with registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

from timm.layers import Attention, AttentionPoolLatent, DropPath, PatchEmbed
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from dynamicvit.backbones.base import Backbone
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import first_products, fused_qkv, is_plain
from dynamicvit.layers.pooling import attention_pool, masked_max, masked_mean
from dynamicvit.layers.tokens import Tokens

POOLS = ("token", "avg", "avgmax", "max", "map")


def fresh_classifier(module: Any, num_classes: int, pool: str | None) -> None:
    """timm's ``reset_classifier``, with fresh layers initialized as timm initializes networks."""
    old = set(module.modules())
    module.reset_classifier(num_classes, pool)
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer not in old:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


class TimmBackbone(Backbone):
    """Pre-norm blocks; a family adds its classes, its embedding, and what its block has of its own.

    As written here: learned absolute positions, one layer for query, key and value, ``ls1`` and
    ``ls2`` as layer scale, which are those of ``VisionTransformer``.
    """

    source = "timm"

    #: The exact classes of model, embedding, block and attention that the family's code was
    #: written for. A subclass may compute something else, so it is not taken for its parent.
    model_classes: tuple[type, ...]
    embed_classes: tuple[type, ...] = (PatchEmbed,)
    block_classes: tuple[type, ...]
    attention_classes: tuple[type, ...]

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        return type(module) in cls.model_classes

    def why_not(self) -> str | None:
        for block in cast("Iterable[Any]", self.blocks):
            if type(block) not in self.block_classes:
                return f"its block class {type(block).__name__}"
            if type(block.attn) not in self.attention_classes:
                return f"its attention class {type(block.attn).__name__}"
            channels, heads = block.attn.proj.weight.shape[1], block.attn.num_heads
            if channels % heads:
                return f"an attention of {channels} channels, which {heads} heads can't share"
            head_dim = channels // heads
            scale = getattr(block.attn, "scale", None)
            if scale is not None and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-5):
                return f"its attention scale {scale:.4g} (heads of {head_dim} need head_dim**-0.5)"
        if type(self.module.patch_embed) not in self.embed_classes:
            return f"its patch embedding class {type(self.module.patch_embed).__name__}"
        if not isinstance(getattr(self.module, "patch_drop", None), (nn.Identity, type(None))):
            return "patch_drop_rate > 0 (tokens would be dropped twice)"
        if self.module.global_pool not in POOLS:
            return f"global_pool={self.module.global_pool!r} (one of {', '.join(POOLS)} is needed)"
        pool = getattr(self.module, "attn_pool", None)
        if pool is not None and type(pool) is not AttentionPoolLatent:
            return f"its attention pooling class {type(pool).__name__}"
        if pool is not None and pool.pos_embed is not None:
            return "the position embedding of its attention pooling (pos_embed)"
        return None

    # ---------------------------------------------------------------- its shape

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        return self.module.blocks

    @property
    def width(self) -> int:
        # By the tensors: what pruned a network may have left its attributes.
        weight = getattr(self.blocks[0].norm1, "weight", None)
        return self.module.embed_dim if weight is None else weight.shape[0]

    @property
    def num_prefix(self) -> int:
        return self.module.num_prefix_tokens

    @property
    def has_class_token(self) -> bool:
        return getattr(self.module, "cls_token", None) is not None

    @property
    def image_size(self) -> tuple[int, int]:
        # pretrained_cfg says what the weights were trained at, which img_size=... leaves behind.
        built_for = self.module.patch_embed.img_size
        trained_at = self.pretrained_cfg.get("input_size", (3, 224, 224))[1:]
        return tuple(built_for or trained_at)

    @property
    def patch_size(self) -> tuple[int, int]:
        return self.module.patch_embed.patch_size

    def grid(self, height: int, width: int) -> tuple[int, int]:
        embed = self.module.patch_embed
        if embed.strict_img_size and embed.img_size is not None:
            if (height, width) != tuple(embed.img_size):
                raise InputError(
                    f"images of {height}x{width}, but this backbone takes "
                    f"{embed.img_size[0]}x{embed.img_size[1]} (create it with another img_size, "
                    f"or with dynamic_img_size=True)"
                )
        elif not embed.dynamic_img_pad:
            self._check_whole_patches(height, width)
        return embed.dynamic_feat_size((height, width))

    def _check_whole_patches(self, height: int, width: int) -> None:
        rows, columns = self.patch_size
        if min(height, width) < 1 or height % rows or width % columns:
            raise InputError(
                f"images of {height}x{width}, but this backbone takes multiples of its "
                f"{rows}x{columns} patches"
            )

    # ---------------------------------------------------------------- the path of the tokens

    def tokens(self, x: Tensor, images: Tensor, position: Tensor | None = None) -> Tokens:
        """All tokens of embedded images.

        Args:
            x: ``(B, P + N, C)``.
            images: ``(B, channels, height, width)``.
            position: see :class:`~dynamicvit.layers.tokens.Tokens`.
        """
        grid = self.grid(images.shape[2], images.shape[3])
        return Tokens(x, self.num_prefix, grid, position=position)

    def embed(self, images: Tensor) -> Tokens:
        module = self.module
        x = module.norm_pre(module._pos_embed(module.patch_embed(images)))
        return self.tokens(x, images)

    def qkv(
        self, block: Any, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.projected(block.attn, block.norm1(x), queries)
        return block.attn.q_norm(query), block.attn.k_norm(key), value

    def projected(self, attn: Any, x: Tensor, queries: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of the block's normed input ``x``, before their own norms."""
        return fused_qkv(attn.qkv, x, attn.num_heads, queries)

    @property
    def has_plain_products(self) -> bool:
        norms = (norm for block in self.blocks for norm in (block.attn.q_norm, block.attn.k_norm))
        moved = type(self).placed is not Backbone.placed
        return not moved and all(isinstance(norm, nn.Identity) for norm in norms)

    def first_products(self, block: Any, x: Tensor) -> Tensor:
        qkv, heads = block.attn.qkv, block.attn.num_heads
        if not is_plain(qkv):
            return super().first_products(block, x)
        width = qkv.weight.shape[0] // 3
        query, key = qkv.weight[:width], qkv.weight[width : 2 * width]
        bias = None if qkv.bias is None else qkv.bias[:width]
        # Its forward, not a call: whoever watches the norm sees it called once, as ever.
        return first_products(block.norm1.forward(x), query, bias, key, heads)

    def attention_dropout(self, block: Any) -> float:
        return block.attn.attn_drop.p if block.attn.training else 0.0

    def after_attention(self, block: Any, x: Tensor, attended: Tensor) -> Tensor:
        attn, out = block.attn, attended.transpose(1, 2).flatten(2)
        inner_norm, gate = getattr(attn, "norm", None), getattr(attn, "gate", None)
        if inner_norm is not None:
            out = inner_norm(out)
        if gate is not None:
            out = out * gate(block.norm1(x)).sigmoid()
        out = attn.proj_drop(attn.proj(out))
        x = x + block.drop_path1(self.layer_scale(block, 1, out))
        return x + block.drop_path2(self.layer_scale(block, 2, block.mlp(block.norm2(x))))

    def call_arguments(self, i: int, tokens: Tokens) -> tuple[Any, ...] | None:
        # A block that knows places would take those that are held for the whole grid.
        if type(self).placed is not Backbone.placed:
            return None
        bias = self.size_bias(tokens)
        return (tokens.x,) if bias is None else (tokens.x, bias)

    def layer_scale(self, block: Any, branch: int, x: Tensor) -> Tensor:
        """Scale the output of branch 1 (attention) or 2 (MLP), where the block does that."""
        return (block.ls1 if branch == 1 else block.ls2)(x)

    def norm(self, x: Tensor) -> Tensor:
        return self.module.norm(x)

    def head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        x = self.module.head_drop(self.module.fc_norm(self.pool(tokens)))
        return x if pre_logits else self.module.head(x)

    def pool(self, tokens: Tokens) -> Tensor:
        """``(B, C)``: the class token, or the network's pool over the kept tokens."""
        kind = self.module.global_pool
        if kind == "token":
            return tokens.x[:, 0]
        x, weight = tokens.patches, tokens.weight
        if self.pools_prefix:
            x, weight = tokens.x, tokens.over_all(weight)
        if kind == "map":
            return attention_pool(self.module.attn_pool, x, weight)
        if kind == "avg":
            return masked_mean(x, weight)
        if kind == "max":
            return masked_max(x, weight)
        return 0.5 * (masked_max(x, weight) + masked_mean(x, weight))

    @property
    def reads(self) -> int | None:
        return 1 if self.module.global_pool == "token" and self.has_class_token else None

    @property
    def pools_prefix(self) -> bool:
        """Whether prefix tokens are pooled along with the patches."""
        return getattr(self.module, "pool_include_prefix", False)

    # ---------------------------------------------------------------- the classifier

    @property
    def classifier(self) -> nn.Module:
        return self.module.get_classifier()

    @property
    def num_classes(self) -> int:
        return self.module.num_classes

    @property
    def num_features(self) -> int:
        return self.width

    def reset_classifier(self, num_classes: int, pool: str | None) -> None:
        if pool is not None:
            possible = [kind for kind in POOLS if self.can_pool(kind)]
            if pool not in possible:
                raise InputError(
                    f"global_pool={pool!r} is not available here: one of {', '.join(possible)} is"
                )
        fresh_classifier(self.module, num_classes, pool)

    def can_pool(self, kind: str) -> bool:
        """Whether ``reset_classifier`` can give the network this pool."""
        if kind == "token":
            return self.has_class_token
        return kind != "map" or getattr(self.module, "attn_pool", None) is not None

    # ---------------------------------------------------------------- training and input

    def no_weight_decay(self) -> set[str]:
        # An older timm forgets the registers.
        added = {"reg_token"} if getattr(self.module, "reg_token", None) is not None else set()
        return {*self.module.no_weight_decay(), *added}

    def group_matcher(self) -> dict[str, Any]:
        return {**super().group_matcher(), "blocks": self.module.group_matcher()["blocks"]}

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.module.set_grad_checkpointing(enable)

    def set_drop_path(self, rates: list[float]) -> None:
        for block, rate in zip(self.blocks, rates, strict=True):
            block.drop_path1 = DropPath(rate) if rate else nn.Identity()
            block.drop_path2 = DropPath(rate) if rate else nn.Identity()

    def set_image_size(self, height: int, width: int) -> None:
        embed: Any = self.module.patch_embed
        whole = height % self.patch_size[0] == 0 and width % self.patch_size[1] == 0
        # With dynamic_img_size and dynamic_img_pad it takes any size as it is.
        if min(height, width) < 1 or not embed.dynamic_img_pad or embed.strict_img_size:
            self._check_whole_patches(height, width)
        differs = (height, width) != self.image_size
        if whole and differs and hasattr(self.module, "set_input_size"):
            self.module.set_input_size(img_size=(height, width))
        self.grid(height, width)

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return getattr(self.module, "pretrained_cfg", None) or {}


class ViTBackbone(TimmBackbone):
    """Learned absolute positions; any number of prefix tokens."""

    family = "timm VisionTransformer (ViT, DeiT, DeiT-III, DINOv2, CLIP, SigLIP, registers)"
    model_classes = (VisionTransformer,)
    block_classes = (Block,)
    attention_classes = (Attention,)


class DistilledBackbone(ViTBackbone):
    """DeiT's distilled network: two classifiers read the two prefix tokens."""

    family = "timm VisionTransformerDistilled (DeiT distilled)"
    model_classes = (VisionTransformerDistilled,)

    @property
    def reads(self) -> int:
        return 2

    def can_pool(self, kind: str) -> bool:
        return kind == "token"

    def head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        classed, distilled = self.module.head_drop(tokens.x[:, :2]).unbind(1)
        if pre_logits:
            return (classed + distilled) / 2
        return (self.module.head(classed) + self.module.head_dist(distilled)) / 2
