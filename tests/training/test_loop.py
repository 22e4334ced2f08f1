"""The training loop: it learns, keeps the teacher, spares what is frozen, and goes on."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.data import Mixup
from torch import Tensor, nn

from dynamicvit import DynamicViT, InputError
from dynamicvit.core.outputs import DenseOutput
from dynamicvit.core.schedule import Policy
from dynamicvit.core.teacher import weigh_some
from dynamicvit.data import UNLABELED, Batch
from dynamicvit.layers.tokens import Tokens
from dynamicvit.training import Progress, Recipe, fit, load_recipe, loop
from dynamicvit.training.draws import Mixing, seed_everything
from dynamicvit.training.objective import objective_of
from dynamicvit.training.optimizer import LearningRate, create_optimizer
from families import BY_NAME, DEIT, NUM_CLASSES, POLICIES, Family
from memory import BATCH, Memory, losses_of, paper, shallow, small


def weights(model: DynamicViT) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


PLAIN = ("augment.mixup=0", "augment.cutmix=0")


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        (BY_NAME["lvvit"], small(*PLAIN, "backbone_lr_scale=0.1", steps=24)),
        (DEIT, paper("epochs=8", "backbone_frozen=0", "backbone_lr_scale=1", *PLAIN)),
    ],
    ids=["lvvit-small", "deit-paper"],
)
def test_the_losses_fall(family: Family, recipe: Recipe, tmp_path: Path) -> None:
    class Same(Memory):
        def set_epoch(self, epoch: int, start: int = 0) -> None:
            super().set_epoch(0, start)

    totals: list[float] = []

    def log(progress: Progress) -> None:
        totals.append(progress.losses["total"])

    fit(shallow(family), Same(), recipe, tmp_path, on_step=log)
    assert sum(totals[-3:]) < 0.9 * sum(totals[:3])


def test_the_paper_recipe_trains_both_parts_and_the_frozen_stay(tmp_path: Path) -> None:
    model = shallow()
    before = weights(model)
    report = fit(model, Memory(), paper("backbone_frozen=0"), tmp_path)
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not {"backbone.cls_token", "backbone.pos_embed"} & changed
    assert {name for name in before if name.startswith("predictors.")} <= changed
    assert any(name.startswith("backbone.blocks.0.") for name in changed)
    assert (report.steps, report.images, report.bad_steps) == (6, 24, 0)


def test_the_backbone_is_frozen_for_its_share_of_the_run(tmp_path: Path) -> None:
    model = shallow()
    before = weights(model)
    fit(model, Memory(), paper("backbone_frozen=1"), tmp_path)
    after = weights(model)
    assert all(
        torch.equal(before[name], after[name]) for name in before if name.startswith("backbone.")
    )


def test_a_shared_stem_stays_as_it_was_and_the_rest_learns(tmp_path: Path) -> None:
    model = shallow()
    before = weights(model)
    fit(model, Memory(labeled=False), small(), tmp_path)
    changed = {
        name for name, value in weights(model).items() if not torch.equal(before[name], value)
    }
    assert not any(
        name.startswith(("backbone.patch_embed", "backbone.blocks.0.")) for name in changed
    )
    assert any(name.startswith("backbone.blocks.1.") for name in changed)


@pytest.mark.parametrize("family", [DEIT, BY_NAME["lvvit"]], ids=["deit", "lvvit"])
def test_a_shared_stem_changes_no_loss(family: Family) -> None:
    model, batch = shallow(family).train(), next(iter(Memory()))
    _, one = losses_of(model, small("share_first_blocks=false", "masking=lagged"), batch)
    _, other = losses_of(model, small("masking=compact"), batch)
    for name, part in vars(one).items():
        torch.testing.assert_close(getattr(other, name), part, rtol=1e-4, atol=1e-5)
    assert one.token > 0


def test_best_k_trains_with_the_number_of_tokens_of_inference(tmp_path: Path) -> None:
    model = shallow(keep_ratio=0.6)
    report = fit(model, Memory(), small("keep_ratio=0.6"), tmp_path)
    kept = model.schedule.kept(DEIT.num_patches)
    assert report.kept == pytest.approx([k / DEIT.num_patches for k in kept])


def test_the_teacher_is_the_dense_network_at_the_start() -> None:
    model = shallow().train()
    teacher = objective_of(model, paper()).dense_teacher
    assert teacher is not None
    images = next(iter(Memory())).images
    with torch.no_grad():
        expected = shallow().backbone(images)
        for parameter in model.parameters():
            parameter.zero_()
        torch.testing.assert_close(teacher.forward_dense(images).logits, expected)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("recipe", [small(steps=8), paper("epochs=3", "ema=0.9")])
def test_an_interrupted_run_goes_on_to_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    whole = shallow()
    fit(whole, Memory(), recipe, tmp_path / "whole")

    def stop(progress: Progress) -> None:
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(loop.Interrupted):
        fit(shallow(), Memory(), recipe, tmp_path / "halves", on_step=stop)
    resumed = shallow(seed=0)
    report = fit(resumed, Memory(), recipe, tmp_path / "halves", resume=True)
    assert report.steps == len((tmp_path / "halves/log.jsonl").read_text().splitlines())
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_model_without_stages_has_nothing_to_train(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no stage"):
        fit(shallow(stages=()), Memory(), small(), tmp_path)


@pytest.mark.parametrize("recipe", [small(), paper("epochs=2")])
def test_a_loader_without_batches_has_nothing_to_train_on(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no batch"):
        fit(shallow(), Memory(0), recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_odd_batch_can_be_mixed(tmp_path: Path) -> None:
    class Odd(Memory):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                yield Batch(batch.images[:1], batch.labels[:1])

    assert fit(shallow(), Odd(), paper(), tmp_path).bad_steps == 0


def test_labels_are_needed_only_for_classification(tmp_path: Path) -> None:
    fit(shallow(), Memory(labeled=False), paper("losses.classification=0"), tmp_path)


@pytest.mark.parametrize("plain", [PLAIN, ()], ids=["plain", "mixed"])
def test_images_without_labels_learn_from_the_teacher_alone(plain: tuple[str, ...]) -> None:
    recipe = paper(*plain)
    batch = next(iter(Memory()))
    labels = batch.labels.clone()
    labels[: len(labels) // 2] = UNLABELED
    of_labels = {}
    for name, given in {"all": batch.labels, "half": labels}.items():
        model = shallow().train()
        seed_everything(0)
        _, losses = losses_of(model, recipe, Batch(batch.images, given))
        of_labels[name] = losses.classification.item()
        assert losses.distillation.isfinite()
    # Mixed, each of this batch's images has a partner without a label.
    assert (0 < of_labels["half"] < of_labels["all"]) if plain else of_labels["half"] == 0


def test_a_finite_loss_with_a_gradient_that_is_not_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def infinite_slope(logits: torch.Tensor, *_: torch.Tensor, temperature: float) -> torch.Tensor:
        return (logits.mean() * 0.0).sqrt()  # 0, whose derivative is 1/0

    monkeypatch.setattr("dynamicvit.training.recipe_parts.distillation_loss", infinite_slope)
    model = shallow()
    before = weights(model)
    report = fit(model, Memory(), small(steps=2), tmp_path)
    assert report.bad_steps == 2
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_the_teacher_runs_only_where_a_loss_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DynamicViT, "forward_dense", None)
    alone = ("losses.distillation=0", "losses.token=0")
    fit(shallow(), Memory(), paper(*alone), tmp_path)
    with pytest.raises(TypeError):
        fit(shallow(), Memory(), paper(*alone, "losses.feature=1"), tmp_path)


def test_unreadable_images_are_counted_nowhere_and_named(tmp_path: Path) -> None:
    class Broken(Memory):
        def __iter__(self) -> Iterator[Batch]:
            for place, batch in enumerate(super().__iter__()):
                if place == 1:
                    yield Batch(
                        torch.empty(0, 3, 0, 0), torch.empty(0, dtype=torch.long), ("x.jpg",)
                    )
                else:
                    yield batch

    report = fit(shallow(), Broken(), small(steps=3), tmp_path)
    assert (report.images, report.skipped) == (2 * BATCH, ("x.jpg",))


@pytest.mark.parametrize(("share", "every"), [(1.0, 1), (0.5, 2), (0.25, 4), (0.3, 4), (0.1, 10)])
def test_guidance_weighs_its_share_of_the_images_however_they_are_split(
    share: float, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed: list[bool] = []

    def spy(teacher: DynamicViT, images: Tokens, chosen: torch.Tensor) -> DenseOutput:
        weighed.extend(chosen.tolist())
        return weigh_some(teacher, images, chosen)

    monkeypatch.setattr("dynamicvit.training.objective.weigh_some", spy)
    model, recipe = shallow().train(), small(f"guided={share}")
    batch = next(iter(Memory(batch=10)))
    for first in (0, 10, 20, 30):
        losses_of(model, recipe, batch, first=first)
    assert sum(weighed) == pytest.approx(40 * share)
    assert weighed.index(True) == every - 1


def test_the_log_names_every_part(tmp_path: Path) -> None:
    fit(shallow(), Memory(), small(steps=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1]
    assert set(lines[0]["losses"]) == {
        "total", "classification", "distillation", "token", "feature", "ratio", "guidance"
    }  # fmt: skip
    assert set(lines[0]["learning_rates"]) == {"predictors", "backbone"}


def test_the_learning_rate_rule() -> None:
    recipe = paper("backbone_frozen=0.2", "warmup=0.1", "min_learning_rate=1e-6")
    model = shallow()
    optimizer = create_optimizer(model, recipe)
    rate = LearningRate(optimizer, recipe, steps=100)
    seen: dict[str, list[float]] = {"predictors": [], "backbone": []}
    for step in range(100):
        rate.set(step)
        for group in optimizer.param_groups:
            seen[group["name"]].append(group["lr"])
    predictors, backbone = seen["predictors"][::2], seen["backbone"][::2]
    assert max(predictors) == pytest.approx(1e-3, rel=0.01)
    assert predictors.index(max(predictors)) == 10
    assert predictors[-1] < 1e-5
    assert backbone[:20] == [0.0] * 20
    assert backbone[20:] == pytest.approx([0.01 * lr for lr in predictors[20:]])


def test_weight_decay_spares_biases_norms_and_positions() -> None:
    model = shallow()
    optimizer = create_optimizer(model, paper("frozen=[]"))
    decayed = {id(p) for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or name in model.no_weight_decay()
        assert (id(parameter) in decayed) != spared, name


MIXED = tuple(
    f"augment.{part}" for part in ("mixup=1", "cutmix=0", "mixup_prob=1", "mixup_mode=elem")
)


def mixed(batch: Batch, *overrides: str) -> tuple[Tensor, Tensor]:
    mixing = Mixing(small(*MIXED, *overrides).augment, NUM_CLASSES)
    seed_everything(0)
    return mixing(batch)


def test_images_are_mixed_without_labels() -> None:
    batch = next(iter(Memory(labeled=False)))
    images, targets = mixed(batch)
    assert not torch.equal(images, batch.images)
    assert not targets.any(), "nothing is learned from labels that are not there"


def test_a_label_is_lost_only_by_mixing_with_an_image_that_has_none() -> None:
    batch = next(iter(Memory()))
    labels = batch.labels.clone()
    labels[0] = UNLABELED  # its partner is the last image
    images, targets = mixed(Batch(batch.images, labels), "augment.mixup_prob=0.5")
    alone = [torch.equal(*pair) for pair in zip(images, batch.images, strict=True)]
    assert set(alone) == {True, False}, "or this says nothing"
    for place, is_alone in enumerate(alone):
        expected = 0.0 if place == 0 or (place == len(alone) - 1 and not is_alone) else 1.0
        torch.testing.assert_close(targets[place].sum().item(), expected)
        if is_alone and place:
            assert targets[place].argmax() == batch.labels[place]


def test_mixed_labels_are_smoothed_as_timm_does() -> None:
    batch = next(iter(Memory()))
    theirs = Mixup(mixup_alpha=1.0, mode="elem", label_smoothing=0.1, num_classes=NUM_CLASSES)
    seed_everything(0)
    _, expected = theirs(batch.images.clone(), batch.labels)
    torch.testing.assert_close(mixed(batch, "augment.smoothing=0.1")[1], expected)


def test_a_label_that_is_none_is_refused() -> None:
    batch = next(iter(Memory()))
    batch.labels[1] = NUM_CLASSES
    with pytest.raises(InputError, match=f"label {NUM_CLASSES}, but the model has {NUM_CLASSES}"):
        mixed(batch)


def test_the_average_forgets_the_start_of_a_short_run(tmp_path: Path) -> None:
    """With a decay of so many more steps than there are, it would be where it began."""
    model = shallow()
    untrained = copy.deepcopy(model.predictors).requires_grad_(False)
    settings = ("learning_rate=0.01", "warmup=0", "backbone_lr_scale=0")
    fit(model, Memory(), small("ema=0.9999", *settings, steps=24), tmp_path / "averaged")
    last = shallow()
    fit(last, Memory(), small(*settings, steps=24), tmp_path / "last")

    def distance(one: nn.Module, other: nn.Module) -> float:
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        return sum((a - b).square().sum().item() for a, b in pairs) ** 0.5

    assert distance(model.predictors, last.predictors) < 0.5 * distance(untrained, last.predictors)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_run_says_what_became_of_dropped_tokens(policy: Policy, tmp_path: Path) -> None:
    """Whatever the recipe wanted; and to go on, it must not have changed."""
    recipe = small("policy=merged", steps=2)
    fit(shallow(policy=policy), Memory(), recipe, tmp_path)
    assert load_recipe(str(tmp_path / "recipe.yaml")).policy == policy
    other = next(each for each in POLICIES if each != policy)
    with pytest.raises(InputError, match=f"policy {policy} -> {other}"):
        fit(shallow(policy=other), Memory(), recipe, tmp_path, resume=True)
