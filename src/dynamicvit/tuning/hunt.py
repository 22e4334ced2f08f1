"""One search for one target: what it may cost, where it begins, and what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from dynamicvit.core.model import DynamicViT
from dynamicvit.costs import count_macs
from dynamicvit.errors import InputError
from dynamicvit.tuning.clock import Clock
from dynamicvit.tuning.judge import Judge, Part
from dynamicvit.tuning.price import Parts, price_in_macs
from dynamicvit.tuning.result import CLOSE, Tried, Tuned
from dynamicvit.tuning.search import Search
from dynamicvit.tuning.space import Counts, Shape, Space
from dynamicvit.tuning.targets import Target
from dynamicvit.utils.words import inputs_called, percent

#: Costs of the frontier's other points, as shares of the target's.
_AROUND = (0.75, 0.87, 1.15, 1.3)

#: Times that a schedule is fitted anew because it was measured to cost another amount.
_CORRECTIONS = 3

#: Steps that look for the least cost at which few enough answers change.
_HALVINGS = 6


@dataclass
class Hunt:
    """From a target to a schedule of a model.

    Attributes:
        model: whose method and weights are used; its own schedule is what the search begins with.
        target: what the schedule is for.
        judge: that compares answers.
        clock: that times.
        size: of the images, height and width in pixels.
        evaluations: schedules to run in the search, at most.
        tell: called with a line about each thing that was tried.
        price: what a schedule costs, in the target's unit.
        dense: what the dense network does.
    """

    model: DynamicViT
    target: Target
    judge: Judge
    clock: Clock
    size: tuple[int, int]
    evaluations: int
    tell: Callable[[str], None]
    price: Parts = field(init=False)
    dense: float = field(init=False)

    def found(self) -> Tuned:
        """The schedule."""
        self.price = price_in_macs(self._everywhere(), self.space, self.size)
        self.dense = self.price.dense
        if self.target.is_time:
            self.tell(f"timing {' '.join(self.clock.setting)}, batch {self.batch_size}")
            self.price, self.dense = self.clock.price(), self.clock.dense
            self.tell(f"dense {self.target.amount(self.dense, self.batch_size)}")
        limit = self._limit()
        own, shape = self._own(limit), None
        search = Search(
            self.space,
            lambda shape: self.space.fit(shape, self.price, limit),
            self._kl,
            self.evaluations,
            self.tell,
        )
        starts = [self.space.shape_of(own)]
        three = self.space.three_stages(self.model.depth)
        starts += [] if three is None else [three]
        shape = search.run(starts, with_strides=self.target.is_time)
        if self.space.fit(shape, self.price, limit) is None:
            least = self.price(self.space.counts(shape, 1e6))
            raise InputError(
                f"{self.target} can't be met by any schedule that was tried: the nearest is "
                f"{self.target.amount(least, self.batch_size)}"
            )
        if self.target.kind == "max_drop":
            limit = min(self._cheapest(self._at(shape)), self._cheapest(self._own))
            own = self._own(limit)
        what = inputs_called(self.model.bound.frames)
        self.tell(f"comparing on the {what} that had no part in the search")
        return self._decided(limit, shape, three)

    @property
    def space(self) -> Space:
        """The schedules to choose from."""
        return self.judge.space

    @property
    def batch_size(self) -> int:
        """Images in a batch that is timed."""
        return len(self.clock.noise)

    # ---------------------------------------------------------------- costs

    def _everywhere(self) -> DynamicViT:
        """The model with each stage of the space."""
        stages = self.space.stages
        whole = replace(self.model.schedule, stages=stages, keep_ratios=(1.0,) * len(stages))
        kind = self.model.method if self.space.movable else self.model.methods
        return self.model.like(self.model.bound, whole, kind).eval()

    def _limit(self) -> float:
        """What may be spent."""
        if self.target.kind == "max_drop":
            return self._cheapest(self._own)
        limit = self.target.limit(self.dense, self.batch_size)
        every = range(1, len(self.space.stages) + 1) if self.space.movable else (1,)
        shapes = (self.space.bent(1.0, stride=stride) for stride in every)
        floor = min(self.price(self.space.counts(shape, 1e6)) for shape in shapes)
        amount = self.target.amount
        if limit < floor:
            raise InputError(
                f"{self.target} can't be met: with as few tokens as can be kept it is "
                f"{amount(floor, self.batch_size)}"
            )
        if limit >= self.dense:
            raise InputError(
                f"{self.target} needs no schedule: the dense network's is "
                f"{amount(self.dense, self.batch_size)}"
            )
        return limit

    def _cheapest(self, at: Callable[[float], Counts]) -> float:
        """The least cost at which few enough answers change, on all images."""
        wanted = 1 - self.target.value / 100
        low, high = 0.2 * self.dense, self.dense
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            agreement = self.judge(at(middle), "all").agreement
            share = percent(middle / self.dense)
            self.tell(f"at {share} of dense {percent(agreement)} of the answers are the same")
            low, high = (low, middle) if agreement >= wanted else (middle, high)
        if high >= self.dense:
            raise InputError(
                f"{self.target} can't be met: already at {percent(low / self.dense)} of the dense "
                f"MACs {percent(1 - self.judge(at(low), 'all').agreement)} of the answers change"
            )
        return high

    # ---------------------------------------------------------------- schedules

    def _own(self, limit: float) -> Counts:
        """The method's own schedule at a cost; of a saved model, a power of its own shares."""
        kind, bound = self.model.method, self.model.bound
        options = [
            self.space.counts_of(each)
            for each in (kind.schedules(bound) if self.space.movable else ())
            if set(each.stages) <= set(self.space.stages)
        ]
        within = [counts for counts in options if self.price(counts) <= limit]
        if within:
            return max(within, key=self.price)
        shape = self.space.shape_of(self.space.counts_of(self.model.schedule))
        return self._at(shape)(limit)

    def _at(self, shape: Shape) -> Callable[[float], Counts]:
        """What a shape keeps at a cost, or as little as it can."""

        def at(limit: float) -> Counts:
            found = self.space.fit(shape, self.price, limit)
            return self.space.counts(shape, 1e6) if found is None else found

        return at

    def _kl(self, counts: Counts, part: Part) -> float:
        return self.judge(counts, part).kl

    # ---------------------------------------------------------------- the decision

    def _decided(self, limit: float, shape: Shape, three: Shape | None) -> Tuned:
        shapes = {"own": self._own, "tuned": self._at(shape)}
        if three is not None and self.space.movable:
            shapes = {"three stages": self._at(three), **shapes}
        at_limit = {name: at(limit) for name, at in shapes.items()}
        compared = [self._tried(name, each) for name, each in at_limit.items()]
        named = {each.name: each for each in compared}
        too_much = named["own"].cost > limit
        gain = self.judge.less(at_limit["tuned"], at_limit["own"], "held-out")
        better = too_much or gain.is_certain
        best, at = (named["tuned"], shapes["tuned"]) if better else (named["own"], self._own)
        best, measured = self._checked(best, at, limit)
        compared = [best if each.name == best.name else each for each in compared]
        notebook, around = self.judge.notebook, [share * limit for share in _AROUND]
        lines = {
            name: [
                (self.price(counts) / self.dense, self._kl(counts, "held-out"))
                for counts in (at(cost) for cost in (*around, limit) if cost < self.dense)
            ]
            for name, at in shapes.items()
        }
        points = []
        for key, (kl, _) in notebook.verdicts.items():
            part, _, counts = key.partition(" ")
            if part == "search":
                kept = tuple(int(count) for count in counts.split(","))
                points.append((self.price(kept) / self.dense, kl))
        half = len(self.judge.images) // 2
        return Tuned(
            best,
            tuple(compared),
            gain,
            self.target,
            self.clock.setting,
            self.batch_size,
            measured,
            self.dense,
            self.model.method.name,
            self.model.depth,
            self.space.num_patches,
            (half, len(self.judge.images) - half),
            (self.judge.ran, notebook.resumed),
            lines,
            points,
        )

    def _tried(self, name: str, counts: Counts) -> Tried:
        schedule = self.space.schedule(counts)
        kept = schedule.kept(self.space.num_patches)
        verdict = self.judge(counts, "held-out")
        return Tried(name, schedule, kept, self.price(counts), verdict)

    def _checked(
        self, best: Tried, at: Callable[[float], Counts], limit: float
    ) -> tuple[Tried, float]:
        """The chosen schedule after it was run, and what it costs.

        One that takes too long, or less than it may by more than a prediction's error, is fitted
        anew to what was measured.
        """
        if not self.target.is_time:
            network = self.judge.network(self.space.counts_of(best.schedule))
            return best, count_macs(network, self.size)
        chosen, scale = best, 1.0
        runs: list[tuple[Tried, float]] = []
        for _ in range(_CORRECTIONS + 1):
            predicted = scale * chosen.cost
            measured = self.clock.measured(self.space.counts_of(chosen.schedule))
            amounts = (self.target.amount(each, self.batch_size) for each in (measured, predicted))
            self.tell("measured {}, predicted {}".format(*amounts))
            runs.append((replace(chosen, cost=predicted), measured))
            if 1 - CLOSE < measured / limit <= 1.0:
                break
            scale = measured / chosen.cost
            again = self._tried(chosen.name, at(limit / scale))
            if again.schedule == chosen.schedule:
                break
            chosen = again
        # The one that comes nearest to the limit from below, or else the fastest.
        return min(runs, key=lambda run: (run[1] > limit, abs(limit - run[1])))
