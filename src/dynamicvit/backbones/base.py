"""The contract: all that the path of the tokens asks of a backbone, bound to one network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynamicvit.backbones.settings import Settings
from dynamicvit.layers.attention import (
    as_module,
    is_watched,
    packed_attention,
    proportional,
    softmax_attention,
    trains_better_by_products,
)
from dynamicvit.layers.masked_attention import masked_attention
from dynamicvit.layers.tokens import Heads, Tokens


class Answers(NamedTuple):
    """What a network says about its inputs: to its users, and to the losses.

    Attributes:
        logits: ``(B, classes)``, the prediction.
        pooled: ``(B, C)``, the features that the classifier reads.
        loss_logits: ``(B, classes)``, what training compares with labels and teacher. The same
            tensor, unless the family trains parts of its prediction by themselves.
        patch_logits: ``(B, M, classes)`` of every held patch token, for a family that classifies
            them; training then compares these with the teacher's, in place of the tokens.
    """

    logits: Tensor
    pooled: Tensor
    loss_logits: Tensor
    patch_logits: Tensor | None = None


class Backbone(Settings, ABC):
    """One network of a family: how to embed its input, run a block under a decision, and classify.

    The network's own modules and parameters are called where they are; only the order in which they
    are called, and what attention sees, is ours. Only the methods ``set_...`` and ``reset_...``
    change it. It is no ``nn.Module``: the names in state dicts are the network's own.

    A family answers the abstract methods. The others have answers that fit most vision
    transformers, or refuse with an ``InputError``; a family overrides those that are wrong for it.

    Args:
        module: the network, of a class that :meth:`claims` accepts.
    """

    #: The library that builds it again from a saved description: "timm", "transformers" or "".
    source: ClassVar[str] = ""

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    # ---------------------------------------------------------------- which networks

    @classmethod
    @abstractmethod
    def claims(cls, module: nn.Module) -> bool:
        """Whether the network's class is of this family; of that class exactly, not a subclass."""

    def why_not(self) -> str | None:
        """``None`` if the network is supported, else what about it is not."""
        return None

    # ---------------------------------------------------------------- its shape

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList | nn.Sequential:
        """The transformer blocks, in order."""

    @property
    @abstractmethod
    def width(self) -> int:
        """C, the width of the tokens."""

    @property
    @abstractmethod
    def num_prefix(self) -> int:
        """P, how many tokens before the patches are never dropped."""

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is one that the classifier reads, and so gathers the answer."""
        return self.num_prefix > 0

    @property
    def in_chans(self) -> int:
        """Number of image channels: those that the first convolution takes."""
        convolutions = (nn.Conv2d, nn.Conv3d)
        return next(m for m in self.module.modules() if isinstance(m, convolutions)).in_channels

    @property
    def frames(self) -> int | None:
        """Frames of the clips it was built for; ``None`` if it takes images."""
        return None

    # ---------------------------------------------------------------- the path of the tokens

    @abstractmethod
    def embed(self, images: Tensor) -> Tokens:
        """All tokens before the first block, and the positions that blocks need.

        Args:
            images: ``(B, channels, height, width)``, or clips as :attr:`input_shape` says.
        """

    @abstractmethod
    def qkv(
        self, block: nn.Module, x: Tensor, queries: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of a block, each row by itself.

        Args:
            block: one of :attr:`blocks`.
            x: ``(B, T, C)``, what enters the block.
            queries: how many of the first tokens attend; ``None`` for all. Asked for in the last
                block, where the head reads no more (:attr:`reads`).

        Returns:
            ``(B, H, T or queries, D)``, ``(B, H, T, D)`` and ``(B, H, T, D)``.
        """

    def placed(
        self, i: int, qkv: tuple[Tensor, Tensor, Tensor], tokens: Tokens, queries: int | None = None
    ) -> Heads:
        """Query, key and value with what they owe to places: rotary positions, relative bias.

        Args:
            i: index of the block.
            qkv: of :meth:`qkv`.
            tokens: those that enter the block: ``index`` says where in the grid they are, and
                ``position`` is what :meth:`embed` gave.
            queries: as of :meth:`qkv`.
        """
        del i, tokens, queries
        return Heads(*qkv)

    @property
    def has_plain_products(self) -> bool:
        """Whether neither places nor norms come between :meth:`qkv`'s layer and the products."""
        return False

    def first_products(self, block: nn.Module, x: Tensor) -> Tensor:
        """``(B, H, T)`` from ``(B, T, C)``: the first query times each key, up to a number a head.

        Asked for where :attr:`has_plain_products`; a family can do it without computing keys.
        """
        query, key, _ = self.qkv(block, x, 1)
        return (query @ key.transpose(-2, -1))[:, :, 0] * query.shape[-1] ** -0.5

    def attention_dropout(self, block: nn.Module) -> float:
        """Dropout probability of a block's attention weights, 0 outside training."""
        del block
        return 0.0

    @abstractmethod
    def after_attention(self, block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of a block, each row by itself: projection, residuals, MLP.

        Args:
            block: one of :attr:`blocks`.
            x: ``(B, T, C)``, what entered the block, or of that the tokens that go on.
            attended: ``(B, H, T, D)``, the values as attention mixed them for these.

        Returns:
            ``(B, T, C)``, what leaves the block.
        """

    def call_arguments(self, i: int, tokens: Tokens) -> tuple[Any, ...] | None:
        """What block ``i`` is called with, where its own forward computes the same as its parts.

        Then whoever watches the block and the modules in it sees them called, as in the dense
        network.

        Args:
            i: index of the block.
            tokens: those that enter it, without decision; :meth:`size_bias` if they have sizes.

        Returns:
            The arguments, ``tokens.x`` first; ``None`` where it does not: the default.
        """
        del i, tokens
        return None

    def size_bias(self, tokens: Tokens) -> Tensor | None:
        """``(B, 1, 1, T)``, what the tokens' sizes add to attention; ``None`` without sizes."""
        return proportional(None, tokens.over_all(tokens.size), tokens.x.dtype)

    @abstractmethod
    def norm(self, x: Tensor) -> Tensor:
        """The final norm, where the network has one before pooling: ``(..., C)``."""

    @abstractmethod
    def head(self, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        """Pool the finished tokens under their decision and classify: ``(B, classes)``.

        With ``pre_logits`` the pooled features before the classifier. Pooling over patches runs
        over the kept ones only (:mod:`dynamicvit.layers.pooling`). It reads of the tokens what
        :attr:`reads` says.
        """

    @property
    def reads(self) -> int | None:
        """How many of the first tokens the head reads, prefix tokens all; ``None`` for all tokens.

        At inference the last block gives no others.
        """
        return None

    def answers(self, tokens: Tokens) -> Answers:
        """What :meth:`head` gives, and what the losses look at, if that is something else.

        Args:
            tokens: the finished tokens, under their decision.
        """
        logits = self.head(tokens)
        return Answers(logits, self.head(tokens, pre_logits=True), logits)

    def dense(self, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` as the network's own library computes them.

        Args:
            images: ``(B, channels, height, width)``, of any size that :meth:`grid` accepts.
        """
        return self.module(images)

    # ---------------------------------------------------------------- one block

    def run(self, i: int, tokens: Tokens, keep_heads: bool = False) -> Tokens:
        """Block ``i`` under the tokens' decision.

        With ``keep_heads`` what attention worked on is in ``heads`` of what leaves it.
        """
        if tokens.x.shape[1] == 0:  # no prefix token and nothing kept: nothing to compute
            return replace(tokens, block=i + 1, heads=None)
        x, heads = self._block(i, tokens, None, keep_heads)
        return replace(tokens, x=x, block=i + 1, heads=heads if keep_heads else None)

    def run_last(self, tokens: Tokens) -> Tokens:
        """The last block of the pruned path, for the tokens that the head reads and no others.

        Each of them attends to all tokens and goes on alone: the same numbers, for less work.
        Whoever watches the block, or a module in it, gets to see all tokens.

        Args:
            tokens: those that enter the block, without decision.
        """
        last = len(self.blocks) - 1
        if self.reads is None or tokens.x.shape[1] == 0 or self._watched(last):
            return self.run(last, tokens)
        x, _ = self._block(last, tokens, self.reads)
        return Tokens(x, self.reads, tokens.grid, block=last + 1)

    def run_packed(self, i: int, parts: Sequence[Tokens]) -> list[Tokens]:
        """Block ``i`` for images that hold different numbers of tokens.

        Norms and linear layers see the rows of all images at once, attention each image alone.

        Args:
            i: index of the block.
            parts: tokens without decision; the images of a part hold the same number.
        """
        # What drops rows in training counts images, and so does whoever watches.
        if self.module.training or self._watched(i):
            return [self.run(i, part) for part in parts]
        full = [part for part in parts if part.x.shape[1]]
        if not full:
            return [replace(part, block=i + 1) for part in parts]
        block, sizes = self.blocks[i], [part.x.shape[:2] for part in full]
        rows = torch.cat([part.x.flatten(0, 1) for part in full])[None]
        split = [batch * length for batch, length in sizes]
        separate = (tensor.split(split, dim=2) for tensor in self.qkv(block, rows))
        heads = []
        for part, size, *qkv in zip(full, sizes, *separate, strict=True):
            query, key, value = (rest[0].unflatten(1, size).transpose(0, 1) for rest in qkv)
            placed = self.placed(i, (query, key, value), part)
            bias = proportional(placed.bias, part.over_all(part.size), placed.query.dtype)
            heads.append(placed._replace(bias=bias))
        attended = packed_attention(heads).transpose(0, 1)[None]
        x = self.after_attention(block, rows, attended)[0].split(split)
        done = iter(rest.unflatten(0, size) for rest, size in zip(x, sizes, strict=True))
        return [
            replace(part, x=next(done) if part.x.shape[1] else part.x, block=i + 1, heads=None)
            for part in parts
        ]

    def finish(self, tokens: Tokens) -> Tokens:
        """The tokens after the final norm, remembered ones too."""
        dropped = None if tokens.dropped is None else self.norm(tokens.dropped)
        return replace(tokens, x=self.norm(tokens.x), dropped=dropped, heads=None)

    def grad_checkpointing(self, i: int) -> bool:
        """Whether block ``i`` is run again in the backward pass instead of being remembered."""
        return getattr(self.module, "grad_checkpointing", False)

    def _watched(self, i: int) -> bool:
        """Whether somebody watches block ``i`` or a module in it."""
        return not torch.compiler.is_compiling() and any(map(is_watched, self.blocks[i].modules()))

    def _block(
        self, i: int, tokens: Tokens, queries: int | None = None, keep_heads: bool = False
    ) -> tuple[Tensor, Heads | None]:
        """What leaves block ``i``, and what its attention worked on, where that is asked for."""
        if not (self.grad_checkpointing(i) and torch.is_grad_enabled()):
            return self._compute(i, tokens, queries, keep_heads)

        def again(x: Tensor, decision: Tensor | None) -> tuple[Tensor, Heads | None]:
            return self._compute(i, replace(tokens, x=x, decision=decision), queries, keep_heads)

        return checkpoint(again, tokens.x, tokens.decision, use_reentrant=False)

    def _compute(
        self, i: int, tokens: Tokens, queries: int | None, keep_heads: bool
    ) -> tuple[Tensor, Heads | None]:
        block, made = self.blocks[i], []
        whole = tokens.decision is None and queries is None and not keep_heads
        if whole and not trains_better_by_products(tokens.x):
            arguments = self.call_arguments(i, tokens)
            if arguments is not None:
                return block(*arguments), None

        def by_parts(x: Tensor) -> Tensor:
            heads = self.placed(i, self.qkv(block, x, queries), tokens, queries)
            query, key, value, bias = heads
            bias = proportional(bias, tokens.over_all(tokens.size), query.dtype)
            dropout = self.attention_dropout(block)
            decision = tokens.over_all(tokens.decision)
            if decision is None:
                attended = softmax_attention(query, key, value, bias=bias, dropout_p=dropout)
            else:
                attended = masked_attention(
                    query, key, value, decision, bias=bias, dropout_p=dropout
                )
            made.append(heads)
            return self.after_attention(block, x[:, :queries], attended)

        x = as_module(block, by_parts, tokens.x)
        return x, made[0] if keep_heads else None
