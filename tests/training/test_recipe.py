"""Recipes: strict, overridable, and what they say is what the paper says."""

from pathlib import Path

import pytest
import timm
import torch

from dynamicvit import InputError, sparsify
from dynamicvit.checkpoints.timm_names import BACKBONES, PREFIX
from dynamicvit.training import Recipe, load_recipe, recipes
from dynamicvit.training.plan import plan_of
from dynamicvit.training.recipe_parts import LossRecipe
from dynamicvit.training.recipes import dump_recipe, recipe_names


def test_the_defaults_are_the_released_recipe() -> None:
    recipe = load_recipe("deit_small")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (30, 1024, 1e-3)
    assert recipe.backbone_lr_scale == 0.01
    assert recipe.backbone_frozen * 30 == pytest.approx(5)
    assert recipe.warmup * 30 == pytest.approx(5)
    assert recipe.frozen == ("cls_token", "pos_embed")
    assert (recipe.weight_decay, recipe.min_learning_rate, recipe.ema) == (0.05, 1e-6, 0.9999)
    assert (recipe.keep_ratio, recipe.stages, recipe.drop_path) == (0.7, None, 0.0)
    augment = recipe.augment
    assert augment.auto_augment == "rand-m9-mstd0.5-inc1"  # of two operations, timm's default
    assert (augment.mixup, augment.cutmix) == (0.8, 1.0)
    assert (augment.smoothing, augment.re_prob) == (0.1, 0.25)
    assert (recipe.decisions, recipe.masking) == ("independent", "full")
    assert recipe.losses.model_dump() == {
        "classification": 1.0,
        "distillation": 0.5,
        "token": 0.5,
        "feature": 0.0,
        "ratio": 2.0,
        "guidance": 0.0,
    }


#: The released scripts' values where they are not those of DeiT-S: arXiv 2106.02034, Section 4,
#: and the authors' commands.
PUBLISHED = {
    "deit_tiny": {"model": "deit_tiny_patch16_224"},
    "deit_256": {"model": "deit_256_patch16_224"},
    "deit_small": {"model": "deit_small_patch16_224"},
    "deit_small_384": {"model": "deit_small_patch16_384"},
    "deit_base": {"model": "deit_base_patch16_224", "drop_path": 0.2, "losses": {"ratio": 5.0}},
    "lvvit_s": {"model": "lvvit_s"},
    "lvvit_m": {"model": "lvvit_m"},
}
#: Those of the journal version (arXiv 2207.01580), all alike but for the stochastic depth.
OF_MAPS = {
    "convnext_tiny": 0.2,
    "convnext_small": 0.2,
    "convnext_base": 0.5,
    "swin_tiny": 0.2,
    "swin_small": 0.2,
    "swin_base": 0.5,
}
#: MACs of one image with the prediction modules, dense and at the recipe's ρ.
GMACS = {
    "deit_small": (4.60, 2.98),
    "deit_small_384": (15.49, 9.65),
    "lvvit_s": (6.55, 4.65),
    "lvvit_m": (12.68, 8.59),
}


#: Recipes for what the paper does not do.
OURS = {"small_data", "any_budget", "frozen", "segmentation", "segmenter_ade20k"}
OF_CLIPS = {"video_small_data", "videomae_kinetics", "videomae_ssv2"}


def test_every_model_of_the_paper_has_a_recipe() -> None:
    assert {*recipe_names()} == {*PUBLISHED, *OF_MAPS, *OURS, *OF_CLIPS}
    names = (load_recipe(name).model for name in (*PUBLISHED, *OF_MAPS))
    assert {str(name).partition(".")[0] for name in names} <= {*BACKBONES}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe_is_that_of_deit_s_but_for_what_was_published(name: str) -> None:
    expected = load_recipe("deit_small").model_dump()
    for key, value in PUBLISHED[name].items():
        expected[key] = {**expected[key], **value} if isinstance(value, dict) else value
    assert load_recipe(name).model_dump() == expected


@pytest.mark.parametrize("name", OF_MAPS)
def test_the_recipe_of_a_map_is_the_released_one(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.epochs, recipe.batch_size, recipe.policy) == (120, 4096, "cheap")
    assert (recipe.learning_rate, recipe.backbone_lr_scale) == (4e-3, 0.2)
    assert (recipe.min_learning_rate, recipe.weight_decay, recipe.ema) == (1e-6, 0.05, 0.9999)
    assert recipe.drop_path == OF_MAPS[name]
    assert recipe.losses == load_recipe("deit_small", ["losses.ratio=10"]).losses
    assert recipe.augment == load_recipe("deit_small").augment


@pytest.mark.parametrize("name", ["convnext_tiny", "swin_tiny"])
def test_the_plan_of_a_map(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = sparsify(timm.create_model(recipe.model), recipe.keep_ratio)
    plan = plan_of(model, recipe, steps=120)
    assert plan.steps is not None
    assert (plan.steps.warmup, plan.steps.frozen) == (20, 5)
    assert plan.schedule.policy == "cheap"


@pytest.mark.parametrize("name", GMACS)
def test_a_published_recipe_costs_what_was_published(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = timm.create_model(
            PREFIX + recipe.model, keep_ratio=recipe.keep_ratio, policy=recipe.policy
        )
    plan = plan_of(model, recipe, steps=30)
    assert plan.steps is not None
    assert (plan.steps.warmup, plan.steps.frozen) == (5, 5)  # of 30 epochs
    quarters = [model.depth * quarter // 4 for quarter in (1, 2, 3)]
    assert list(plan.schedule.stages) == quarters
    assert (plan.dense_macs / 1e9, plan.macs / 1e9) == pytest.approx(GMACS[name], rel=0.005)


@pytest.mark.parametrize("name", recipe_names())
def test_built_in_recipes_survive_being_written_and_read(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump_recipe(recipe))
    assert load_recipe(str(file)) == recipe


def test_overrides_reach_into_parts_and_replace_the_length() -> None:
    recipe = load_recipe("deit_small", ["losses.classification=0", "images=4000", "seed=3"])
    assert recipe.losses.classification == 0
    assert (recipe.images, recipe.epochs, recipe.seed) == (4000, None, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("learning_rat=1", "^override 'learning_rat=1': unknown key .*learning_rate"),
        ("losses.tokn=1", "unknown key 'losses.tokn': .*token"),
        ("batch_size=0", "batch_size: .*greater than 0, got 0"),
        ("batch_size=many", "batch_size: .*integer.*got 'many'"),
        ("batch_size", "must be key=value"),
        ("seed.deep=1", "seed has no parts"),
        ("masking=lagged", "masking: lagged needs decisions"),
        ("masking=zeroed", "masking: zeroed needs decisions"),
        ("stages=[]", "at least one"),
        ("losses.token=[", "is not YAML"),
        ("teacher.modl=resnet50", "unknown key 'teacher.modl': .*model"),
        ("temperature=2", "unknown key 'temperature': .*teacher"),
        ("teacher=resnet50", "teacher: has the parts model, hard, temperature, got 'resnet50'"),
        ("teacher.temperature=0", "teacher.temperature: .*greater than 0, got 0"),
        ("teacher.temperature=.inf", "teacher.temperature=.inf.*finite.*got inf"),
        ("teacher={hard: true, temperature: 2}", "teacher: hard has no use for temperature 2:"),
        ("keep_ratio=most", "^override 'keep_ratio=most': keep_ratio: "),
        ("decisions=coin", "decisions: .*independent.*got 'coin'"),
        ("batch_size=yes", "batch_size: .*got True"),
        ("weight_decay=off", "weight_decay: .*got False"),
        ("losses.token=on", "losses.token: .*got True"),
        ("dense.images=true", "dense.images: .*got True"),
        ("keep_ratio=[0.7, yes]", "keep_ratio: .*got .*True"),
        ("image_size=yes", "image_size: .*got True"),
        ("stages=[no, 2]", "stages: .*got .*False"),
        ("seed={}", "seed: .*integer.*got {}"),
        ("learning_rate=1e300", r"learning_rate: .*up to 1e\+30, got 1e\+300"),
        ("images=123456789012345678901234567890", r"images: .*up to 1e\+12, got 1.23457e\+29"),
    ],
)
def test_bad_values_are_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("deit_small", ["seed=0", override])


@pytest.mark.parametrize("text", ["[" * 1000, "[" * 1000 + "]" * 1000, "{a: [" * 1000])
def test_brackets_without_end_are_not_parsed(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyYAML takes seconds to find that they are nested too deep."""
    file = tmp_path / "r.yaml"
    file.write_text(f"base: small_data\nstages: {text}\n")
    built_in = recipes.yaml.safe_load

    def load(given: str) -> object:
        assert text not in given
        return built_in(given)

    monkeypatch.setattr(recipes.yaml, "safe_load", load)
    with pytest.raises(InputError, match="32 brackets"):
        load_recipe("small_data", [f"stages={text}"])
    with pytest.raises(InputError, match="32 brackets"):
        load_recipe(str(file))


def test_switches_take_yes_and_no() -> None:
    recipe = load_recipe("small_data", ["teacher.hard=yes", "share_first_blocks=off"])
    assert (recipe.teacher.hard, recipe.share_first_blocks) == (True, False)


def test_leaving_at_once_without_guidance_teaches_nothing_and_is_refused() -> None:
    with pytest.raises(InputError, match="guidance"):
        load_recipe("small_data", ["losses.guidance=0"])


def test_a_recipe_has_something_to_learn() -> None:
    nothing = [f"losses.{name}=0" for name in LossRecipe.model_fields]
    with pytest.raises(InputError, match="losses: every weight is 0, so there is nothing to learn"):
        load_recipe("deit_small", nothing)
    load_recipe("deit_small", nothing[1:])


def test_the_teacher_is_the_dense_self_unless_another_is_named(tmp_path: Path) -> None:
    assert load_recipe("small_data").teacher.model_dump() == {
        "model": None,
        "hard": False,
        "temperature": 1.0,
    }
    file = tmp_path / "recipe.yaml"
    file.write_text("base: deit_small\nepochs: 1\nteacher: {model: regnety_160, hard: true}\n")
    recipe = load_recipe(str(file))
    assert (recipe.teacher.model, recipe.asks_external_teacher) == ("regnety_160", True)
    assert recipe.taught_by_dense_self == ("token",)
    assert load_recipe("deit_small").taught_by_dense_self == ("distillation", "token")
    assert not load_recipe(str(file), ["losses.distillation=0"]).asks_external_teacher


def test_a_run_has_one_length() -> None:
    with pytest.raises(ValueError, match="either epochs or images"):
        Recipe()
    with pytest.raises(ValueError, match="either epochs or images"):
        Recipe(epochs=1, images=1)


def test_a_missing_recipe_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"deit_tinny.*deit_tiny, .*small_data"):
        load_recipe("deit_tinny")
    file = tmp_path / "broken.yaml"
    file.write_text("a: [")
    with pytest.raises(InputError, match="not YAML"):
        load_recipe(str(file))
    file.write_text("just words")
    with pytest.raises(InputError, match="keys and values"):
        load_recipe(str(file))


def test_a_recipe_of_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(load_recipe("small_data")))
    assert load_recipe(str(path)) == load_recipe("small_data")
    path.write_text(path.read_text().replace("version: 2", "version: 3"))
    with pytest.raises(InputError, match=r"recipe.yaml is of version 3, .* up to 2"):
        load_recipe(str(path))


def test_a_recipe_of_version_1_is_read_with_its_old_words(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = dump_recipe(load_recipe("small_data", ["seed=3", "policy=merged"]))
    for new, old in (
        ("version: 2", "version: 1"),
        ("policy: merged", "dropped: merged"),
        ("masking: compact", "leave: at once"),
        ("share_first_blocks", "share_stem"),
    ):
        assert new in text
        text = text.replace(new, old)
    path.write_text(text)
    assert load_recipe(str(path)) == load_recipe("small_data", ["seed=3", "policy=merged"])
    with pytest.raises(InputError, match="share_stem is called share_first_blocks"):
        load_recipe("small_data", ["share_stem=false"])


def test_a_recipe_changes_its_base(tmp_path: Path) -> None:
    mine, deeper = tmp_path / "mine.yaml", tmp_path / "deeper.yaml"
    mine.write_text("base: small_data\nepochs: 3\nlosses: {token: 1.5}\n")
    deeper.write_text("base: mine.yaml\nimage_size: 160\n")
    base, recipe = load_recipe("small_data"), load_recipe(str(deeper))
    assert (recipe.epochs, recipe.images, recipe.image_size) == (3, None, 160)
    assert (recipe.batch_size, recipe.decisions) == (base.batch_size, base.decisions)
    assert recipe.losses == base.losses.model_copy(update={"token": 1.5})
    mine.write_text("base: deeper.yaml\n")
    with pytest.raises(InputError, match="its base leads back to"):
        load_recipe(str(deeper))
    mine.write_text("keep_ratio: 0.5\nepochs: 3\n")
    with pytest.raises(InputError, match="names no base: add `base: small_data`"):
        load_recipe(str(mine))
    mine.write_text("base: small\n")
    with pytest.raises(InputError, match=r"no recipe 'small': .*small_data"):
        load_recipe(str(mine))
