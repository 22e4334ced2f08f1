"""The answer to a video: the mean of the answers to its views."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynamicvit.data import ClipData, Loader, Views


def over_views(model: nn.Module, inputs: Tensor) -> Tensor:
    """Logits ``(B, classes)`` for videos: the log of the mean probability over their views.

    Probabilities are averaged, as in SlowFast's, VideoMAE's and V-JEPA's evaluation (TSN and ViViT
    average scores before the softmax). Views are run one after the other, each as one batch.

    Args:
        model: gives logits for clips ``(B, T, C, H, W)``.
        inputs: ``(B, V, T, C, H, W)``; anything with fewer axes is one view, given to the model.
    """
    if inputs.ndim < 6:
        return model(inputs)
    return mean_of_views([model(view) for view in inputs.unbind(1)])


def mean_of_views(logits: Sequence[Tensor]) -> Tensor:
    """The log of the mean probability, of logits ``(B, classes)`` for each view; of one its own."""
    if len(logits) == 1:
        return logits[0]
    answers = torch.stack([view.float().log_softmax(dim=-1) for view in logits])
    return answers.logsumexp(dim=0) - math.log(len(answers))


def views_of(data: Any) -> Views | None:
    """The views of each video that batches hold; None for images."""
    data = data.data if isinstance(data, Loader) else data
    return data.views if isinstance(data, ClipData) else None
