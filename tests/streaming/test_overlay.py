"""`dynamicvit stream` of a segmentation model: a map of every frame, written over it as a video."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("av")

import av

from clips import write_clip
from dynamicvit import InputError, Segmenter, segmenter, sparsify
from dynamicvit.core.segmenter import post_process_semantic_segmentation
from dynamicvit.data import joint_eval_transform
from dynamicvit.data.mask_files import class_colors
from dynamicvit.evaluation.windows import sliding_windows
from dynamicvit.plots.maps import paint
from dynamicvit.streaming import Answer, Stream
from families import DEIT, randomize
from masks import NAMES, write_scenes

Main = Callable[..., int]


def made(names: tuple[str, ...] = NAMES) -> Segmenter:
    model = sparsify(segmenter(DEIT.backbone(img_size=(32, 32)), 3), 0.5, method="tome")
    randomize(model.decode_head, 5)
    model.set_class_names(names)
    assert isinstance(model, Segmenter)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    made().save_pretrained(folder)
    return folder


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_an_answer_is_the_map_of_its_frame(tmp_path: Path) -> None:
    images = write_scenes(tmp_path, 3) / "images"
    model = made()
    answers = [event for event in Stream(images, model, top=3) if isinstance(event, Answer)]
    assert len(answers) == 3
    for index, answer in enumerate(answers):
        picture = Image.open(images / f"{index}.png")
        whole, _ = joint_eval_transform(model)(picture, torch.zeros(40, 56))
        with torch.no_grad():
            logits = sliding_windows(model, whole, (32, 32))
        [expected] = post_process_semantic_segmentation(logits[None], [(40, 56)])
        assert answer.map is not None
        assert torch.equal(answer.map, expected)
        shares = [each.probability for each in answer.classes]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        assert "map" not in answer.as_dict()


def test_a_video_of_the_maps(saved: Path, tmp_path: Path, command: Main) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 5, size=(66, 49 // 2 * 2))
    out, lines = tmp_path / "out.mp4", tmp_path / "lines.jsonl"
    words = ("stream", clip, "-m", saved, "--fps", 0, "-o", out, "--json", lines)
    assert command(*words) == 0
    assert len(frames_of(out)) == 5
    assert frames_of(out)[0].shape == (48, 66, 3)
    with av.open(str(out)) as container:
        assert float(container.streams.video[0].average_rate or 0) == pytest.approx(30)
    events = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [each["event"] for each in events] == ["start", *["frame"] * 5, "end"]
    assert {name["name"] for name in events[1]["classes"]} <= {*NAMES}
    assert command(*words[:-2]) == 0  # its own file may be replaced


def test_colors_are_those_of_the_classes() -> None:
    picture = Image.new("RGB", (8, 8), (100, 100, 100))
    found = torch.zeros(8, 8, dtype=torch.long)
    found[:, 4:] = 2
    shown = np.array(paint(picture, found))
    assert (shown[:, :4] == 100).all()
    expected = 100 + 0.55 * (class_colors(3)[2].astype(float) - 100)
    assert np.abs(shown[0, 7] - expected).max() <= 1


def test_images_of_other_sizes_are_fitted_in(saved: Path, tmp_path: Path, command: Main) -> None:
    write_scenes(tmp_path, 2)
    write_scenes(tmp_path / "x", 1, size=(80, 50))
    (tmp_path / "x" / "images" / "0.png").rename(tmp_path / "images" / "9.png")
    out = tmp_path / "out.mkv"
    assert command("stream", tmp_path / "images", "-m", saved, "-o", out) == 0
    assert [frame.shape for frame in frames_of(out)] == [(40, 56, 3)] * 3


def test_what_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, command: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_scenes(tmp_path, 1) / "images"
    classifier = tmp_path / "classifier"
    DEIT.sparse(img_size=(32, 32)).save_pretrained(classifier)
    lines = tmp_path / "lines.jsonl"
    for words, message in (
        (("-m", classifier, "-o", tmp_path / "out.mp4"), "a segmentation model's maps"),
        (("-m", saved, "-o", lines, "--json", lines), "are both for JSON lines"),
        (("-m", saved, "--crop-pct", 0.9), "crop_pct 0.9"),
        (("-m", saved, "-m", classifier, "--target-latency", "1s"), "segments"),
    ):
        assert command("stream", images, *words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out.mp4").exists()
    with pytest.raises(InputError, match="has no classifier"):
        Stream(images, DEIT.sparse(num_classes=0, img_size=(32, 32)))
