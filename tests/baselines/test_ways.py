"""The registry: each way near its budget, and trained by the same loop and recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dynamicvit import InputError
from dynamicvit.costs import DENSE, count_macs, schedule_macs
from dynamicvit.methods import WAYS, build, names, ways_of
from dynamicvit.training import fit
from dynamicvit.training.external_teacher import ExternalTeacher
from dynamicvit.training.objective import objective_of
from families import DEIT
from memory import Memory, small

each_way = pytest.mark.parametrize("name", WAYS)


@each_way
def test_near_its_budget(name: str) -> None:
    backbone = DEIT.backbone()
    dense = count_macs(backbone)
    model = build(name, backbone, 0.7)
    macs = count_macs(model)
    assert macs == schedule_macs(model, model.schedule)
    # One block more or less for downsampling, one channel of a head for width.
    coarse = {"downsampling": 0.1, "width": 0.1}
    assert macs / dense == pytest.approx(0.7, abs=coarse.get(name, 0.03))
    assert not model.training


@pytest.mark.parametrize("name", ["downsampling", "merging", "width"])
def test_nothing_is_nearer(name: str) -> None:
    """What is found for a way's own MACs is that very model."""
    backbone = DEIT.backbone()
    dense = schedule_macs(backbone, DENSE)
    first = count_macs(build(name, backbone, 0.6))
    assert count_macs(build(name, backbone, first / dense)) == first


def test_merging_reaches_small_budgets() -> None:
    """Where as many each time would run out of tokens before the end."""
    backbone = DEIT.backbone(depth=8)
    dense = schedule_macs(backbone, DENSE)
    assert count_macs(build("merging", backbone, 0.4)) / dense == pytest.approx(0.4, abs=0.02)


@each_way
def test_two_steps_of_the_same_recipe(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = DEIT.backbone()
    model = build(name, backbone, 0.75)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = small(*WAYS[name].overrides, steps=2)
    teacher = ExternalTeacher(backbone, model) if name == "width" else None
    report = fit(model, Memory(labeled=False), recipe, tmp_path, teacher=teacher)
    assert report.steps == 2
    assert report.bad_steps == 0
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    learned = {key for key in before if key.startswith("predictors.")}
    assert learned <= changed
    assert any(key.startswith("backbone.blocks.3") for key in changed)
    losses = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["losses"]
    guided = bool(learned) and name != "no-guidance"
    assert (losses["guidance"] > 0) == guided
    assert (losses["distillation"] > 0) == (name != "no-distillation")
    assert (losses["token"] > 0) == (name not in ("no-token", "width"))
    assert (losses["feature"] > 0) == (name not in ("no-feature", "width"))


def test_a_width_scaled_model_needs_another_teacher(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to train"):
        fit(build("width", DEIT.backbone(), 0.5), Memory(), small(), tmp_path)


def test_guidance_is_for_what_learns_a_ranking() -> None:
    backbone, recipe = DEIT.backbone(), small()
    assert objective_of(build("static", backbone, 0.7), recipe).weights.guidance > 0
    assert objective_of(build("attention", backbone, 0.7), recipe).weights.guidance == 0


def test_stages_of_the_ablations() -> None:
    backbone = DEIT.backbone(depth=8)
    stages = {name: build(name, backbone, 0.8).schedule.stages for name in names(ablations=True)}
    assert stages["one-stage"] == (2,)
    assert stages["two-stages"] == (2, 4)
    assert stages["zeroed"] == (2, 4, 6)


def test_lists_of_names() -> None:
    assert [way.name for way in ways_of("merging, dynamic,merging")] == ["merging", "dynamic"]
    assert [way.name for way in ways_of("all,zeroed")] == [*names(), "zeroed"]
    assert set(names()) | set(names(ablations=True)) == set(WAYS)
    assert {way.name for way in ways_of("ablations")} == set(names(ablations=True))


@pytest.mark.parametrize("text", ["mergin", "dynamic,mergin"])
def test_a_name_that_is_not_there(text: str) -> None:
    with pytest.raises(InputError, match=r"no way 'mergin': did you mean merging\?.*zeroed"):
        ways_of(text)


def test_an_empty_name() -> None:
    with pytest.raises(InputError, match="no way ''"):
        ways_of("dynamic,")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 64])
def test_fractions_that_can_not_be(fraction: float) -> None:
    with pytest.raises(InputError, match=f"between 0 and 1, got {fraction}"):
        build("dynamic", DEIT.backbone(), fraction)
