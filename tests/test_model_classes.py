"""A model's class names are believed: they are the class map, or contradict the data's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.data import ImageNetInfo

from dynamicvit import DynamicViT, InputError, evaluate, load
from dynamicvit.data import ImageData, OtherClassesError, class_map_for, set_class_names
from dynamicvit.data.class_names import known_class_names, read_class_names
from families import DEIT
from pictures import class_folders, write_image

Main = Callable[..., int]
Line = Callable[[], str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """cat, dog and eel."""
    return class_folders(tmp_path / "data")


def named(*names: str, num_classes: int | None = None) -> DynamicViT:
    model = DEIT.sparse(num_classes=num_classes or len(names))
    set_class_names(model, names or [f"name {i}" for i in range(model.num_classes)])
    return model


def wordnet(root: Path, *ids: str) -> ImageData:
    for each in ids:
        write_image(root / each / "1.png", 5)
    return ImageData(root)


@pytest.mark.parametrize("names", [("eel", "cat", "dog"), ("Eel", "CAT", "dog"), "abcd"])
def test_names_in_another_order_are_the_class_map(folder: Path, names: tuple[str, ...]) -> None:
    if names == "abcd":  # names that the data lacks do no harm
        names = ("eel", "bat_wing", "cat", "ant", "dog")
    found = class_map_for(ImageData(folder), named(*names)).index
    where = {name.lower(): index for index, name in enumerate(names)}
    assert found == {name: where[name] for name in ("cat", "dog", "eel")}


def test_underscores_and_case_are_one_but_two_alike_are_none(tmp_path: Path) -> None:
    data = wordnet(tmp_path, "Great_White-Shark", "tench")
    assert class_map_for(data, named("tench", "great white shark")).index == {
        "Great_White-Shark": 1,
        "tench": 0,
    }
    with pytest.raises(InputError, match="Great_White-Shark"):
        class_map_for(data, named("tench", "great white shark", "great-white shark"))


def test_accuracy_does_not_hang_on_the_order_of_the_names(folder: Path) -> None:
    """The same network with its classes in another order is as right as before."""
    model = named("cat", "dog", "eel")
    sizes = {"image_size": DEIT.size, "batch_size": 6}
    expected = evaluate(model, folder, **sizes).top1
    order = [2, 0, 1]
    with torch.no_grad():
        head = model.backbone.head
        head.weight.copy_(head.weight[order].clone())
        head.bias.copy_(head.bias[order].clone())
    set_class_names(model, ["eel", "cat", "dog"])
    assert evaluate(model, folder, **sizes).top1 == expected


def test_wordnet_ids_of_a_model_that_names_imagenets_classes(tmp_path: Path) -> None:
    data = wordnet(tmp_path, "n01440764", "n01443537", "n15075141")
    words = list(ImageNetInfo().label_descriptions())
    short = [name.split(",")[0] for name in words]  # "tench": another way to write the same
    model = DEIT.sparse(num_classes=1000)
    for names in (None, words, short):
        model.bound.set_class_names(names)
        found = data.with_class_map(class_map_for(data, model).index)
        assert found.labels.tolist() == [0, 1, 999]
    set_class_names(model, words[::-1])
    found = data.with_class_map(class_map_for(data, model).index)
    assert found.labels.tolist() == [999, 998, 0]
    set_class_names(model, [f"product {i}" for i in range(1000)])
    with pytest.raises(OtherClassesError, match=r"n01440764.* product 0"):
        class_map_for(data, model)


def test_ids_of_a_larger_imagenet(tmp_path: Path) -> None:
    ids = ImageNetInfo("imagenet-21k-goog").label_names()
    data = wordnet(tmp_path, ids[7], ids[21842])
    assert [class_map_for(data, 21843).index[name] for name in data.classes] == sorted(
        (7, 21842), key=lambda index: data.classes.index(ids[index])
    )


def test_names_that_contradict_show_both(folder: Path) -> None:
    data = ImageData(folder)
    with pytest.raises(OtherClassesError, match=r"cat, dog, eel.* red, green, blue"):
        class_map_for(data, named("red", "green", "blue"))
    with pytest.raises(InputError, match=r"cat, dog, eel.* cat, dog, fish.* eel is") as error:
        class_map_for(data, named("cat", "dog", "fish"))
    assert not isinstance(error.value, OtherClassesError)  # most are the model's: a mistake
    assert class_map_for(data, named("0", "1", "2")).index == {"cat": 0, "dog": 1, "eel": 2}


def test_every_command_that_compares_with_labels_refuses_them(
    folder: Path, tmp_path: Path, command: Main, one_line: Line
) -> None:
    named("cat", "dog", "fish").save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    for words in (
        ["eval", folder],
        ["train", folder, "-o", out],
        ["compare", "--data", folder, "-o", out, "--methods", "tome", "--no-train"],
    ):
        assert command(*words, "--model", tmp_path / "model") == 2, words
        said = one_line()
        assert "cat, dog, eel" in said
        assert "cat, dog, fish" in said
    assert not out.exists()


# ---------------------------------------------------------------- names that are given


def test_names_are_saved_with_the_model(tmp_path: Path) -> None:
    named("eel", "cat", "dog").save_pretrained(tmp_path)
    assert known_class_names(load(tmp_path)) == ["eel", "cat", "dog"]


def test_pictures_and_files_get_names(
    folder: Path, tmp_path: Path, command: Main, capsys: pytest.CaptureFixture[str], one_line: Line
) -> None:
    model = DEIT.sparse(depth=1, stages=(0,), num_classes=3)
    model.save_pretrained(tmp_path / "model")
    file, image = tmp_path / "names.txt", folder / "cat" / "10.png"
    file.write_text("ant\nbee\ncow\n")
    words = ["--model", tmp_path / "model", "--class-names", file]
    assert command("visualize", image, *words, "-o", tmp_path / "pictures") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("ant", "bee", "cow"))
    assert command("export", *words, "--batch", 1, "-o", tmp_path / "model.pt2") == 0
    capsys.readouterr()
    assert command("info", tmp_path / "model.pt2", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["class_names"] == ["ant", "bee", "cow"]
    for text, said in (("ant\nbee\n", "2 class names"), ("ant\n\ncow", "line 2"), ("a\na", "'a'")):
        file.write_text(text)
        assert command("visualize", image, *words, "-o", tmp_path / "pictures") == 2
        assert said in one_line()
    with pytest.raises(InputError, match=r"nowhere\.txt"):
        read_class_names(tmp_path / "nowhere.txt")


# ---------------------------------------------------------------- what a model is


def test_info(tmp_path: Path, command: Main, capsys: pytest.CaptureFixture[str]) -> None:
    model = named("eel", "cat", "dog")
    model.save_pretrained(tmp_path)
    assert command("info", tmp_path / "model.safetensors", "--json", "-") == 0
    said = capsys.readouterr()
    about = json.loads(said.out)
    assert about["num_classes"] == 3
    assert about["class_names"] == ["eel", "cat", "dog"]
    assert about["stages"] == list(model.schedule.stages)
    assert about["kept"] == list(model.schedule.kept(DEIT.num_patches))
    assert about["macs"] < about["dense_macs"]
    assert about["training"] is None
    assert "eel, cat, dog" in said.err
    assert command("info", "deit_tiny_patch16_224") == 0
    said = capsys.readouterr().out
    assert "1,000: tench, goldfish" in said
    assert "1.25" in said  # GMACs as published
    assert command("info", tmp_path / "nothing") == 2
    assert command("info", "--model", tmp_path, "--checkpoint", tmp_path / "model.safetensors") == 0
    assert "eel, cat, dog" in capsys.readouterr().out
    assert command("info", tmp_path, "--model", tmp_path) == 2
