"""The log: valid JSON whatever happens, and what the curves and TensorBoard make of it."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from dynamicvit import InputError
from dynamicvit.plots.curves import MAX_POINTS, _means, curves, smoothed
from dynamicvit.plots.style import save
from dynamicvit.training import Progress
from dynamicvit.training.log import TensorBoard, read_log

FINE = Progress(
    step=0,
    steps=4,
    images=8,
    images_per_second=16.0,
    losses={"total": 1.5, "token": 0.5, "ratio": 0.0},
    kept=(0.75, 0.5),
    learning_rates={"predictors": 1e-3, "backbone": 1e-5},
    gradient_norm=2.0,
    kept_by_score=(1.0, 0.25),
    kept_at_inference=(0.7, 0.45),
)
BAD = dataclasses.replace(
    FINE,
    losses={"total": math.nan, "token": math.inf, "ratio": 0.0},
    gradient_norm=math.nan,
    not_finite=("token",),
)


def at(progress: Progress, step: int) -> Progress:
    return dataclasses.replace(progress, step=step)


def write_log(path: Path, *steps: Progress) -> Path:
    path.write_text("".join(step.to_line() for step in steps))
    return path


def test_a_step_is_read_as_it_was_written(tmp_path: Path) -> None:
    (step,) = read_log(write_log(tmp_path / "log.jsonl", FINE))
    expected = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(FINE).items()
    }
    assert step == expected


def test_what_is_not_finite_is_null_and_not_nan() -> None:
    """NaN is no JSON: jq, JavaScript and others stumble over it."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    step = json.loads(BAD.to_line(), parse_constant=refuse)
    assert step["losses"] == {"total": None, "token": None, "ratio": 0.0}
    assert step["gradient_norm"] is None


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    path = write_log(tmp_path / "log.jsonl", FINE)
    path.write_text(path.read_text() + FINE.to_line()[:20])
    with pytest.raises(InputError, match=r"log\.jsonl, line 2: not a step's JSON"):
        read_log(path)


# ---------------------------------------------------------------- TensorBoard


def events(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_has_every_number(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        for step in range(3):
            board(at(FINE, step))
    read = events(tmp_path)
    assert {name: [e.value for e in read.Scalars(name)] for name in read.Tags()["scalars"]} == {
        name: pytest.approx([value] * 3) for name, value in FINE.scalars()
    }
    names = {name for name, _ in FINE.scalars()}
    assert {"loss/token", "kept_stage_2/by_score", "kept_stage_1/sampled"} <= names
    assert {"kept_stage_1/at_inference", "learning_rate/backbone", "run/gradient_norm"} <= names
    assert dict(FINE.scalars())["kept_stage_2/at_inference"] == 0.45


def test_a_step_left_out_has_no_loss_there(tmp_path: Path) -> None:
    with TensorBoard(tmp_path) as board:
        board(at(FINE, 0))
        board(at(BAD, 1))
    read = events(tmp_path)
    assert [e.step for e in read.Scalars("loss/total")] == [0]
    assert [e.step for e in read.Scalars("run/gradient_norm")] == [0]
    assert [e.value for e in read.Scalars("run/left_out")] == [0.0, 1.0]


def test_steps_made_again_are_shown_once(tmp_path: Path) -> None:
    """A run that was killed after its last checkpoint makes some steps twice."""
    for start, total in ((0, 1.0), (2, 7.0)):
        losses = {"total": total}
        with TensorBoard(tmp_path) as board:
            for step in range(start, start + 4):
                board(dataclasses.replace(at(FINE, step), losses=losses))
    shown = [(e.step, e.value) for e in events(tmp_path).Scalars("loss/total")]
    assert shown == [(0, 1.0), (1, 1.0), (2, 7.0), (3, 7.0), (4, 7.0), (5, 7.0)]


def divide(folder: Path) -> None:
    with TensorBoard(folder) as board:
        board._writer = SummaryWriter(str(folder))
        _ = 1 / 0


def test_a_full_disk_is_said_unless_something_else_went_wrong_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    with TensorBoard(tmp_path) as board, pytest.raises(InputError, match="No space left"):
        board(FINE)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", full)
    with pytest.raises(InputError, match="No space left"), TensorBoard(tmp_path) as board:
        board._writer = SummaryWriter(str(tmp_path))
    with pytest.raises(ZeroDivisionError):
        divide(tmp_path)


def test_a_run_without_a_step_writes_nothing(tmp_path: Path) -> None:
    with TensorBoard(tmp_path / "tensorboard"):
        pass
    assert not (tmp_path / "tensorboard").exists()


# ---------------------------------------------------------------- the picture


def test_the_picture_is_drawn_and_replaces_the_last(tmp_path: Path) -> None:
    steps = read_log(write_log(tmp_path / "log.jsonl", at(FINE, 0), at(BAD, 1), at(FINE, 2)))
    path = tmp_path / "curves.png"
    path.write_text("old")
    save(curves(steps), path)
    pixels = imread(path)
    assert pixels.shape[0] > 600 < pixels.shape[1]
    colors = np.round(pixels[..., :3] * 255).astype(np.uint32) @ [1 << 16, 1 << 8, 1]
    assert len(np.unique(colors)) > 50
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "log.jsonl"]


def test_a_step_left_out_is_marked(tmp_path: Path) -> None:
    def red(*steps: Progress) -> int:
        drawn = curves(read_log(write_log(tmp_path / "log.jsonl", *steps)))
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        r, g, b = np.moveaxis(np.asarray(canvas.buffer_rgba())[..., :3] / 255, -1, 0)
        return int(((r > 0.7) & (g < 0.6) & (b < 0.6) & (r > g + 0.3)).sum())

    whole = [at(FINE, step) for step in range(5)]
    assert red(*whole[:2], at(BAD, 2), *whole[3:]) > red(*whole) + 500


def test_a_long_run_is_drawn_as_means_and_a_run_of_bad_steps_too(tmp_path: Path) -> None:
    steps = list(range(10 * MAX_POINTS))
    assert _means(steps).tolist() == [10 * place + 4.5 for place in range(MAX_POINTS)]
    assert _means([1.0, None]).tolist()[0] == 1.0
    curves(read_log(write_log(tmp_path / "log.jsonl", at(BAD, 0)))).canvas.draw()


def test_a_smoothed_line_lies_over_the_values_as_they_are(tmp_path: Path) -> None:
    totals = [2 + (-1) ** step for step in range(300)]
    steps = [
        dataclasses.replace(at(FINE, step), losses={"total": float(total)})
        for step, total in enumerate(totals)
    ]
    losses = curves(read_log(write_log(tmp_path / "log.jsonl", *steps))).axes[0]
    raw, smooth = losses.lines
    assert raw.get_ydata().tolist() == totals
    assert raw.get_alpha() < 0.5
    assert raw.get_color() == smooth.get_color()
    assert np.abs(smooth.get_ydata() - 2).max() < 0.1
    gaps = np.array([1.0, np.nan, 3.0] * 20)
    assert np.isnan(smoothed(gaps))[1::3].all()
    assert np.abs(smoothed(gaps)[3:-3:3] - 2).max() < 0.5


@pytest.mark.parametrize("count", [1, pytest.param(300, marks=pytest.mark.extended)])
def test_no_legend_lies_on_a_curve(count: int, tmp_path: Path) -> None:
    parts = {name: 10.0**-place for place, name in enumerate(("total", *"abcdefghijkl"))}
    many = dataclasses.replace(FINE, losses=parts)
    steps = [at(many, step) for step in range(count)]
    steps.append(dataclasses.replace(many, step=count, not_finite=("a",)))
    drawn = curves(read_log(write_log(tmp_path / "log.jsonl", *steps)))
    drawn.canvas.draw()
    page = drawn.bbox
    assert len(drawn.axes) == 4
    for axes in drawn.axes:
        legend = axes.get_legend()
        assert legend is not None
        box = legend.get_window_extent()
        assert not any(box.overlaps(other.bbox) for other in drawn.axes)
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1


def test_where_only_the_order_of_scores_counts_they_have_no_curve(tmp_path: Path) -> None:
    def said(step: Progress) -> list[str]:
        drawn = curves(read_log(write_log(tmp_path / "log.jsonl", step)))
        legends = [axes.get_legend() for axes in drawn.axes]
        return [text.get_text() for legend in legends if legend for text in legend.get_texts()]

    ordered = dataclasses.replace(FINE, kept_by_score=())
    assert set(said(FINE)) - set(said(ordered)) == {"likelier kept than not"}
    assert {name for name, _ in FINE.scalars()} - {name for name, _ in ordered.scalars()} == {
        "kept_stage_1/by_score",
        "kept_stage_2/by_score",
    }


def test_held_out_images_have_a_panel_and_a_curve(tmp_path: Path) -> None:
    told = dataclasses.replace(at(FINE, 3), held_out={"top1": 0.25})
    again = dataclasses.replace(at(FINE, 5), held_out={"top1": 0.5})
    steps = [at(FINE, 2), told, at(FINE, 4), again]
    drawn = curves(read_log(write_log(tmp_path / "log.jsonl", *steps)))
    (panel,) = (axes for axes in drawn.axes if "held-out" in axes.get_title("left"))
    assert panel.lines[0].get_xydata().tolist() == [[3, 25], [5, 50]]
    assert ("held_out/top1", 0.25) in told.scalars()
    assert not any(name.startswith("held_out") for name, _ in FINE.scalars())


def test_where_nothing_is_dropped_there_is_no_panel_of_kept_patches(tmp_path: Path) -> None:
    dense = dataclasses.replace(
        FINE, kept=(), kept_by_score=(), kept_at_inference=(), held_out={"top1": 0.5}
    )
    drawn = curves(read_log(write_log(tmp_path / "log.jsonl", dense)))
    titles = [axes.get_title("left") for axes in drawn.axes if axes.get_visible()]
    assert titles == ["losses", "gradient norm", "learning rate", "held-out top-1 (%)"]
