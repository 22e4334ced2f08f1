"""The search: from the method's own schedule to a better one that costs the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import exp, inf

from dynamicvit.tuning.judge import Part
from dynamicvit.tuning.space import Counts, Shape, Space, normalized

#: What the places of stages are tried with before they are moved one by one: bends, first stages
#: (counted from the first possible), and every n-th block.
BENDS, FIRSTS, STRIDES = (0.75, 1.0, 1.25, 1.6, 2.0), (0, 1, 2), (1, 2, 3, 4)

#: By how much a stage's part is changed to see what it does; halved while nothing gets better.
STEP, LEAST_STEP = 0.5, 0.12

#: How far along the direction in which all get better, in steps.
_REACH = (2.0, 1.0, 0.5)


@dataclass
class Search:
    """A search among schedules of one cost, by the KL divergence of their answers.

    Attributes:
        space: of the schedules.
        fit: the counts of a shape at that cost; ``None`` where it can't cost so little.
        judge: the KL divergence of counts, on a part of the images.
        most: schedules to run at most.
        tell: what was tried, a line each.
        ran: shapes that were tried.
    """

    space: Space
    fit: Callable[[Shape], Counts | None]
    judge: Callable[[Counts, Part], float]
    most: int
    tell: Callable[[str], None] = lambda line: None
    ran: int = 0
    _seen: dict[tuple[Counts, Part], float] = field(default_factory=dict)

    def run(self, starts: Sequence[Shape], with_strides: bool = False) -> Shape:
        """The best shape that was found.

        Args:
            starts: shapes to begin with, the method's own first.
            with_strides: also try fewer stages, each of which costs time.
        """
        best = min(starts, key=lambda shape: self._of(shape, "few"))
        best = self._forms(best, with_strides)
        return self._moved(best)

    def _of(self, shape: Shape, part: Part) -> float:
        counts = self.fit(shape)
        if counts is None:
            return inf
        if (counts, part) not in self._seen:
            if self.ran >= self.most:
                return inf
            self._seen[counts, part] = self.judge(counts, part)
            self.ran += 1
        return self._seen[counts, part]

    def _forms(self, best: Shape, with_strides: bool) -> Shape:
        """The best of a few plain forms, one thing changed at a time, on a few images."""
        score = self._of(best, "few")
        first, stride, bend = next(i for i, part in enumerate(best) if part), 1, 1.25
        movable = self.space.movable
        for name, values in (
            ("bend", BENDS),
            ("first", FIRSTS if movable else ()),
            ("stride", STRIDES if movable and with_strides else ()),
            ("bend", BENDS),
        ):
            for value in values:
                form = {"bend": bend, "first": first, "stride": stride, name: value}
                if form["first"] + form["stride"] > len(best):
                    continue
                shape = self.space.bent(form["bend"], int(form["first"]), int(form["stride"]))
                tried = self._of(shape, "few")
                if tried < score:
                    best, score = shape, tried
                    bend, first, stride = form["bend"], int(form["first"]), int(form["stride"])
            self.tell(f"{name} {', '.join(f'{v:g}' for v in values)}: KL {score:.4f} on a few")
        return best

    def _moved(self, best: Shape) -> Shape:
        """Tokens moved between stages while the answers come nearer, on all images to search with.

        Each stage's part is raised by itself; then all move together, each by what that brought,
        and the best of that and of the single moves is where it goes on.
        """
        step, score = STEP, self._of(best, "search")
        self.tell(f"now on all to search with: KL {score:.4f}")
        while step >= LEAST_STEP and self.ran < self.most:
            least = 0.3 / len(best)  # what a part without drops is raised from
            raised = [
                normalized([*best[:i], max(part, least) * (1 + step), *best[i + 1 :]])
                for i, part in enumerate(best)
            ]
            gains = [score - self._of(shape, "search") for shape in raised]
            finite = [gain if abs(gain) < inf else 0.0 for gain in gains]
            largest = max(map(abs, finite)) or 1.0
            together = [
                normalized(
                    [
                        (max(part, least) if gain > 0 else part)
                        * exp(reach * step * gain / largest)
                        for part, gain in zip(best, finite, strict=True)
                    ]
                )
                for reach in _REACH
            ]
            top = min([*together, *raised], key=lambda shape: self._of(shape, "search"))
            found = self._of(top, "search")
            if found < score:
                best, score = top, found
            else:
                step /= 2
            self.tell(f"moved tokens between stages: KL {score:.4f}, {self.ran} schedules run")
        return best
