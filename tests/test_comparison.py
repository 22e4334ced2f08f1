"""The comparison: rows that are computed once, lines over seeds, numbers that mean something."""

from __future__ import annotations

import copy
import csv
import io
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from dynamicvit import DynamicViT, InputError, sparsify
from dynamicvit.comparison import (
    ABLATIONS,
    Entry,
    Experiment,
    Row,
    Timing,
    all_names,
    candidate_named,
    candidates,
    lines_of,
    write_csv,
)
from dynamicvit.comparison import experiment as module
from dynamicvit.comparison import timing as timings
from dynamicvit.comparison.cache import Cache, identity
from dynamicvit.costs import DENSE, count_macs
from dynamicvit.data import ImageData, images_digest
from dynamicvit.methods import at_macs
from dynamicvit.plots.comparison import (
    accuracy_over_macs,
    accuracy_over_throughput,
    save_comparison,
)
from families import DEIT
from pictures import noise_folders


def images(folder: Path) -> ImageData:
    return ImageData(noise_folders(folder, classes=2, each=3, size=DEIT.size))


def experiment(folder: Path, **changes) -> Experiment:
    data = images(folder / "images")
    return Experiment(
        **{
            "backbone": DEIT.backbone(),
            "evaluated": data,
            "trained": [data],
            "recipe": "small_data",
            "overrides": ["images=4", "batch_size=2"],
            "output": folder / "out",
            "batch_size": 4,
            "workers": 0,
            **changes,
        }
    )


class TestRows:
    def test_a_row_is_computed_once(self, tmp_path: Path, monkeypatch) -> None:
        entry = Entry(candidate_named("class-attention"), 0.75, 0)
        steps: list[int] = []
        first = experiment(tmp_path).row(entry, lambda progress: steps.append(progress.step))
        assert steps == [0, 1]
        assert (first.method, first.seed, first.images, first.evaluated) == (
            "class-attention",
            0,
            4,
            6,
        )
        monkeypatch.setattr(module, "fit", None)
        monkeypatch.setattr(module, "measure", None)
        assert experiment(tmp_path).row(entry) == first
        assert not list(tmp_path.rglob("checkpoint*"))

    @pytest.mark.parametrize(
        "changes",
        [
            {"overrides": ["images=6", "batch_size=2"]},
            {"precision": "bf16"},
            {"crop_pct": 0.5},
            {"backbone": DEIT.backbone(seed=1)},
        ],
    )
    def test_what_makes_a_row_another_one(self, tmp_path: Path, changes) -> None:
        entry = Entry(candidate_named("dynamicvit"), 0.75, 0)
        one, other = experiment(tmp_path), experiment(tmp_path, **changes)
        assert one.key(entry) != other.key(entry)

    def test_seed_and_method_and_budget_too(self, tmp_path: Path) -> None:
        plan = experiment(tmp_path)
        entries = [
            Entry(candidate_named(name), fraction, seed)
            for name in ("random", "tome")
            for fraction in (0.5, 0.7)
            for seed in (None, 0, 1)
        ]
        assert len({identity(plan.key(entry)) for entry in entries}) == len(entries)

    def test_untrained_rows_do_not_hang_on_training(self, tmp_path: Path) -> None:
        entry = Entry(candidate_named("tome"), 0.75, None)
        trained, untrained = experiment(tmp_path), experiment(tmp_path, trained=[])
        assert trained.key(entry) == untrained.key(entry)
        assert untrained.row(entry) in trained.known_rows()

    def test_rows_of_another_recipe_stay_out(self, tmp_path: Path) -> None:
        entry = Entry(candidate_named("random"), 0.75, 0)
        row = experiment(tmp_path).row(entry)
        other = experiment(tmp_path, overrides=["images=6", "batch_size=2"])
        assert row in experiment(tmp_path).known_rows()
        assert other.known_rows() == []

    def test_an_interrupted_run_goes_on(self, tmp_path: Path) -> None:
        entry = Entry(candidate_named("static"), 0.75, 0)

        def stop(progress) -> None:
            if progress.step == 0:
                raise KeyboardInterrupt

        steps: list[int] = []
        with pytest.raises(KeyboardInterrupt):
            experiment(tmp_path).row(entry, stop)
        again = experiment(tmp_path).row(entry, lambda progress: steps.append(progress.step))
        assert steps == [1]
        whole = experiment(tmp_path / "other").row(entry)
        assert again.agreement == whole.agreement

    def test_dense_agrees_with_itself(self, tmp_path: Path) -> None:
        plan = experiment(tmp_path)
        dense = plan.row(Entry(None, 1.0, None))
        assert dense.agreement == dense.macs_fraction == 1.0
        assert dense.top1 is not None

    def test_the_dense_network_is_asked_once(self, tmp_path: Path) -> None:
        plan = experiment(tmp_path)
        plan.row(Entry(candidate_named("random"), 0.75, None))
        calls: list[object] = []
        plan._dense.network.register_forward_hook(lambda *_: calls.append(1))
        row = plan.row(Entry(None, 1.0, None))
        assert not calls
        assert row.agreement == 1.0

    def test_true_macs(self, tmp_path: Path) -> None:
        plan = experiment(tmp_path)
        row = plan.row(Entry(candidate_named("downsample"), 0.75, None))
        macs = count_macs(at_macs("downsample", DEIT.backbone(), 0.75))
        assert row.gmacs == macs / 1e9
        assert row.macs_fraction == macs / count_macs(DEIT.backbone())

    def test_the_backbone_is_left_alone(self, tmp_path: Path) -> None:
        plan = experiment(tmp_path)
        before = copy.deepcopy(plan.backbone.state_dict())
        for name in ("dynamicvit", "narrow"):
            plan.row(Entry(candidate_named(name), 0.75, 0))
        after = plan.backbone.state_dict()
        assert all(value.equal(before[name]) for name, value in after.items())

    def test_a_trained_dynamicvit_can_be_used(self, tmp_path: Path) -> None:
        experiment(tmp_path).row(Entry(candidate_named("dynamicvit"), 0.75, 0))
        [folder] = (tmp_path / "out" / "runs").iterdir()
        assert DynamicViT.from_pretrained(folder).schedule.stages == (1, 2, 3)

    def test_entries(self, tmp_path: Path) -> None:
        chosen = [candidate_named("dynamicvit"), candidate_named("tome")]
        plan = experiment(tmp_path)
        assert [str(entry) for entry in plan.entries(chosen, [0.6], seeds=2)] == [
            "dense",
            "dynamicvit-merged at 0.6, seed 0",
            "dynamicvit-merged at 0.6, seed 1",
            "tome at 0.6, untrained",
            "tome at 0.6, seed 0",
            "tome at 0.6, seed 1",
        ]
        plan.trained = []
        assert [entry.name for entry in plan.entries(chosen, [0.6], 2)] == ["dense", "tome"]


class TestCandidates:
    def test_lists_of_names(self) -> None:
        assert [c.name for c in candidates("tome, dynamicvit,tome")] == [
            "tome",
            "dynamicvit-merged",
        ]
        assert [c.name for c in candidates(["all", "zeroed"])] == [*all_names(), "zeroed"]
        assert [c.name for c in candidates("ablations")] == list(ABLATIONS)

    def test_policy_is_of_any_method(self) -> None:
        for name in ("dynamicvit", "evit"):
            model = candidate_named(f"{name}-merged").build(DEIT.backbone(), 0.75)
            assert model.policy == "merged"
            assert model.method.name == name
            plain, default = candidate_named(name), sparsify(DEIT.backbone(), method=name)
            assert plain.build(DEIT.backbone(), 0.75).policy == plain.policy == default.policy
        assert candidate_named("dynamicvit-removed").policy == "removed"
        assert candidate_named("evit-removed").name == "evit"

    @pytest.mark.parametrize("name", ["tomee", "dynamicvit,tomee", "dynamicvit,"])
    def test_a_name_that_is_not_there(self, name: str) -> None:
        with pytest.raises(InputError, match=repr(name.rpartition(",")[2])) as raised:
            candidates(name)
        assert all(known in str(raised.value) for known in ("tome", "zeroed"))

    def test_stages_of_the_ablations(self) -> None:
        backbone = DEIT.backbone(depth=8)
        stages = {n: c.build(backbone, 0.8).schedule.stages for n, c in ABLATIONS.items()}
        assert stages["one-stage"] == (2,)
        assert stages["two-stages"] == (2, 4)
        assert stages["zeroed"] == (2, 4, 6)


class TestIdentity:
    def test_of_data(self, tmp_path: Path) -> None:
        one = images(tmp_path / "one")
        before = images_digest([one])
        assert before != images_digest([one.subset([0, 1])])
        assert before != images_digest([one.with_class_map({"0": 1, "1": 0})])
        moved = (tmp_path / "one").rename(tmp_path / "moved")
        assert images_digest([ImageData(moved)]) == before, "wherever it lies"

    def test_of_a_file_that_changed(self, tmp_path: Path) -> None:
        data = images(tmp_path)
        before = images_digest([data])
        path = Path(data.path(0))
        path.write_bytes(path.read_bytes() + b" ")
        assert images_digest([data]) != before


class TestCache:
    def test_a_broken_file_counts_for_nothing(self, tmp_path: Path) -> None:
        cache = Cache(tmp_path)
        cache.put({"a": 1}, {"b": 2})
        assert cache.get({"a": 1}) == {"b": 2}
        assert cache.get({"a": 2}) is None
        for broken in ("{", "[]", '{"key": {}}'):
            cache.path({"a": 1}).write_text(broken)
            assert cache.get({"a": 1}) is None
            assert list(cache.values()) == []


class TestTiming:
    @pytest.mark.parametrize("name", ["tome", "narrow"])
    def test_a_method(self, name: str) -> None:
        backbone = DEIT.backbone(depth=2)
        model = at_macs(name, copy.deepcopy(backbone), 0.75)
        [timing] = timings.time_method(
            model, backbone, precision="fp32", threads=1, seconds=1e-6, batch_sizes=(2,)
        )
        assert timing.batch_size == 2
        assert timing.low <= timing.speedup <= timing.high
        assert (timing.choosing_ms > 0) == (name != "narrow")

    def test_narrow_is_compared_with_the_wide_network(self, monkeypatch) -> None:
        asked: list[nn.Module] = []
        backbone = DEIT.backbone(depth=2)
        backbone.register_forward_hook(lambda network, *_: asked.append(network))
        model = at_macs("narrow", DEIT.backbone(depth=2), 0.5)
        timings.time_method(
            model, backbone, precision="fp32", threads=1, seconds=1e-6, batch_sizes=(1,)
        )
        assert asked

    def test_what_choosing_takes_of_what_is_saved(self, monkeypatch) -> None:
        """10 ms dense, 7 ms so: 3 ms saved, and 1 ms more would be if choosing took none."""
        measured = type("Spread", (), {"median": 0.010, "low": 1.0, "high": 2.0})()
        pruned = type("Spread", (), {"median": 0.007})()
        row = type(
            "Bench",
            (),
            {"batch_size": 1, "dense_seconds": measured, "pruned_seconds": pruned,
             "speedup": measured},
        )()  # fmt: skip
        monkeypatch.setattr(timings, "bench", lambda *_, **__: [row])
        monkeypatch.setattr(timings, "stage_seconds", lambda *_: 0.001)
        model = DynamicViT(DEIT.backbone(), DENSE, [])
        [timing] = timings.time_method(model, model, precision="fp32", threads=1, seconds=1)
        assert timing.choosing_ms == pytest.approx(1)
        assert timing.choosing_share == pytest.approx(0.25)

    @pytest.mark.filterwarnings("error::dynamicvit.errors.UntrainedWarning")
    def test_nobody_is_told_that_what_is_timed_is_untrained(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "time_method", partial(timings.time_method, batch_sizes=(1,)))
        plan = experiment(tmp_path, threads=1, seconds=1e-6)
        assert plan.timing(candidate_named("dynamicvit"), 0.75)

    def test_it_is_measured_once(self, tmp_path: Path, monkeypatch) -> None:
        plan = experiment(tmp_path, threads=1, seconds=1e-6)
        first = plan.timing(candidate_named("tome"), 0.75)
        assert [timing.batch_size for timing in first] == [1, 32]
        monkeypatch.setattr(module, "time_method", None)
        again = experiment(tmp_path, threads=1, seconds=1e-6)
        assert again.timing(candidate_named("tome"), 0.75) == first
        assert again.known_timings() == {("tome", 0.75): first}
        assert experiment(tmp_path, threads=2, seconds=1e-6).known_timings() == {}


def row(method: str, seed: int | None, top1: float | None = 0.5, fraction: float = 0.6) -> Row:
    return Row(method, fraction, fraction, 0.8, seed, 8, top1, 0.9, 0.1, 100)


def timed(size: int, speedup: float) -> Timing:
    return Timing(size, speedup, speedup - 0.1, speedup + 0.1, 10.0, 5.0, 1.0, 0.2)


ROWS = [
    row("tome", None, 0.6),
    row("dynamicvit-merged", 1, 0.8),
    row("dynamicvit-merged", 0, 0.6),
    row("dense", None, 0.9, fraction=1.0),
    row("tome", 0, 0.65),
]


class TestLines:
    def test_seeds_become_one_line(self) -> None:
        lines = lines_of(ROWS, {("dynamicvit-merged", 0.6): [timed(1, 1.5), timed(32, 2.0)]})
        assert [line.label for line in lines] == [
            "dense", "dynamicvit-merged", "tome, untrained", "tome",
        ]  # fmt: skip
        dynamic = lines[1]
        assert (dynamic.top1, dynamic.seeds) == (pytest.approx(0.7), 2)
        assert dynamic.top1_spread == pytest.approx(0.2 / 2**0.5)
        assert lines[3].top1_spread is None
        assert dynamic.timings[32].speedup == 2.0
        assert not lines[0].timings

    def test_csv(self) -> None:
        lines = lines_of(ROWS, {("dynamicvit-merged", 0.6): [timed(1, 1.5)]})
        table = list(csv.DictReader(io.StringIO(write_csv(lines))))
        assert [line["method"] for line in table] == ["dense", "dynamicvit-merged", "tome", "tome"]
        assert float(table[1]["top1"]) == pytest.approx(0.7)
        assert table[1]["speedup_batch_1"] == "1.5"
        assert table[2]["speedup_batch_1"] == ""
        assert [line["trained"] for line in table] == ["False", "True", "False", "True"]

    @pytest.mark.parametrize("labeled", [True, False])
    def test_plots(self, labeled: bool) -> None:
        rows: Sequence[Row] = ROWS
        if not labeled:
            rows = [row(each.method, each.seed, None, each.fraction) for each in ROWS]
        lines = lines_of(rows, {("dynamicvit-merged", 0.6): [timed(32, 2.0)]})
        [axes] = accuracy_over_macs(lines).axes
        assert sorted(text.get_text() for text in axes.texts) == [
            "dense",
            "dynamicvit-merged",
            "tome",
        ]
        assert [line.get_label() for line in axes.containers] == [
            "dynamicvit-merged", "tome, untrained", "tome"]  # fmt: skip
        assert "hollow" in axes.get_title(loc="left"), "tome is there untrained too"
        assert ("top-1" in axes.get_ylabel()) == labeled
        left, right = axes.get_xlim()
        assert right - left >= 0.2 * max(line.gmacs for line in lines if not line.is_dense)
        [axes] = accuracy_over_throughput(lines, 32).axes
        shown = [text.get_text() for text in axes.texts]
        assert sorted(shown) == ["dense", "dynamicvit-merged"], (
            "what has not been timed is not shown"
        )
        [container] = axes.containers
        assert container.lines[0].get_xdata().tolist() == [2.0]
        expected = 70.0 if labeled else 90.0
        assert container.lines[0].get_ydata().tolist() == pytest.approx([expected])


def test_what_is_far_below_is_named_beside_the_plot() -> None:
    lines = lines_of([*ROWS, row("narrow", 0, 0.01)], {})
    [axes] = accuracy_over_macs(lines).axes
    assert "narrow (1.0: below)" in [text.get_text() for text in axes.texts]
    assert axes.get_ylim()[0] > 50, "the others have the plot to themselves"


def test_every_point_is_named_without_overlaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same accuracies throughout, the most labels; ablations have a plot of their own."""
    names = [*all_names(), *ABLATIONS]
    rows = [row("dense", None, 0.8, 1.0), *(row(name, 0, 0.79) for name in names)]
    lines = lines_of(rows, {(name, 0.6): [timed(32, 2.0)] for name in names})
    saved: dict[str, Figure] = {}
    note = lambda figure, path: saved.update({path.name: figure})  # noqa: E731
    monkeypatch.setattr("dynamicvit.plots.style.save", note)
    plots = save_comparison(lines, tmp_path, ABLATIONS)
    assert plots == list(saved)
    assert plots == ["accuracy_over_gmacs", "accuracy_over_throughput_batch_32", "ablations"]
    *over_costs, ablations = saved.values()
    for figure in over_costs:
        figure.canvas.draw()
        [axes] = figure.axes
        assert {text.get_text() for text in axes.texts} == {"dense", *all_names()}
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        for place, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in [axes.bbox, *boxes[:place]])
            assert box.x1 < figure.bbox.x1
            assert figure.bbox.y0 < box.y0 < box.y1 < figure.bbox.y1
    ablations.canvas.draw()
    [panel] = ablations.axes
    assert {label.get_text() for label in panel.get_yticklabels()} == set(ABLATIONS)
    assert {text.get_text() for text in panel.texts} == {
        "79.0",
        "dense 80.0",
        "dynamicvit-removed 79.0",
    }


def test_chance_is_to_be_had_again(tmp_path: Path) -> None:
    entry = Entry(candidate_named("random"), 0.5, None)
    torch.manual_seed(1)
    one = experiment(tmp_path / "one").row(entry)
    torch.manual_seed(2)
    assert experiment(tmp_path / "two").row(entry) == one
