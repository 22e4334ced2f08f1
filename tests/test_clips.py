"""Clips: which frames are read, from what, and what is left out."""

from __future__ import annotations

import io
import logging
import os
import signal
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from clips import class_folders, levels, turn, write_clip, write_sound
from dynamicvit.data import (
    UNLABELED,
    ClipData,
    ImageData,
    Loader,
    NoReadableImageError,
    ReaderError,
    Sample,
    Sampling,
    Unreadable,
    Views,
    class_map_for,
    clip_train_transform,
    images_digest,
    split,
)
from dynamicvit.data.video import ClipTransform, Timeline, VideoFile
from dynamicvit.errors import InputError
from pictures import WORKERS

pytestmark = WORKERS

EVERY_FORMAT = [
    ("mp4", "mpeg4"),
    ("mov", "mpeg4"),
    ("mkv", "mpeg4"),
    ("avi", "mpeg4"),
    ("avi", "mjpeg"),
    ("mpg", "mpeg1video"),
]


def read(data: ClipData, index: int = 0) -> Tensor:
    sample = data[index]
    assert isinstance(sample, Sample), sample
    return sample.image


def clip_of(path: Path, sampling: Sampling, clips: int = 1) -> list[int]:
    """The numbers of the frames that a file gives."""
    transform = ClipTransform(sampling, views=Views(clips))
    return levels(read(ClipData(path, transform=transform)))


def shown(content: Path | bytes, *indices: int) -> list[int]:
    frames = torch.from_numpy(VideoFile(content).frames(np.array(indices)))
    return levels(frames.movedim(-1, 1) / 255)


def even(frames: int) -> Timeline:
    return Timeline(np.arange(frames) / 30, frames / 30)


# ---------------------------------------------------------------- decoding


@pytest.mark.parametrize(("ending", "codec"), EVERY_FORMAT)
def test_any_frames_of_a_file_are_the_right_ones(tmp_path: Path, ending: str, codec: str) -> None:
    """Also those stored out of order, and behind a key frame in the middle."""
    gop = None if codec == "mjpeg" else 6
    path = write_clip(tmp_path / f"clip.{ending}", 28, codec=codec, gop=gop)
    video = VideoFile(path)
    assert len(video.timeline.times) == 28
    assert video.timeline.duration == pytest.approx(28 / 30, abs=2e-3)
    every = video.frames(np.arange(28))
    for indices in ([0], [27], [3, 4], [1, 14, 26], [5, 20], [11, 12, 13, 25]):
        assert np.array_equal(video.frames(np.array(indices)), every[indices])
    assert shown(path.read_bytes(), *range(28)) == list(range(28))


def test_only_what_is_needed_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", 30, gop=6)
    video, decoded = VideoFile(path), []
    whole = video._decoded

    def count(*args: Any) -> Any:
        for index, frame in whole(*args):
            decoded.append(index)
            yield index, frame

    monkeypatch.setattr(video, "_decoded", count)
    video.frames(np.array([1, 25]))
    keys = np.searchsorted(video.timeline.times, video._keys * video._base - 1e-6)
    before = int(max(key for key in keys if key <= 25))
    assert before > 6
    assert decoded == [0, 1, *range(before, 26)]


def test_a_seek_that_lands_behind_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "clip.mp4", 30, gop=6)
    video = VideoFile(path)
    every = video.frames(np.arange(30))
    whole, calls = video._decoded, []

    def late(container: Any, stream: Any, first: int) -> Any:
        calls.append(first)
        if len(calls) == 1:
            container.seek(int(video._keys[-1]), stream=stream)
        return whole(container, stream, first)

    monkeypatch.setattr(video, "_decoded", late)
    assert np.array_equal(video.frames(np.array([8])), every[[8]])
    assert len(calls) == 2


def test_frames_of_a_variable_rate_are_found_by_time(tmp_path: Path) -> None:
    """Ten frames in the first second, then one that stays for nine, and one more."""
    times = [*range(10), 100]
    path = write_clip(tmp_path / "clip.mkv", 11, fps=10, times=times)
    assert clip_of(path, Sampling(4)) == [9, 9, 9, 9]
    assert clip_of(path, Sampling(101)) == [*range(10), *[9] * 90, 10]
    path = write_clip(tmp_path / "late.avi", 4, fps=10, times=[0, 1, 2, 7])
    assert clip_of(path, Sampling(8)) == [0, 1, 2, 2, 2, 2, 2, 3]


def test_a_phone_held_upright(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 2, right=200)
    turn(path)
    pixels = read(ClipData(path, transform=ClipTransform(Sampling(2))))
    assert pixels.shape == (2, 3, 64, 48)
    assert pixels[..., :28, :].mean() < 20 / 255  # what was on the left is above
    assert pixels[..., 36:, :].mean() > 180 / 255


def test_a_gif(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), (8 * i,) * 3) for i in range(5)]
    path = tmp_path / "clip.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=[50, 50, 200, 50, 50])
    assert clip_of(path, Sampling(8)) == [0, 1, 2, 2, 2, 2, 3, 4]


# ---------------------------------------------------------------- sampling


def test_uniform_is_the_middle_of_each_segment(tmp_path: Path) -> None:
    """TSN's index: ``floor(N / T · (k + 1/2))``."""
    for frames in (16, 17, 100, 250):
        for count in (4, 8, 16):
            expected = [int(frames / count * (k + 0.5) + 1e-9) for k in range(count)]
            assert Sampling(count).even_clips(even(frames)).tolist() == [expected]
    assert clip_of(write_clip(tmp_path / "clip.avi", 16, codec="mjpeg"), Sampling(4)) == [
        2,
        6,
        10,
        14,
    ]


def test_uniform_is_random_inside_each_segment() -> None:
    torch.manual_seed(0)
    drawn = np.concatenate([Sampling(4).random_clip(even(40)) for _ in range(300)])
    for segment in range(4):
        assert set(drawn[:, segment]) >= set(range(10 * segment, 10 * segment + 10))
        assert drawn[:, segment].min() == 10 * segment
        assert drawn[:, segment].max() <= 10 * segment + 10


def test_dense_has_a_distance() -> None:
    timeline = even(100)
    one = Sampling(8, stride=4).even_clips(timeline)
    assert np.diff(one).tolist() == [[4] * 7]
    assert one[0, 0] == (100 - 32) // 2
    three = Sampling(8, stride=4).even_clips(timeline, 3)
    assert three[:, 0].tolist() == [0, 34, 68]
    assert Sampling(8, seconds=4 / 30).even_clips(timeline, 3).tolist() == three.tolist()
    torch.manual_seed(0)
    drawn = np.concatenate([Sampling(8, stride=4).random_clip(timeline) for _ in range(500)])
    assert (np.diff(drawn) == 4).all()
    assert set(drawn[:, 0]) >= set(range(68))
    assert drawn.max() < 100


def test_seconds_are_the_same_at_any_rate() -> None:
    slow, fast = Timeline(np.arange(30) / 10, 3.0), Timeline(np.arange(180) / 60, 3.0)
    sampling = Sampling(4, seconds=0.5)
    assert slow.times[sampling.even_clips(slow)] == pytest.approx(
        fast.times[sampling.even_clips(fast)], abs=0.1
    )


@pytest.mark.parametrize("sampling", [Sampling(8), Sampling(8, stride=4), Sampling(8, seconds=9)])
def test_fewer_frames_than_asked_are_repeated_evenly(sampling: Sampling) -> None:
    assert sampling.even_clips(even(3)).tolist() == [[0, 0, 0, 1, 1, 2, 2, 2]]
    assert sampling.even_clips(even(1), 2).tolist() == [[0] * 8] * 2
    assert sampling.random_clip(even(1)).tolist() == [[0] * 8]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"frames": 0}, "frames.*got 0"),
        ({"stride": 0}, "stride.*got 0"),
        ({"seconds": -1.0}, "seconds.*got -1"),
        ({"stride": 2, "seconds": 1.0}, "not by both"),
    ],
)
def test_sampling_that_can_not_be(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sampling(**{"frames": 8, **wrong})


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize("archived", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_class_folders(tmp_path: Path, archived: bool, workers: int) -> None:
    root = class_folders(tmp_path / "clips")
    (root / "a" / "notes.md").write_text("none of them")
    if archived:
        with tarfile.open(root.with_suffix(".tar"), "w") as archive:
            archive.add(root, arcname=root.name)
        root = root.with_suffix(".tar")
    data = ClipData(root, transform=ClipTransform(Sampling(4)))
    assert data.classes == ("a", "b")
    assert [Path(name).name for name in data.left_out] == ["notes.md"]
    assert class_map_for(data, 2).index == {"a": 0, "b": 1}
    [batch] = Loader(data, 4, num_workers=workers)
    assert batch.images.shape == (4, 4, 3, 32, 48)
    assert batch.labels.tolist() == [0, 0, 1, 1]
    assert levels(batch.images[::2]) == [1, 3, 5, 7] * 2
    rest, held = split(data, 0.5)
    assert len(rest) == len(held) == 2
    assert len(images_digest([data])) == 64


LISTS = {
    "kinetics.csv": "path,label\na/0.mp4,eat\nb/0.mp4,drink\n",
    "kinetics2.csv": "label,path,split\neat,a/0.mp4,x\ndrink,b/0.mp4,x\n",
    "videomae.csv": "a/0.mp4 1\n\nb/0.mp4 0\n",
    "mmaction.txt": "a/0.mp4 1\nb/0.mp4 0",
    "commas.csv": "a/0.mp4,1\nb/0.mp4,0\n",
    "tabs.tsv": "video\tclass\na/0.mp4\t1\nb/0.mp4\t0\n",
    "quoted.csv": '"a/0.mp4","eat, drink"\nb/0.mp4,drink\n',
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path: Path, name: str) -> None:
    root = class_folders(tmp_path / "clips", clips=1)
    (root / name).write_text(LISTS[name])
    data = ClipData(root / name)
    assert [data.path(i) for i in range(2)] == [str(root / "a/0.mp4"), str(root / "b/0.mp4")]
    assert data.labels.tolist() == [1, 0]
    assert data.classes == {"quoted.csv": ("drink", "eat, drink")}.get(name, data.classes)
    assert bool(data.classes) == ("drink" in LISTS[name])
    assert read(data).shape == (16, 3, 32, 48)


def test_a_list_without_classes_and_a_path_with_spaces(tmp_path: Path) -> None:
    write_clip(tmp_path / "my clip.mp4", 2)
    (tmp_path / "list.txt").write_text("my clip.mp4\nmy clip.mp4\n")
    data = ClipData(tmp_path / "list.txt")
    assert not data.labeled
    assert data.labels.tolist() == [UNLABELED] * 2
    read(data)
    (tmp_path / "list.txt").write_text("my clip.mp4 7\n")
    assert ClipData(tmp_path / "list.txt").labels.tolist() == [7]
    read(ClipData(tmp_path / "list.txt"))
    assert len(ClipData(tmp_path / "my clip.mp4")) == 1


WRONG_LISTS = {
    "": "no clips",
    "path,label\n": "no clips",
    "a.mp4,1\nb.mp4,1,2\n": "line 2.*b.mp4 1 2",
    "a.mp4,x,1\n": "line 1",
    "a.mp4,1\nb.mp4,dog\n": "line 2.*'dog'",
    "label,youtube_id,split\neat,xyz,train\n": "youtube_id",
    "path,label\n,1\n": "line 2",
}


@pytest.mark.parametrize("text", WRONG_LISTS)
def test_lists_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=rf"list\.csv.*{WRONG_LISTS[text]}"):
        ClipData(tmp_path / "list.csv")


def test_splits_of_a_folder(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", clips=2)
    (tmp_path / "val.csv").write_text("train/a/0.mp4,0\n")
    assert len(ClipData(f"{tmp_path}@train")) == 4
    assert len(ClipData(f"{tmp_path}@val")) == 1
    with pytest.raises(InputError, match="no split 'test'"):
        ClipData(f"{tmp_path}@test")


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    paths = [str(write_clip(tmp_path / f"{i}.mp4", 4 + i)) for i in range(2)]
    features = {
        "video": datasets.Video(decode=False),
        "label": datasets.ClassLabel(names=["x", "y"]),
    }
    table = datasets.Dataset.from_dict(
        {"video": paths, "label": [1, 0]}, features=datasets.Features(features)
    )
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "saved")
    data = ClipData(f"hfds/{tmp_path}/saved@train", transform=ClipTransform(Sampling(4)))
    assert data.classes == ("x", "y")
    assert data.labels.tolist() == [1, 0]
    assert levels(read(data)) == [0, 1, 2, 3]
    with pytest.raises(InputError, match="columns of images"):
        ImageData(f"hfds/{tmp_path}/saved")


@pytest.mark.parametrize("name", ["wds/shards", "hfids/x/y", "torch/mnist/x", "nowhere", "x.md"])
def test_sources_without_clips(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.md").write_text("x")
    with pytest.raises(InputError, match=name):
        ClipData(name)
    with pytest.raises(InputError, match=r"holds no clips.*\.mp4"):
        ClipData(tmp_path)


# ---------------------------------------------------------------- damage


def damaged(path: Path) -> dict[str, str]:
    """Files that can't be read, and what is said of each."""
    write_sound(path / "sound.mp4")
    (path / "text.mp4").write_text("this is text\n" * 100)
    (path / "empty.mp4").write_bytes(b"")
    (path / "list.mp4").write_text("ffconcat version 1.0\nfile 'sound.mp4'\n")
    picture = io.BytesIO()
    Image.new("RGB", (32, 32)).save(picture, "JPEG")
    (path / "picture.mp4").write_bytes(picture.getvalue())
    content = write_clip(path / "cut.avi", 30, noise=True).read_bytes()
    (path / "cut.avi").write_bytes(content[: len(content) // 2])
    whole = bytearray(write_clip(path / "hole.mp4", 30, noise=True).read_bytes())
    middle = whole.index(b"mdat") + (len(whole) - whole.index(b"mdat")) // 2
    whole[middle : middle + 9000] = np.random.default_rng(0).bytes(9000)
    (path / "hole.mp4").write_bytes(whole)
    write_clip(path / "none.avi", 0)
    os.mkfifo(path / "pipe.mp4")
    return {
        "sound.mp4": "sound, but no video",
        "text.mp4": "not a video",
        "empty.mp4": "not a video",
        "list.mp4": "not a video",
        "picture.mp4": "an image, not a video",
        "cut.avi": "cut off|can't be decoded",
        "hole.mp4": "can't be decoded|damaged",
        "none.avi": "no frames|not a video|no video",
        "pipe.mp4": "a named pipe",
        "gone.mp4": "No such file",
    }


def test_damaged_clips_are_named_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = damaged(tmp_path)
    write_clip(tmp_path / "good.mp4", 8)
    names = [*reasons, "good.mp4"]
    (tmp_path / "list.csv").write_text("".join(f"{name},0\n" for name in names))
    data = ClipData(tmp_path / "list.csv")
    with caplog.at_level(logging.WARNING):
        batches = list(Loader(data, 4, num_workers=1))
    assert sum(map(len, batches)) == 1
    skipped = [Path(path).name for batch in batches for path in batch.skipped]
    assert skipped == list(reasons)
    assert len(caplog.records) == len(reasons)
    for index, reason in enumerate(reasons.values()):
        found = data[index]
        assert isinstance(found, Unreadable)
        assert any(word in found.reason for word in reason.split("|")), found
        assert "avcodec" not in found.reason
    with pytest.raises(InputError, match=r"sound\.mp4 can't be read as a clip"):
        list(Loader(ClipData(tmp_path / "list.csv", strict=True), 4))
    with pytest.raises(NoReadableImageError, match="none of the 2 clips"):
        list(Loader(data.subset([0, 1]), 4))


# ---------------------------------------------------------------- batches


class Small(nn.Module):
    pretrained_cfg: ClassVar = {"input_size": (3, 24, 24), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def test_batches_depend_on_the_seed_alone(tmp_path: Path) -> None:
    augmentation = {"auto_augment": "rand-m7-n2-mstd0.5", "re_prob": 0.5, "color_jitter": 0.4}
    transform = clip_train_transform(Small(), Sampling(4), image_size=24, **augmentation)
    data = ClipData(class_folders(tmp_path / "clips"), transform=transform)

    def epoch(workers: int, number: int, seed: int = 3) -> Tensor:
        loader = Loader(data, 2, shuffle=True, seed=seed, num_workers=workers)
        loader.set_epoch(number)
        return torch.cat([batch.images for batch in loader])

    here = epoch(0, 0)
    assert here.shape == (4, 4, 3, 24, 24)
    assert torch.equal(here, epoch(0, 0))
    assert torch.equal(here, epoch(2, 0))
    assert not torch.equal(here, epoch(0, 1))
    assert not torch.equal(here, epoch(0, 0, seed=4))


def test_the_death_of_a_reader_is_one_line(tmp_path: Path) -> None:
    def die(clip: Tensor) -> list[Tensor]:
        if torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return [clip.float()]

    data = ClipData(class_folders(tmp_path), transform=ClipTransform(Sampling(2), die))
    with pytest.raises(ReaderError, match="died"):
        list(Loader(data, 2, num_workers=1))
    assert len(list(Loader(data, 2))) == 2


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1].joinpath("docs", "data.md").read_text(encoding="utf-8")
    code = page.partition("## Clips")[2].partition("```python\n")[2].partition("```")[0]
    class_folders(tmp_path / "clips" / "train")
    class_folders(tmp_path / "clips" / "val", clips=1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": Small()}
    exec(code.replace("num_workers=4", "num_workers=0").replace("), 8,", "), 2,"), names)
    assert next(iter(names["batches"])).images.shape == (2, 16, 3, 24, 24)
    assert names["held"][0].image.shape == (6, 16, 3, 24, 24)
