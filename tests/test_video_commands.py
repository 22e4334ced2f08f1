"""Commands on clips: train, eval, predict, compare, tune, calibrate, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

pytest.importorskip("av")

from clips import write_clip
from dynamicvit import InputError, train
from dynamicvit.backbones.inflated import InflatedBackbone
from dynamicvit.data import (
    Batch,
    ClipData,
    ImageData,
    Sampling,
    clip_eval_transform,
    has_clips,
    open_data,
    taken_by,
)
from dynamicvit.data.video import VideoFile
from dynamicvit.layers.tokens import Tokens
from dynamicvit.plots import visualize
from dynamicvit.plots.clips import frame_output
from dynamicvit.runtimes import ExportedModel
from dynamicvit.runtimes.description import Description, describe
from dynamicvit.runtimes.graph import Graph
from dynamicvit.runtimes.images import sample_pictures, transform_for
from dynamicvit.streaming.levels import levels_of
from dynamicvit.streaming.window import Window
from dynamicvit.training import load_recipe
from dynamicvit.training.draws import Mixing
from dynamicvit.training.recipe_parts import AugmentRecipe
from dynamicvit.utils.outputs import is_ours
from families import DEIT, INFLATED_FAMILIES
from pictures import class_folders

CLIP = INFLATED_FAMILIES[0]  # 4 frames of 32x48, tubelets of 2
Command = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of clips, one of images, and data of both."""
    root = tmp_path_factory.mktemp("clips")
    for split, each in (("train", 16), ("test", 2)):
        for name, right in (("dark", 0), ("light", 240)):
            (root / "CLIPS" / split / name).mkdir(parents=True)
            for index in range(each):
                file = root / "CLIPS" / split / name / f"{index}.mp4"
                write_clip(file, 8 + index % 4, size=(48, 32), right=right)
    class_folders(root / "photos")
    CLIP.sparse(num_classes=2).save_pretrained(root / "video")
    DEIT.sparse(num_classes=2).save_pretrained(root / "image")
    return root


@pytest.fixture(autouse=True)
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


# ---------------------------------------------------------------- what a source holds


def test_a_source_is_told_by_what_it_holds(folder: Path, tmp_path: Path) -> None:
    assert has_clips("CLIPS")
    assert has_clips("CLIPS@train")
    assert has_clips("CLIPS/test/dark/0.mp4")
    (tmp_path / "list.csv").write_text(f"{folder}/CLIPS/test/dark/0.mp4,0\n")
    assert has_clips(tmp_path / "list.csv")
    for other in ("photos", "nowhere", "CLIPS@val", "video", "wds/CLIPS"):
        assert not has_clips(other)
    assert isinstance(open_data("CLIPS@test"), ClipData)
    assert type(open_data("photos")) is ImageData


def test_clips_get_the_frames_of_the_model() -> None:
    model = CLIP.sparse()
    data = taken_by(model, open_data("CLIPS@test"), 2)
    assert isinstance(data, ClipData)
    assert (data.sampling.frames, data.sampling.stride) == (4, 2)
    assert data.for_evaluation(model)[0].image.shape == (4, 3, *CLIP.size)  # type: ignore[union-attr]


# ---------------------------------------------------------------- training


def test_all_frames_of_a_clip_are_mixed_alike() -> None:
    clips = torch.arange(2.0).reshape(2, 1, 1, 1, 1).expand(2, 4, 3, 16, 16)
    augment = AugmentRecipe(mixup=0.0, cutmix=1.0, mixup_mode="elem")
    batch = Batch(clips, torch.tensor([0, 1]))
    for _ in range(8):
        mixed, targets = Mixing(augment, 2)(batch)
        assert mixed.shape == clips.shape
        assert (mixed == mixed[:, :1, :1]).all()  # one box for all frames and channels
        share = mixed[0].mean()
        assert torch.allclose(targets[0, 1] / targets[0].sum(), 0.9 * share + 0.05, atol=1e-3)


def test_recipes_of_clips() -> None:
    kinetics, ssv2 = (load_recipe(f"videomae_{name}") for name in ("kinetics", "ssv2"))
    assert (kinetics.video.stride, ssv2.video.stride) == (4, None)
    assert (kinetics.augment.hflip, ssv2.augment.hflip) == (0.5, 0.0)
    assert (kinetics.dense.learning_rate, ssv2.dense.learning_rate) == (2e-3, 1e-3)
    assert ssv2.dense.augment == kinetics.dense.augment == "full"
    assert ssv2.augment.auto_augment == "rand-m7-n4-mstd0.5-inc1"


def test_train_makes_a_model_of_clips(command: Command, tmp_path: Path) -> None:
    few = ("--set", "images=4", "--set", "batch_size=2", "--set", "dense.images=4")
    few += ("--set", "dense.batch_size=2", "--set", "video.stride=2", "--workers", "0")
    video = ("--frames", 4, "--tubelet", 2)
    out = tmp_path / "v"
    assert command("train", "CLIPS@train", "--model", "video", "-o", out, *few) == 0
    recipe = (out / "recipe.yaml").read_text()
    assert "guided: 0.5" in recipe
    assert "vit.pos_embed" in recipe  # of video_small_data, which nobody named
    assert json.loads((out / "report.json").read_text())["training"]["images"] == 4
    # A folder is no name of an image network.
    assert command("train", "CLIPS@train", "--model", "video", "-o", out, *video, *few) == 2


# ---------------------------------------------------------------- evaluation


def test_eval_says_its_views(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("eval", "CLIPS@test", "--model", "video", "--workers", "0", "--compare-dense")
    assert command(*base, "--views", "2x3", "--stride", "2", "--json", "views.json") == 0
    text = capsys.readouterr().out
    assert "2 × 3" in text
    assert "GMACs a video, 6 views" in text
    found = json.loads(Path("views.json").read_text())
    assert found["views"] == [2, 3]
    assert found["images"] == found["labeled"] == 4
    assert command(*base, "--json", "one.json", "--save-kept", "kept.npz") == 0
    assert found["macs"] == 6 * json.loads(Path("one.json").read_text())["macs"]
    assert command(*base, "--views", "2x3", "--save-kept", "kept.npz") == 2


def test_predict_averages_views(command: Command) -> None:
    how = ("--model", "video", "--workers", "0")
    assert command("predict", "CLIPS@test", *how, "-o", "one.jsonl") == 0
    assert command("predict", "CLIPS@test", *how, "-o", "six.jsonl", "--views", "2x3") == 0
    one, six = (
        [json.loads(line) for line in Path(f"{name}.jsonl").read_text().splitlines()]
        for name in ("one", "six")
    )
    assert [row["image"] for row in one] == [row["image"] for row in six]
    assert all(0 < row["kept_1"] < 1 for row in [*one, *six])
    assert one != six


def test_compare_tune_and_calibrate(
    command: Command,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamicvit.plots.style.save", lambda *_: ())
    how = ("--model", "video", "--data", "CLIPS@train")
    few = ("--set", "batch_size=2", "--images", "2", "--no-timing", "--workers", "0")
    methods = ("--methods", "rlt", "--macs", "0.6", "--validation", "CLIPS@test")
    out = tmp_path / "compared"
    assert command("compare", *how, *few, *methods, "--views", "2x1", "-o", out) == 0
    assert "of 2 × 1 views" in capsys.readouterr().out
    assert ",2 × 1\n" in (out / "comparison.csv").read_text()
    tuned = ("--macs", "80%", "--images", "32", "--evaluations", "4")
    assert command("tune", *how, *tuned, "-o", tmp_path / "tuned") == 0
    per_video = ("--model", "video", "--images", "32", "-o", tmp_path / "per-video")
    assert command("calibrate", "CLIPS@train", *per_video) == 0


# ---------------------------------------------------------------- pictures, files, streams


def test_visualize_draws_every_frame(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "pictures"
    (tmp_path / "two").mkdir()
    write_clip(tmp_path / "two" / "a.mp4", 8, right=240)
    (tmp_path / "two" / "b.mp4").write_bytes(b"no video")
    assert command("visualize", tmp_path / "two", "--model", "video", "-o", out) == 2  # b.mp4
    assert sorted(file.name for file in out.iterdir()) == ["a_dynamicvit.gif", "a_dynamicvit.png"]
    assert is_ours(out / "a_dynamicvit.gif"), "so that another run may replace it"
    with Image.open(out / "a_dynamicvit.gif") as picture:
        assert picture.n_frames == 4
        assert picture.width == 3 * picture.height  # of 32x48, twice


def test_a_tubelet_is_drawn_in_all_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamicvit.plots.clips.draw", lambda *_, **__: Figure((1, 1)))
    model = CLIP.sparse(num_classes=2)
    found = visualize(model, torch.rand(CLIP.shape))
    by_frame = frame_output(found.output, 4)
    first, second = (kept.reshape(2, 6) for kept in found.output.kept[:2])
    assert by_frame.grid == (2, 3)
    assert torch.equal(by_frame.kept[0], first[[0, 0, 1, 1]])
    assert torch.equal(by_frame.kept[1], second[[0, 0, 1, 1]])
    for clip in ("CLIPS/test/dark/0.mp4", ["CLIPS/test/dark/0.mp4"], torch.rand(1, *CLIP.shape)):
        assert visualize(model, clip).output.grid == (2, 2, 3)
    with pytest.raises(InputError, match="labels are for images, and the model takes clips"):
        visualize(model, torch.rand(CLIP.shape), labels=[0])
    with pytest.raises(InputError, match="give one video file"):
        visualize(model, ["a.mp4", "b.mp4"])


def test_a_file_takes_clips() -> None:  # docs/video.md, run as a test, writes real ones
    model = CLIP.sparse(num_classes=2)
    about = describe(model)
    again = Description.from_json(about.to_json(), "v.onnx")
    assert again == about
    found = ExportedModel(Graph(model), again).eval()
    clips = torch.randn(3, *CLIP.shape)
    own, theirs = model.forward_pruned(clips), found.forward_pruned(clips)
    assert torch.allclose(own.logits, theirs.logits, atol=1e-5)
    assert theirs.grid == (2, 2, 3)
    assert all(torch.equal(a, b) for a, b in zip(own.kept, theirs.kept, strict=True))
    with pytest.raises(InputError, match=r"clips of shape \(1, 3, 32, 48\): give \(batch, 4, 3"):
        found(torch.randn(1, 3, 32, 48))
    with pytest.raises(InputError, match="the model takes clips of 4 frames; photos gives images"):
        taken_by(found, open_data("photos"))
    for old, new in (("[2, 2, 3]", "[4, 3]"), ('"frames": 4', '"frames": null')):
        with pytest.raises(InputError, match=r"has a grid of [23] axes"):
            Description.from_json(about.to_json().replace(old, new), "v.onnx")


def test_a_file_is_checked_on_clips_of_photographs() -> None:
    pytest.importorskip("sklearn")
    clips, origin = sample_pictures(transform_for(CLIP.sparse()))
    assert origin == "10 clips of scikit-learn's 2 photographs"
    assert clips.shape == (10, *CLIP.shape)
    assert not torch.equal(clips[:, 0], clips[:, -1])  # the view moves


def test_a_window_slides() -> None:
    window = Window(3, 2)
    seen = [
        window.add(torch.tensor([[[[float(i)]]]])).stacked().flatten().tolist() for i in range(7)
    ]
    assert seen[0] == [0, 0, 0]
    assert seen[3] == [0, 1, 3]
    assert seen[6] == [2, 4, 6]


def test_stream_answers_as_the_model_does_on_the_last_frames(
    command: Command, tmp_path: Path
) -> None:
    write_clip(tmp_path / "clip.avi", 9, codec="mjpeg", right=240)
    how = ("--model", "video", "--fps", "0", "--stride", "2", "-o", tmp_path / "a.jsonl")
    assert command("stream", tmp_path / "clip.avi", *how) == 0
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    answers = [line for line in lines if line["event"] == "frame"]
    assert len(answers) == 9
    model = CLIP.sparse(num_classes=2)
    transform = clip_eval_transform(model, Sampling(4))
    frames = torch.from_numpy(VideoFile(tmp_path / "clip.avi").frames(np.array([2, 4, 6, 8])))
    clip = transform(frames.movedim(-1, 1)[None])
    best = model(clip[None]).softmax(-1).max().item()
    assert answers[8]["classes"][0]["probability"] == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("stride", [1, 3])
@torch.inference_mode()
def test_a_tubelet_is_embedded_once(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CLIP.sparse(num_classes=2)
    embed, seen = InflatedBackbone.embed_tubelets, []

    def counted(self: InflatedBackbone, tubelets: torch.Tensor) -> Tokens:
        seen.append(tubelets)
        return embed(self, tubelets)

    monkeypatch.setattr(InflatedBackbone, "embed_tubelets", counted)
    levels = levels_of({"model": model}, (1.0, 0.5))
    window, frames, found = Window(4, stride), torch.randn(16, 1, *CLIP.shape[1:]), []
    for index, frame in enumerate(frames):
        clip = window.add(frame)
        found.append((clip, levels[index % 2].classify(clip), index % 2))
    assert len(seen) <= 16 + 2 * stride, "one for each frame, and a few with the first repeated"
    for clip, logits, level in found:
        expected = model.at((1.0, 0.5)[level])(clip.stacked())[0]
        assert torch.allclose(logits, expected, atol=1e-5)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("eval CLIPS@test --model image", "the model takes images; CLIPS@test gives clips"),
        ("eval photos --model video", "the model takes clips of 4 frames; photos gives images"),
        ("predict photos --model video -o a.csv", "photos gives images"),
        ("predict CLIPS@test --model image -o a.csv", "CLIPS@test gives clips"),
        ("train photos --model video -o runs/a", "photos gives images"),
        ("train CLIPS@train --model image -o runs/a", "CLIPS@train gives clips"),
        ("tune video --data photos --macs 0.6 -o runs/a", "photos gives images"),
        ("calibrate photos --model video -o runs/a", "photos gives images"),
        ("compare --model video --data photos -o runs/a", "photos gives images"),
        ("eval photos --model image --views 2x3", "views 2 × 3 are of clips"),
        ("eval photos --model image --stride 2", "stride 2 is of clips"),
        ("eval CLIPS@test --model video --views 2x2", "1 or 3 crops of each, as 5x3, got '2x2'"),
        ("eval CLIPS@none --model video", "CLIPS"),
        ("visualize CLIPS/test/dark/0.mp4 --model image", "the model takes images; CLIPS/test"),
        ("visualize photos/cat/10.png --model video", "photos/cat/10.png is no video"),
        ("stream CLIPS/test/dark/0.mp4 --model image --stride 2", "stride 2 is of clips"),
        ("stream CLIPS/test/dark/0.mp4 --model video --stride 0", "stride is at least 1 frame"),
        ("predict broken --model video -o a.csv --workers 0", "none of the 1 images can be read"),
    ],
)
def test_refused(
    words: str, line: str, command: Command, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken").mkdir(exist_ok=True)
    write_clip(folder / "broken" / "0.mp4", 0)
    assert command(*words.split()) == 2
    error = capsys.readouterr().err
    assert line in error
    assert len(error.strip().splitlines()) == 1


def test_frames_are_for_names() -> None:
    with pytest.raises(InputError, match="frames 8 is for a name: inflate the network first"):
        train("CLIPS@train", "runs/a", CLIP.backbone(), frames=8)
