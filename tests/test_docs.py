"""docs/adding-a-backbone.md does what it says: its code runs, and its row passes the tests."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from inspect import signature
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer_relpos import ResPostRelPosBlock

from dynamicvit import DynamicViT, UnsupportedBackboneError, backbones, sparsify
from dynamicvit.checkpoints.loading import set_image_size
from dynamicvit.costs import count_macs, schedule_macs
from families import BY_NAME, FAMILIES, Family, assert_agree

PAGE = Path(__file__).resolve().parents[1] / "docs" / "adding-a-backbone.md"
CODE = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.M)

#: What the page says of a row, each by a piece of a test's name.
PROMISES = (
    "dense_when_nothing_is_dropped",
    "masked_and_pruned_logits_agree",
    "keeps_another_number",
    "gradients_of_the_weights",
    "parts_add_up",
    "maps_where_nothing_is_dropped",
    "autocast",
    "grad_checkpointing",
    "weighing_changes_nothing",
)


def modules_with_generic_tests() -> Iterator[ModuleType]:
    """Those whose text has a mark of every row; this one only speaks of it."""
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        if re.search(
            r"^@(each_family|\w+_or_all)$", file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            yield import_module(file.stem)


def generic_tests() -> Iterator[Any]:
    """The tests that each row of the table gets, with their other parameters.

    Those of the page's promises are in every run; the others are of the rows that are built in.
    """
    for module in modules_with_generic_tests():
        for name, test in sorted(vars(module).items()):
            marks = [m for m in getattr(test, "pytestmark", []) if m.name == "parametrize"]
            values = {mark.args[0]: mark.args[1] for mark in marks}
            rows = tuple(getattr(row, "values", (row,))[0] for row in values.pop("family", ()))
            if name.startswith("test_") and rows == FAMILIES:
                for chosen in product(*values.values()):
                    arguments: dict[str, Any] = {}
                    for key, value in zip(values, chosen, strict=True):
                        several = not isinstance(key, str)
                        arguments |= dict(zip(key, value, strict=True)) if several else {key: value}
                    always = any(promise in name for promise in PROMISES)
                    marks = () if always else pytest.mark.extended
                    what = "-".join([name, *map(str, chosen)])
                    yield pytest.param(test, arguments, id=what, marks=marks)


@pytest.fixture(scope="module")
def page() -> Iterator[dict[str, Any]]:
    """What the page's code defines; the family is forgotten again afterwards."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "_FAMILIES", [*backbones._FAMILIES])
        for block in CODE[:-1]:
            exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
        yield names


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch, page: dict[str, Any]) -> Family:
    """The page's row, in the table."""
    row = eval(CODE[-1], {"Family": Family})
    monkeypatch.setitem(BY_NAME, row.name, row)
    return row


def test_the_family_is_not_built_in() -> None:
    """Or the page would show nothing. This comes before the page's code runs."""
    with pytest.raises(UnsupportedBackboneError, match="VisionTransformerRelPos"):
        sparsify(timm.create_model("test_vit_relpos"), method="dynamicvit")


@pytest.mark.parametrize(("test", "arguments"), list(generic_tests()))
def test_the_row_passes(
    family: Family, test: Callable[..., None], arguments: dict[str, Any], tmp_path: Path
) -> None:
    folder = {"tmp_path": tmp_path} if "tmp_path" in signature(test).parameters else {}
    test(family, **arguments, **folder)


def test_the_pages_promises_are_among_those_tests() -> None:
    """So that a test that is narrowed to some rows is noticed."""
    names = [parameters.id for parameters in generic_tests()]
    for promise in PROMISES:
        assert any(promise in name for name in names), promise


@pytest.mark.parametrize(
    "name",
    [
        "vit_relpos_base_patch16_clsgap_224",
        "vit_relpos_medium_patch16_cls_224",
        "vit_srelpos_small_patch16_224",
    ],
)
@torch.no_grad()
def test_the_familys_other_networks(page: dict[str, Any], name: str) -> None:
    """A class token, pooled or not; one bias shared by all blocks."""
    family = Family(name, name)
    model, images = family.sparse(keep_ratio=0.5), family.images()
    everything = [torch.ones(2, family.num_patches)] * 3
    assert_agree(model.forward_masked(images, everything).logits, model.backbone(images))
    decisions = family.decisions()
    masked = model.forward_masked(images, decisions).logits
    assert_agree(masked, model.forward_pruned(images, decisions).logits)
    assert schedule_macs(model, model.schedule) == count_macs(model)


@torch.no_grad()
def test_what_the_family_inherits(family: Family, tmp_path: Path) -> None:
    """Another image size and classifier, saving; and what it refuses."""
    model = family.sparse()
    rows, columns = set_image_size(model, (96, 112))
    model.reset_classifier(3)
    images = torch.randn(2, 3, rows, columns)
    model.save_pretrained(tmp_path)
    loaded = DynamicViT.from_pretrained(tmp_path)
    assert torch.equal(loaded(images), model(images))
    for kwargs, reason in (
        ({"rel_pos_type": "bias"}, "rel_pos_type='mlp' is needed"),
        ({"block_fn": ResPostRelPosBlock}, "block class ResPostRelPosBlock"),
    ):
        with pytest.raises(UnsupportedBackboneError, match=reason):
            family.sparse(**kwargs)
