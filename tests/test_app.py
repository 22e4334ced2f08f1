"""One input dense and sparse side by side: numbers, pictures, methods, uploads within limits."""

from __future__ import annotations

import inspect
import io
import socket
import struct
import zlib
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from clips import write_clip
from dynamicvit import DynamicViT, count_macs, segmenter, sparsify
from dynamicvit.app import Choices, Side, SideBySide, markup, page, side_by_side
from dynamicvit.app.inputs import CLIP_BYTES, IMAGE_BYTES, Inputs
from dynamicvit.app.pictures import pictures_of
from dynamicvit.data import Prediction
from dynamicvit.demo import load_dense
from dynamicvit.errors import InputError
from dynamicvit.methods import METHODS
from exports import shallow
from families import BY_NAME, DEIT, Family
from maps import MAPS
from pictures import write_image
from test_readme import run as run_page

CLIPS = BY_NAME["inflated_augreg"]


def png(path: Path, width: int, height: int) -> Path:
    """A PNG that says how large it is, and is cut off there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + start + struct.pack(">I", 9) + b"IDAT")
    return path


def test_gradio_is_imported_without_its_stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    file_of, met = inspect.getfile, []

    def need(*about: str) -> None:
        met.append(about)
        with pytest.raises(OSError, match=r"^$"):
            inspect.getfile(type("Button", (), {"__module__": "gradio.components"}))
        assert inspect.getfile(Path) == file_of(Path)
        raise InputError("none")

    monkeypatch.setattr(page, "need", need)
    with pytest.raises(InputError, match="none"):
        page.gradio()
    assert inspect.getfile is file_of
    assert met == [("gradio", "app")]


@torch.no_grad()
def test_a_run_says_what_the_model_says_and_costs() -> None:
    model, image = DEIT.sparse(0.7), DEIT.images(1)[0]
    view = model.at(0.5)
    run = side_by_side(view, image)
    torch.testing.assert_close(run.sparse.logits, view(image[None])[0])
    torch.testing.assert_close(run.dense.logits, model.backbone(image[None])[0])
    assert run.sparse.gmacs == count_macs(view) / 1e9
    assert run.dense.gmacs == count_macs(model.backbone) / 1e9
    assert (run.method, run.keep_ratio, run.kept) == ("dynamicvit", 0.5, [10, 5, 2])
    assert min(run.sparse.milliseconds, run.dense.milliseconds) > 0
    assert run.agreement == (run.sparse.top[0].index == run.dense.top[0].index)
    assert model.keep_ratio == 0.7


def test_an_image_with_tokens_of_its_own_costs_what_it_kept() -> None:
    model = DEIT.sparse(0.5)
    model.calibrate(DEIT.images(64, seed=1))
    runs = [side_by_side(model, image) for image in DEIT.images(4)]
    assert len({(*run.kept,) for run in runs}) > 1
    by_kept = sorted(runs, key=lambda run: (run.kept[0], run.kept[1], run.kept[2]))
    assert by_kept[0].sparse.gmacs < by_kept[-1].sparse.gmacs


@pytest.mark.parametrize("family", [DEIT, CLIPS], ids=lambda family: family.name)
def test_the_methods_that_are_offered(family: Family) -> None:
    model = family.sparse(0.7)
    choices = Choices(model)
    assert next(iter(choices.models)) == choices.own == "dynamicvit"
    others = {*choices.models} - {"dynamicvit"}
    assert {"lookahead", "tome"} <= others
    assert all(METHODS[name].works_untrained for name in others)
    assert ("rlt" in others) == (family.frames is not None)
    with torch.no_grad():
        for name in choices.models:
            output = choices.at(name, 0.5).forward_pruned(family.images())
            assert int(output.kept[-1][0].sum()) < family.num_patches
    assert choices.at("tome", 0.5).backbone is model.backbone
    with pytest.raises(InputError, match="'nothing'"):
        choices.at("nothing", 0.5)


def test_the_schedule_of_a_file_is_the_models_own_until_a_ratio_is_asked_for() -> None:
    model = DEIT.sparse((0.8, 0.5, 0.3))
    choices = Choices(model)
    assert choices.at("dynamicvit").schedule == choices.schedule == model.schedule
    assert choices.at("dynamicvit", 0.9).keep_ratio == 0.9
    with pytest.raises(InputError, match="tome"):
        choices.at("tome")
    assert Choices(DEIT.sparse(0.7)).schedule is None


def test_a_map_that_stays_whole_has_its_one_method_and_ratios() -> None:
    choices = Choices(MAPS[0].sparse())
    assert [*choices.models] == ["dynamicvit"]
    assert choices.least == 0.45
    side_by_side(choices.at("dynamicvit", choices.least), MAPS[0].images(1)[0])


def test_a_segmentation_model_has_maps_and_shares() -> None:
    dense = segmenter(DEIT.backbone(), 4).eval()
    choices = Choices(dense)
    assert choices.own == "lookahead"
    run = side_by_side(choices.at("lookahead", 0.5), DEIT.images(1)[0])
    assert run.sparse.logits.shape == (4, *DEIT.grid)
    assert sum(each.probability for each in run.dense.top) == pytest.approx(1)
    rows = pictures_of(run, Inputs(dense).pictures(DEIT.images(1)[0]))
    assert [each.title for each in rows[-1]] == ["map, dense", "map, lookahead"]
    shown = markup.result(run, rows)
    assert "of the places as dense" in shown
    assert shown.count("<img") == sum(map(len, rows))


def test_pictures_of_a_clip_move() -> None:
    model = CLIPS.sparse()
    inputs = Inputs(model)
    clip = CLIPS.images(1)[0]
    rows = pictures_of(side_by_side(model, clip), inputs.pictures(clip))
    assert rows[0][0].note == "12 patches in 4 frames"
    stage = Image.open(io.BytesIO(b64decode(rows[0][1].url.partition(",")[2])))
    assert getattr(stage, "n_frames", 1) == 4
    assert len(rows[1]) == len(rows[0]) - 1, "keep scores of each stage"


def test_names_are_text_and_no_markup() -> None:
    side = Side(torch.zeros(1), [Prediction(0, "<script>'\"&", 0.5)], 1.0, 1.0)
    run = side_by_side(DEIT.sparse(), DEIT.images(1)[0])
    shown = markup.result(SideBySide("<b>", 0.5, run.output, side, side, 1.0, untrained=True), [])
    assert "<script" not in shown
    assert "<b>,</b>" not in shown
    assert "by chance" in shown
    assert "<i>" not in markup.note("<i>")


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "hundred_megapixels.png": (lambda path: png(path, 10_000, 10_000), "100 million pixels, 40"),
    "long.png": (lambda path: png(path, 10_000, 10), "200 times"),
    "text.png": (lambda path: path.write_text("text") and path, "not an image"),
    "cut.png": (lambda path: png(path, 10, 10), "image"),
    "video.mp4": (lambda path: write_clip(path, 4), "takes images"),
    "gone.png": (lambda path: path, "upload it again"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_named(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    with pytest.raises(InputError, match=words) as caught:
        Inputs(DEIT.sparse()).read(make(tmp_path / f"upload-{name}"), name)
    assert str(caught.value).startswith(name)
    assert str(tmp_path) not in str(caught.value), "where uploads lie is no user's business"


@pytest.mark.parametrize(("family", "most"), [(DEIT, IMAGE_BYTES), (CLIPS, CLIP_BYTES)])
def test_a_file_of_too_many_bytes_is_not_read(family: Family, most: int, tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(most + 1)
    with pytest.raises(InputError, match=rf"large: .* {most >> 20} MB at most"):
        Inputs(family.sparse()).read(tmp_path / "large", "large")


def test_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs(CLIPS.sparse())
    assert inputs.read(write_clip(tmp_path / "a.mp4", 9), "a.mp4").shape == CLIPS.shape
    hour = write_clip(tmp_path / "hour.mp4", 3, fps=1, times=[0, 1800, 3600])
    with pytest.raises(InputError, match=r"hour.mp4 .*1:00:0\d, 0:10:00 at most"):
        inputs.read(hour, "hour.mp4")
    with pytest.raises(InputError, match="an image, not a video"):
        inputs.read(png(tmp_path / "image.png", 9, 9), "image.png")
    monkeypatch.setattr("dynamicvit.app.inputs.CLIP_PIXELS", 4 * 64 * 48 - 1)
    with pytest.raises(InputError, match="64x48 are"):
        inputs.read(tmp_path / "a.mp4", "a.mp4")


@pytest.mark.parametrize("family", [DEIT, CLIPS], ids=lambda family: family.name)
def test_what_comes_with_it_is_what_the_model_takes(family: Family) -> None:
    for each in Inputs(family.sparse()).bundled():
        assert each.tensor.shape == family.shape
        assert each.tensor.flatten().unique().numel() > 1
    if family.frames:
        assert not each.tensor[0].equal(each.tensor[-1]), "nothing moves"


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--port", "70000"), "70000"),
        (("--checkpoint", "weights.pth"), "weights.pth"),
        (("--model", "no_such_model"), "no_such_model"),
        (("--tuned", "tuned", "--keep-ratio", "0.5"), "tuned"),
        (("--tuned", "tuned"), "tuned"),
        (("--host", "256.1.1.1", "--port", "0"), "256.1.1.1"),
    ],
)
def test_bad_options(
    words: tuple[str, ...], named: str, command: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    assert command("app", *words) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_port_in_use(command: Callable[..., int], capsys: pytest.CaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert command("app", "--port", str(port)) == 2
    assert f"--port {port} is in use" in capsys.readouterr().err


def test_the_demo_reads_its_scenes() -> None:
    model: DynamicViT = sparsify(load_dense())
    inputs = Inputs(model.eval(), scenes=True)
    costs = Choices(model).costs(model, (96, 96))
    runs = [side_by_side(model, each.tensor, costs=costs) for each in inputs.bundled()]
    assert sum(run.dense.top[0].probability > 0.5 for run in runs) >= 4
    assert sum(run.agreement for run in runs) >= 4


def test_the_page_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(Path("photo.jpg"), 90, (100, 80))
    shallow().save_pretrained("runs/mine")
    found = run_page("docs/app.md", {}, {})["run"]
    assert found.kept == [int(kept.sum()) for kept in found.output.kept]
