"""What a stream may be classified with."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import Clock

from dynamicvit import DynamicViT, InputError
from dynamicvit.runtimes import ExportedModel
from dynamicvit.runtimes.description import describe
from dynamicvit.streaming import costs_of, levels_of
from families import DEIT, NUM_CLASSES


@pytest.fixture(scope="module")
def model() -> DynamicViT:
    return DEIT.sparse()


@torch.no_grad()
def test_one_model_at_several_ratios(model: DynamicViT) -> None:
    levels = levels_of({"m": model}, [0.5, 0.9, 0.7, 0.9])
    assert [level.keep_ratio for level in levels] == [0.9, 0.7, 0.5]
    assert [str(level) for level in levels] == ["ρ 0.9", "ρ 0.7", "ρ 0.5"]
    [uneven] = levels_of({"m": DEIT.sparse([0.8, 0.5, 0.5])})
    assert (uneven.keep_ratio, str(uneven)) == (None, "ρ 0.8, 0.5, 0.5")
    images = DEIT.images(1)
    found = {level.keep_ratio: level.classify(images) for level in reversed(levels)}
    for ratio, logits in found.items():
        torch.testing.assert_close(logits, DEIT.sparse(ratio)(images)[0])
    assert not torch.equal(found[0.9], found[0.5])


@torch.no_grad()
def test_several_models_with_their_own_ratios() -> None:
    models = [DEIT.sparse(ratio, policy="merged") for ratio in (0.5, 0.8)]
    levels = levels_of({"half": models[0], "most": models[1]})
    assert [level.model for level in levels] == ["most", "half"]
    images = DEIT.images(1)
    for level, model in zip(levels, reversed(models), strict=True):
        torch.testing.assert_close(level.classify(images), model(images)[0])
        assert level.schedule.policy == "merged"


def test_logits_are_float32_in_any_precision(model: DynamicViT) -> None:
    exact, rough = (
        levels_of({"m": model}, precision=precision)[0].classify(DEIT.images(1))
        for precision in (None, torch.bfloat16)
    )
    assert exact.dtype == rough.dtype == torch.float32
    assert exact.shape == (NUM_CLASSES,)
    assert not torch.equal(exact, rough)
    assert not exact.requires_grad


def test_what_does_not_go_together(model: DynamicViT) -> None:
    def other(**config: Any) -> DynamicViT:
        different = DEIT.sparse()
        different.backbone.pretrained_cfg = {**model.pretrained_cfg, **config}
        return different

    without = DEIT.sparse()
    without.reset_classifier(0)
    few = DEIT.sparse(num_classes=3)
    fixed: Any = SimpleNamespace(num_classes=NUM_CLASSES)
    pairs: Any = ExportedModel(lambda images: [images], replace(describe(model), batch=2))
    for models, ratios, said in (
        ([("pairs.onnx", pairs)], (), "pairs.onnx takes 2 images"),
        ([("none", without)], (), "none has no classifier"),
        ([("a", model), ("b", few)], (), "a and b can't take turns: their classes differ"),
        ([("a", model), ("b", other(mean=(0.1, 0.2, 0.3)))], (), r"turns: mean \(.*0\.3\)"),
        ([("a", model), ("b", other(crop_pct=0.5))], (), "turns: crop_pct .* and 0.5"),
        ([("a", model), ("b", model)], (0.5,), r"keep ratio 0\.5 is for one model, got 2"),
        ([("file.onnx", fixed)], (0.5,), "the keep ratio of file.onnx is fixed"),
        ([("a", model)], (0.5, 1.5), r"1\.5"),
    ):
        with pytest.raises(InputError, match=said):
            levels_of(dict(models), ratios)


def test_costs_are_the_shortest_times_after_the_warm_up_and_grow_with_what_is_kept() -> None:
    clock = Clock()
    times = {
        "dear": iter([9, 9, 5, 4, 6, 5, 5]),
        "odd": iter([9, 9, 1, 2, 2, 2, 2]),
        "cheap": iter([0, 0, 2, 3, 2, 2, 2]),
    }
    order = []

    def level(name: str) -> Any:
        def classify(images: torch.Tensor) -> None:
            order.append(name)
            clock.now += next(times[name])

        return SimpleNamespace(classify=classify)

    levels = [level(name) for name in times]
    assert costs_of(levels, torch.zeros(1, 3, 2, 2), clock=clock) == [4, 2, 2]
    assert order == list(times) * 7  # in turn
