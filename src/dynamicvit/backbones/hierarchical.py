"""Hierarchical networks: four stages of maps, of which the third has most of the blocks.

Its blocks mix neighbors over the whole map (depth-wise convolution, attention in windows), then
work on each position alone (MLP). From the first prediction module on, unimportant positions take
a cheap path in place of the MLP ("Dynamic Spatial Sparsification", Rao et al., TPAMI 2023):

    y_i = m_i slow(x)_i + (1 - m_i) cheap(x)_i

So the :class:`~dynamicvit.backbones.Backbone` here has the third stage's blocks as its blocks;
the stages before are its embedding, the fourth is part of its end.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynamicvit.backbones.base import Backbone
from dynamicvit.backbones.timm_vit import fresh_classifier
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import as_module
from dynamicvit.layers.maps import CheapPath, Map
from dynamicvit.layers.tokens import Tokens

#: The stage, from 0, in which positions take paths of different cost.
THIRD = 2

Note = Callable[[Tensor], None]
"""Called with the map after each of the four stages: ``(B, C, rows, columns)``."""

_POOLS = ("avg", "max", "avgmax")


class Hierarchical(Backbone):
    """A timm network of four stages; a family says how its blocks mix, and what its MLP is.

    Maps between blocks are ``(B, N, C)``, rows of positions; the network's own layers get them as
    ``(B, C, rows, columns)`` or ``(B, rows, columns, C)`` (:attr:`channels_last`).
    """

    source = "timm"

    model_classes: tuple[type, ...]
    block_classes: tuple[type, ...]
    #: Whether the network's layers take ``(B, rows, columns, C)``.
    channels_last: ClassVar[bool]
    #: Of the norms in prediction modules and cheap paths, as released.
    eps: ClassVar[float]
    #: A block's stochastic depths, that of :meth:`slow` last.
    drop_paths: ClassVar[tuple[str, ...]]

    _note: Note | None = None

    @classmethod
    def claims(cls, module: nn.Module) -> bool:
        return type(module) in cls.model_classes

    def why_not(self) -> str | None:
        if len(self.levels) != THIRD + 2:
            return f"its {len(self.levels)} stages (4 are needed)"
        for block in self.blocks:
            if type(block) not in self.block_classes:
                return f"its block class {type(block).__name__}"
        return None

    # ---------------------------------------------------------------- what a family says

    @property
    @abstractmethod
    def levels(self) -> Any:
        """The network's stages."""

    @property
    @abstractmethod
    def stem(self) -> nn.Module:
        """What comes before the first stage."""

    @abstractmethod
    def mixed(self, block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """What a block does over the whole map.

        Args:
            block: of the third stage.
            x: ``(B, rows, columns, C)``.

        Returns:
            What the block's end adds its branch to, and what goes into the branch: likewise.
        """

    @abstractmethod
    def slow(self, block: Any, x: Tensor) -> Tensor:
        """The branch of a block that works on each position alone: ``(..., C)`` to the same."""

    @abstractmethod
    def cheap_path(self) -> CheapPath:
        """A fresh cheap path in place of :meth:`slow`."""

    # ---------------------------------------------------------------- the way of a map

    def embed(self, images: Tensor) -> Map:
        """The map that enters the third stage's first block."""
        x = self.stem(images)
        for level in self.levels[:THIRD]:
            x = level(x)
            self._noted(x)
        return self.tokens(self.levels[THIRD].downsample(x))

    def run(self, i: int, tokens: Tokens, keep_heads: bool = False) -> Map:
        """Block ``i``; once a stage has decided, each position takes its path."""
        del keep_heads
        assert isinstance(tokens, Map)
        decided = tokens.decision is not None or tokens.order is not None
        work = self._two_paths if decided else self._whole
        if self.grad_checkpointing(i) and torch.is_grad_enabled():
            x = checkpoint(work, i, tokens, use_reentrant=False)
        else:
            x = work(i, tokens)
        return replace(tokens, x=self.tokens(x).x, block=i + 1)

    def _whole(self, i: int, tokens: Map) -> Tensor:
        return self.blocks[i](self.map_of(tokens))

    def _two_paths(self, i: int, tokens: Map) -> Tensor:
        block = self.blocks[i]
        cheap = None if tokens.cheap is None else tokens.cheap[str(i)]

        def by_parts(x: Tensor) -> Tensor:
            x = x if self.channels_last else x.permute(0, 2, 3, 1)
            base, x = self.mixed(block, x)
            if tokens.decision is not None:
                branch = self._masked(block, cheap, x, tokens.decision.unflatten(1, tokens.grid))
            else:
                branch = self._gathered(block, cheap, x, tokens)
            x = base + getattr(block, self.drop_paths[-1])(branch)
            return x if self.channels_last else x.permute(0, 3, 1, 2)

        return as_module(block, by_parts, self.map_of(tokens))

    def _masked(self, block: Any, cheap: nn.Module | None, x: Tensor, decision: Tensor) -> Tensor:
        """Both paths everywhere, so that the decision has a gradient."""
        decision = decision[..., None]
        branch = decision * self.slow(block, x)
        return branch if cheap is None else branch + (1 - decision) * cheap(x)

    def _gathered(self, block: Any, cheap: nn.Module | None, x: Tensor, tokens: Map) -> Tensor:
        """Each path for its own rows, which one gather lays side by side."""
        assert tokens.order is not None
        assert tokens.place is not None
        rows = x.reshape(-1, x.shape[-1]).index_select(0, tokens.order)
        branch, other = rows[: tokens.num_slow], rows[tokens.num_slow :]
        if branch.shape[0]:  # not all norms take nothing
            branch = self.slow(block, branch)
        other = torch.zeros_like(other) if cheap is None else cheap(other)
        both = torch.cat([branch, other.to(branch.dtype)])
        return both.index_select(0, tokens.place).reshape(x.shape)

    def finish(self, tokens: Tokens) -> Map:
        """The map after the fourth stage and the final norm."""
        x = self.map_of(tokens)
        self._noted(x)
        x = self.levels[THIRD + 1](x)
        self._noted(x)
        return self.normed(x)

    @abstractmethod
    def normed(self, x: Tensor) -> Map:
        """The final map from what the fourth stage gave, in the network's own layout."""

    def head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        return self.module.head(self.features(tokens), pre_logits=pre_logits)

    def features(self, tokens: Tokens) -> Tensor:
        """The final map as the network's own ``forward_features`` gives it."""
        assert isinstance(tokens, Map)
        return self.map_of(tokens) if tokens.unnormed is None else tokens.unnormed

    def norm(self, x: Tensor) -> Tensor:
        return x  # part of the end: see normed

    # ---------------------------------------------------------------- layouts

    def tokens(self, x: Tensor) -> Map:
        """A map in the network's own layout as rows of positions."""
        x = x if self.channels_last else x.permute(0, 2, 3, 1)
        return Map(x.flatten(1, 2).contiguous(), 0, tuple(x.shape[1:3]))

    def map_of(self, tokens: Tokens) -> Tensor:
        """The map in the network's own layout."""
        x = tokens.x.unflatten(1, tokens.grid)
        return x if self.channels_last else x.permute(0, 3, 1, 2)

    def channels_first(self, x: Tensor) -> Tensor:
        """A map in the network's own layout as ``(B, C, rows, columns)``."""
        return x.permute(0, 3, 1, 2) if self.channels_last else x

    def noting(self, note: Note) -> Hierarchical:
        """The same network, which from now on tells the map after each of its stages."""
        same = copy.copy(self)
        same._note = note
        return same

    def _noted(self, x: Tensor) -> None:
        if self._note is not None:
            self._note(self.channels_first(x))

    # ---------------------------------------------------------------- its shape

    @property
    def blocks(self) -> nn.Sequential:
        return self.levels[THIRD].blocks

    @property
    def num_prefix(self) -> int:
        return 0

    @property
    def patch_size(self) -> tuple[int, int]:
        side = self.module.feature_info[THIRD]["reduction"]
        return side, side

    @property
    def default_stages(self) -> tuple[int, ...]:
        """Blocks before which the paper has its prediction modules."""
        step, depth = max(1, len(self.blocks) // 9), len(self.blocks)
        if depth < 4:
            raise InputError(f"{depth} blocks in the third stage are too few: give stages")
        return step, 2 * step, 3 * step

    # ---------------------------------------------------------------- what it has not

    def qkv(self, block: nn.Module, x: Tensor, queries: int | None = None) -> Any:
        raise InputError(f"{self.family}: no attention over all positions")

    def after_attention(self, block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        raise InputError(f"{self.family}: no attention over all positions")

    # ---------------------------------------------------------------- settings

    @property
    def classifier(self) -> nn.Module:
        return self.module.get_classifier()

    @property
    def num_classes(self) -> int:
        return self.module.num_classes

    @property
    def num_features(self) -> int:
        return getattr(self.module, "head_hidden_size", None) or self.module.num_features

    def reset_classifier(self, num_classes: int, pool: str | None) -> None:
        if pool is not None and pool not in _POOLS:
            raise InputError(f"global_pool is one of {', '.join(_POOLS)}, got {pool!r}")
        fresh_classifier(self.module, num_classes, pool)

    def group_matcher(self) -> dict[str, Any]:
        return self.module.group_matcher()

    def grad_checkpointing(self, i: int) -> bool:
        return self.levels[THIRD].grad_checkpointing

    def set_grad_checkpointing(self, enable: bool) -> None:
        self.module.set_grad_checkpointing(enable)

    def set_drop_path(self, rates: list[float]) -> None:
        # Rates are those of the third stage's blocks; they grow over the blocks of all stages.
        blocks = [block for level in self.levels for block in level.blocks]
        for block, rate in zip(blocks, torch.linspace(0, max(rates), len(blocks)), strict=True):
            for name in self.drop_paths:
                setattr(block, name, DropPath(rate.item()) if rate else nn.Identity())

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        return getattr(self.module, "pretrained_cfg", None) or {}
