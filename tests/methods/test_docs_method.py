"""docs/adding-a-method.md does what it says: its code runs, by name, in both paths."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dynamicvit import UntrainedWarning, sparsify
from dynamicvit.comparison import candidates, compare
from dynamicvit.core import registry
from dynamicvit.core.decisions import best_k_sampler
from dynamicvit.costs import count_macs, schedule_macs
from dynamicvit.methods import METHODS
from families import DEIT, assert_agree, randomize
from pictures import noise_folders

pytestmark = pytest.mark.filterwarnings("error::dynamicvit.UntrainedWarning")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-method.md"
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)


@pytest.fixture
def page() -> Iterator[dict[str, Any]]:
    """What the page's code defines; its methods are forgotten again afterwards."""
    built_in, names = list(METHODS), {}
    try:
        for block in CODE:
            exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
        yield names
    finally:
        for name in set(METHODS) - set(built_in):
            del registry._methods[name]


@torch.no_grad()
def test_its_model_runs(page: dict[str, Any]) -> None:
    model = page["model"].eval()
    output = model.forward_pruned(torch.randn(2, 3, 224, 224))
    assert [kept.sum(dim=1).tolist() for kept in output.kept] == [[137] * 2, [96] * 2, [67] * 2]


def test_without_training_and_with(page: dict[str, Any]) -> None:
    images = DEIT.images()
    sparsify(DEIT.backbone(), method="distance").eval()(images)  # the warning is an error
    model = sparsify(DEIT.backbone(), method="linear").eval()
    with pytest.warns(UntrainedWarning):
        model(images)
    model.train()(images).logits.square().sum().backward()
    assert all(stage.score.weight.grad.abs().sum() > 0 for stage in model.predictors)


@torch.no_grad()
def test_the_law(page: dict[str, Any]) -> None:
    for policy in ("removed", "merged"):
        model = sparsify(DEIT.backbone(), 0.6, policy=policy, method="linear").eval()
        randomize(model.predictors)
        pruned = model.forward_pruned(DEIT.images())
        masked = model.forward_masked(DEIT.images(), sampler=best_k_sampler)
        assert_agree(masked.logits, pruned.logits)
        assert schedule_macs(model, model.schedule) == count_macs(model)


def test_compare_takes_it(page: dict[str, Any], tmp_path: Path) -> None:
    data = noise_folders(tmp_path / "images", classes=7, each=1, size=DEIT.size)
    lines = compare(
        DEIT.backbone(),
        data,
        tmp_path / "out",
        methods="distance,random",
        macs=[0.75],
        train=False,
        timing=False,
        workers=0,
    )
    assert [line.method for line in lines] == ["dense", "random", "distance"]


def test_by_the_module_that_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_methods.py").write_text(CODE[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        [candidate] = candidates("my_methods:distance")
        assert candidate.name == candidate.method == "distance"
        assert sparsify(DEIT.backbone(), method="my_methods:distance").method.name == "distance"
    finally:
        registry._methods.pop("distance", None)
        sys.modules.pop("my_methods", None)
