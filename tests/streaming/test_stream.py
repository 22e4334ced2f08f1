"""The loop, with frames that come by a clock that only the classifier moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import Clock, indices

from dynamicvit import InputError, Schedule
from dynamicvit.data import eval_transform, read_image
from dynamicvit.streaming import (
    RATIOS,
    Answer,
    Change,
    Controller,
    Level,
    Missed,
    Ready,
    Stream,
    Tally,
    UnreadableFrame,
    answers,
)
from dynamicvit.streaming.waiting import Waiting
from families import DEIT
from pictures import write_image

NAMES = [f"class {index}" for index in range(4)]


@dataclass
class Camera:
    """Frames at a rate, through the queue that a feed has."""

    count: int
    rate: float
    clock: Clock
    places: int = 2
    broken: int | None = None

    def __post_init__(self) -> None:
        self.waiting: Waiting[Ready] = Waiting(self.places)

    @property
    def dropped(self) -> int:
        return self.waiting.dropped

    def __iter__(self) -> Iterator[Ready]:
        start, arrived = self.clock.now, 0
        while True:
            if not self.waiting._items and arrived < self.count:
                self.clock.now = max(self.clock.now, start + arrived / self.rate)
            while arrived < self.count and start + arrived / self.rate <= self.clock.now + 1e-9:
                time = arrived / self.rate
                images = None if arrived == self.broken else torch.zeros(1)
                problem = "broken" if images is None else None
                self.waiting.put(Ready(arrived, time, None, start + time, images, problem))
                arrived += 1
            if arrived == self.count:
                self.waiting.finish()
            frame = self.waiting.take()
            if frame is None:
                return
            yield frame


def machine(clock: Clock, *costs: float) -> list[Level]:
    """Levels that take so many seconds each, and know a class each."""

    def level(index: int, cost: float) -> Level:
        def classify(images: torch.Tensor) -> torch.Tensor:
            clock.now += cost
            return torch.eye(4)[index] * 5

        ratio = 0.9 - 0.1 * index
        return Level("m", Schedule((1,), (ratio,)), classify, ratio)

    return [level(index, cost) for index, cost in enumerate(costs)]


def answered(found: list[Any]) -> list[Answer]:
    return [each for each in found if isinstance(each, Answer)]


def test_a_fast_machine_answers_each_frame_as_it_comes() -> None:
    clock = Clock()
    camera = Camera(50, 30, clock, broken=2)
    found = list(answers(camera, machine(clock, 0.01), NAMES, clock=clock))
    assert indices(found) == list(range(50))
    assert found[2] == UnreadableFrame(2, "broken")
    for answer in answered(found):
        assert answer.time == pytest.approx(answer.index / 30)
        assert answer.waiting == pytest.approx(0, abs=1e-9)
        assert answer.computing == pytest.approx(0.01)
        assert answer.dropped == 0


@pytest.mark.parametrize("places", [1, 2, 4])
def test_a_slow_machine_drops_the_oldest_and_never_falls_behind(places: int) -> None:
    clock = Clock()
    camera = Camera(300, 30, clock, places)
    start, found = clock.now, []
    for answer in answers(camera, machine(clock, 0.1), NAMES, clock=clock):
        assert isinstance(answer, Answer)
        assert answer.latency == pytest.approx(clock.now - start - answer.index / 30)
        found.append(answer)
    shown = indices(found)
    assert shown == sorted(set(shown))
    assert shown[-1] == 299
    assert len(found) + camera.dropped == 300
    assert len(found) == pytest.approx(100, abs=places + 1)
    for answer in found[:-places]:  # nothing newer takes the place of the last ones
        assert answer.waiting <= places / 30 + 1e-9
    assert [answer.dropped for answer in found] == sorted(answer.dropped for answer in found)


def test_frames_without_a_moment_do_not_wait() -> None:
    class Images(list):
        dropped = 0

    clock = Clock()
    frames = Images([Ready(0, None, "a.png", None, torch.zeros(1))])
    [answer] = answers(frames, machine(clock, 0.5), NAMES, clock=clock)
    assert (answer.waiting, answer.latency) == (0, 0.5)


def test_a_target_is_held_by_going_down() -> None:
    """The machine takes twice as long as was measured, which the first level can't bear."""
    clock = Clock()
    levels = machine(clock, 0.050, 0.020, 0.010)
    controller = Controller([0.025, 0.010, 0.005], 0.030, period=1 / 30)
    found = list(answers(Camera(400, 30, clock), levels, NAMES, controller=controller, clock=clock))
    [change] = [each for each in found if isinstance(each, Change)]
    assert (change.before, change.after, change.target) == (levels[0], levels[1], 0.030)
    assert change.measured > 0.030
    at = found.index(change)
    assert found[at - 1].index == change.index
    assert {answer.level for answer in answered(found[:at])} == {levels[0]}
    assert {answer.level for answer in answered(found[at:])} == {levels[1]}
    for answer in answered(found[at + 4 :]):
        assert answer.latency <= 0.030


def test_a_target_that_is_missed_is_reported_once() -> None:
    clock = Clock()
    levels = machine(clock, 0.050)
    controller = Controller([0.050], 0.030)
    found = list(answers(Camera(90, 10, clock), levels, NAMES, controller=controller, clock=clock))
    [missed] = [each for each in found if isinstance(each, Missed)]
    assert (missed.level, missed.measured) == (levels[0], pytest.approx(0.050))


def test_a_stream_of_a_folder_and_a_model(tmp_path: Path) -> None:
    for gray in (10, 20, 30):
        write_image(tmp_path / f"{gray}.png", gray, (40, 36))
    model = DEIT.sparse()
    stream = Stream(tmp_path, model, top=2)
    found = list(stream)
    transform = eval_transform(model)
    for answer, gray in zip(answered(found), (10, 20, 30), strict=True):
        assert answer.name == str(tmp_path / f"{gray}.png")
        with torch.no_grad():
            logits = model(transform(read_image(tmp_path / f"{gray}.png"))[None])[0]
        assert [each.index for each in answer.classes] == logits.topk(2).indices.tolist()
    summary = stream.summary()
    assert (summary["frames"], summary["dropped"], stream.settings["fps"]) == (3, 0, None)
    ratios = [level.keep_ratio for level in Stream(tmp_path, model, target_latency=60).levels]
    assert ratios == list(RATIOS)
    with pytest.raises(InputError, match="2 levels"):
        Stream(tmp_path, model, keep_ratios=(0.5, 0.7))


# ---------------------------------------------------------------- what is written


def played(target: float = 0.030) -> tuple[list[Any], Tally, Camera]:
    clock = Clock()
    levels = machine(clock, 0.050, 0.020)
    controller = Controller([0.025, 0.010], target, period=1 / 30)
    camera = Camera(100, 30, clock, broken=90)
    tally = Tally(target, clock=clock)
    found = []
    for event in answers(camera, levels, NAMES, controller=controller, clock=clock):
        tally.add(event)
        found.append(event)
    return found, tally, camera


def test_each_event_is_a_line() -> None:
    found, _, _ = played()
    lines = [json.loads(json.dumps(event.as_dict())) for event in found]
    kinds = {Answer: "frame", UnreadableFrame: "unreadable", Change: "change"}
    assert [line["event"] for line in lines] == [kinds[type(event)] for event in found]
    first = lines[0]
    assert (first["index"], first["time"], first["keep_ratio"]) == (0, 0, 0.9)
    assert first["latency_ms"] == pytest.approx(50)
    assert first["waiting_ms"] + first["computing_ms"] == pytest.approx(first["latency_ms"])
    assert first["classes"][0]["name"] == "class 0"
    [change] = [line for line in lines if line["event"] == "change"]
    assert (change["before"]["keep_ratio"], change["after"]["keep_ratio"]) == (0.9, 0.8)
    assert change["latency_ms"] > change["target_ms"] == 30
    missed = Missed(3, found[0].level, 0.05, 0.03).as_dict()
    assert (missed["event"], missed["latency_ms"], missed["keep_ratio"]) == ("missed", 50, 0.9)


def test_the_tally_is_of_all_events() -> None:
    found, tally, camera = played()
    summary = tally.summary(camera.dropped)
    latencies = sorted(answer.latency for answer in answered(found))
    assert summary["frames"] == len(latencies)
    assert summary["frames"] + summary["dropped"] + summary["unreadable"] == 100
    assert summary["unreadable"] == summary["changes"] == 1
    within = sum(latency <= 0.030 for latency in latencies) / len(latencies)
    assert summary["within_target"] == pytest.approx(within, abs=1e-4)
    middle = latencies[-(-len(latencies) // 2) - 1]
    assert summary["latency_ms"]["p50"] == pytest.approx(middle * 1e3, rel=0.006)
    assert tally.recent("latency")["p50"] == middle
    assert summary["seconds"] == pytest.approx(100 / 30, abs=0.05)
    assert summary["fps"] == pytest.approx(summary["frames"] / summary["seconds"], rel=0.01)
    assert tally.recent_rate == pytest.approx(summary["fps"], rel=0.1)
    assert [level["keep_ratio"] for level in summary["levels"]] == [0.9, 0.8]
    assert sum(level["frames"] for level in summary["levels"]) == summary["frames"]


def test_a_tally_of_no_events() -> None:
    tally = Tally(clock=Clock())
    assert tally.summary(0)["latency_ms"]["p50"] is None
    assert (tally.recent("latency"), tally.recent_rate) == ({}, 0)
