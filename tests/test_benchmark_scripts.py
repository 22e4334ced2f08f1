"""The scripts in benchmarks/ run, and time what they say they time."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dynamicvit.layers import masked_attention

SCRIPTS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module("attention_forms")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("explicit", ["explicit_attention"]),
        ("fused, kernel", ["fused_attention", "scaled_dot_product_attention"]),
        ("fused, products", ["fused_attention"]),
        ("as chosen", ["explicit_attention"]),
    ],
)
def test_a_form_is_what_its_name_says(
    forms: Any, monkeypatch: pytest.MonkeyPatch, name: str, expected: list[str]
) -> None:
    called: list[str] = []
    for module, function in (
        (masked_attention, "explicit_attention"),
        (masked_attention, "fused_attention"),
        (F, "scaled_dot_product_attention"),
    ):
        real = getattr(module, function)

        def spy(*args: Any, real: Any = real, name: str = function, **kwargs: Any) -> Any:
            called.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, function, spy)
    heads = torch.randn(3, 1, 1, 5, 8)
    with forms.form(name):
        masked_attention.masked_attention(*heads, torch.ones(1, 5))
    assert called == expected


def test_the_forms_are_timed_at_each_size_and_precision(forms: Any) -> None:
    table = forms.attention_table([(32, 1), (48, 2)], rounds=1, device="cpu")
    assert table.row_count == 2 * len(forms.PRECISIONS)
    assert len(table.columns) == 3 + 5


@pytest.mark.usefixtures("forms")
def test_every_kind_of_step_is_timed_and_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    script = import_module("training_step")
    monkeypatch.setattr(script, "MODEL", "test_vit")  # timm's, for tests
    assert script.step_table(32, 1, "bf16", rounds=1, device="cpu").row_count == 5
    step = script.Step(32, 2, "fp32", "cpu")
    weights = [
        step.dense.patch_embed.proj.weight,
        step.model.backbone.patch_embed.proj.weight,
        *(predictor.project.weight for predictor in step.model.predictors),
    ]
    before = [weight.clone() for weight in weights]
    step.run()
    step.run_dense()
    for was, weight in zip(before, weights, strict=True):
        assert not torch.equal(was, weight)


@pytest.mark.extended
def test_clips_are_timed_at_each_batch_and_budget(forms: Any) -> None:
    del forms
    pytest.importorskip("transformers")
    script = import_module("clips_clock")
    table = script.clock(script.videomae(4, 32), ["tome"], [0.7], [1, 2], threads=1, rounds=2)
    assert table.row_count == 2 * 2
