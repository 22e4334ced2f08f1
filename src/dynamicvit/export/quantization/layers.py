"""The products with weights in a graph, by the layers that they are of: what int8 is for.

Only these are quantized. Attention's own products, softmax, norms and the likeness of tokens stay
in float: they have few MACs here, and most of them decide something.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch.export import ExportedProgram
from torch.fx import Node

#: Layers of the modules that rank the tokens.
RANKING = "predictors."

#: Operators whose second argument is a weight.
_WEIGHTED = {"aten.linear.default", "aten.conv2d.default", "aten.convolution.default"}


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
