"""The pruned path as one graph of plain tensors (constant k, no control flow), and its layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import Node

from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import eval_mode
from dynamicvit.runtimes.description import Description

#: Layers of the modules that rank the tokens.
RANKING = "predictors."

#: Operators whose second argument is a weight.
_WEIGHTED = {"aten.linear.default", "aten.conv2d.default", "aten.convolution.default"}


class Graph(nn.Module):
    """What is exported.

    Args:
        model: the model.
    """

    def __init__(self, model: DynamicViT) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Logits ``(B, classes)``, then for each stage the kept patches, ``(B, K)`` int64.

        Patches are numbered in image order, row by row, and ascend.

        Args:
            images: ``(B, channels, height, width)``, normalized.
        """
        output = self.model.forward_pruned(images)
        kept = list(output.kept_index)
        for stage in range(1, len(kept)):
            # A stage that drops nothing has the tensor of the one before, but each output needs a
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


# ---------------------------------------------------------------- layers, what int8 is for

# Only products with weights are quantized. Attention's own products, softmax, norms and the
# similarity of tokens stay in float: they have few MACs here, and most of them decide something.


def layers_of(program: ExportedProgram) -> dict[str, str]:
    """The layer of each product with weights, by the product's name in the graph, in order.

    A layer may be several products, each with a part of its weights. Layers are named as in the
    model, the backbone's without its name: ``blocks.3.mlp.fc2``.
    """
    parameters = program.graph_signature.inputs_to_parameters
    found = {}
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target) in _WEIGHTED:
            weight = parameters.get(_origin(node.args[1]))
            if weight is not None:
                found[node.name] = _layer(weight)
    return found


def ranking_layers(layers: Mapping[str, str]) -> frozenset[str]:
    """The layers of the prediction modules, of :func:`layers_of`'s."""
    return frozenset(layer for layer in layers.values() if layer.startswith(RANKING))


def in_words(in_float: Collection[str], layers: Collection[str]) -> str:
    """Which layers stay in float, the prediction modules as one.

    Args:
        in_float: those that stay.
        layers: all.
    """
    ranking = {layer for layer in layers if layer.startswith(RANKING)}
    rest = [layer for layer in dict.fromkeys(layers) if layer in in_float]
    named = []
    if ranking and ranking <= set(in_float):
        named.append("the prediction modules")
        rest = [layer for layer in rest if layer not in ranking]
    return ", ".join([*named, *rest]) or "none"


def _origin(value: Any) -> str:
    """Name of what a value is part of: the last block takes its weights in pieces."""
    while isinstance(value, Node) and value.op == "call_function":
        value = value.args[0]
    return getattr(value, "name", "")


def _layer(weight: str) -> str:
    """The model lies in a module of its own when it is traced."""
    return weight.removeprefix("model.").removeprefix("backbone.").removesuffix(".weight")
