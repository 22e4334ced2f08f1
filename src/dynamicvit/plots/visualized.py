"""What drawing gives: a figure, and what the model said."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from dynamicvit.core.classifier import PrunedClassifier
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import PrunedOutput
from dynamicvit.plots import style
from dynamicvit.runtimes import ExportedModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Visualization(NamedTuple):
    """A figure and the model's output.

    Attributes:
        figure: write it with :meth:`save`.
        output: of the pruned path.
        dense_logits: ``(B, classes)``, or a map; None for an exported file, without a dense path.
        names: of the classes; empty for a backbone without a classifier.
    """

    figure: Figure
    output: PrunedOutput
    dense_logits: Tensor | None
    names: Sequence[str]

    def save(self, path: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the figure; see :func:`dynamicvit.plots.style.save`."""
        return style.save(self.figure, path)


def method_of(model: PrunedClassifier) -> str | None:
    """The name of its method, as commands take it; None where it has none."""
    if isinstance(model, DynamicViT):
        return model.method.name
    return model.description.method if isinstance(model, ExportedModel) else None
