"""The model card beside a saved model: what it is, what it costs, and how to use it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from dynamicvit.backbones.inflated import InflatedBackbone
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.networks import backbone_name, own_image_size
from dynamicvit.core.registry import fate
from dynamicvit.costs import costs_of
from dynamicvit.utils.words import percent

_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

A [DynamicViT]({{ paper_url }}): a vision transformer that drops the patches it does not need.

| | |
|---|---|
{% for what, value in rows %}| {{ what }} | {{ value }} |
{% endfor %}
```python
import torch
{% if frames %}
import dynamicvit
from dynamicvit.data import ClipData, Sampling  # reads with PyAV: the extra "video"
{% else %}from PIL import Image

import dynamicvit
from dynamicvit.data import eval_transform
{% endif %}
model = dynamicvit.load("{{ name }}")  # this repository, or its folder
{% if frames %}clips = ClipData("clip.mp4", sampling=Sampling({{ frames }})).for_evaluation(model)
with torch.no_grad():
    logits = model(clips[0].image[None])  # pruned path: dropped tokens are gone
{% else %}image = Image.open("photo.jpg")
with torch.no_grad():
    logits = model(eval_transform(model)(image)[None])  # pruned path: dropped tokens are gone
{% endif %}{{ answer }}

model.keep_ratio = 0.5  # the budget is a property
```
"""

_ANSWERS = {
    "classification": "probabilities, classes = logits.softmax(-1).topk(1)",
    "segmentation": (
        "[classes] = dynamicvit.post_process_semantic_segmentation("
        "logits, [(image.height, image.width)])"
    ),
}


def model_card(
    model: DynamicViT,
    name: str,
    result: Any = None,
    images: str | None = None,
    license: str | None = None,
) -> ModelCard:
    """The card of a model as it is set now.

    Args:
        model: what is described.
        name: the repository or the folder.
        result: how right it is: an :class:`~dynamicvit.evaluation.EvaluationResult` or a
            :class:`~dynamicvit.evaluation.SegmentationResult`.
        images: what it was measured on, in words.
        license: of these weights; by default that of the backbone's published ones.
    """
    about = model._hub_mixin_info
    header = about.model_card_data.to_dict() | {"license": license or _base_license(model)}
    return ModelCard.from_template(
        ModelCardData(**header),
        template_str=_TEMPLATE,
        name=name,
        paper_url=about.paper_url,
        rows=[*_rows(model), *_accuracy(result, images)],
        answer=_ANSWERS[model.task],
        frames=model.bound.frames,
    )


def _rows(model: DynamicViT) -> Iterator[tuple[str, str]]:
    schedule = model.schedule
    rows, columns = own_image_size(model)
    costs = costs_of(model, len(schedule.stages))
    frames, whose = model.bound.frames, "its"
    backbone = f"`{backbone_name(model.backbone)}`"
    if isinstance(model.bound, InflatedBackbone):  # whose weights began as an image network's
        backbone += f", an image network inflated to clips of {frames} frames"
        whose = "the image network's"
    yield "backbone", backbone
    yield f"license of {whose} published weights", _base_license(model) or "not recorded"
    if schedule.stages:
        shares = ", ".join(percent(ratio) for ratio in schedule.keep_ratios)
        became = fate(model.method.name, schedule.policy)
        yield "method", f"`{model.method.name}`: tokens that are not kept {became}"
        blocks = ", ".join(map(str, schedule.stages))
        yield "stages", f"before blocks {blocks}, counted from 0"
        yield "patches kept", shares + (" in the mean" if model.per_image else "")
    used, dense = costs.total(schedule) / 1e9, costs.dense / 1e9
    size = f"{rows} × {columns} pixels" + (f", {frames} frames" if frames else "")
    yield f"GMACs at {size}", f"{used:.3g}, dense {dense:.3g}"


def _accuracy(result: Any, images: str | None) -> Iterator[tuple[str, str]]:
    if result is None:
        yield "accuracy", "not measured"
        return
    on = f"{result.images} images" + (f" of {images}" if images else "")
    rows = [row for row in result.rows() if not row[0].startswith(" ")]  # no single classes
    for what, value in rows:
        yield what, f"{value} ({on})"


def _base_license(model: DynamicViT) -> str | None:
    """What the backbone's library says of its published weights; transformers' says nothing."""
    said = model.pretrained_cfg.get("license")
    return said if isinstance(said, str) and said else None
