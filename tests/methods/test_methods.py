"""The registry: sparsify and at_macs take every method, and one recipe trains each."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch

from dynamicvit import (
    DynamicViT,
    InputError,
    Schedule,
    keep_ratio_for,
    segmenter,
    sparsify,
)
from dynamicvit.comparison import ABLATIONS, all_names, candidate_named
from dynamicvit.core.networks import core_of
from dynamicvit.costs import count_macs
from dynamicvit.methods import METHODS, at_macs, method_named
from dynamicvit.training import ExternalTeacher, fit
from families import BY_NAME, DEIT, HF_FAMILIES
from memory import Memory, small
from rows import some_or_all

#: Those of clips are in test_run_length.py and test_tubelets.py.
IMAGES = [name for name, kind in METHODS.items() if not kind.for_clips]
each_method = pytest.mark.parametrize("name", IMAGES)
CANDIDATES = [n for n in all_names() if n.removesuffix("-removed") in IMAGES] + [*ABLATIONS]
each_candidate = pytest.mark.parametrize("name", CANDIDATES)


@cache
def dense_macs(depth: int = 4) -> int:
    return count_macs(DEIT.backbone(depth=depth))


@cache
def macs_at(name: str, depth: int) -> int:
    return count_macs(sparsify(DEIT.backbone(depth=depth), 0.6, method=name))


class TestSparsify:
    @each_method
    @torch.no_grad()
    def test_every_method_gives_logits(self, name: str) -> None:
        model = sparsify(DEIT.backbone(), 0.6, method=name).eval()
        assert model(DEIT.images()).shape == (2, 7)
        assert all(isinstance(stage, METHODS[name]) for stage in model.predictors)

    @each_method
    @torch.no_grad()
    def test_a_dense_model_is_as_good_as_its_network(self, name: str) -> None:
        network, images = DEIT.backbone(), DEIT.images()
        dense = DynamicViT(network, Schedule((), ()), [])
        torch.manual_seed(0)  # of prediction modules
        expected = sparsify(network, 0.6, method=name).eval()(images)
        torch.manual_seed(0)
        torch.testing.assert_close(sparsify(dense, 0.6, method=name).eval()(images), expected)

    def test_a_smaller_network_is_no_segmenter(self) -> None:
        with pytest.raises(InputError, match="narrow makes another network, and only of class"):
            sparsify(segmenter(DEIT.backbone(), 3), 0.6, method="narrow")

    @each_method
    def test_a_keep_ratio_is_about_the_same_work(self, name: str) -> None:
        macs, papers = macs_at(name, depth=8), macs_at("dynamicvit", depth=8)
        # To ask the coming block for its attention is a good part of that block.
        assert macs / papers == pytest.approx(1, abs=0.25 if name == "mctf" else 0.15)

    @pytest.mark.parametrize(
        "name", ["evit", "static", "lookahead", "diffrate", "tome", "mctf", "downsample"]
    )
    def test_the_budget_is_a_property(self, name: str) -> None:
        model = sparsify(DEIT.backbone(depth=8), 0.9, method=name)
        model.keep_ratio = 0.5
        other = sparsify(DEIT.backbone(depth=8), 0.5, method=name)
        assert model.schedule == other.schedule
        model.keep_ratio = keep_ratio_for(model, fraction=0.7)
        share = count_macs(model) / dense_macs(depth=8)
        assert share <= 0.7
        assert share == pytest.approx(0.7, abs=0.12 if name == "downsample" else 0.03)

    def test_stages_and_policy(self) -> None:
        model = sparsify(DEIT.backbone(), (0.5, 0.25), (1, 3), "merged", method="class-attention")
        assert model.schedule == Schedule((1, 3), (0.5, 0.25), "merged")

    @pytest.mark.parametrize("name", ["lookahead", "diffrate", "tome", "mctf", "downsample"])
    def test_stages_of_its_own(self, name: str) -> None:
        with pytest.raises(InputError, match=rf"{name}.*\(1, 2\)"):
            sparsify(DEIT.backbone(), 0.7, stages=(1, 2), method=name)

    @pytest.mark.parametrize("name", ["evit", "tps", "lookahead", "diffrate", "tome", "mctf"])
    @torch.no_grad()
    def test_a_model_of_transformers(self, name: str, tmp_path: Path) -> None:
        if not HF_FAMILIES:
            pytest.skip("transformers is not installed")
        family = BY_NAME["hf_deit"]
        model = sparsify(family.backbone(), 0.7, method=name).eval()
        images = family.images()
        logits = model(images, interpolate_pos_encoding=True).logits
        assert torch.equal(logits, core_of(model)(images))
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        assert core_of(loaded).method is METHODS[name]
        assert torch.equal(core_of(loaded)(images), logits)

    @each_method
    @torch.no_grad()
    def test_saved_and_loaded(self, name: str, tmp_path: Path) -> None:
        model = sparsify(DEIT.backbone(), 0.6, method=name).eval()
        model.save_pretrained(tmp_path)
        loaded = DynamicViT.from_pretrained(tmp_path)
        assert loaded.method is METHODS[name]
        assert loaded.schedule == model.schedule
        if name != "random":
            assert torch.equal(loaded(DEIT.images()), model(DEIT.images()))

    @each_method
    def test_the_keep_ratio_it_has_can_be_set(self, name: str) -> None:
        """Setting what is read changes nothing; a narrow network has no stage to set."""
        model = sparsify(DEIT.backbone(), 0.6, method=name)
        before = model.schedule
        assert model.method is METHODS[name]
        if name == "narrow":
            with pytest.raises(InputError, match="its width"):
                model.keep_ratio = 0.5
            return
        model.keep_ratios = model.keep_ratios
        assert model.schedule == before
        model.keep_ratio = model.keep_ratio
        assert model.schedule == before

    @pytest.mark.parametrize("name", ["lookahead", "diffrate", "tome", "mctf"])
    def test_the_keep_ratio_that_was_set_is_read(self, name: str) -> None:
        """In networks of any depth, those too shallow for the paper's three stages too."""
        for depth in (2, 3, 8):
            model = sparsify(DEIT.backbone(depth), 0.9, method=name)
            assert model.keep_ratio == 0.9
        model.keep_ratios = (*model.keep_ratios[:-1], 0.1)
        assert model.keep_ratio is None

    @pytest.mark.parametrize("name", ["tomee", "", "nowhere_at_all:tome"])
    def test_a_name_that_is_not_there(self, name: str) -> None:
        with pytest.raises(InputError, match=name.partition(":")[0] or "''"):
            sparsify(DEIT.backbone(), method=name)

    def test_the_error_lists_the_names(self) -> None:
        with pytest.raises(InputError) as raised:
            method_named("nothing")
        assert all(name in str(raised.value) for name in METHODS)
        with pytest.raises(InputError, match="'tome'"):
            method_named("merging")  # as 0.1.0 called it


@each_candidate
def test_near_its_budget(name: str) -> None:
    model = candidate_named(name).build(DEIT.backbone(), 0.7)
    # One block more or less for downsample, one channel of a head for narrow.
    coarse = {"downsample": 0.1, "narrow": 0.1}
    assert count_macs(model) / dense_macs() == pytest.approx(0.7, abs=coarse.get(name, 0.03))
    assert not model.training


@pytest.mark.parametrize("name", ["downsample", "tome", "narrow"])
def test_nothing_is_nearer(name: str) -> None:
    """What is found for a method's own MACs is that very model."""
    backbone = DEIT.backbone()
    first = count_macs(at_macs(name, backbone, 0.6))
    assert count_macs(at_macs(name, backbone, first / dense_macs())) == first


def test_tome_reaches_small_budgets() -> None:
    """Where as many each time would run out of tokens before the end."""
    macs = count_macs(at_macs("tome", DEIT.backbone(depth=8), 0.4))
    assert macs / dense_macs(depth=8) == pytest.approx(0.4, abs=0.02)


#: One of each kind of training, with what is left out; ``-m extended`` runs all.
TRAINED = {"dynamicvit-removed", "lookahead", "evit", "downsample", "narrow", *ABLATIONS}


@some_or_all("name", TRAINED, CANDIDATES)
def test_two_steps_of_the_same_recipe(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = DEIT.backbone()
    candidate = candidate_named(name)
    model = candidate.build(backbone, 0.75)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    recipe = small(*candidate.overrides, steps=2)
    teacher = ExternalTeacher(backbone, model) if name == "narrow" else None
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
    assert (losses["token"] > 0) == (name not in ("no-token", "narrow"))
    assert (losses["feature"] > 0) == (name not in ("no-feature", "narrow"))


def test_a_narrow_model_needs_another_teacher(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to train"):
        fit(at_macs("narrow", DEIT.backbone(), 0.5), Memory(), small(), tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 64])
def test_fractions_that_can_not_be(fraction: float) -> None:
    with pytest.raises(InputError, match=f"between 0 and 1, got {fraction}"):
        at_macs("dynamicvit", DEIT.backbone(), fraction)
