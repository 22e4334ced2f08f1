"""LV-ViT (Jiang et al., "All Tokens Matter", NeurIPS 2021), which timm lacks, as a timm model.

It is a vision transformer with four convolutions to embed patches, residual branches divided by a
constant, and a second classifier for the patches. Parameters have the names of the original files,
which load unchanged.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import (
    VisionTransformer,
    checkpoint_filter_fn,
    init_weights_vit_timm,
)
from torch import Tensor, nn

from dynamicvit.backbones.networks.lvvit_layers import ConvStem, DividedBlock
from dynamicvit.errors import InputError


class LVViT(VisionTransformer):
    """LV-ViT, with logits ``(B, classes)`` in ``train()`` and ``eval()`` alike.

    They are those of the class token plus half the maximum over the patches of ``aux_head``'s. The
    original code trains on both parts; for that, call ``head`` and ``aux_head`` on the output of
    ``forward_features``.

    Args:
        num_classes: of both classifiers; 0 for none, which gives the class token's features.
        global_pool: ``"token"``; or ``""`` without classes, which gives all tokens.
        embed_dim: C, the width of the tokens.
        depth: number of blocks.
        num_heads: heads of attention.
        mlp_ratio: width inside a block's MLP, as a multiple of C.
        residual_divisor: what each residual branch is divided by.
        stem_width: channels between the convolutions of the stem.
        qkv_bias: whether queries, keys and values have a bias.
        weight_init: timm's name of a scheme, or ``"skip"`` to keep the layers' own initial weights.
        **kwargs: of timm's ``VisionTransformer``; ``patch_size`` is even.

    Raises:
        InputError: for a pool or a patch size that LV-ViT can't have.
    """

    #: Share of the best patch's logits in the prediction.
    aux_weight = 0.5
    __constants__ = ("aux_weight",)  # for torch.jit

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        global_pool: str = "token",
        embed_dim: int = 384,
        depth: int = 16,
        num_heads: int = 6,
        mlp_ratio: float = 3.0,
        residual_divisor: float = 2.0,
        stem_width: int = 64,
        qkv_bias: bool = False,
        weight_init: Literal["skip", "reset", "jax", "jax_nlhb", "moco", ""] = "",
        **kwargs: Any,
    ) -> None:
        _check_pool(global_pool, num_classes)
        super().__init__(
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            weight_init=weight_init,
            norm_layer=nn.LayerNorm,  # its epsilon is 1e-5, timm's would be 1e-6
            embed_layer=partial(ConvStem, stem_width=stem_width),
            block_fn=partial(DividedBlock, residual_divisor=residual_divisor),
            **kwargs,
        )
        self.aux_head = self._fresh_aux_head()
        if weight_init != "skip":
            init_weights_vit_timm(self.aux_head)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Classify: ``(B, classes)``, or with ``pre_logits`` the class token ``(B, C)``.

        Args:
            x: ``(B, 1 + N, C)``, of ``forward_features``.
            pre_logits: stop before the classifiers.
        """
        # Without super(), which torch.jit does not support.
        pooled = self.head_drop(self.fc_norm(self.pool(x)))
        if pre_logits or self.num_classes == 0:
            return pooled
        patches = self.aux_head(x[:, self.num_prefix_tokens :])
        return self.head(pooled) + self.aux_weight * patches.amax(dim=1)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace both classifiers with fresh ones; arguments as for the class."""
        _check_pool(self.global_pool if global_pool is None else global_pool, num_classes)
        super().reset_classifier(num_classes, global_pool)
        self.aux_head = self._fresh_aux_head().train(self.training)

    def _fresh_aux_head(self) -> nn.Module:
        if self.num_classes == 0:
            return nn.Identity()
        like = self.patch_embed.proj.weight
        return nn.Linear(self.embed_dim, self.num_classes, device=like.device, dtype=like.dtype)


def _check_pool(global_pool: str, num_classes: int) -> None:
    if global_pool != "token" and (global_pool or num_classes):
        raise InputError(f"LV-ViT pools its class token ('token'), got global_pool={global_pool!r}")


# ---------------------------------------------------------------- names and weights


_FILES = "https://github.com/zihangJiang/TokenLabeling/releases/download/"


def _cfg(file: str, size: int = 224, crop_pct: float = 0.9) -> dict[str, Any]:
    return {
        "url": _FILES + file,
        "num_classes": 1000,
        "input_size": (3, size, size),
        "fixed_input_size": True,
        "pool_size": None,
        "crop_pct": crop_pct,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.conv1",
        "classifier": ("head", "aux_head"),
        "license": "apache-2.0",
        "origin_url": "https://github.com/zihangJiang/TokenLabeling",
        "paper_ids": "arXiv:2104.10858",
    }


# timm reads this at registration; the first of a model's tags is its default.
default_cfgs = generate_default_cfgs(
    {
        "lvvit_t.token_labeling_in1k": _cfg("v0.2.0/lvvit_t.pth"),
        "lvvit_s.token_labeling_in1k": _cfg("1.0/lvvit_s-26M-224-83.3.pth.tar"),
        "lvvit_s.token_labeling_in1k_384": _cfg("1.0/lvvit_s-26M-384-84.4.pth.tar", 384),
        "lvvit_m.token_labeling_in1k": _cfg("1.0/lvvit_m-56M-224-84.0.pth.tar", 224, 1.0),
        "lvvit_m.token_labeling_in1k_384": _cfg("1.0/lvvit_m-56M-384-85.4.pth.tar", 384, 1.0),
        "lvvit_l.token_labeling_in1k_448": _cfg("1.0/lvvit_l-150M-448-86.2.pth.tar", 448, 1.0),
    }
)


@register_model
def lvvit_t(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-T: 8.5 M parameters."""
    shape = {"embed_dim": 240, "depth": 12, "num_heads": 4, "residual_divisor": 1.0}
    return _build("lvvit_t", pretrained, shape | kwargs)


@register_model
def lvvit_s(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-S: 26 M parameters."""
    shape = {"embed_dim": 384, "depth": 16, "num_heads": 6, "residual_divisor": 2.0}
    return _build("lvvit_s", pretrained, shape | kwargs)


@register_model
def lvvit_m(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-M: 56 M parameters."""
    shape = {"embed_dim": 512, "depth": 20, "num_heads": 8, "residual_divisor": 2.0}
    return _build("lvvit_m", pretrained, shape | kwargs)


@register_model
def lvvit_l(pretrained: bool = False, **kwargs: Any) -> LVViT:
    """LV-ViT-L: 150 M parameters, for images of 448 px."""
    shape = {"embed_dim": 768, "depth": 24, "num_heads": 12, "residual_divisor": 3.0}
    return _build("lvvit_l", pretrained, shape | {"stem_width": 128} | kwargs)


def _build(name: str, pretrained: bool, arguments: dict[str, Any]) -> LVViT:
    return build_model_with_cfg(
        LVViT,
        name,
        pretrained,
        # Resamples positions for another img_size.
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": arguments.pop("out_indices", 3), "feature_cls": "getter"},
        **arguments,
    )
