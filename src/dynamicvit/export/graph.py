"""The pruned path as one graph of plain tensors: constant k, no control flow, any batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import eval_mode
from dynamicvit.export.description import Description


class Graph(nn.Module):
    """What is exported.

    Args:
        model: the model.
    """

    def __init__(self, model: DynamicViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits ``(B, classes)``, then for each stage the patches kept, ``(B, k)`` int64.

        Patches are numbered in image order, row by row, and ascend.

        Args:
            images: ``(B, channels, height, width)``, normalized.
        """
        output = self.model.forward_pruned(images)
        kept = list(output.kept_index)
        for stage in range(1, len(kept)):
            # A stage that drops nothing has the tensor of the one before, but each output wants a
            # name of its own. They ascend, so that sorting makes an equal one of another operation.
            if kept[stage] is output.kept_index[stage - 1]:
                kept[stage] = kept[stage].sort(dim=1).values
        return output.logits, *kept


def trace(model: DynamicViT, description: Description) -> ExportedProgram:
    """The model's graph, by ``torch.export``.

    Args:
        model: on the CPU, in float32.
        description: its image size and batch.
    """
    graph = Graph(model)
    # With one image torch.export would take the batch for a constant.
    images = torch.zeros(description.batch or 2, *description.input_size)
    dynamic = None if description.batch else {"images": {0: Dim("batch", min=1)}}
    with eval_mode(model), torch.no_grad():
        return torch.export.export(graph.eval(), (images,), dynamic_shapes=dynamic)
