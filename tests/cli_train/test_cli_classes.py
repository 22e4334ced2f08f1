"""`dynamicvit train` on classes that the weights don't have: dense first, then sparse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dynamicvit import DynamicViT, InputError, UntrainedWarning, load, sparsify
from dynamicvit.checkpoints.addon import ADDON_NAME
from dynamicvit.data.class_names import known_class_names
from dynamicvit.training import TrainingObjective, dense, loop, run
from dynamicvit.training.checkpoint import load_checkpoint
from families import DEIT, NUM_CLASSES
from memory import TINY, shallow
from pictures import noise_folders

Main = Callable[..., int]
Line = Callable[[], str]


def tiny(**changes: object) -> tuple[str, ...]:
    """Two steps of four images in each part."""
    values = {"images": 8, "batch_size": 4, "hold_out": 0.2, **changes}
    dense_part = {"dense.images": 8, "dense.batch_size": 4}
    dense_part |= {key: values.pop(key) for key in list(values) if key.startswith("dense.")}
    pairs = [f"{key}={value}" for key, value in {**values, **dense_part}.items()]
    return tuple(word for pair in pairs for word in ("--set", pair))


BOTH = tiny()
NAMES = ("cow", "ant", "Bee")


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Three classes of five images."""
    folder = noise_folders(tmp_path / "own", classes=3, each=5)
    for number, name in enumerate(NAMES):
        (folder / str(number)).rename(folder / name)
    return folder


def test_from_a_folder_to_a_sparse_model(
    two_blocks: Path,
    own: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[set[str]] = []
    for module in (dense, run):  # each part's own images
        monkeypatch.setattr(
            module, "fit", lambda *a, **o: seen.append(paths(a[1])) or loop.fit(*a, **o)
        )
    out = tmp_path / "out"
    assert main("train", own, "-m", two_blocks, "-o", out, *BOTH) == 0
    said = capsys.readouterr().out
    assert "fitted to these 3" in said
    report = json.loads((out / "report.json").read_text())
    shares = [report[part]["top1"] for part in ("dense_held_out", "held_out")]
    assert report["held_out"]["images"] == 3
    assert f"dense {100 * shares[0]:.2f} %, sparse {100 * shares[1]:.2f} %" in said
    assert "(dense: the model that was fitted first)" in said
    sparse, fitted = (DynamicViT.from_pretrained(folder) for folder in (out, out / "dense"))
    assert known_class_names(sparse) == known_class_names(fitted) == ["ant", "Bee", "cow"]
    assert not fitted.schedule.stages
    # The teacher of the sparse part is the dense model as it was fitted.
    teacher = load_checkpoint(out / "checkpoint.pt")["teacher"]
    for name, value in fitted.state_dict().items():
        assert torch.equal(teacher[name], value), name
    before = DynamicViT.from_pretrained(two_blocks).state_dict()
    assert any(
        not torch.equal(before[name], value)
        for name, value in teacher.items()
        if "head" not in name
    )
    assert seen[0] == seen[1]
    assert len(seen[0]) == 12  # of 15: the others are held out of both
    assert main("eval", own, "-m", out, "--image-size", "64") == 0
    assert "the model's own class names" in capsys.readouterr().out


def paths(loader) -> set[str]:
    sets = getattr(loader.data, "datasets", [loader.data])
    return {data.path(i) for data in sets for i in range(len(data))}


def test_the_head_learns_first_then_all(
    two_blocks: Path, own: Path, tmp_path: Path, main: Main
) -> None:
    words = tiny(**{"dense.images": 16, "dense.head_alone": 0.5})
    assert main("train", own, "-m", two_blocks, "-o", tmp_path / "out", *words) == 0
    log = (tmp_path / "out" / "dense" / "log.jsonl").read_text().splitlines()
    rates = [json.loads(line)["learning_rates"] for line in log]
    assert [rate["backbone"] > 0 for rate in rates] == [False, False, True, True]
    assert all(rate["classifier"] > rate["backbone"] for rate in rates)


def test_a_dry_run_counts_the_dense_part(
    two_blocks: Path, own: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main("train", own, "-m", two_blocks, "--dry-run", *tiny(**{"dense.images": 400_000})) == 0
    )
    said = capsys.readouterr()
    assert said.err == "", "that the classifier is untrained yet is no surprise"
    steps = re.search(r"length +([\d,]+) steps that fit the dense model", said.out)
    took = re.search(r"about ([\d:]+), .*: ([\d.]+) s a step of the dense model", said.out)
    assert steps
    assert took
    hours, minutes, seconds = map(int, took[1].split(":"))
    dense_steps = int(steps[1].replace(",", ""))
    assert dense_steps == 100_000
    # Of times that are printed to a hundredth.
    least = dense_steps * (float(took[2]) - 0.005) - 1
    assert 3600 * hours + 60 * minutes + seconds >= least


@pytest.mark.parametrize("part", ["dense", "sparse"])
def test_an_interrupted_run_goes_on_in_its_part(
    part: str, two_blocks: Path, own: Path, tmp_path: Path, main: Main, one_line: Line, monkeypatch
) -> None:
    def stops(*given, on_step, **options):
        def stop(progress):
            on_step(progress)
            raise KeyboardInterrupt

        return loop.fit(*given, on_step=stop, **options)

    words = ("train", own, "-m", two_blocks, *BOTH)
    assert main(*words, "-o", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(dense if part == "dense" else run, "fit", stops)
        assert main(*words, "-o", tmp_path / "out") == 130
    assert "the same command resumes" in one_line()
    assert (tmp_path / "out" / "checkpoint.pt").exists() == (part == "sparse")
    assert main(*words, "-o", tmp_path / "out", "--resume") == 0
    for folder in ("", "dense"):
        ours, theirs = (tmp_path / each / folder for each in ("out", "whole"))
        expected = DynamicViT.from_pretrained(theirs).state_dict()
        for name, value in DynamicViT.from_pretrained(ours).state_dict().items():
            assert torch.equal(value, expected[name]), name


def test_a_model_that_has_the_classes_is_not_fitted(
    own: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its names, or because the user says so and labels are not needed."""
    model = shallow()
    model.reset_classifier(3)
    torch.nn.init.ones_(model.backbone.head.bias)
    model.bound.set_class_names(("Cow", "Ant", "Bee"))
    model.save_pretrained(tmp_path / "model")
    assert main("train", own, "-m", tmp_path / "model", "-o", tmp_path / "a", *BOTH) == 0
    said = capsys.readouterr().out
    assert "the model's own class names" in said
    assert "dense " in said  # and still both are told
    shallow().save_pretrained(tmp_path / "seven")
    words = ("-m", tmp_path / "seven", *tiny(hold_out=0), "--num-classes", NUM_CLASSES)
    assert main("train", own, *words, "-o", tmp_path / "b") == 0
    for out in ("a", "b"):
        assert not (tmp_path / out / "dense").exists()
    assert DynamicViT.from_pretrained(tmp_path / "b").num_classes == NUM_CLASSES


def test_all_images_train_where_that_is_asked_for(
    two_blocks: Path, own: Path, tmp_path: Path, main: Main
) -> None:
    """A tenth is held out of a dense model that is fitted, but not in spite of ``hold_out=0``."""
    out = tmp_path / "out"
    assert main("train", own, "-m", two_blocks, "-o", out, *tiny(hold_out=0)) == 0
    report = json.loads((out / "report.json").read_text())
    assert not {"held_out", "dense_held_out"} & {key for key in report if report[key]}


def test_given_names_are_the_order_or_what_people_read(
    two_blocks: Path, own: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "names.txt"
    for names, origin in (("cow ant bee", str(file)), ("red green blue", "natural order")):
        file.write_text("\n".join(names.split()))
        assert main("train", own, "-m", two_blocks, "--dry-run", "--class-names", file, *BOTH) == 0
        assert f"class map: {origin}" in capsys.readouterr().out.replace(
            "the 3 class folders in ", ""
        )
    out = tmp_path / "out"
    assert main("train", own, "-m", two_blocks, "-o", out, "--class-names", file, *BOTH) == 0
    assert known_class_names(DynamicViT.from_pretrained(out)) == ["red", "green", "blue"]


def test_bad_classes_are_one_line_and_leave_nothing(
    two_blocks: Path, own: Path, tmp_path: Path, main: Main, one_line: Line
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cow\nant")
    before = sorted(tmp_path.rglob("*"))
    for words, said in (
        (["--num-classes", "5"], "--num-classes 5"),
        (["--num-classes", "0"], "--num-classes 0"),
        (["--num-classes", "7", "--set", "hold_out=0.2"], "3 class folders and the model 7"),
        (["--class-names", names], "2 class names"),
        (["--class-map", names], "Bee"),
    ):
        line = ("train", own, "-m", two_blocks, "-o", tmp_path / "out", *TINY, *words)
        assert main(*line) == 2, words
        assert said in one_line(), words
        assert sorted(tmp_path.rglob("*")) == before


def test_an_untrained_classifier_teaches_nobody_without_a_word(
    two_blocks: Path,
    flat: Path,
    own: Path,
    tmp_path: Path,
    main: Main,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    words = ("train", flat, "-m", two_blocks, "--num-classes", "4", "-o", out, *TINY)
    assert main(*words) == 0
    said = capsys.readouterr()
    assert "the classifier of 4 classes is untrained" in said.out
    assert not said.err
    model = sparsify(DEIT.backbone(), method="dynamicvit")
    model.reset_classifier(NUM_CLASSES)
    with pytest.warns(UntrainedWarning, match=f"{NUM_CLASSES} classes") as told:
        TrainingObjective(model)
    assert told[0].filename == __file__


def test_a_folder_of_transformers_gives_one(
    own: Path, tmp_path: Path, main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers")
    import dynamicvit.transformers  # noqa: F401

    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        num_labels=4,
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "hf")
    out = tmp_path / "out"
    words = ("--method", "dynamicvit", "--set", "stages=[1]", "--set", "keep_ratio=0.5")
    assert main("train", own, "-m", tmp_path / "hf", "-o", out, *BOTH, *words) == 0
    # The same command finds its own files: there is nothing left to do.
    assert main("train", own, "-m", tmp_path / "hf", "-o", out, *BOTH, *words, "--resume") == 0
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    for folder, kind in ((out, "DynamicViT"), (out / "dense", "ViT")):
        auto = transformers.AutoModelForImageClassification.from_pretrained(folder)
        assert type(auto).__name__ == f"{kind}ForImageClassification"
        assert auto.config.id2label == {0: "ant", 1: "Bee", 2: "cow"}
        answer = transformers.pipeline("image-classification", model=str(folder))(image, top_k=3)
        assert {each["label"] for each in answer} == {"ant", "Bee", "cow"}
    # The pipeline prepares images as this library does.
    from dynamicvit import load
    from dynamicvit.data import eval_transform

    model = load(out)
    with torch.no_grad():
        logits = model(eval_transform(model)(image)[None])[0].softmax(-1)
    best = transformers.pipeline("image-classification", model=str(out))(image, top_k=3)
    expected = [logits[["ant", "Bee", "cow"].index(each["label"])].item() for each in best]
    assert [each["score"] for each in best] == pytest.approx(expected, abs=0.02)


def test_prediction_modules_alone_are_for_the_model_that_was_fitted(
    two_blocks: Path, own: Path, tmp_path: Path, main: Main
) -> None:
    out = tmp_path / "out"
    words = ("-m", two_blocks, *BOTH, "--freeze-backbone")
    assert main("train", own, "-o", out, *words) == 0
    fitted, sparse = (DynamicViT.from_pretrained(folder) for folder in (out / "dense", out))
    assert not torch.equal(
        fitted.backbone.norm.weight, DynamicViT.from_pretrained(two_blocks).backbone.norm.weight
    )
    made, images = load(out / "dense", addon=out / ADDON_NAME), DEIT.images()
    assert torch.equal(made(images), sparse(images))
    assert torch.equal(made.forward_dense(images).logits, fitted.forward_dense(images).logits)
    with pytest.raises(InputError, match="SHA-256"):
        load(two_blocks, addon=out / ADDON_NAME)
