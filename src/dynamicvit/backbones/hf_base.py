"""What the vision transformers of Hugging Face transformers have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import transformers
from packaging.version import Version
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynamicvit.backbones.base import Backbone
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import first_products, is_plain
from dynamicvit.layers.tokens import Grid, Tokens

OLDEST = "5.20"
"""transformers renames the parts of its models now and then; this is the oldest one tested."""

#: How the image processors of the published checkpoints work, in timm's words.
SQUASHED = {
    "mean": IMAGENET_INCEPTION_MEAN,
    "std": IMAGENET_INCEPTION_STD,
    "crop_pct": 1.0,
    "crop_mode": "squash",
}
CROPPED = {
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "crop_pct": 0.875,
    "interpolation": "bicubic",
}


def require(version: str) -> None:
    """Raise ``ImportError`` for a version of transformers that is too old."""
    if Version(version) < Version(OLDEST):
        raise ImportError(
            f"transformers {version} is too old for dynamicvit, which needs {OLDEST} or newer: "
            f"pip install -U transformers"
        )


require(transformers.__version__)


class HFBackbone(Backbone):
    """Base of the transformers families: an encoder, and a linear classifier on what it pools.

    Attention is ours, whatever ``attn_implementation`` the model was loaded with.
    """

    source = "transformers"

    #: The exact classes of model, block and attention that the family's code was written for.
    model_classes: tuple[type, ...]
    block_classes: tuple[type, ...]
    attention_classes: tuple[type, ...]
    #: What the image processors of its published checkpoints do, in timm's words.
    processing: ClassVar[dict[str, Any]]

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        return type(module) in cls.model_classes

    def why_not(self) -> str | None:
        for block in self.blocks:
            if type(block) not in self.block_classes:
                return f"its block class {type(block).__name__}"
            attn = self.attention(block)
            if type(attn) not in self.attention_classes:
                return f"its attention class {type(attn).__name__}"
            scale = self.attention_scale(attn)
            if not math.isclose(scale, self.head_dim(attn) ** -0.5, rel_tol=1e-5):
                return f"its attention scale {scale:.4g} (head_dim**-0.5 is needed)"
        return None

    # ---------------------------------------------------------------- its parts

    @property
    @abstractmethod
    def encoder(self) -> Any:
        """The model without its classifier."""

    def attention(self, block: Any) -> Any:
        """A block's attention."""
        return block.attention

    def attention_scale(self, attn: Any) -> float:
        """What the products of queries and keys are multiplied by."""
        return attn.scaling

    def head_dim(self, attn: Any) -> int:
        """D, the width of an attention's heads."""
        return attn.head_dim

    def projections(self, attn: Any) -> tuple[nn.Module, nn.Module, nn.Module]:
        """An attention's layers for query, key and value."""
        return attn.q_proj, attn.k_proj, attn.v_proj

    @property
    def width(self) -> int:
        norm: Any = self.first_norm(self.blocks[0])
        return norm.weight.shape[0]

    @property
    def classifier(self) -> nn.Module:
        return self.module.classifier

    # ---------------------------------------------------------------- images

    @property
    def image_size(self) -> tuple[int, int]:
        return _pair(self.encoder.config.image_size)

    @property
    def patch_size(self) -> tuple[int, int]:
        return _pair(self.encoder.config.patch_size)

    def grid(self, height: int, width: int) -> Grid:
        own = self.image_size
        rows, columns = self.patch_size
        grid = height // rows, width // columns  # what remains of the last patch is not seen
        if min(grid) < 1:
            raise InputError(
                f"images of {height}x{width}, but this backbone needs at least {rows}x{columns}"
            )
        # transformers takes the table of positions for a square when it interpolates.
        square = own[0] // rows == own[1] // columns and rows == columns
        if not square and (height, width) != own:
            raise InputError(
                f"images of {height}x{width}, but this backbone takes {own[0]}x{own[1]} "
                f"(transformers interpolates square grids of square patches only)"
            )
        return grid

    def check_image_size(self, height: int, width: int, interpolate: bool) -> None:
        """Raise ``InputError`` where transformers wants ``interpolate_pos_encoding=True``."""
        own = self.image_size
        if not interpolate and (height, width) != own:
            raise InputError(
                f"images of {height}x{width}, but this model takes {own[0]}x{own[1]} (or others "
                f"with interpolate_pos_encoding=True)"
            )

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        config: Any = self.module.config
        described = {
            **self.processing,
            "num_classes": self.num_classes,
            "input_size": (self.in_chans, *self.image_size),
            **getattr(self.module, "image_processing", {}),
        }
        labels = range(self.num_classes)
        names = [str(config.id2label.get(label, label)) for label in labels]
        if names != [f"LABEL_{label}" for label in labels]:  # nobody named them
            described["label_names"] = names
        return described

    # ---------------------------------------------------------------- the path of the tokens

    def dense(self, images: Tensor) -> Tensor:
        return self.module(images, **self._interpolated(images)).logits

    def embed(self, images: Tensor) -> Tokens:
        x = self.encoder.embeddings(images, **self._interpolated(images))
        return Tokens(x, self.num_prefix, self.grid(images.shape[2], images.shape[3]))

    def _interpolated(self, images: Tensor) -> dict[str, bool]:
        """The argument with which transformers interpolates positions."""
        return {"interpolate_pos_encoding": tuple(images.shape[2:]) != self.image_size}

    def qkv(
        self, block: nn.Module, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        attn, x = self.attention(block), self.first_norm(block)(x)
        to_query, to_key, to_value = self.projections(attn)
        query, key, value = (
            projected.unflatten(-1, (-1, self.head_dim(attn))).transpose(1, 2)
            for projected in (to_query(x[:, :queries]), to_key(x), to_value(x))
        )
        return query, key, value

    @property
    def has_plain_products(self) -> bool:
        return True

    def first_products(self, block: nn.Module, x: Tensor) -> Tensor:
        attn = self.attention(block)
        query, key, _ = cast("tuple[Any, ...]", self.projections(attn))
        if not (is_plain(query) and is_plain(key)):
            return super().first_products(block, x)
        x, heads = self.first_norm(block).forward(x), len(key.weight) // self.head_dim(attn)
        return first_products(x, query.weight, query.bias, key.weight, heads)

    def call_arguments(self, i: int, tokens: Tokens) -> tuple[Any, ...] | None:
        # Its own forward would checkpoint inside ours; not every attention of theirs takes a bias.
        own = tokens.size is None and not self.grad_checkpointing(i)
        return (tokens.x,) if own else None

    @abstractmethod
    def first_norm(self, block: Any) -> nn.Module:
        """A block's norm before attention."""

    def attention_dropout(self, block: nn.Module) -> float:
        attn = self.attention(block)
        return attn.attention_dropout if attn.training else 0.0

    def head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        x = self.pool(tokens)
        return x if pre_logits else self.module.classifier(x)

    @abstractmethod
    def pool(self, tokens: Tokens) -> Tensor:
        """What the classifier gets of each image."""

    # ---------------------------------------------------------------- training

    def reset_classifier(self, num_classes: int, pool: str | None) -> None:
        if pool is not None:
            raise InputError(f"global_pool={pool!r}: {self.family} keep their own pool")
        old, like = self.classifier, next(self.module.parameters())
        fresh = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if num_classes:  # as transformers does it: a bias of zero shows that nobody trained it
            nn.init.normal_(
                fresh.weight, std=getattr(self.module.config, "initializer_range", 0.02)
            )
            nn.init.zeros_(fresh.bias)
        self.module.classifier = fresh.to(like.device, like.dtype).train(old.training)
        self.module.config.num_labels = self.module.num_labels = num_classes

    def set_class_names(self, names: Sequence[str] | None) -> None:
        config = self.module.config
        words = [f"LABEL_{i}" for i in range(self.num_classes)] if names is None else names
        config.id2label = dict(enumerate(words))
        config.label2id = {name: i for i, name in enumerate(words)}

    @property
    def num_features(self) -> int:
        return self.width

    def grad_checkpointing(self, i: int) -> bool:
        return bool(self.blocks[i].gradient_checkpointing)

    def set_grad_checkpointing(self, enable: bool) -> None:
        for block in self.blocks:
            block.gradient_checkpointing = enable
            block._gradient_checkpointing_func = _recomputed  # for the dense network


def describe(module: Any) -> dict[str, Any]:
    """The words from which :func:`rebuild` makes a model of transformers again."""
    # The difference from the defaults leaves out where the model was loaded from.
    return {
        "backbone_config": module.config.to_diff_dict(),
        "image_processing": getattr(module, "image_processing", {}),
    }


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _recomputed(function: Any, *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)
