"""Who is asked for what: each part of the loss by itself, another network as teacher, going on."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dynamicvit import DynamicViT, InputError
from dynamicvit.core.losses import hard_distillation_loss
from dynamicvit.training import Progress, Recipe, fit, loop
from dynamicvit.training import objective as asking
from dynamicvit.training.checkpoint import NEWEST
from dynamicvit.training.checkpoint_file import load_checkpoint
from dynamicvit.training.draws import Mixing, seed_everything
from dynamicvit.training.external_teacher import ExternalTeacher
from dynamicvit.training.memory import estimate_memory
from dynamicvit.training.objective import objective_of
from dynamicvit.training.recipe_parts import LossRecipe
from families import DEIT, NUM_CLASSES
from memory import BATCH, Memory, losses_of, paper, shallow, small

PARTS = tuple(LossRecipe.model_fields)
OTHER = "teacher.model=test_resnet"


def another(student: DynamicViT, seed: int = 0) -> ExternalTeacher:
    """A small network of another family, for images of another size and normalization."""
    torch.manual_seed(seed)
    network = timm.create_model("test_resnet", num_classes=NUM_CLASSES)
    nn.init.normal_(network.fc.weight)
    return ExternalTeacher(network, student)


def run(
    recipe: Recipe, folder: Path, *, seed: int = 0, data: Memory | None = None, **options: Any
) -> DynamicViT:
    """Train a small model by it, with the teacher that it names."""
    model = shallow()
    teacher = another(model, seed) if recipe.teacher.model else None
    fit(model, data or Memory(), recipe, folder, teacher=teacher, **options)
    return model


def logged(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["losses"] for line in lines]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each teacher is asked."""
    count: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            count[name] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(asking, "ask", counted("dense", asking.ask))
    monkeypatch.setattr(asking, "weigh_some", counted("dense", asking.weigh_some))
    monkeypatch.setattr(ExternalTeacher, "forward", counted("external", ExternalTeacher.forward))
    return count


# ---------------------------------------------------------------- each part by itself


def only(part: str) -> list[str]:
    return [f"losses.{name}={1.5 if name == part else 0}" for name in PARTS]


def all_but(part: str) -> list[str]:
    return [f"losses.{name}={0 if name == part else 1}" for name in PARTS]


@pytest.mark.parametrize("other", [(), (OTHER,)], ids=["dense self", "another teacher"])
@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone(
    part: str, other: tuple[str, ...], asked: Counter[str], tmp_path: Path
) -> None:
    recipe = paper(*only(part), *other, "epochs=1", "backbone_frozen=0", "warmup=0")
    model = run(recipe, tmp_path, data=Memory(2, labeled=part == "classification"))
    for losses in logged(tmp_path):
        assert losses.pop("total") == pytest.approx(1.5 * losses[part])
        assert losses.pop(part) > 0
        assert set(losses.values()) == {0.0}
    before = shallow().state_dict()
    assert any(not torch.equal(value, before[n]) for n, value in model.state_dict().items())
    whom = {"classification": "", "ratio": "", "distillation": "external" if other else "dense"}
    assert asked == Counter({whom.get(part, "dense"): 2} if whom.get(part, "dense") else {})


@pytest.mark.parametrize("part", PARTS)
def test_each_part_off(part: str, asked: Counter[str], tmp_path: Path) -> None:
    run(paper(*all_but(part), OTHER, "epochs=1"), tmp_path, data=Memory(1))
    for losses in logged(tmp_path):
        assert [name for name, value in losses.items() if value == 0] == [part]
    assert asked["dense"] == 1
    assert asked["external"] == (0 if part == "distillation" else 1)


def test_nobody_is_built_who_is_not_asked() -> None:
    model = shallow()
    other = another(model)

    def teachers(*overrides: str) -> list[nn.Module]:
        recipe = paper(*overrides)
        return objective_of(model, recipe, other if recipe.teacher.model else None).teachers

    assert teachers("losses.token=0", OTHER) == [other]
    assert teachers(*only("ratio"), OTHER) == []
    assert teachers(*only("classification")) == []
    dense, second = teachers(OTHER)
    assert (type(dense), second) == (DynamicViT, other)


def test_recipe_and_teacher_must_agree(tmp_path: Path) -> None:
    model = shallow()
    with pytest.raises(InputError, match="the recipe's teacher is test_resnet: give that network"):
        fit(model, Memory(), paper(OTHER), tmp_path / "out")
    with pytest.raises(InputError, match=r"the recipe names none: set its teacher\.model"):
        fit(model, Memory(), paper(), tmp_path / "out", teacher=another(model))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- another teacher


def test_its_logits_replace_the_dense_selfs_in_the_distillation_alone() -> None:
    model, batch = shallow().train(), next(iter(Memory()))
    other = another(model)
    weights = [f"losses.{name}=1" for name in PARTS]
    (_, own), (output, soft), (_, hard) = (
        losses_of(model, recipe, batch, other if recipe.teacher.model else None)
        for recipe in (small(*weights), small(*weights, OTHER), small(*weights, OTHER, HARD))
    )
    for name in PARTS:
        if name != "distillation":
            assert torch.equal(getattr(soft, name), getattr(own, name)), name
    assert not torch.isclose(soft.distillation, own.distillation)
    seed_everything(0)
    images, _ = Mixing(small().augment, NUM_CLASSES)(batch)
    expected = hard_distillation_loss(output.loss_logits, other(images))
    torch.testing.assert_close(hard.distillation, expected)


HARD = "teacher.hard=true"
ALONE = ("losses.token=0", OTHER)


@pytest.mark.parametrize(
    "recipe",
    [paper("losses.token=0", OTHER), small("augment.mixup=0.8", "losses.classification=1", OTHER)],
    ids=["images", "shared first blocks"],
)
def test_it_sees_the_very_images_of_the_student(recipe: Recipe) -> None:
    """Mixed ones, as in DeiT, and once."""
    model, batch = shallow().train(), next(iter(Memory()))
    objective = objective_of(model, recipe, another(model))
    seen: dict[str, list[Tensor]] = {"student": [], "other": []}
    shared = recipe.share_first_blocks or objective.dense_teacher is None
    embedding = (model if shared else objective.dense_teacher).backbone.patch_embed
    for name, module in (("student", embedding), ("other", objective.external_teacher)):
        module.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0]))
    objective(*Mixing(recipe.augment, NUM_CLASSES)(batch))
    (images,), (theirs,) = seen["student"], seen["other"]
    assert torch.equal(images, theirs)
    assert not torch.equal(images, batch.images)


def test_first_blocks_are_shared_without_a_dense_self(tmp_path: Path) -> None:
    alone = ("masking=full", "losses.guidance=0", "losses.token=0", "losses.feature=0", OTHER)
    model = run(small(*alone), tmp_path / "shared", data=Memory(labeled=False))
    run(small(*alone, "share_first_blocks=false"), tmp_path / "apart", data=Memory(labeled=False))
    first = [logged(tmp_path / name)[0]["total"] for name in ("shared", "apart")]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    before = shallow().state_dict()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert not any(n.startswith(("backbone.patch", "backbone.blocks.0.")) for n in changed)
    assert any(n.startswith("backbone.blocks.1.") for n in changed)


def test_shared_first_blocks_drop_nothing_by_chance() -> None:
    model, images = shallow(proj_drop_rate=0.5).train(), DEIT.images()
    objective = objective_of(model, small("masking=full", *only("ratio")))
    assert objective.dense_teacher is None
    tokens = objective._first_blocks(images)
    assert all(module.training for module in model.blocks.modules())
    assert torch.equal(tokens.x, model.eval().first_blocks(images).x)
    assert not tokens.x.requires_grad


def test_two_passes_follow_one(asked: Counter[str], tmp_path: Path) -> None:
    plain = ("augment.mixup=0", "augment.cutmix=0")
    recipe = paper(OTHER, *plain, "epochs=1", "backbone_frozen=0")
    for passes in (1, 2):
        run(recipe, tmp_path / str(passes), accumulate=passes)
    steps = [logged(tmp_path / str(passes)) for passes in (1, 2)]
    for one, two in zip(*steps, strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    assert asked["external"] == asked["dense"] == 3 + 2 * 3


def test_it_runs_under_autocast() -> None:
    model, batch = shallow().train(), next(iter(Memory()))
    objective = objective_of(model, paper(OTHER), another(model))
    said: list[Tensor] = []
    assert objective.external_teacher is not None
    objective.external_teacher.network.register_forward_hook(lambda *given: said.append(given[2]))
    with torch.autocast("cpu", torch.bfloat16):
        objective(batch.images, batch.labels)
    (logits,) = said
    assert logits.dtype is torch.bfloat16
    assert logits.is_inference()


def test_it_is_compiled_with_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def compile(path: Any) -> Callable[..., Any]:
        compiled.append(f"{type(path.__self__).__name__}.{path.__name__}")
        return path

    monkeypatch.setattr(torch, "compile", compile)
    model = shallow()
    teacher = another(model)
    recipe = paper("losses.token=0", "epochs=1", OTHER)
    fit(model, Memory(1), recipe, tmp_path, teacher=teacher, compiled=True)
    assert sorted(compiled) == [
        "DynamicViT.forward_dense", "DynamicViT.forward_masked", "ResNet.forward"
    ]  # fmt: skip
    assert "forward" not in vars(teacher.network)


def test_memory_counts_those_who_are_there() -> None:
    model = shallow()
    other = another(model)
    own = sum(4 * p.numel() for p in model.backbone.parameters())
    both = [*other.parameters(), *other.buffers()]
    theirs = sum(value.numel() * value.element_size() for value in both)
    assert estimate_memory(model, paper(OTHER), BATCH, teacher=other).teacher == own + theirs
    alone = estimate_memory(model, paper("losses.token=0", OTHER), BATCH, teacher=other)
    assert alone.teacher == theirs
    assert estimate_memory(model, paper(*only("ratio")), BATCH).teacher == 0


# ---------------------------------------------------------------- going on


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with another teacher alone, stopped after two steps; tests take a copy."""
    folder = tmp_path_factory.mktemp("halfway")
    interrupted(paper(*ALONE), folder)
    return folder


def interrupted(recipe: Recipe, folder: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(loop.Interrupted):
        run(recipe, folder, on_step=stop)


@pytest.mark.parametrize(
    "recipe",
    [
        paper(*ALONE, "ema=0.9", "teacher.temperature=3"),
        small(OTHER, steps=4),
    ],
    ids=["logits alone", "small data"],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    whole = run(recipe, tmp_path / "whole")
    interrupted(recipe, tmp_path / "halves")
    resumed = run(recipe, tmp_path / "halves", resume=True).state_dict()
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed[name], value), name
    assert logged(tmp_path / "halves") == logged(tmp_path / "whole")


def test_a_checkpoint_holds_no_more_of_a_teacher_than_it_must(
    halfway: Path, tmp_path: Path
) -> None:
    interrupted(paper(OTHER), tmp_path / "both")
    alone, both = (load_checkpoint(run / NEWEST) for run in (halfway, tmp_path / "both"))
    assert "teacher" not in alone
    assert both["teacher"].keys() == {
        f"backbone.{name}" for name in DEIT.backbone(depth=2).state_dict()
    }
    assert alone["external_teacher"] == both["external_teacher"]
    assert not any("layer1" in name for part in both.values() for name in _names(part))


def _names(part: Any) -> list[str]:
    return [str(name) for name in part] if isinstance(part, dict) else []


@pytest.mark.parametrize(
    ("changes", "seed", "said"),
    [
        ((), 1, r"another run: weights of the teacher \w{8} -> \w{8}"),
        (("teacher.model=test_vit",), 1, "another run: teacher.model test_resnet -> test_vit; "),
        (("teacher.model=null",), 0, "another run: teacher.model test_resnet -> None; "),
        ((HARD,), 0, "another run: teacher.hard False -> True; "),
        (("teacher.temperature=2",), 0, r"another run: teacher.temperature 1\.0 -> 2\.0; "),
    ],
)
def test_another_teacher_is_another_run(
    changes: tuple[str, ...],
    seed: int,
    said: str,
    halfway: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = Path(shutil.copytree(halfway, tmp_path / "run"))
    recipe = paper(*ALONE, *changes)
    with pytest.raises(InputError, match=said):
        run(recipe, folder, seed=seed, resume=True)
    with caplog.at_level(logging.WARNING):
        run(recipe, folder, seed=seed, resume=True, force=True)
    assert len(logged(folder)) == 6
    is_own = recipe.teacher.model is None  # of whom the checkpoint has nothing
    assert ("no dense teacher" in caplog.text) == is_own


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    whole = run(paper(), tmp_path / "whole")
    interrupted(paper(), tmp_path / "old")
    state = load_checkpoint(tmp_path / "old" / NEWEST)
    del state["recipe"]["teacher"], state["external_teacher"]
    state["recipe"]["leave"] = {"full": "never"}[state["recipe"].pop("masking")]
    state["recipe"]["share_stem"] = state["recipe"].pop("share_first_blocks")
    state["recipe"]["dropped"] = {"removed": "gone"}[state["recipe"].pop("policy")]
    torch.save(state, tmp_path / "old" / NEWEST)
    resumed = run(paper(), tmp_path / "old", resume=True).state_dict()
    assert all(torch.equal(resumed[name], value) for name, value in whole.state_dict().items())
