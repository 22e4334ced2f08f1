"""What the model needs to know of a family of backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from dynamicvit.tokens import Tokens


class Adapter(ABC):
    """Reads a backbone without changing it: how to embed, run a block, and classify.

    Adapters hold no state. The backbone's own modules and parameters are called where they are;
    only the order in which they are called, and what attention sees, is ours.
    """

    #: Name of the family, as error messages list it.
    family: ClassVar[str]

    @abstractmethod
    def why_not(self, backbone: nn.Module) -> str | None:
        """``None`` if the backbone is supported, else what about it is not.

        Only called for backbones that :meth:`claims` accepts.
        """

    @abstractmethod
    def claims(self, backbone: nn.Module) -> bool:
        """Whether the backbone's class is of this family."""

    @abstractmethod
    def blocks(self, backbone: nn.Module) -> nn.ModuleList | nn.Sequential:
        """The transformer blocks, in order."""

    @abstractmethod
    def width(self, backbone: nn.Module) -> int:
        """C, the width of the tokens."""

    @abstractmethod
    def check_pool(self, backbone: nn.Module, pool: str) -> None:
        """Raise ``InputError`` unless the backbone can be given this pool."""

    @abstractmethod
    def in_chans(self, backbone: nn.Module) -> int:
        """Number of image channels."""

    @abstractmethod
    def grid_size(self, backbone: nn.Module, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of patches that an image of this size gives.

        Raises:
            InputError: if the backbone does not accept the size.
        """

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
    def run_block(
        self, backbone: nn.Module, depth: int, tokens: Tokens, position: Tensor | None
    ) -> Tensor:
        """Block ``depth`` under the tokens' decision: ``(B, P + M, C)``."""

    @abstractmethod
    def attention_received(
        self, backbone: nn.Module, depth: int, tokens: Tokens, position: Tensor | None
    ) -> Tensor:
        """How much attention block ``depth`` gives each patch token: ``(B, M)``.

        The mean over heads and over all tokens that look, when every held token is kept.
        """

    @abstractmethod
    def finish(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """The final norm, where the backbone has one before pooling: ``(B, P + M, C)``."""

    @abstractmethod
    def head(self, backbone: nn.Module, tokens: Tokens, pre_logits: bool = False) -> Tensor:
        """Pool the finished tokens under their decision and classify: ``(B, classes)``.

        With ``pre_logits`` the pooled features before the classifier, ``(B, C)``.
        """
