"""Bypassed tokens: they wait as they are, come back to their places, and what that costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dynamicvit
from dynamicvit import DynamicViT, InputError, Schedule, ScheduleFile, sparsify
from dynamicvit.budgets import keep_ratio_for
from dynamicvit.checkpoints.addon import save_addon
from dynamicvit.checkpoints.description import described
from dynamicvit.core.method import Choice
from dynamicvit.costs import count_macs, schedule_macs
from dynamicvit.layers.tokens import Tokens
from dynamicvit.runtimes.description import Description, describe
from dynamicvit.training.recipes import load_recipe
from dynamicvit.training.student import student_for
from dynamicvit.utils.weights import open_weights
from families import BY_NAME, DEIT, Family, assert_agree, each_family, few_families, kinds_or_all
from pictures import noise_folders

BACK = 3
"""Block before which tokens come back, of four."""


def bypassing(
    family: Family = DEIT, restore_before: int | None = BACK, keep_ratio: float = 0.6
) -> DynamicViT:
    return family.sparse(
        keep_ratio, stages=(1, 2), policy="bypassed", restore_before=restore_before
    )


def rows_of_blocks(model: DynamicViT, images: Tensor) -> list[int]:
    """How many tokens each block was given."""
    seen: list[int] = []
    hooks = [
        block.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        for block in model.blocks
    ]
    model(images)
    for hook in hooks:
        hook.remove()
    return [rows - model.num_prefix_tokens for rows in seen]


@kinds_or_all
@torch.no_grad()
def test_the_last_block_runs_on_every_patch_again(family: Family) -> None:
    model, images = bypassing(family), family.images()
    first, second = model.schedule.kept(family.num_patches)
    assert second < first < family.num_patches
    assert rows_of_blocks(model, images) == [family.num_patches, first, second, family.num_patches]
    tokens = model.forward_tokens(images)
    assert tokens.x.shape[1] == model.num_prefix_tokens + family.num_patches
    assert tokens.index is tokens.decision is tokens.groups is tokens.dropped is None


@few_families
@pytest.mark.parametrize("restore_before", [BACK, None])
@torch.no_grad()
def test_a_token_that_waits_is_as_it_was(family: Family, restore_before: int | None) -> None:
    model, images = bypassing(family, restore_before), family.images()
    maps = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    first, second = model.forward_pruned(images).kept
    early, late = ~first, first & ~second
    assert early.any()
    assert late.any()
    assert torch.equal(maps[2][early], maps[0][early])
    assert torch.equal(maps[2][late], maps[1][late])
    moved = (maps[3] - maps[2]).abs().amax(dim=-1)
    assert (moved[second] > 0).all()
    assert (moved[~second] > 0).all() == (restore_before == BACK)
    whole = model.bound.norm(maps[3]).unflatten(1, family.grid)
    assert_agree(model.forward_pruned(images, full_map=True).full_map, whole)
    assert_agree(model.forward_tokens(images).full_map(), whole)


@torch.no_grad()
def test_at_the_end_all_patches_are_pooled() -> None:
    """By a head that reads patches; to one that reads the class token nothing comes back."""
    averaging = BY_NAME["registers"]
    images = averaging.images()
    model = bypassing(averaging, None)
    whole = model.forward_pruned(images, full_map=True).full_map.flatten(1, 2)
    pooled = model.forward_head(model.forward_tokens(images), pre_logits=True)
    assert_agree(pooled, averaging.backbone().fc_norm(whole.mean(dim=1)))
    assert_agree(model(images), model.bound.classifier(pooled))
    classed = bypassing(DEIT, None)
    removed = classed.at(replace(classed.schedule, policy="removed", restore_before=None))
    assert_agree(classed(DEIT.images()), removed(DEIT.images()))


@few_families
@pytest.mark.parametrize("policy", ["bypassed", "merged"])
def test_gradients_agree_and_reach_the_decisions(family: Family, policy: str) -> None:
    """Of a loss on the whole map: weights as in the pruned path, decisions in the masked one."""
    model, images = bypassing(family), family.images()
    model.policy = policy  # type: ignore[assignment]
    decisions = [each.requires_grad_() for each in family.decisions(stages=2, share=0.6)]
    gradients = []
    for path in (model.forward_masked, model.forward_pruned):
        model.zero_grad()
        path(images, decisions, full_map=True).full_map.square().sum().backward()
        gradients.append({n: p.grad for n, p in model.backbone.named_parameters()})
    for name, masked in gradients[0].items():
        if masked is not None:
            assert_agree(masked, gradients[1][name], tolerance=1e-4)
    assert all(decision.grad.abs().sum() > 0 for decision in decisions)


@pytest.mark.parametrize("masking", ["lagged", "compact"])
@torch.no_grad()
def test_tokens_may_leave_memory_in_training(masking: str) -> None:
    model, images = bypassing(), DEIT.images(4)
    given = DEIT.decisions(4, stages=2, share=0.5)
    whole = model.forward_masked(images, given, full_map=True)
    fewer = model.forward_masked(images, given, masking=masking, full_map=True)
    assert_agree(fewer.logits, whole.logits)
    assert_agree(fewer.full_map, whole.full_map)


# ---------------------------------------------------------------- budgets, costs


@torch.no_grad()
def test_any_budget_of_the_same_model() -> None:
    model, images = bypassing(), DEIT.images()
    view = model.at(0.4)
    assert view.schedule == replace(model.schedule, keep_ratios=(0.4, 0.4**2))
    model.keep_ratio = 0.4
    assert torch.equal(view(images), model(images))
    model.policy = "merged"
    assert model.schedule.restore_before == BACK
    model.policy = "bypassed"
    model.keep_ratio = 1.0
    assert_agree(model(images), model.backbone(images))
    for policy, back in (("removed", None), ("bypassed", model.depth), ("merged", None)):
        model.policy = policy  # type: ignore[assignment]
        assert model.schedule.restore_before == back


@few_families
@pytest.mark.parametrize("policy", ["bypassed", "merged"])
@torch.no_grad()
def test_images_that_keep_different_numbers(family: Family, policy: str) -> None:
    """Each is answered as alone; where all patches are back they are one batch again."""
    model = bypassing(family)
    model.policy = policy  # type: ignore[assignment]
    model.calibrate(family.images(96))
    images = family.images(6, seed=1)
    pruned = model.forward_pruned(images, full_map=True)
    assert len(pruned.kept[1].sum(dim=1).unique()) > 1
    assert_agree(model(images), pruned.logits)
    assert model.forward_tokens(images).x.shape[0] == 6
    given = [kept.float() for kept in pruned.kept]
    assert_agree(model.forward_masked(images, given, full_map=True).full_map, pruned.full_map)
    for image in range(6):
        alone = model.forward_pruned(images[image : image + 1], full_map=True)
        assert isinstance(pruned.full_map, Tensor)
        assert_agree(alone.logits, pruned.logits[image : image + 1])
        assert_agree(alone.full_map, pruned.full_map[image : image + 1])


@few_families
@pytest.mark.parametrize("restore_before", [BACK, pytest.param(None, marks=pytest.mark.extended)])
def test_macs_count_what_runs(family: Family, restore_before: int | None) -> None:
    model = bypassing(family, restore_before)
    macs = count_macs(model, family.size)
    assert macs == schedule_macs(model, model.schedule, family.size)
    removed = replace(model.schedule, policy="removed", restore_before=None)
    saved = macs - schedule_macs(model, removed, family.size)
    if restore_before == BACK:
        assert saved > 0
    elif model.bound.reads is not None:
        assert saved == 0
    ratio = keep_ratio_for(model, macs=macs, image_size=family.size)
    assert ratio >= 0.6
    assert schedule_macs(model, model.at(ratio).schedule, family.size) <= macs
    assert schedule_macs(model, model.at(ratio + 0.1).schedule, family.size) > macs


def test_tuning_prices_what_runs() -> None:
    from dynamicvit.tuning.price import price_in_macs
    from dynamicvit.tuning.space import Space

    model = bypassing()
    space = Space.of(model, DEIT.size)
    assert space.stages == (1, 2)
    counts = space.counts_of(model.schedule)
    found = space.schedule(counts)
    assert (found.policy, found.restore_before) == ("bypassed", BACK)
    price = price_in_macs(model, space, DEIT.size)
    assert price(counts) == schedule_macs(model, found, DEIT.size)


# ---------------------------------------------------------------- saved and loaded


@torch.no_grad()
def test_a_folder_says_where_tokens_come_back(tmp_path: Path) -> None:
    model, images = bypassing(), DEIT.images()
    model.save_pretrained(tmp_path)
    loaded = DynamicViT.from_pretrained(tmp_path)
    assert loaded.schedule == model.schedule
    assert_agree(loaded(images), model(images))
    said = json.loads((tmp_path / "config.json").read_text())
    del said["schedule"]["restore_before"]
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert DynamicViT.from_pretrained(tmp_path).schedule.restore_before == model.depth, "the end"
    weights = open_weights(tmp_path / "model.safetensors")
    assert described(weights).restore_before == BACK


def test_files_say_where_tokens_come_back(tmp_path: Path) -> None:
    model = bypassing()
    ScheduleFile(model.schedule, model.depth, "dynamicvit").save(tmp_path / "schedule.json")
    read = ScheduleFile.load(tmp_path / "schedule.json")
    assert read.schedule == model.schedule
    assert sparsify(DEIT.backbone(), schedule=read).schedule == model.schedule
    description = describe(model, image_size=DEIT.size)
    assert Description.from_json(description.to_json(), "file").schedule == model.schedule
    save_addon(model, tmp_path / "addon.safetensors")
    assert dynamicvit.load(DEIT.backbone(), addon=tmp_path / "addon.safetensors").schedule == (
        model.schedule
    )


def test_a_model_of_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from dynamicvit.transformers import DynamicViTForImageClassification

    family = BY_NAME["hf_vit"]
    schedule = Schedule((1, 2), (0.6, 0.4), "bypassed", BACK)
    model = sparsify(family.backbone(), schedule=schedule, method="dynamicvit")
    assert model.config.restore_before == BACK
    model.save_pretrained(tmp_path)
    loaded = DynamicViTForImageClassification.from_pretrained(tmp_path)
    assert loaded.dynamicvit.schedule == schedule
    model.policy = "removed"
    assert model.config.restore_before is None


# ---------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("stages", "policy", "restore_before", "word"),
    [
        ((1, 2), "removed", 3, "removed"),
        ((1, 2), "bypassed", 2, "2"),
        ((1, 2), "bypassed", 5, "5"),
        ((1, 2), "merged", "3", "'3'"),
        ((1, 2), "bypassed", True, "True"),
        ((), "bypassed", -1, "-1"),
    ],
)
def test_where_tokens_can_not_come_back(
    stages: tuple[int, ...], policy: str, restore_before: object, word: str
) -> None:
    with pytest.raises(InputError, match=word):
        Schedule.for_depth(4, (0.5,) * len(stages), stages, policy, restore_before)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["lookahead", "tome", "tps", "mctf"])
def test_methods_that_combine_tokens_have_none_to_bypass(method: str) -> None:
    with pytest.raises(InputError, match=f"{method} makes them part of others"):
        sparsify(DEIT.backbone(), policy="bypassed", method=method)
    model = sparsify(DEIT.backbone(), method=method)
    with pytest.raises(InputError, match="bypassed"):
        model.policy = "bypassed"
    assert model.policy != "bypassed"


def test_a_narrow_network_has_no_tokens_to_bypass() -> None:
    with pytest.raises(InputError, match="narrow drops none"):
        sparsify(DEIT.backbone(), policy="bypassed", method="narrow")


@torch.no_grad()
def test_combined_tokens_can_be_patches_again() -> None:
    """Gathered back: each patch gets a copy of the token that it is part of."""
    schedule = Schedule((1, 2), (0.6, 0.4), "merged", BACK)
    model, images = sparsify(DEIT.backbone(), schedule=schedule, method="tome"), DEIT.images()
    assert isinstance(model, nn.Module)
    model.eval()
    output = model.forward_pruned(images)
    maps = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    groups = output.groups[1]
    same = groups[:, :, None] == groups[:, None, :]
    for image in range(2):
        a, b = same[image].nonzero().unbind(1)
        assert torch.equal(maps[2][image][a], maps[2][image][b])
    assert maps[3].shape == (2, DEIT.num_patches, 48)
    assert model.forward_tokens(images).size is None
    assert count_macs(model, DEIT.size) == schedule_macs(model, model.schedule, DEIT.size)


def test_training_says_where_tokens_come_back(tmp_path: Path) -> None:
    """From the recipe to the model that was trained, and to one that goes on from it."""
    noise_folders(tmp_path / "photos", classes=7, each=2)
    said = ["images=4", "batch_size=2", "method=dynamicvit", "stages=[1,2]"]
    said += ["policy=bypassed", f"restore_before={BACK}"]
    data, output = tmp_path / "photos", tmp_path / "run"
    dynamicvit.train(data, output, DEIT.backbone(), overrides=said, workers=0)
    made = dynamicvit.load(str(output))
    assert (made.policy, made.schedule.restore_before) == ("bypassed", BACK)
    recipe = load_recipe("small_data", ["model=none"])
    again, of_model = student_for(made, recipe, None, None, pretrained=False)
    assert (again, of_model["restore_before"]) == (made, BACK)
    with pytest.raises(InputError, match="removed"):
        student_for(
            DEIT.backbone(),
            load_recipe("small_data", ["policy=removed", "restore_before=3", "stages=[1,2]"]),
            None,
            None,
            pretrained=False,
        )


# ---------------------------------------------------------------- taken up again


class Fickle(Choice):
    """Wants other patches at each stage: those at the other end of the image."""

    reactivates = True

    def __init__(self, toward: float = 1.0) -> None:
        super().__init__()
        self.toward = toward

    def keep_scores(self, tokens: Tokens) -> Tensor:
        place = tokens.kept_index().to(tokens.x.dtype)
        return self.toward * (place - tokens.grid_size / 2) + tokens.patches[..., 0]


def fickle(family: Family, restore_before: int | None) -> DynamicViT:
    schedule = Schedule((1, 2), (0.5, 0.4), "bypassed", restore_before)
    return DynamicViT(family.backbone(), schedule, [Fickle(), Fickle(-1.0)]).eval()


@few_families
@pytest.mark.parametrize("restore_before", [BACK, None])
@torch.no_grad()
def test_waiting_tokens_may_be_taken_up_again(family: Family, restore_before: int | None) -> None:
    model, images = fickle(family, restore_before), family.images(3)
    pruned = model.forward_pruned(images, full_map=True)
    first, second = pruned.kept
    assert (second & ~first).any(), "else it shows nothing"
    assert [int(kept[0].sum()) for kept in pruned.kept] == [*model.schedule.kept(first.shape[1])]
    given = [kept.float() for kept in pruned.kept]
    masked = model.forward_masked(images, given, full_map=True)
    for other in (masked, model.forward_pruned(images, given, full_map=True)):
        assert_agree(other.logits, pruned.logits)
        assert_agree(other.full_map, pruned.full_map)
    assert_agree(model(images), pruned.logits)
    maps = model.forward_intermediates(images, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(maps[1][~first], maps[0][~first]), "they wait as they were"
    assert (maps[2][second] != maps[1][second]).any(dim=-1).all(), "and go on from there"


@each_family
@torch.no_grad()
def test_any_decisions_that_take_tokens_up_again(family: Family) -> None:
    """Of images that keep different numbers, none too, in every order."""
    model, images = fickle(family, BACK), family.images(4)
    first, second = family.decisions(4, stages=2, share=0.5)
    first[0], second[1], second[2] = 0, 0, 1
    masked = model.forward_masked(images, [first, second], full_map=True)
    pruned = model.forward_pruned(images, [first, second], full_map=True)
    assert_agree(masked.logits, pruned.logits)
    assert_agree(masked.full_map, pruned.full_map)
    assert all(torch.equal(a > 0.5, b) for a, b in zip(masked.decisions, pruned.kept, strict=True))


@few_families
def test_what_taking_tokens_up_again_costs_is_counted(family: Family) -> None:
    model = fickle(family, BACK)
    assert schedule_macs(model, model.schedule) == count_macs(model)


def test_what_can_not_take_tokens_up_again() -> None:
    class Looking(Fickle):
        looks_back = True

    schedule = Schedule((1, 2), (0.5, 0.4), "bypassed")
    with pytest.raises(InputError, match="Looking"):
        DynamicViT(DEIT.backbone(), schedule, Looking)
    with pytest.raises(InputError, match="budget per image"):
        fickle(DEIT, None).calibrate(DEIT.images(16))
