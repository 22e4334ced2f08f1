"""The contract: all that the rest of the library asks of a family of backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dynamicvit.backbones.layer_macs import convolution_macs, linear_macs
from dynamicvit.errors import InputError
from dynamicvit.layers.attention import attend
from dynamicvit.layers.tokens import Heads, Tokens


class Answers(NamedTuple):
    """What a network says about its images: to its users, and to the losses.

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


class Adapter(ABC):
    """Reads a backbone of one family: how to embed, run a block under a decision, and classify.

    A family must answer the abstract methods. The others have answers that fit most vision
    transformers, or refuse with an ``InputError``; a family overrides those that are wrong for it.

    Adapters hold no state. The backbone's own modules and parameters are called where they are;
    only the order in which they are called, and what attention sees, is ours. The methods
    ``set_...`` and ``reset_...`` are the only ones that change it.
    """

    #: Name of the family, as error messages list it.
    family: ClassVar[str]

    # ---------------------------------------------------------------- which backbones

    @abstractmethod
    def claims(self, backbone: nn.Module) -> bool:
        """Whether the backbone's class is of this family; of that class exactly, not a subclass."""

    def why_not(self, backbone: nn.Module) -> str | None:
        """``None`` if the backbone is supported, else what about it is not.

        Only called for backbones that :meth:`claims` accepts.
        """
        return None

    # ---------------------------------------------------------------- its shape

    @abstractmethod
    def blocks(self, backbone: nn.Module) -> nn.ModuleList | nn.Sequential:
        """The transformer blocks, in order."""

    @abstractmethod
    def width(self, backbone: nn.Module) -> int:
        """C, the width of the tokens."""

    @abstractmethod
    def num_prefix_tokens(self, backbone: nn.Module) -> int:
        """P, how many tokens before the patches are never dropped."""

    def has_class_token(self, backbone: nn.Module) -> bool:
        """Whether the first token is one that the classifier reads, and so gathers the answer."""
        return self.num_prefix_tokens(backbone) > 0

    def num_heads(self, backbone: nn.Module, depth: int) -> int:
        """H, the heads of the attention of block ``depth``.

        Raises:
            InputError: if the family does not say.
        """
        raise InputError(f"{self.family}: the number of its heads is not known")

    @abstractmethod
    def image_size(self, backbone: nn.Module) -> tuple[int, int]:
        """Height and width in pixels of the images it was built for."""

    @abstractmethod
    def grid_size(self, backbone: nn.Module, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that an image of this size gives.

        Raises:
            InputError: if the backbone does not accept the size.
        """

    def in_chans(self, backbone: nn.Module) -> int:
        """Number of image channels: those that the first convolution takes."""
        return next(m for m in backbone.modules() if isinstance(m, nn.Conv2d)).in_channels

    # ---------------------------------------------------------------- the way of the tokens

    @abstractmethod
    def embed(self, backbone: nn.Module, images: Tensor) -> tuple[Tokens, Tensor | None]:
        """All tokens before the first block, and the positions the blocks need.

        Args:
            backbone: the network.
            images: ``(B, channels, height, width)``.

        Returns:
            The tokens with all N patches, and a table of positions that every block gets (rotary
            embedding, shared relative bias), or ``None``.
        """

    @abstractmethod
    def attention_inputs(
        self,
        block: nn.Module,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> Heads:
        """What the attention of a block works on, from the tokens that enter the block.

        Args:
            block: one of :meth:`blocks`.
            depth: its index.
            tokens: the held tokens; ``tokens.index`` says where on the image they are.
            position: what :meth:`embed` gave.
            queries: that only so many of the first tokens, prefix tokens all, look at the others;
                asked for in the last block of a family whose head reads no more (:meth:`reads`).
        """

    @abstractmethod
    def after_attention(self, block: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of a block: projection, residuals, MLP.

        Args:
            block: one of :meth:`blocks`.
            x: ``(B, T, C)``, what entered the block, or of that the tokens that go on.
            attended: ``(B, H, T, D)``, the values as attention mixed them for these.

        Returns:
            ``(B, T, C)``, what leaves the block.
        """

    @abstractmethod
    def finish(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """The final norm, where the backbone has one before pooling: ``(B, P + M, C)``."""

    @abstractmethod
    def head(self, backbone: nn.Module, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        """Pool the finished tokens under their decision and classify: ``(B, classes)``.

        With ``pre_logits`` the pooled features before the classifier. Pooling over patches runs
        over the kept ones only (:mod:`dynamicvit.layers.pooling`). What it reads of the tokens must be
        what :meth:`reads` says.
        """

    def reads(self, backbone: nn.Module) -> int | None:
        """How many of the first tokens the head reads, prefix tokens all; ``None`` for all tokens.

        At inference the last block gives no others.
        """
        return None

    def answers(self, backbone: nn.Module, tokens: Tokens) -> Answers:
        """What :meth:`head` gives, and what the losses look at, if that is something else.

        Args:
            backbone: the network.
            tokens: the finished tokens, under their decision.
        """
        logits = self.head(backbone, tokens)
        return Answers(logits, self.head(backbone, tokens, pre_logits=True), logits)

    def dense(self, backbone: nn.Module, images: Tensor) -> Tensor:
        """Logits ``(B, classes)`` as the network's own library computes them.

        Args:
            backbone: the network.
            images: ``(B, channels, height, width)``, of any size that :meth:`grid_size` accepts.
        """
        return backbone(images)

    def run_block(
        self,
        backbone: nn.Module,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> tuple[Tensor, Heads | None]:
        """Block ``depth`` under the tokens' decision.

        Args:
            backbone: the network.
            depth: index of the block.
            tokens: those that enter it.
            position: what :meth:`embed` gave.
            queries: let only so many of the first tokens look at the others and go on; ``None`` for
                all.

        Returns:
            ``(B, P + M, C)`` or ``(B, queries, C)``, what leaves the block; and what its attention
            worked on, ``None`` where there was nothing to attend to.
        """
        block = self.blocks(backbone)[depth]
        if tokens.x.shape[1] == 0:  # no prefix token and nothing kept: nothing to compute
            return tokens.x, None
        if self.grad_checkpointing(backbone, depth) and torch.is_grad_enabled():

            def run(x: Tensor, decision: Tensor | None) -> tuple[Tensor, Heads]:
                again = replace(tokens, x=x, decision=decision)
                return self.block(block, depth, again, position, queries)

            return checkpoint(run, tokens.x, tokens.decision, use_reentrant=False)
        return self.block(block, depth, tokens, position, queries)

    def block(
        self,
        block: nn.Module,
        depth: int,
        tokens: Tokens,
        position: Tensor | None,
        queries: int | None = None,
    ) -> tuple[Tensor, Heads]:
        """One block: attention that sees no dropped token, and what follows it."""
        heads = self.attention_inputs(block, depth, tokens, position, queries)
        attended = attend(
            heads.query,
            heads.key,
            heads.value,
            decision=tokens.key_decision(),
            size=tokens.key_size(),
            bias=heads.bias,
            dropout_p=heads.dropout_p,
        )
        return self.after_attention(block, tokens.x[:, :queries], attended), heads

    def run_last_block(
        self, backbone: nn.Module, tokens: Tokens, position: Tensor | None
    ) -> Tokens:
        """The last block of the pruned path, for the tokens that the head reads and no others.

        Each of them attends to all tokens, and goes on alone: the same numbers, for less work.

        Args:
            backbone: the network.
            tokens: those that enter the block, without decision.
            position: what :meth:`embed` gave.
        """
        read = self.reads(backbone)
        x, _ = self.run_block(backbone, len(self.blocks(backbone)) - 1, tokens, position, read)
        return tokens.with_x(x) if read is None else Tokens(x, num_prefix=read)

    # ---------------------------------------------------------------- the classifier

    @abstractmethod
    def classifier(self, backbone: nn.Module) -> nn.Module:
        """The layer that turns pooled features into logits, or an identity."""

    def num_classes(self, backbone: nn.Module) -> int:
        """Number of classes; 0 without a classifier."""
        return getattr(self.classifier(backbone), "out_features", 0)

    def num_features(self, backbone: nn.Module) -> int:
        """Width of the pooled features that the classifier takes."""
        return getattr(self.classifier(backbone), "in_features", self.width(backbone))

    def reset_classifier(self, backbone: nn.Module, num_classes: int, pool: str | None) -> None:
        """Give the backbone a fresh classifier; with another pool, if one is named.

        Raises:
            InputError: if it can't have that.
        """
        raise InputError(f"{self.family}: the classifier can't be replaced here")

    # ---------------------------------------------------------------- training and input

    def no_weight_decay(self, backbone: nn.Module) -> set[str]:
        """Names of the parameters that weight decay must leave alone, norms and biases aside.

        All but the weights of linear layers, attention and convolutions: positions, prefix tokens.
        """
        products = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
        decayed = {
            id(parameter)
            for module in backbone.modules()
            if isinstance(module, products)
            for parameter in module.parameters()
        }
        named = backbone.named_parameters()
        return {name for name, value in named if value.ndim > 1 and id(value) not in decayed}

    def grad_checkpointing(self, backbone: nn.Module, depth: int) -> bool:
        """Whether block ``depth`` is run again in the backward pass instead of being remembered."""
        return getattr(backbone, "grad_checkpointing", False)

    def set_grad_checkpointing(self, backbone: nn.Module, enable: bool) -> None:
        """Turn that on or off, for all blocks."""
        backbone.grad_checkpointing = enable

    def set_drop_path(self, backbone: nn.Module, rates: list[float]) -> None:
        """Drop each block's residual branches with its own probability in training.

        Raises:
            InputError: if the family's blocks can't.
        """
        if any(rates):
            raise InputError(
                f"{self.family}: residual branches can't be dropped, so drop_path must be 0"
            )

    def set_image_size(self, backbone: nn.Module, height: int, width: int) -> None:
        """Let the backbone take images of this size, where that needs a change of it.

        Raises:
            InputError: if it can't.
        """
        self.grid_size(backbone, height, width)

    def pretrained_cfg(self, backbone: nn.Module) -> dict[str, Any]:
        """timm's description of weights and input: mean, std, interpolation, label names.

        What it does not say is timm's default.
        """
        return {}

    # ---------------------------------------------------------------- closed form of the MACs

    def embed_macs(self, backbone: nn.Module, height: int, width: int) -> int:
        """MACs of :meth:`embed` for one image: the convolutions outside the blocks."""
        return convolution_macs(self._outside_blocks(backbone), height, width)

    def block_macs(self, backbone: nn.Module, depth: int) -> tuple[int, int]:
        """MACs of block ``depth`` for each token, and for each pair of tokens.

        A token passes once through every linear layer. A pair costs query times key and weight
        times value, each as wide as the heads are together, which is mostly as wide as the token.
        """
        return linear_macs(self.blocks(backbone)[depth]), 2 * self.width(backbone)

    def head_macs(self, backbone: nn.Module) -> tuple[int, int]:
        """MACs of pooling and classifying one image, and those for each patch token left."""
        return linear_macs(self.classifier(backbone)), 0

    def _outside_blocks(self, backbone: nn.Module) -> Iterable[nn.Module]:
        inside = {module for block in self.blocks(backbone) for module in block.modules()}
        return (module for module in backbone.modules() if module not in inside)

    # ---------------------------------------------------------------- saving

    #: Library that builds it again from ``config.json`` (:mod:`dynamicvit.core.hub`); "" for none.
    source: ClassVar[str] = ""

    # ---------------------------------------------------------------- what users get

    def wrap(self, model: nn.Module) -> Any:
        """What ``sparsify`` gives for a backbone of this family: the DynamicViT, or one around it.

        A family whose library has conventions of its own (transformers: output classes, configs)
        returns a model that follows them.
        """
        return model
