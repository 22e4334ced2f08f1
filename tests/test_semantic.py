"""A segmentation model as one of transformers: saved, loaded, trained, read by its processors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")

from transformers import AutoModelForSemanticSegmentation, SegformerImageProcessor

from dynamicvit import (
    InputError,
    Segmenter,
    post_process_semantic_segmentation,
    segmenter,
    sparsify,
)
from dynamicvit.transformers import DynamicViTForSemanticSegmentation
from families import BY_NAME, DEIT, randomize

HF = BY_NAME["hf_vit"]
NAMES = ("ground", "square", "bar")


def made(head: str = "linear") -> DynamicViTForSemanticSegmentation:
    dense = segmenter(HF.backbone(), 3, head)
    randomize(dense.decode_head, 5)
    dense.set_class_names(NAMES)
    sparse = sparsify(dense, 0.6, method="dynamicvit")
    randomize(sparse.predictors, 6)
    return DynamicViTForSemanticSegmentation.around(sparse).eval()


@pytest.mark.parametrize("head", ["linear", "mask"])
@torch.no_grad()
def test_saved_and_loaded(head: str, tmp_path: Path) -> None:
    model, images = made(head), HF.images()
    expected = model(images).logits
    assert torch.equal(expected, model.dynamicvit(images))
    assert expected.shape == (2, 3, *HF.grid)
    model.save_pretrained(tmp_path / "model")
    for kind in (AutoModelForSemanticSegmentation, DynamicViTForSemanticSegmentation):
        again = kind.from_pretrained(tmp_path / "model").eval()
        assert isinstance(again.dynamicvit, Segmenter)
        assert again.config.id2label == dict(enumerate(NAMES))
        assert again.dynamicvit.schedule == model.dynamicvit.schedule
        assert torch.equal(again(images).logits, expected)


@torch.no_grad()
def test_processors_read_its_outputs() -> None:
    output = made()(HF.images())
    found = SegformerImageProcessor().post_process_semantic_segmentation(output, [(50, 60)] * 2)
    own = post_process_semantic_segmentation(output, [(50, 60)] * 2)
    assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))


def test_labels_train_it() -> None:
    model = made().train()
    labels = torch.randint(0, 3, (2, *HF.size))
    labels[:, :8] = 255
    model(HF.images(), labels=labels).loss.backward()
    core = model.dynamicvit
    for weight in (core.decode_head.linear.weight, core.predictors[0].mlp[0].weight):
        assert weight.grad is not None
        assert weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        output = model(HF.images(), labels=labels)
    wide = F.interpolate(output.logits, HF.size, mode="bilinear")
    torch.testing.assert_close(output.loss, F.cross_entropy(wide, labels, ignore_index=255))


def test_what_can_not_be_is_said() -> None:
    with pytest.raises(InputError, match="a segmenter on a model of transformers"):
        DynamicViTForSemanticSegmentation.around(segmenter(DEIT.backbone(), 3))
