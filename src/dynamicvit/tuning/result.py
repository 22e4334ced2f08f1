"""What :func:`~dynamicvit.tune` gives: a schedule, how good it is, and what else was tried."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynamicvit.core.schedule import Schedule
from dynamicvit.core.schedule_file import ScheduleFile
from dynamicvit.evaluation.bench import Setting
from dynamicvit.tuning.judge import CERTAIN, Gain, Verdict
from dynamicvit.tuning.targets import Target
from dynamicvit.utils.words import percent

#: A prediction that misses by more is said to.
CLOSE = 0.05


@dataclass(frozen=True)
class Tried:
    """A schedule, what it costs and how near its answers are.

    Attributes:
        name: "tuned", "own" (the method's own schedule at that cost), "three stages".
        schedule: where and how much is dropped.
        kept: patch tokens after each of its stages.
        cost: predicted, MACs of an image or seconds of a batch.
        verdict: on images that had no part in the search.
    """

    name: str
    schedule: Schedule
    kept: tuple[int, ...]
    cost: float
    verdict: Verdict


@dataclass(frozen=True)
class Tuned:
    """A schedule for a target.

    Attributes:
        best: what was chosen: the tuned schedule if it is surely better (:attr:`Gain.is_certain`),
            else the method's own.
        compared: it and what it was compared with, at the same cost.
        gain: of the tuned schedule over the method's own, on images that had no part in the search.
        target: what it was found for.
        setting: runtime and precision of the times.
        batch_size: images in a batch that is timed.
        measured: what the chosen schedule was measured to cost; in MACs counted.
        dense_cost: of the dense network, likewise.
        method: name of the method.
        depth: number of blocks.
        num_patches: N.
        images: how many images were searched with, and how many decided.
        ran: number of schedules that were run on images, and how many an earlier run had done.
        lines: cost and KL of schedules of the same shapes at other costs, by name.
        points: cost and KL of all that was tried, on the images searched with.
    """

    best: Tried
    compared: tuple[Tried, ...]
    gain: Gain
    target: Target
    setting: Setting
    batch_size: int
    measured: float
    dense_cost: float
    method: str
    depth: int
    num_patches: int
    images: tuple[int, int]
    ran: tuple[int, int]
    lines: Mapping[str, Sequence[tuple[float, float]]]
    points: Sequence[tuple[float, float]]

    @property
    def schedule(self) -> Schedule:
        """Where and how much to drop: ``model.schedule = tuned.schedule``."""
        return self.best.schedule

    @property
    def error(self) -> float:
        """By what share the measured cost is above the predicted one."""
        return self.measured / self.best.cost - 1

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the schedule for ``--schedule`` (:class:`~dynamicvit.ScheduleFile`).

        Raises:
            InputError: for a path that can't be written.
        """
        about = {
            "target": str(self.target),
            "share_of_dense": self.measured / self.dense_cost,
            **asdict(self.best.verdict),
        }
        if self.target.is_time:
            about["timed_in"] = f"{' '.join(self.setting)}, batch {self.batch_size}"
        file = ScheduleFile(self.schedule, self.depth, self.method, self.num_patches, about)
        file.save(Path(path))

    def as_numbers(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "target": str(self.target),
            "runtime": self.setting.runtime if self.target.is_time else None,
            "precision": self.setting.precision if self.target.is_time else None,
            "batch_size": self.batch_size if self.target.is_time else None,
            "chosen": self.best.name,
            "compared": [asdict(each) for each in self.compared],
            "gain": asdict(self.gain),
            "predicted": self.best.cost,
            "measured": self.measured,
            "dense": self.dense_cost,
            "images": list(self.images),
            "schedules_run": self.ran[0],
            "schedules_remembered": self.ran[1],
            "lines": {name: [list(point) for point in line] for name, line in self.lines.items()},
        }

    def in_words(self) -> list[str]:
        """The outcome, a line each."""
        target, size, best = self.target, self.batch_size, self.best
        kept = ", ".join(map(str, best.kept))
        stages = ", ".join(map(str, best.schedule.stages))
        close = abs(self.error) <= CLOSE
        off = "" if close else f": it misses by {percent(abs(self.error))}, more than 5 %"
        counted = "measured" if target.is_time else "counted"
        lines = [
            f"keeps {kept} of {self.num_patches} patches from blocks {stages} on",
            f"{target.amount(self.measured, size)} {counted}, {target.amount(best.cost, size)} "
            f"predicted{off}; {percent(self.measured / self.dense_cost)} of dense",
        ]
        named = {each.name: each for each in self.compared}
        if named["tuned"].schedule == named["own"].schedule:
            return [*lines, "nothing better was found than the method's own schedule"]
        gain = f"{abs(self.gain.mean):.4f} ± {self.gain.error:.4f}"
        side = "below" if self.gain.mean >= 0 else "above"
        than = f"{gain} {side} that of the method's own schedule"
        if best.name == "own":
            why = f"which stays: a gain counts from {CERTAIN:g} standard errors on"
            return [*lines, f"the KL of what was found is {than}, {why}"]
        return [*lines, f"its KL is {than}{', which costs more' if side == 'above' else ''}"]
