"""What the vision transformers of Hugging Face transformers have in common."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, cast

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

from dynamicvit.backbones.base import Adapter
from dynamicvit.errors import InputError
from dynamicvit.layers.tokens import Heads, Tokens

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


class HFAdapter(Adapter):
    """Base of the transformers families: an encoder, and a linear classifier on what it pools.

    Attention is ours, whatever ``attn_implementation`` the model was loaded with.
    """

    #: The exact classes of model, block and attention that the family's code was written for.
    model_classes: tuple[type, ...]
    block_classes: tuple[type, ...]
    attention_classes: tuple[type, ...]

    def claims(self, backbone: nn.Module) -> bool:
        return type(backbone) in self.model_classes

    def why_not(self, backbone: nn.Module) -> str | None:
        for block in cast("Iterable[Any]", self.blocks(backbone)):
            if type(block) not in self.block_classes:
                return f"its block class {type(block).__name__}"
            attn = self.attention(block)
            if type(attn) not in self.attention_classes:
                return f"its attention class {type(attn).__name__}"
            scale = self.attention_scale(attn)
            if not math.isclose(scale, attn.head_dim**-0.5, rel_tol=1e-5):
                return f"its attention scale {scale:.4g} (head_dim**-0.5 is needed)"
        return None

    # ---------------------------------------------------------------- its parts

    @abstractmethod
    def encoder(self, backbone: nn.Module) -> Any:
        """The model without its classifier."""

    @abstractmethod
    def attention(self, block: nn.Module) -> Any:
        """A block's attention."""

    def attention_scale(self, attn: Any) -> float:
        """What the products of queries and keys are multiplied by."""
        return attn.scaling

    def width(self, backbone: nn.Module) -> int:
        return self.encoder(backbone).config.hidden_size

    def num_heads(self, backbone: nn.Module, depth: int) -> int:
        attn = self.attention(self.blocks(backbone)[depth])
        return attn.q_proj.out_features // attn.head_dim

    def classifier(self, backbone: nn.Module) -> nn.Module:
        return cast(nn.Module, backbone.classifier)

    # ---------------------------------------------------------------- images

    def image_size(self, backbone: nn.Module) -> tuple[int, int]:
        return _pair(self.encoder(backbone).config.image_size)

    def patch_size(self, backbone: nn.Module) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return _pair(self.encoder(backbone).config.patch_size)

    def grid_size(self, backbone: nn.Module, height: int, width: int) -> tuple[int, int]:
        own = self.image_size(backbone)
        rows, columns = self.patch_size(backbone)
        grid = height // rows, width // columns  # what is left of the last patch is not seen
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

    def check_image_size(
        self, backbone: nn.Module, height: int, width: int, interpolate: bool
    ) -> None:
        """Raise ``InputError`` where transformers wants ``interpolate_pos_encoding=True``."""
        own = self.image_size(backbone)
        if not interpolate and (height, width) != own:
            raise InputError(
                f"images of {height}x{width}, but this model takes {own[0]}x{own[1]} (or others "
                f"with interpolate_pos_encoding=True)"
            )

    @abstractmethod
    def processing(self, backbone: nn.Module) -> dict[str, Any]:
        """What the image processors of its published checkpoints do, in timm's words."""

    def pretrained_cfg(self, backbone: nn.Module) -> dict[str, Any]:
        config: Any = backbone.config
        number = self.num_classes(backbone)
        described = {
            **self.processing(backbone),
            "num_classes": number,
            "input_size": (self.in_chans(backbone), *self.image_size(backbone)),
            **getattr(backbone, "image_processing", {}),
        }
        names = [str(config.id2label.get(label, label)) for label in range(number)]
        if names != [f"LABEL_{label}" for label in range(number)]:  # nobody named them
            described["label_names"] = names
        return described

    # ---------------------------------------------------------------- the way of the tokens

    def dense(self, backbone: nn.Module, images: Tensor) -> Tensor:
        differs = tuple(images.shape[2:]) != self.image_size(backbone)
        return backbone(images, interpolate_pos_encoding=differs).logits

    def embed(self, backbone: nn.Module, images: Tensor) -> tuple[Tokens, Tensor | None]:
        differs = tuple(images.shape[2:]) != self.image_size(backbone)
        embeddings = self.encoder(backbone).embeddings
        x = embeddings(images, interpolate_pos_encoding=differs)
        return Tokens(x, self.num_prefix_tokens(backbone)), None

    def heads(self, attn: Any, x: Tensor, dropout: float, queries: int | None = None) -> Heads:
        """Query, key and value of the block's normed input; a query for the first tokens only."""
        query, key, value = (
            projected.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2)
            for projected in (attn.q_proj(x[:, :queries]), attn.k_proj(x), attn.v_proj(x))
        )
        return Heads(query, key, value, dropout_p=dropout if attn.training else 0.0)

    def head(self, backbone: nn.Module, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        x = self.pool(tokens)
        return x if pre_logits else backbone.classifier(x)

    @abstractmethod
    def pool(self, tokens: Tokens) -> Tensor:
        """What the classifier gets of each image."""

    # ---------------------------------------------------------------- training

    def reset_classifier(self, backbone: nn.Module, num_classes: int, pool: str | None) -> None:
        if pool is not None:
            raise InputError(f"global_pool={pool!r}: {self.family} keep their own pool")
        old = self.classifier(backbone)
        fresh = (
            nn.Linear(self.num_features(backbone), num_classes) if num_classes else nn.Identity()
        )
        like = next(backbone.parameters())
        backbone.classifier = fresh.to(device=like.device, dtype=like.dtype).train(old.training)
        config: Any = backbone.config
        config.num_labels = backbone.num_labels = num_classes

    def num_features(self, backbone: nn.Module) -> int:
        return self.width(backbone)

    def grad_checkpointing(self, backbone: nn.Module, depth: int) -> bool:
        return cast(bool, self.blocks(backbone)[depth].gradient_checkpointing)

    def set_grad_checkpointing(self, backbone: nn.Module, enable: bool) -> None:
        for block in self.blocks(backbone):
            block.gradient_checkpointing = enable
            block._gradient_checkpointing_func = _recomputed  # for the dense network

    def block_macs(self, backbone: nn.Module, depth: int) -> tuple[int, int]:
        per_token, _ = super().block_macs(backbone, depth)
        attn = self.attention(self.blocks(backbone)[depth])
        return per_token, 2 * attn.q_proj.out_features

    # ---------------------------------------------------------------- saving

    source = "transformers"

    # ---------------------------------------------------------------- what users get

    def wrap(self, model: nn.Module) -> nn.Module:
        from dynamicvit.transformers.model import DynamicViTForImageClassification

        return DynamicViTForImageClassification.around(model)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _recomputed(function: Any, *args: Any) -> Any:
    return checkpoint(function, *args, use_reentrant=False)
