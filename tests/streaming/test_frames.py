"""Frames from files, folders and cameras."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dynamicvit import InputError
from dynamicvit.streaming import open_frames
from dynamicvit.streaming.frames import Video, _device
from pictures import write_image

pytest.importorskip("av")

import av

from clips import turn, write_clip


def grays(name: Path) -> list[int]:
    """The gray levels of a source's frames, as they were written."""
    source = open_frames(str(name))
    found = [round(float(np.asarray(frame.read()).mean()) / 8) * 8 for frame in source]
    source.close()
    return found


@pytest.mark.parametrize("ending", ["mp4", "mkv", "avi"])
def test_a_video(tmp_path: Path, ending: str) -> None:
    path = write_clip(tmp_path / f"clip.{ending}", 12, fps=25)
    source = open_frames(str(path))
    assert source.rate == 25
    assert not source.live
    frames = list(source)
    assert [frame.index for frame in frames] == list(range(12))
    assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(12)], abs=1e-3)
    assert frames[3].read().size == (64, 48)
    source.close()
    assert grays(path) == [8 * index for index in range(12)]


def test_frames_that_do_not_come_evenly_have_their_own_times(tmp_path: Path) -> None:
    source = open_frames(str(write_clip(tmp_path / "clip.mkv", 4, fps=10, times=[5, 6, 9, 20])))
    assert [frame.time for frame in source] == pytest.approx([0, 0.1, 0.4, 1.5], abs=1e-3)


def test_frames_of_avi_that_are_stored_out_of_order_come_evenly(tmp_path: Path) -> None:
    """It stores no times, and FFmpeg's guesses jump back and forth."""
    if "libx264" not in av.codecs_available:
        pytest.skip("PyAV was built without H.264")
    path = write_clip(tmp_path / "clip.avi", 12, fps=25, gop=6, codec="libx264")
    times = [frame.time for frame in open_frames(str(path))]
    assert times == pytest.approx([index / 25 for index in range(12)], abs=1e-3)
    assert grays(path) == [8 * index for index in range(12)]


def test_a_phone_held_upright(tmp_path: Path) -> None:
    """Such a file has pixels on their side, and a matrix in its header that turns them."""
    path = write_clip(tmp_path / "clip.mp4", 1, right=200)
    turn(path)
    [frame] = open_frames(str(path))
    pixels = np.asarray(frame.read())
    assert pixels.shape[:2] == (64, 48)
    assert pixels[:28].mean() < 20  # what was on the left is above
    assert pixels[36:].mean() > 180


def test_a_frame_that_can_not_be_decoded_is_named_and_the_next_come(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 20, noise=True, movflags="faststart")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 6000] = np.random.default_rng(0).bytes(6000)
    path.write_bytes(content)
    problems, read = [], []
    for frame in open_frames(str(path)):
        try:
            frame.read()
        except InputError as error:
            problems.append((frame.index, str(error)))
        else:
            read.append(frame.index)
    assert problems
    for index, problem in problems:
        assert problem.startswith(f"frame {index} of {path} can't be decoded (")
    assert read[0] == 0
    assert read[-1] > problems[-1][0]


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 40, fps=10, noise=True, movflags="faststart")
    assert len(list(open_frames(str(path)))) == 40
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    frames = []
    with pytest.raises(InputError, match=r"is cut off: it ends after \d\.\d of 4\.0 seconds"):
        frames.extend(frame.index for frame in open_frames(str(path)))
    assert frames == list(range(len(frames)))
    assert 10 < len(frames) < 30


def test_a_folder_in_natural_order(tmp_path: Path) -> None:
    for name, gray in (("b/1.png", 40), ("a/10.jpg", 32), ("a/2.png", 24), ("a/.hidden.png", 0)):
        write_image(tmp_path / name, gray)
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = open_frames(str(tmp_path))
    assert source.rate is None
    assert [frame.time for frame in source] == [None] * 3
    assert [Path(frame.name or "").name for frame in source] == ["2.png", "10.jpg", "1.png"]
    assert grays(tmp_path) == [24, 32, 40]


def test_what_is_no_source(tmp_path: Path) -> None:
    import av

    text, sound, empty = tmp_path / "text.mp4", tmp_path / "sound.wav", tmp_path / "empty"
    text.write_text("no video")
    empty.mkdir()
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 80), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    for name, said in (
        (text, "Invalid data"),
        (sound, "no video"),
        (empty, "no images"),
        (tmp_path / "none.mp4", "no such file"),
        ("camera:front", "number"),
        ("camera:999", "can't be opened"),
    ):
        with pytest.raises(InputError, match=said) as raised:
            open_frames(str(name))
        assert str(name) in str(raised.value)


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mkv", 1)
    write_image(tmp_path / "images" / "1.png", 0)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"dynamicvit\[video\]"):
        open_frames(str(path))
    assert len(list(open_frames(str(tmp_path / "images")))) == 1


@pytest.mark.parametrize(
    ("name", "platform", "device"),
    [
        *((name, "linux", None) for name in ("camera", "camera:", "my-camera:0", "a/dev/video0")),
        ("camera:0", "linux", ("v4l2", "/dev/video0")),
        ("/dev/video2", "linux", ("v4l2", "/dev/video2")),
        ("camera:1", "darwin", ("avfoundation", "1")),
        ("camera:USB Camera", "win32", ("dshow", "video=USB Camera")),
    ],
)
def test_cameras_have_their_systems_names(name: str, platform: str, device: tuple | None) -> None:
    assert _device(name, platform) == device


def test_a_camera_is_asked_for_a_rate_and_its_frames_have_no_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in place of the device."""
    import av

    path = write_clip(tmp_path / "clip.mkv", 3)
    asked, opened = [], av.open

    def open_(location: str, *, format: str, options: dict[str, str]):
        asked.append((location, options))
        return opened(str(path))

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(av, "open", open_)
    source = open_frames("camera:0", fps=15)
    assert source.live
    assert [frame.time for frame in source] == [None] * 3
    open_frames("camera:0")
    assert asked == [("/dev/video0", {"framerate": "15"}), ("/dev/video0", {})]


def test_a_device_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Video("camera:0", str(write_clip(tmp_path / "clip.mkv", 2)), live=True)

    class Unplugged:
        def demux(self, stream):
            yield from ()
            raise OSError(19, "No such device")

    source._container = Unplugged()
    with pytest.raises(InputError, match=r"^camera:0 broke off \(No such device\)$"):
        list(source)
