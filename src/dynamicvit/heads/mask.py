"""The mask transformer of Segmenter (Strudel et al., ICCV 2021, Section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from dynamicvit.errors import InputError

#: Channels of an attention head, as in the backbones that Segmenter uses.
_HEAD_CHANNELS = 64


class MaskTransformer(nn.Module):
    """Two blocks over the patches and one embedding a class; their products are the masks.

    Args:
        width: C, of the tokens.
        num_classes: of a patch.
        depth: blocks.

    Attributes:
        num_classes: of a patch.

    Raises:
        InputError: for a width that is no multiple of the attention heads' number.
    """

    name = "mask"

    def __init__(self, width: int, num_classes: int, depth: int = 2) -> None:
        super().__init__()
        heads = max(1, width // _HEAD_CHANNELS)
        if width % heads:
            raise InputError(
                f"the mask transformer needs a width divisible by its {heads} attention heads, "
                f"got {width}"
            )
        self.num_classes = num_classes
        self.project = nn.Linear(width, width)
        self.class_embedding = nn.Parameter(torch.empty(1, num_classes, width))
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.patch_projection = nn.Linear(width, width, bias=False)
        self.class_projection = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(num_classes)
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.class_embedding, std=0.02)
        for projection in (self.patch_projection, self.class_projection):
            nn.init.normal_(projection.weight, std=width**-0.5)

    @property
    def classifier(self) -> nn.Module:
        """The last layer."""
        return self.mask_norm

    def forward(self, full_map: Tensor) -> Tensor:
        """``(B, classes, rows, columns)`` from ``(B, rows, columns, C)``."""
        batch, rows, columns, _ = full_map.shape
        x = self.project(full_map.flatten(1, 2))
        x = torch.cat([x, self.class_embedding.expand(batch, -1, -1)], dim=1)
        x = self.norm(self.blocks(x))
        patches, classes = x[:, : rows * columns], x[:, rows * columns :]
        patches = F.normalize(self.patch_projection(patches), dim=-1)
        classes = F.normalize(self.class_projection(classes), dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        return masks.transpose(1, 2).unflatten(2, (rows, columns))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
