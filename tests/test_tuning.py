"""Schedules found for a target: at their cost, no worse than the method's own, and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import dynamicvit.tuning.clock as clock
from dynamicvit import (
    DynamicViT,
    InputError,
    Schedule,
    count_macs,
    schedule_macs,
    sparsify,
    tune,
)
from dynamicvit.costs import DENSE
from dynamicvit.evaluation.bench import Setting
from dynamicvit.tuning import Target
from dynamicvit.tuning.block_times import POINTS, WHOLE_POINTS, measure_parts, measure_whole, points
from dynamicvit.tuning.judge import Gain, Judge, Notebook
from dynamicvit.tuning.price import Parts, price_in_macs, price_in_seconds
from dynamicvit.tuning.search import Search
from dynamicvit.tuning.space import Counts, Space
from families import BY_NAME, DEIT

IMAGES = torch.randn(48, 3, *DEIT.size, generator=torch.Generator().manual_seed(1))


def looking_ahead(depth: int = 6) -> DynamicViT:
    return sparsify(DEIT.backbone(depth=depth), method="lookahead").eval()


def everywhere(model: DynamicViT, space: Space) -> DynamicViT:
    whole = Schedule(space.stages, (1.0,) * len(space.stages), model.policy)
    kind = model.method if space.movable else model.methods
    return DynamicViT(model.bound, whole, kind)


@cache
def priced() -> tuple[Space, Parts]:
    model = looking_ahead()
    space = Space.of(model, DEIT.size)
    return space, price_in_macs(everywhere(model, space), space, DEIT.size)


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamicvit.plots.frontier.plot_frontier", lambda *_: Figure((1, 1)))


class TestSpace:
    def test_counts_and_schedules_say_the_same(self) -> None:
        space = Space.of(looking_ahead(), DEIT.size)
        counts = (20, 15, 15, 9, 6)
        schedule = space.schedule(counts)
        assert schedule.stages == (2, 4, 5)
        assert schedule.kept(DEIT.num_patches) == (15, 9, 6)
        assert space.counts_of(schedule) == counts

    def test_prediction_modules_keep_their_stages(self) -> None:
        space = Space.of(DEIT.sparse(stages=(1, 3)), DEIT.size)
        assert space.schedule((20, 9)).stages == (1, 3)

    @pytest.mark.parametrize("share", [0.5, 0.7, 0.95])
    def test_fit_is_the_most_within_a_limit(self, share: float) -> None:
        space, price = priced()
        limit = share * price.dense
        counts = space.fit(space.bent(1.25), price, limit)
        assert counts is not None
        assert price(counts) <= limit
        for place, count in enumerate(counts):
            before = counts[place - 1] if place else DEIT.num_patches
            more = (*counts[:place], count + 1, *counts[place + 1 :])
            steep = place + 1 < len(counts) and 2 * counts[place + 1] < count + 1
            assert count == before or steep or price(more) > limit

    def test_what_can_not_be_met_has_no_counts(self) -> None:
        space, price = priced()
        assert space.fit(space.bent(1.0), price, 0.01 * price.dense) is None


@pytest.mark.parametrize(
    "method", ["lookahead", "tome", "mctf", "evit", "tps", "diffrate", "class-attention"]
)
def test_macs_are_predicted_exactly(method: str) -> None:
    model = sparsify(DEIT.backbone(), method=method).eval()
    space = Space.of(model, DEIT.size)
    price = price_in_macs(everywhere(model, space), space, DEIT.size)
    adds = 1e-3 if method == "evit" else 0  # of the tokens that earlier stages might have added
    for counts in ((20, 14, 9), (16, 16, 10), (12, 7, 4)):
        model.schedule = space.schedule(counts)
        assert price(counts) == pytest.approx(count_macs(model), rel=adds, abs=0)


def test_a_search_finds_where_tokens_are_missed_least() -> None:
    """An answer that hangs on the first stages alone: tokens are to be kept there."""
    space = Space(tuple(range(1, 9)), 100, "removed", movable=True, halves=False)

    def price(counts: Counts) -> float:
        return float(sum(counts))

    def judge(counts: Counts, part: str) -> float:
        return sum((100 - count) ** 2 for count in counts[:3]) / 1e4 + 1e-3

    search = Search(space, lambda shape: space.fit(shape, price, 500.0), judge, 400)
    start = space.bent(1.0)
    found = search.run([start])
    scores = [judge(space.fit(shape, price, 500.0), "search") for shape in (start, found)]
    assert scores[1] < 0.1 * scores[0]
    assert search.ran <= 400


def test_a_gain_is_that_of_pairs_of_answers(tmp_path: Path) -> None:
    """From memory too, of which a file keeps the means."""
    model = looking_ahead(3)
    space = Space.of(model, DEIT.size)
    images = IMAGES[:8]
    fewer, more = (tuple(n for _ in space.stages) for n in (6, 12))

    def judge() -> Judge:
        return Judge(model, space, images, Notebook(tmp_path / "tried.json", {}))

    first = judge()
    verdicts = [first(counts, "held-out") for counts in (fewer, more)]
    gain = first.less(more, fewer, "held-out")
    assert gain.mean == pytest.approx(verdicts[0].kl - verdicts[1].kl)
    assert judge().less(more, fewer, "held-out") == gain
    back = first.less(fewer, more, "held-out")
    assert (back.mean, back.error) == (-gain.mean, gain.error)
    alone = [Judge(model, space, image[None], Notebook(None, {})) for image in images[4:]]
    each = [one(fewer, "all").kl - one(more, "all").kl for one in alone]
    assert gain.mean == pytest.approx(np.mean(each), rel=1e-3)
    assert gain.error == pytest.approx(np.std(each, ddof=1) / 2, rel=1e-3)


class TestMacs:
    def test_the_schedule_costs_what_was_asked_and_is_no_worse(self, tmp_path: Path) -> None:
        model = looking_ahead()
        before = model.schedule
        arguments: Any = {"image_size": DEIT.size, "evaluations": 20, "output": tmp_path}
        found = tune(model, IMAGES, macs="60%", **arguments)
        own = next(each for each in found.compared if each.name == "own")
        assert found.best.verdict.kl <= own.verdict.kl
        assert (found.best.name == "tuned") == found.gain.is_certain
        assert model.schedule == before, "the model is not changed"
        dense = schedule_macs(model, DENSE)
        model.schedule = found.schedule
        assert count_macs(model) == found.measured == found.best.cost
        assert 0.55 * dense < found.measured <= 0.6 * dense
        assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
        again = sparsify(DEIT.backbone(depth=6), schedule=tmp_path / "schedule.json")
        assert (again.schedule, again.method) == (found.schedule, model.method)

    @pytest.mark.usefixtures("no_picture")
    def test_a_second_call_goes_on_from_the_first(self, tmp_path: Path) -> None:
        arguments: Any = {"macs": 0.7, "image_size": DEIT.size, "evaluations": 12}
        whole = tune(looking_ahead(4), IMAGES, **arguments)
        told = []

        def stop(line: str) -> None:
            told.append(line)
            if len(told) == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tune(looking_ahead(4), IMAGES, output=tmp_path, tell=stop, **arguments)
        first = len(json.loads((tmp_path / "tried.json").read_text())["tried"])
        assert first
        rest = tune(looking_ahead(4), IMAGES, output=tmp_path, **arguments)
        assert rest.ran == (whole.ran[0] - first, first)
        assert rest.best == whole.best
        nothing = tune(looking_ahead(4), IMAGES, output=tmp_path, **arguments)
        assert nothing.ran[0] == 0
        with pytest.raises(InputError, match="data"):
            tune(looking_ahead(4), IMAGES[:40], output=tmp_path, **arguments)

    @pytest.mark.usefixtures("no_picture")
    @pytest.mark.parametrize(
        ("gain", "chosen", "words"),
        [
            (Gain(0.02, 0.009), "tuned", "its KL is 0.0200 ± 0.0090 below"),
            (Gain(0.02, 0.011), "own", "0.0200 ± 0.0110 below that of the method's own schedule"),
            (Gain(-0.02, 0.001), "own", "0.0200 ± 0.0010 above"),
        ],
    )
    def test_what_chance_may_have_brought_is_not_taken(
        self, gain: Gain, chosen: str, words: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Judge, "less", lambda *_: gain)
        model = looking_ahead(4)
        found = tune(model, IMAGES, macs=0.7, image_size=DEIT.size, evaluations=12)
        assert found.best.name == chosen
        assert words in found.in_words()[-1]

    def test_of_prediction_modules_only_the_ratios_change(self) -> None:
        model = DEIT.sparse(stages=(1, 2, 3), keep_ratio=0.7)
        found = tune(model, IMAGES, macs=0.7, image_size=DEIT.size, evaluations=12)
        assert found.schedule.stages == (1, 2, 3)
        model.schedule = found.schedule
        assert count_macs(model) == found.measured <= 0.7 * found.dense_cost

    def test_of_a_mean_over_patches(self) -> None:
        gap = BY_NAME["siglip_gap"]
        model = sparsify(gap.backbone(), method="lookahead")
        images = torch.randn(32, 3, *gap.size)
        found = tune(model, images, macs=0.7, image_size=gap.size, evaluations=2)
        model.schedule = found.schedule
        assert count_macs(model) == found.measured


def parts(*_: object) -> dict[str, Any]:
    """Times of a block that grow with its tokens, and of a stage."""
    block = {count: 1e-3 * (1 + count) for count in (1, 20)}
    curves = {"block": block, "stage": {1: 1e-3, 20: 1e-3}}
    return {"fixed": 1e-3, "curves": curves, "blocks": ["block"] * 4, "stage": "stage"}


class TestTimes:
    """On a machine whose times are known: a whole model takes a tenth longer than its parts."""

    DENSE = 1.1 * (1e-3 + 4 * 21e-3)

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        timed = []

        def whole(networks: dict[str, DynamicViT], *_: object) -> dict[str, float]:
            timed.append("whole")
            found = {}
            space = Space.of(looking_ahead(4), DEIT.size)
            price = price_in_seconds(space, parts())
            for name, network in networks.items():
                found[name] = 1.1 * price(space.counts_of(network.schedule))
            return found

        monkeypatch.setattr(clock, "measure_parts", parts)
        monkeypatch.setattr(clock, "time_networks", whole)
        return timed

    @pytest.mark.usefixtures("no_picture")
    def test_what_is_predicted_is_measured(self, tmp_path: Path, machine: list[str]) -> None:
        arguments: Any = {"image_size": DEIT.size, "output": tmp_path, "evaluations": 12}
        found = tune(looking_ahead(4), IMAGES, latency=0.7 * self.DENSE, **arguments)
        assert 0.6 * self.DENSE < found.measured <= 0.7 * self.DENSE
        assert found.error == pytest.approx(0)
        assert found.dense_cost == pytest.approx(self.DENSE)
        del machine[:]
        again = tune(looking_ahead(4), IMAGES, latency=0.7 * self.DENSE, **arguments)
        assert (again.best, again.measured, again.ran[0]) == (found.best, found.measured, 0)
        assert not machine, "times are remembered too"

    def test_a_throughput_is_that_of_a_batch(self) -> None:
        rate = 10 / (0.7 * self.DENSE)
        arguments: Any = {"image_size": DEIT.size, "batch_size": 10, "evaluations": 4}
        found = tune(looking_ahead(4), IMAGES, throughput=rate, **arguments)
        assert found.measured <= 10 / rate

    def test_the_nearest_is_said_where_a_target_can_not_be_met(self) -> None:
        arguments: Any = {"image_size": DEIT.size, "evaluations": 4}
        with pytest.raises(InputError, match=r"can't be met.* \d+(\.\d+)? ms"):
            tune(looking_ahead(4), IMAGES, latency="5ms", **arguments)
        with pytest.raises(InputError, match=r"93\.5 ms"):
            tune(looking_ahead(4), IMAGES, latency="1s", **arguments)


@pytest.mark.parametrize("measure", [measure_parts, measure_whole])
def test_parts_have_times(measure: Callable[..., Any]) -> None:
    """Of real blocks, at a dozen counts or a few; how long they are, a busy machine decides."""
    model = looking_ahead(2)
    runtime = "eager" if measure is measure_parts else "onednn"
    if runtime == "onednn" and not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN here")
    images, setting = torch.randn(4, 3, *DEIT.size), Setting(runtime, "fp32")
    times = json.loads(json.dumps(measure(model, images, setting, 1, 0.2)))
    price = price_in_seconds(Space.of(model, DEIT.size), times)
    curves = [times["curves"][name] for name in times["blocks"]]
    assert len(curves) == model.depth
    whole = times["fixed"] + sum(curve[str(DEIT.num_patches)] for curve in curves)
    assert price.dense == pytest.approx(whole)
    assert times["curves"][times["stage"]].keys() == curves[0].keys()
    assert len(curves[0]) == len(
        points(DEIT.num_patches, 1, POINTS if runtime == "eager" else WHOLE_POINTS)
    )


def test_a_dozen_counts_fill_whole_tiles_in_turn() -> None:
    found = points(196, 1)
    assert len(found) == POINTS
    assert found[-1] == 196
    tiled = [count for count in found if (count + 1) % 16 == 0]
    assert POINTS // 3 <= len(tiled) < POINTS


def test_few_enough_answers_change() -> None:
    """Of the second half of the images, by which schedules are judged that the first half found."""
    model = looking_ahead()
    found = tune(model, IMAGES, max_drop=10, image_size=DEIT.size, evaluations=8)
    model.schedule = found.schedule
    unseen = IMAGES[24:]
    with torch.no_grad():
        same = model(unseen).argmax(1) == model.backbone(unseen).argmax(1)
    assert float(same.double().mean()) == found.best.verdict.agreement >= 0.9
    assert found.measured < found.dense_cost


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ({}, "no target"),
        ({"macs": 0.5, "latency": "20ms"}, "latency 20ms"),
        ({"macs": "60ms"}, "60ms"),
        ({"latency": "20"}, "20"),
        ({"latency": -1.0}, "-1"),
        ({"throughput": 0}, "throughput"),
        ({"max_drop": 100}, "100"),
    ],
)
def test_targets_that_can_not_be(target: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Target.of(**target)


def test_what_can_not_be_tuned_is_named() -> None:
    images, size = IMAGES, DEIT.size
    with pytest.raises(InputError, match="31 images"):
        tune(looking_ahead(4), images[:31], macs=0.5, image_size=size)
    with pytest.raises(InputError, match="32, 32"):
        tune(looking_ahead(4), images[..., :32, :32], macs=0.5, image_size=size)
    with pytest.raises(InputError, match="48 images"):
        tune(looking_ahead(4), images, max_drop=0.5, image_size=size)
    with pytest.raises(InputError, match="GMACs"):
        tune(looking_ahead(4), images, macs=0.01, image_size=size)
    with pytest.raises(InputError, match="batch size 0"):
        tune(looking_ahead(4), images, macs=0.5, image_size=size, batch_size=0)
    with pytest.raises(InputError, match="needs no schedule"):
        tune(looking_ahead(4), images, macs=1.0, image_size=size)
    with pytest.raises(InputError, match="untrained"):
        tune(sparsify(DEIT.backbone(), method="dynamicvit"), images, macs=0.5, image_size=size)
    with pytest.raises(InputError, match="downsample"):
        tune(sparsify(DEIT.backbone(), method="downsample"), images, macs=0.9, image_size=size)
