"""Recipes: strict, overridable, and what they say is what the paper says."""

from pathlib import Path

import pytest

from dynamicvit import InputError
from dynamicvit.training import Recipe, load_recipe
from dynamicvit.training.recipe import dump_recipe, recipe_names


def test_the_defaults_are_the_released_recipe() -> None:
    recipe = load_recipe("deit_small")
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (30, 1024, 1e-3)
    assert recipe.backbone_lr_scale == 0.01
    assert recipe.backbone_frozen * 30 == pytest.approx(5)
    assert recipe.warmup * 30 == pytest.approx(5)
    assert recipe.frozen == ("cls_token", "pos_embed")
    assert (recipe.decisions, recipe.leave) == ("independent", "never")
    assert recipe.losses.model_dump() == {
        "classification": 1.0,
        "distillation": 0.5,
        "token": 0.5,
        "feature": 0.0,
        "ratio": 2.0,
        "guidance": 0.0,
    }


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
        ("learning_rat=1", "unknown key 'learning_rat', did you mean 'learning_rate'"),
        ("losses.tokn=1", "unknown key 'losses.tokn', did you mean 'token'"),
        ("batch_size=0", "batch_size: .*greater than 0, got 0"),
        ("batch_size=many", "batch_size: .*integer.*got 'many'"),
        ("batch_size", "must be key=value"),
        ("seed.deep=1", "seed has no parts"),
        ("leave=late", "leave: late needs decisions"),
        ("stages=[]", "at least one"),
        ("losses.token=[", "is not YAML"),
        ("keep_ratio=most", "^recipe deit_small: keep_ratio: "),
        ("decisions=coin", "decisions: .*independent.*got 'coin'"),
    ],
)
def test_bad_values_are_named(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe("deit_small", ["seed=0", override])


def test_leaving_at_once_without_guidance_teaches_nothing_and_is_refused() -> None:
    with pytest.raises(InputError, match="guidance"):
        load_recipe("small_data", ["losses.guidance=0"])


def test_a_run_has_one_length() -> None:
    with pytest.raises(ValueError, match="either epochs or images"):
        Recipe()
    with pytest.raises(ValueError, match="either epochs or images"):
        Recipe(epochs=1, images=1)


def test_a_missing_recipe_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"deit_tinny.*small_data"):
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
    path.write_text(path.read_text().replace("version: 1", "version: 2"))
    with pytest.raises(InputError, match=r"recipe.yaml is of version 2, this .* reads version 1"):
        load_recipe(str(path))
