"""The pruned path as one graph of tensors (constant k, no control flow), and its layers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import eval_mode
from dynamicvit.runtimes.description import Description

#: Names of the prediction modules' layers begin so.
PREDICTORS = "predictors."
#: Of layers that are the model's own, not the backbone's.
OWN = (PREDICTORS, "decode_head.")

#: Operators whose second argument is a weight.
_WEIGHTED = {"aten.linear.default", "aten.conv2d.default", "aten.convolution.default"}


class Graph(nn.Module):
    """The module that is exported."""

    def __init__(self, model: DynamicViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits ``(B, classes)``, then for each stage the kept patches, ``(B, K)`` int64.

        Of a segmentation model logits ``(B, classes, rows, columns)``.
        Patches are numbered row by row, in ascending order.

        Args:
            images: ``(B, channels, height, width)``, or clips, normalized.
        """
        output = self.model.forward_pruned(images)
        kept = list(output.kept_index)
        for stage in range(1, len(kept)):
            # A stage that drops nothing gives the tensor of the stage before, but each output needs
            # its own name: sorting what is sorted makes an equal tensor.
            if kept[stage] is output.kept_index[stage - 1]:
                kept[stage] = kept[stage].sort(dim=1).values
        return output.logits, *kept


def trace(model: DynamicViT, description: Description) -> ExportedProgram:
    """The model's graph, by ``torch.export``.

    Args:
        model: on the CPU, in float32.
        description: its image size and batch.
    """
    # From one image torch.export would take the batch size for a constant.
    images = torch.zeros(description.batch or 2, *description.input_shape)
    dynamic = None if description.batch else {"images": {0: Dim("batch", min=1)}}
    with eval_mode(model), torch.no_grad():
        return torch.export.export(Graph(model).eval(), (images,), dynamic_shapes=dynamic)


def layers_of(program: ExportedProgram) -> dict[str, str]:
    """The layer of each product with weights, by the product's name in the graph, in order.

    These are quantized. Attention's own products, softmax, norms and the similarity of tokens stay
    in float: they have few MACs, and most of them decide something.

    A layer may be several products, each with a part of its weights. Layers have their names in
    the model, the backbone's without its prefix: ``blocks.3.mlp.fc2``.
    """
    parameters = program.graph_signature.inputs_to_parameters
    found = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) in _WEIGHTED:
            weight = parameters.get(_origin(node.args[1]))
            if weight is not None:
                layer = weight.removeprefix("model.").removeprefix("backbone.")
                found[node.name] = layer.removesuffix(".weight")
    return found


def prediction_layers(layers: Iterable[str]) -> frozenset[str]:
    """Names of the prediction modules' layers, among those of :func:`layers_of`."""
    return frozenset(layer for layer in layers if layer.startswith(PREDICTORS))


def _origin(value: Any) -> str:
    """Name of the input that a value is part of: the last block slices its weights."""
    while isinstance(value, Node) and value.op == "call_function":
        value = value.args[0]
    return getattr(value, "name", "")
