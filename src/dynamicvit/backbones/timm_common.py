"""What timm's vision transformers have in common: patch grid, block, pooling, head."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, cast

import torch
from timm.layers import AttentionPoolLatent, DropPath, PatchEmbed
from torch import Tensor, nn

from dynamicvit.backbones.base import Adapter
from dynamicvit.backbones.layer_macs import convolution_macs, linear_macs
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import attend
from dynamicvit.layers.pooling import masked_max, masked_mean
from dynamicvit.layers.tokens import Heads, Tokens

POOLS = ("token", "avg", "avgmax", "max", "map")


class TimmAdapter(Adapter):
    """Base of the timm families; each adds its classes, its embedding and its block."""

    #: The exact classes of model, embedding, block and attention that the family's code was
    #: written for. A subclass may compute something else, so it is not taken for its parent.
    model_classes: tuple[type, ...]
    embed_classes: tuple[type, ...] = (PatchEmbed,)
    block_classes: tuple[type, ...]
    attention_classes: tuple[type, ...]

    def claims(self, backbone: nn.Module) -> bool:
        return type(backbone) in self.model_classes

    def why_not(self, backbone: nn.Module) -> str | None:
        for block in cast("Iterable[Any]", self.blocks(backbone)):
            if type(block) not in self.block_classes:
                return f"its block class {type(block).__name__}"
            if type(block.attn) not in self.attention_classes:
                return f"its attention class {type(block.attn).__name__}"
            head_dim = block.attn.proj.in_features // block.attn.num_heads
            scale = getattr(block.attn, "scale", None)
            if scale is not None and not math.isclose(scale, head_dim**-0.5, rel_tol=1e-5):
                return f"its attention scale {scale:.4g} (heads of {head_dim} need head_dim**-0.5)"
        if type(backbone.patch_embed) not in self.embed_classes:
            return f"its patch embedding class {type(backbone.patch_embed).__name__}"
        if not isinstance(getattr(backbone, "patch_drop", None), (nn.Identity, type(None))):
            return "patch_drop_rate > 0 (tokens would be dropped twice)"
        if backbone.global_pool not in POOLS:
            return f"global_pool={backbone.global_pool!r} (one of {', '.join(POOLS)} is needed)"
        pool = getattr(backbone, "attn_pool", None)
        if pool is not None and type(pool) is not AttentionPoolLatent:
            return f"its attention pooling class {type(pool).__name__}"
        if pool is not None and pool.pos_embed is not None:
            return "the position embedding of its attention pooling (pos_embed)"
        return None

    def blocks(self, backbone: nn.Module) -> nn.ModuleList | nn.Sequential:
        return cast(nn.ModuleList, backbone.blocks)

    def width(self, backbone: nn.Module) -> int:
        return cast(int, backbone.embed_dim)

    def num_prefix_tokens(self, backbone: nn.Module) -> int:
        return cast(int, backbone.num_prefix_tokens)

    def has_class_token(self, backbone: nn.Module) -> bool:
        return getattr(backbone, "cls_token", None) is not None

    def num_heads(self, backbone: nn.Module, depth: int) -> int:
        return cast(Any, self.blocks(backbone)[depth]).attn.num_heads

    def image_size(self, backbone: nn.Module) -> tuple[int, int]:
        # pretrained_cfg says what the weights were trained at, which img_size=... leaves behind.
        built_for = backbone.patch_embed.img_size
        trained_at = self.pretrained_cfg(backbone).get("input_size", (3, 224, 224))[1:]
        return tuple(built_for or trained_at)

    def grid_size(self, backbone: nn.Module, height: int, width: int) -> tuple[int, int]:
        embed = backbone.patch_embed
        rows, columns = cast("tuple[int, int]", embed.patch_size)
        if embed.strict_img_size and embed.img_size is not None:
            if (height, width) != tuple(embed.img_size):
                raise InputError(
                    f"images of {height}x{width}, but this backbone takes "
                    f"{embed.img_size[0]}x{embed.img_size[1]} (create it with another img_size, "
                    f"or with dynamic_img_size=True)"
                )
        elif not embed.dynamic_img_pad and (height % rows or width % columns):
            raise InputError(
                f"images of {height}x{width}, but this backbone takes multiples of its "
                f"{rows}x{columns} patches"
            )
        return embed.dynamic_feat_size((height, width))

    def attention_inputs(
        self,
        block: nn.Module,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        attn: Any = block.attn
        heads = self.heads(attn, block.norm1(tokens.x), depth, tokens, position, queries)
        return heads._replace(dropout_p=attn.attn_drop.p if attn.training else 0.0)

    def after_attention(self, block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        out = project(block.attn, block.norm1, x, attended)
        x = x + block.drop_path1(self.layer_scale(block, 1, out))
        return x + block.drop_path2(self.layer_scale(block, 2, block.mlp(block.norm2(x))))

    @abstractmethod
    def heads(
        self,
        attn: nn.Module,
        x: Tensor,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        """Query, key and value of the block's normed input ``x``, and the bias of their pairs."""

    @abstractmethod
    def layer_scale(self, block: nn.Module, branch: int, x: Tensor) -> Tensor:
        """Scale the output of branch 1 (attention) or 2 (MLP), where the block does that."""

    def finish(self, backbone: nn.Module, x: Tensor) -> Tensor:
        return backbone.norm(x)

    def head(self, backbone: nn.Module, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        x = backbone.fc_norm(self.pool(backbone, tokens))
        x = backbone.head_drop(x)
        return x if pre_logits else backbone.head(x)

    def pool(self, backbone: nn.Module, tokens: Tokens) -> Tensor:
        """``(B, C)``: the class token, or the backbone's pool over the kept tokens."""
        kind = backbone.global_pool
        if kind == "token":
            return tokens.x[:, 0]
        if self.pools_prefix(backbone):
            x, weight = tokens.x, tokens.key_weight()
        else:
            x, weight = tokens.patches, tokens.weight
        if kind == "map":
            return attention_pool(backbone.attn_pool, x, weight)
        if kind == "avg":
            return masked_mean(x, weight)
        if kind == "max":
            return masked_max(x, weight)
        return 0.5 * (masked_max(x, weight) + masked_mean(x, weight))

    def reads(self, backbone: nn.Module) -> int | None:
        return 1 if backbone.global_pool == "token" and self.has_class_token(backbone) else None

    def pools_prefix(self, backbone: nn.Module) -> bool:
        """Whether prefix tokens are pooled along with the patches."""
        return getattr(backbone, "pool_include_prefix", False)

    # ---------------------------------------------------------------- the classifier

    def classifier(self, backbone: nn.Module) -> nn.Module:
        return backbone.get_classifier()

    def num_classes(self, backbone: nn.Module) -> int:
        return cast(int, backbone.num_classes)

    def num_features(self, backbone: nn.Module) -> int:
        return cast(int, backbone.num_features)

    def reset_classifier(self, backbone: nn.Module, num_classes: int, pool: str | None) -> None:
        if pool is not None:
            possible = [kind for kind in POOLS if self.can_pool(backbone, kind)]
            if pool not in possible:
                raise InputError(
                    f"global_pool={pool!r} can't be had here: one of {', '.join(possible)} can"
                )
        backbone.reset_classifier(num_classes, pool)

    def can_pool(self, backbone: nn.Module, kind: str) -> bool:
        """Whether ``reset_classifier`` can give the backbone this pool."""
        if kind == "token":
            return getattr(backbone, "cls_token", None) is not None
        return kind != "map" or getattr(backbone, "attn_pool", None) is not None

    # ---------------------------------------------------------------- training and input

    def no_weight_decay(self, backbone: nn.Module) -> set[str]:
        return set(backbone.no_weight_decay())

    def set_grad_checkpointing(self, backbone: nn.Module, enable: bool) -> None:
        backbone.set_grad_checkpointing(enable)

    def set_drop_path(self, backbone: nn.Module, rates: list[float]) -> None:
        for block, rate in zip(self.blocks(backbone), rates, strict=True):
            block.drop_path1 = DropPath(rate) if rate else nn.Identity()
            block.drop_path2 = DropPath(rate) if rate else nn.Identity()

    def set_image_size(self, backbone: nn.Module, height: int, width: int) -> None:
        embed: Any = backbone.patch_embed
        rows, columns = embed.patch_size
        whole = height % rows == 0 and width % columns == 0
        # With dynamic_img_size and dynamic_img_pad it takes any size as it is.
        pads = embed.dynamic_img_pad and not embed.strict_img_size
        if min(height, width) < 1 or not (whole or pads):
            raise InputError(
                f"images of {height}x{width}, but this backbone takes multiples of its "
                f"{rows}x{columns} patches"
            )
        differs = (height, width) != self.image_size(backbone)
        if whole and differs and hasattr(backbone, "set_input_size"):
            backbone.set_input_size(img_size=(height, width))
        self.grid_size(backbone, height, width)

    def pretrained_cfg(self, backbone: nn.Module) -> dict[str, Any]:
        return getattr(backbone, "pretrained_cfg", None) or {}

    # ---------------------------------------------------------------- closed form of the MACs

    def embed_macs(self, backbone: nn.Module, height: int, width: int) -> int:
        embed: Any = backbone.patch_embed
        if embed.dynamic_img_pad:
            rows, columns = embed.patch_size
            height, width = -(-height // rows) * rows, -(-width // columns) * columns
        return convolution_macs(embed.modules(), height, width)

    def block_macs(self, backbone: nn.Module, depth: int) -> tuple[int, int]:
        block: Any = self.blocks(backbone)[depth]
        return linear_macs(block), 2 * block.attn.proj.in_features

    def head_macs(self, backbone: nn.Module) -> tuple[int, int]:
        # The distilled DeiT has two classifiers.
        classifiers = (getattr(backbone, name, None) for name in ("head", "head_dist"))
        image = sum(linear_macs(head) for head in classifiers if head is not None)
        per_patch = 0
        pool: Any = getattr(backbone, "attn_pool", None)
        if pool is not None:
            # Every pooled token gives a key and a value; the latent queries pass through the rest.
            width = pool.num_heads * pool.head_dim
            pooled = linear_macs(pool.kv) + 2 * pool.latent_len * width
            image += (linear_macs(pool) - linear_macs(pool.kv)) * pool.latent_len
            per_patch += pooled
            if self.pools_prefix(backbone):
                image += pooled * self.num_prefix_tokens(backbone)
        return image, per_patch

    # ---------------------------------------------------------------- saving

    source = "timm"


def attention_pool(pool: nn.Module, x: Tensor, weight: Tensor | None) -> Tensor:
    """timm's ``AttentionPoolLatent`` over the kept tokens.

    Args:
        pool: the backbone's pooling module.
        x: ``(B, M, C)``.
        weight: ``(B, M)``, decisions or sizes, or ``None``.

    Returns:
        ``(B, C)``; zero for an image that keeps nothing.
    """
    batch, length, width = x.shape  # the backbones' pools keep the width
    if length == 0:
        return x.new_zeros(batch, width)
    latent = pool.latent.expand(batch, -1, -1)
    query = pool.q(latent).reshape(batch, pool.latent_len, pool.num_heads, pool.head_dim)
    key, value = (
        pool.kv(x).reshape(batch, length, 2, pool.num_heads, pool.head_dim).permute(2, 0, 3, 1, 4)
    )
    query, key = pool.q_norm(query.transpose(1, 2)), pool.k_norm(key)
    out = attend(query, key, value, decision=weight, keep_self=False)
    out = pool.proj_drop(pool.proj(out.transpose(1, 2).reshape(batch, pool.latent_len, -1)))
    if pool.mlp is not None:
        out = out + pool.mlp(pool.norm(out))
    out = out[:, 0] if pool.pool == "token" else out.mean(dim=1)
    if weight is None:
        return out
    return torch.where(weight.sum(dim=1, keepdim=True) > 0.5, out, torch.zeros_like(out))


def project(attn: nn.Module, norm: nn.Module, x: Tensor, out: Tensor) -> Tensor:
    """What follows attention in timm's attention classes: inner norm, gate, projection.

    Args:
        attn: the attention module.
        norm: the block's norm before attention.
        x: ``(B, T, C)``, the block's input.
        out: ``(B, H, T, D)``, the attended values.

    Returns:
        ``(B, T, C)``.
    """
    out = out.transpose(1, 2).flatten(2)
    inner_norm = getattr(attn, "norm", None)
    if inner_norm is not None:
        out = inner_norm(out)
    gate = getattr(attn, "gate", None)
    if gate is not None:
        out = out * gate(norm(x)).sigmoid()
    return attn.proj_drop(attn.proj(out))
