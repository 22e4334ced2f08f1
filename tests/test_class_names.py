"""The names of a model's classes, and the most probable of them."""

from __future__ import annotations

import pytest
import torch

from dynamicvit import DynamicViT, InputError
from dynamicvit.data import class_names, top_classes
from families import DEIT

NAMES = ["tench, Tinca tinca", "cat", "$5 bill", "dog", "fox"]


@pytest.fixture(scope="module")
def model() -> DynamicViT:
    return DEIT.sparse(num_classes=5)


def test_class_names(model: DynamicViT, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = model.backbone
    assert class_names(model) == [f"class {index}" for index in range(5)]
    monkeypatch.setattr(backbone, "pretrained_cfg", {"label_names": NAMES}, raising=False)
    assert class_names(model) == NAMES
    described = {"label_names": list("abcde"), "label_descriptions": {"a": "ant", "e": "eel"}}
    monkeypatch.setattr(backbone, "pretrained_cfg", described)
    assert class_names(model) == ["ant", "b", "c", "d", "eel"]
    # A head of another size than the pretrained one: its names are not this head's.
    monkeypatch.setattr(backbone, "pretrained_cfg", {"label_names": ["one", "two"]})
    assert class_names(model)[4] == "class 4"


@pytest.mark.parametrize(
    ("count", "index", "name"),
    [(1000, 283, "Persian cat"), (1000, 0, "tench, Tinca tinca"), (21843, 1, "benthos")],
)
def test_imagenets_names(
    model: DynamicViT, monkeypatch: pytest.MonkeyPatch, count: int, index: int, name: str
) -> None:
    monkeypatch.setattr(model.backbone, "num_classes", count)
    names = class_names(model)
    assert len(names) == count
    assert names[index] == name


def test_top_classes() -> None:
    logits = torch.tensor([0.1, 0.4, 0.2, 0.25, 0.05]).log()
    best = top_classes(logits, NAMES, k=3)
    assert [guess.name for guess in best] == ["cat", "dog", "$5 bill"]
    assert [guess.index for guess in best] == [1, 3, 2]
    assert [guess.probability for guess in best] == pytest.approx([0.4, 0.25, 0.2])
    assert len(top_classes(logits, NAMES, k=10)) == 5
    with pytest.raises(InputError, match="2 class names"):
        top_classes(logits, NAMES[:2])
