"""Segmentation from data to mIoU: evaluation, training, resuming, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.image import imread
from PIL import Image
from torch import Tensor

pytest.importorskip("torchmetrics")

from dynamicvit import InputError, Segmenter, count_macs, load, segmenter, sparsify, tune
from dynamicvit.core.losses import LossWeights, classification_loss, distillation_loss
from dynamicvit.data import Batch, MaskData, eval_transform, joint_eval_transform
from dynamicvit.evaluation import evaluate, evaluate_segmentation
from dynamicvit.evaluation.windows import sliding_windows
from dynamicvit.methods import METHODS
from dynamicvit.plots.maps import overlay
from dynamicvit.training import Training, TrainingObjective, load_recipe, train
from dynamicvit.training.external_teacher import teacher_for
from dynamicvit.training.held_out import Measure
from dynamicvit.training.objective import objective_of
from dynamicvit.training.step import Split, Step
from dynamicvit.utils.distributed import Processes
from dynamicvit.utils.words import MEASURES
from families import DEIT, randomize
from masks import NAMES, scene, write_scenes
from pictures import noise_folders

Main = Callable[..., int]

#: A run of two steps for each part.
TINY = (
    *("--set", "images=8", "--set", "batch_size=4", "--set", "dense.images=8"),
    *("--set", "dense.batch_size=4", "--set", "dense.drop_path=0"),
)

#: Two of six images.
HELD_OUT = ("--set", "hold_out=0.34")


def dense(names: tuple[str, ...] | None = NAMES) -> Segmenter:
    model = segmenter(DEIT.backbone(img_size=(32, 32)), 3)
    randomize(model.decode_head, 5)
    model.set_class_names(names)
    return model.eval()


@pytest.fixture
def main(command: Main) -> Main:
    return lambda *arguments: command(*arguments, "--workers", "0")


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("segmenter") / "dense"
    dense().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), 6)


# ---------------------------------------------------------------- windows


def test_one_window_is_the_models_own_answer() -> None:
    model, image = dense(), torch.randn(3, 32, 32)
    with torch.no_grad():
        expected = F.interpolate(model(image[None]), (32, 32), mode="bilinear")[0]
        torch.testing.assert_close(sliding_windows(model, image, (32, 32)), expected)


def test_windows_cover_an_image_and_are_averaged_where_they_overlap() -> None:
    model, image = dense(), torch.randn(3, 32, 48)
    with torch.no_grad():
        found = sliding_windows(model, image, (32, 32))
        left, right = (
            F.interpolate(model(part[None]), (32, 32), mode="bilinear")[0]
            for part in (image[:, :, :32], image[:, :, 16:])
        )
    torch.testing.assert_close(found[:, :, :16], left[:, :, :16])
    torch.testing.assert_close(found[:, :, 16:32], (left[:, :, 16:] + right[:, :, :16]) / 2)
    torch.testing.assert_close(found[:, :, 32:], right[:, :, 16:])


def test_windows_that_can_not_be_are_refused() -> None:
    with pytest.raises(InputError, match="20x32 is smaller than the window, 32x32"):
        sliding_windows(dense(), torch.randn(3, 20, 32), (32, 32))
    with pytest.raises(InputError, match="got 33"):
        sliding_windows(dense(), torch.randn(3, 64, 64), (32, 32), 33)


# ---------------------------------------------------------------- mIoU


def miou_by_hand(model: Callable[[Tensor], Tensor], data: MaskData) -> tuple[float, list[float]]:
    both, either = np.zeros(3), np.zeros(3)
    for sample in data:  # type: ignore[attr-defined]
        logits = sliding_windows(model, sample.image, (32, 32))[None]
        found = F.interpolate(logits, sample.label.shape, mode="bilinear").argmax(1)[0]
        known = sample.label >= 0
        for k in range(3):
            one, other = (found == k) & known, sample.label == k
            both[k] += (one & other).sum()
            either[k] += (one | other).sum()
    iou = both / either
    return float(iou.mean()), iou.tolist()


def test_miou_is_that_of_the_definition(scenes: Path) -> None:
    whole = dense()
    model = sparsify(whole, 0.5, method="tome").eval()
    data = MaskData(scenes).with_joint_transform(joint_eval_transform(whole))
    with torch.no_grad():
        expected, each = miou_by_hand(model, data)
        of_dense, _ = miou_by_hand(whole, data)
    found = evaluate_segmentation(model, scenes, dense=whole, workers=0)
    assert found.miou == pytest.approx(expected)
    assert list(found.iou.values()) == pytest.approx(each)
    assert list(found.iou) == list(NAMES)
    assert found.dense_miou == pytest.approx(of_dense)
    assert found.agreement is not None
    assert 0 < found.agreement < 1
    assert found.images == found.labeled == 6


class Half(Processes):
    """One of two processes, of which the other is played by the test."""

    count = 2

    def __init__(self, rank: int, others: dict[int, list[Tensor]]) -> None:
        super().__init__()
        self.rank, self.others, self.place = rank, others, 0

    def sum(self, values: Tensor) -> Tensor:
        self.others.setdefault(self.rank, []).append(values.clone())
        theirs = self.others.get(1 - self.rank, [])
        self.place += 1
        return values + theirs[self.place - 1] if len(theirs) >= self.place else values


def test_two_processes_count_every_image_once(scenes: Path) -> None:
    model, sums = dense(), {}
    alone = evaluate_segmentation(model, scenes, workers=0)
    evaluate_segmentation(model, scenes, workers=0, processes=Half(0, sums))
    together = evaluate_segmentation(model, scenes, workers=0, processes=Half(1, sums))
    assert together.images == 6
    assert together.miou == pytest.approx(alone.miou)


def test_a_class_that_nobody_names_does_not_count(tmp_path: Path) -> None:
    model = segmenter(DEIT.backbone(img_size=(32, 32)), 4)
    with torch.no_grad():
        model.decode_head.linear.weight.zero_()
        model.decode_head.linear.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    root = write_scenes(tmp_path, 2)
    (root / "classes.txt").unlink()
    found = evaluate_segmentation(model.eval(), root, workers=0)
    assert found.iou["class 3"] is None
    assert found.iou["class 1"] == 0.0
    assert found.miou == pytest.approx(sum(v or 0 for v in found.iou.values()) / 3)


def test_classes_that_do_not_fit_are_refused(tmp_path: Path, scenes: Path) -> None:
    with pytest.raises(InputError, match=r"3 names in classes\.txt, and the model 4 classes"):
        evaluate_segmentation(segmenter(DEIT.backbone(), 4), scenes)
    with pytest.raises(InputError, match="class 1 is 'square', and the model's is 'circle'"):
        evaluate_segmentation(dense(("ground", "circle", "bar")), scenes)
    with pytest.raises(InputError, match="the model classifies images"):
        evaluate_segmentation(DEIT.sparse(), scenes)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="evaluate_segmentation"):
        evaluate(dense(), scenes / "images")


# ---------------------------------------------------------------- losses


def test_the_loss_of_a_map_is_cross_entropy_on_pixels() -> None:
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 8, 10))
    labels[0, :2] = -1
    wide = F.interpolate(logits, (8, 10), mode="bilinear")
    expected = F.cross_entropy(wide, labels, ignore_index=-1, reduction="sum") / labels.numel()
    torch.testing.assert_close(classification_loss(logits, labels), expected)
    assert classification_loss(logits, torch.full_like(labels, -1)) == 0


def test_distillation_of_a_map_is_the_mean_over_its_patches() -> None:
    one, other = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    rows = [each.movedim(1, -1).reshape(-1, 3) for each in (one, other)]
    torch.testing.assert_close(distillation_loss(one, other), distillation_loss(*rows))


@pytest.mark.parametrize("recipe", ["segmentation", "segmenter_ade20k"])
def test_accumulated_gradients_are_those_of_the_whole_batch(recipe: str, scenes: Path) -> None:
    values = load_recipe(recipe, ["losses.classification=1", "batch_size=4"])
    data = MaskData(scenes).with_joint_transform(joint_eval_transform(dense()))
    some = [data[index] for index in range(4)]
    images = torch.stack([image[:, :32, :32] for image, _, _ in some])
    batch = Batch(images, torch.stack([mask[:32, :32] for _, mask, _ in some]))
    found = []
    for passes in (1, 2):
        model = sparsify(dense(), 0.5, method="dynamicvit")
        randomize(model.predictors, 3)
        objective = objective_of(model.train(), values)
        Step(objective, values, Processes(), accumulate=passes).backward(batch, Split(0, 0, 4))
        found.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_an_objective_of_ones_own_loop() -> None:
    model = sparsify(dense(), 0.5, method="dynamicvit").train()
    losses = TrainingObjective(model)(torch.randn(2, 3, 32, 32), torch.zeros(2, 32, 32).long())
    losses.total.backward()
    assert losses.classification > 0
    assert losses.distillation >= 0
    assert model.decode_head.linear.weight.grad is not None


# ---------------------------------------------------------------- the command


def test_a_classifier_becomes_a_dense_and_then_a_sparse_segmenter(
    scenes: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    base, out = tmp_path / "base", tmp_path / "run"
    DEIT.sparse(img_size=(32, 32)).save_pretrained(base)
    arguments = ("train", scenes, "-m", base, "-o", out, *TINY, *HELD_OUT)
    assert main(*arguments) == 0
    said = capsys.readouterr().out
    assert "held-out mIoU: dense" in said
    model = load(out)
    assert isinstance(model, Segmenter)
    assert model.labels.class_names == NAMES
    assert isinstance(load(out / "dense"), Segmenter)
    report = json.loads((out / "report.json").read_text())
    assert 0 <= report["held_out"]["miou"] <= 1
    assert set(report["held_out"]["iou"]) == {*NAMES}
    assert report["training"]["best"]["measure"] == "miou"

    assert main("eval", scenes, "-m", out, "--compare-dense", "--json", "-") == 0
    numbers = json.loads(capsys.readouterr().out)
    expected = evaluate_segmentation(model, scenes, workers=0)
    assert numbers["miou"] == pytest.approx(expected.miou)
    assert numbers["macs"] == count_macs(model)
    assert numbers["agreement"] <= 1


def test_a_dense_model_alone_and_what_it_becomes(
    scenes: Path, saved: Path, tmp_path: Path, main: Main
) -> None:
    out = tmp_path / "dense"
    assert main("train", scenes, "-m", saved, "--dense", "-o", out, *TINY, *HELD_OUT) == 0
    model = load(out)
    assert isinstance(model, Segmenter)
    assert not model.schedule.stages
    changed = [
        n for n, p in dense().state_dict().items() if not torch.equal(p, model.state_dict()[n])
    ]
    assert any(name.startswith("decode_head") for name in changed)
    assert any(name.startswith("backbone.blocks") for name in changed)

    assert main("train", scenes, "-m", out, "-o", tmp_path / "sparse", *TINY) == 0
    sparse = load(tmp_path / "sparse")
    assert isinstance(sparse, Segmenter)
    assert sparse.schedule.stages == (1, 2, 3)
    assert not (tmp_path / "sparse" / "dense").exists()  # its own head was right


def test_a_stopped_run_ends_where_the_whole_one_does(
    scenes: Path, saved: Path, tmp_path: Path
) -> None:
    overrides = [v for v in TINY if v != "--set"]
    overrides += ["batch_size=2", "losses.classification=1"]

    def stop(progress: object) -> None:
        raise KeyboardInterrupt

    settings = {"recipe": "segmentation", "overrides": overrides, "workers": 0}
    train(scenes, tmp_path / "whole", saved, **settings)
    with pytest.raises(KeyboardInterrupt):
        train(scenes, tmp_path / "part", saved, on_step=stop, **settings)
    train(scenes, tmp_path / "part", saved, resume=True, **settings)
    whole, part = (load(tmp_path / name).state_dict() for name in ("whole", "part"))
    assert all(torch.equal(part[name], value) for name, value in whole.items())


def test_a_teacher_needs_no_masks(scenes: Path, saved: Path, tmp_path: Path) -> None:
    overrides = [v for v in TINY if v != "--set"]
    report = train(
        scenes / "images", tmp_path / "run", saved, recipe="segmentation", overrides=overrides,
        workers=0,
    )  # fmt: skip
    assert report.images == 8
    assert report.held_out is None


@pytest.mark.parametrize(
    ("data", "model", "more", "said"),
    [
        ("scenes", "classifier", ("--recipe", "small_data"), "take recipe segmentation"),
        ("images", "classifier", ("--recipe", "segmentation"), "has no masks"),
        ("folders", "segmenter", ("--recipe", "small_data"), "take recipe segmentation"),
        ("scenes", "segmenter", ("--class-map", "imagenet"), "masks name classes by index"),
        ("scenes", "segmenter", ("--freeze-backbone",), "learn as a whole"),
        ("scenes", "segmenter", ("--num-classes", "4"), "4 classes"),
        ("scenes", "segmenter", ("--num-classes", "0"), "--num-classes 0"),
        ("scenes", "segmenter", ("--set", "augment.mixup=1"), "masks can't be mixed"),
    ],
)
def test_what_does_not_fit_together_is_said(
    data: str, model: str, more: tuple[str, ...], said: str, scenes: Path, saved: Path,
    tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    classifier = tmp_path / "classifier"
    DEIT.sparse(img_size=(32, 32)).save_pretrained(classifier)
    where = {"scenes": scenes, "images": scenes / "images", "folders": scenes}[data]
    if data == "folders":
        where = noise_folders(tmp_path / "folders", classes=2, each=2)
    named = {"classifier": classifier, "segmenter": saved}[model]
    assert main("train", where, "-m", named, "-o", tmp_path / "out", *TINY, *more) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert not (tmp_path / "out").exists()


def test_eval_says_what_it_needs(
    scenes: Path, saved: Path, tmp_path: Path, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = tmp_path / "classifier"
    DEIT.sparse(img_size=(32, 32)).save_pretrained(classifier)
    for data, model, more, said in (
        (scenes, classifier, (), "classifies images"),
        (scenes, saved, ("--crop-pct", "0.9"), "--crop-pct 0.9 is not for images with masks"),
        (scenes / "images", saved, (), "no labels"),
    ):
        assert main("eval", data, "-m", model, *more) == 2
        assert said in " ".join(capsys.readouterr().err.split())
    assert main("eval", scenes / "images", "-m", saved, "--compare-dense") == 0
    assert "agreement with dense" in capsys.readouterr().out


def test_a_plan_of_segmentation(scenes: Path, saved: Path) -> None:
    training = Training(scenes, saved, overrides=[v for v in TINY if v != "--set"], workers=0)
    assert training.recipe.task == "segmentation"
    assert not training.fits_dense
    assert training.plan().num_patches == 4


def test_every_measure_has_words() -> None:
    assert set(MEASURES) == set(get_args(Measure))


def test_a_picture_of_the_map(
    scenes: Path, saved: Path, tmp_path: Path, command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = scenes / "images" / "0.png"
    arguments = ("visualize", picture, "-m", saved, "--method", "tome", "-o", tmp_path)
    assert command(*arguments, "--keep-ratio", "0.5") == 0
    assert (tmp_path / "0_dynamicvit.png").is_file()
    said = capsys.readouterr().out
    model, transform = dense(), eval_transform(dense())
    sparse = sparsify(model, 0.5, method="tome").eval()
    found = sparse(transform(Image.open(picture).convert("RGB"))[None])[0].argmax(0)
    shares = found.flatten().bincount(minlength=3) / found.numel()
    assert f"{100 * float(shares.max()):5.1f} %  {NAMES[int(shares.argmax())]}" in said
    # Its mask lies beside it: as many of the pixels in the middle as the scene has.
    _, mask = scene(0)
    others = re.search(r"other classes than the first: [\d.]+ % of the last kept, ([\d.]+) %", said)
    assert others
    assert float(others[1]) == pytest.approx(100 * np.isin(mask[:, 8:48], (1, 2)).mean(), abs=3)
    wide = imread(tmp_path / "0_dynamicvit.png").shape[1]
    (scenes / "masks" / "0.png").unlink()
    assert command(*arguments) == 0
    assert wide > imread(tmp_path / "0_dynamicvit.png").shape[1], "a column for the truth"
    assert "other classes" not in capsys.readouterr().out
    (scenes / "masks" / "0.png").write_bytes(picture.read_bytes())
    assert command(*arguments) == 2
    assert "0.png is a picture of mode RGB; masks hold" in capsys.readouterr().err


def test_overlays_paint_classes_and_name_them() -> None:
    pytest.importorskip("matplotlib")
    images, logits = torch.rand(1, 3, 32, 32), torch.full((1, 3, 4, 4), -5.0)
    logits[:, 0] = 0.0
    logits[:, 2, :, 2:] = 9.0
    found = overlay("ours", images, logits, NAMES)
    assert found.title == ("ours", "2 classes")
    assert torch.equal(found.pictures[:, :, :, :12], images[:, :, :, :12])  # the first class
    assert (found.pictures[:, :, :, 20:] - images[:, :, :, 20:]).abs().mean() > 0.05
    [[(column, _, name)]] = found.words
    assert name == "bar"
    assert column >= 16


def test_another_segmenter_teaches_its_map(scenes: Path, saved: Path, tmp_path: Path) -> None:
    large = segmenter(DEIT.backbone(img_size=(48, 48), seed=9), 3, "mask").eval()
    large.save_pretrained(tmp_path / "large")
    student = sparsify(dense(), 0.5, method="dynamicvit").train()
    recipe = load_recipe("segmentation", [f"teacher.model={tmp_path / 'large'}"])
    teacher = teacher_for(student, recipe, None, True)
    assert teacher is not None
    images = torch.randn(2, 3, 32, 32)
    taught = F.interpolate(
        large(F.interpolate(images, (48, 48), mode="bicubic", antialias=True)),
        (2, 2),
        mode="bilinear",
    )
    objective = TrainingObjective(student, weights=LossWeights(classification=0.0), teacher=teacher)
    output, losses = objective.with_output(images)
    expected = distillation_loss(output.logits, taught)
    torch.testing.assert_close(losses.distillation, expected, atol=1e-4, rtol=1e-3)

    overrides = [v for v in TINY if v != "--set"]
    settings = {"recipe": "segmentation", "overrides": overrides, "workers": 0}
    train(scenes / "images", tmp_path / "run", saved, teacher=str(tmp_path / "large"), **settings)
    DEIT.sparse(img_size=(32, 32)).save_pretrained(tmp_path / "classifier")
    with pytest.raises(InputError, match="the teacher is for images"):
        train(scenes, tmp_path / "no", saved, teacher=str(tmp_path / "classifier"), **settings)


def test_schedules_are_tuned_by_the_patches_of_a_map(tmp_path: Path) -> None:
    images = torch.randn(32, 3, 32, 32)
    found = tune(dense(), images, macs=0.7, evaluations=4)
    best = dense().like(dense().bound, found.schedule, METHODS["lookahead"])
    assert count_macs(best) <= 0.7 * count_macs(dense()) * 1.001
    assert 0 < found.best.verdict.agreement <= 1
    with torch.no_grad():
        model = sparsify(dense(), method="lookahead").eval().at(found.schedule)
        same = (model(images).argmax(1) == dense()(images).argmax(1))[16:].double().mean()
    assert found.best.verdict.agreement == pytest.approx(float(same))
