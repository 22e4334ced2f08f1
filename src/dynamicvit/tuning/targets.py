"""What a schedule is found for: MACs, latency, throughput, or how many answers may change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dynamicvit.budgets import parse_budget, parse_latency
from dynamicvit.errors import InputError

Kind = Literal["macs", "latency", "throughput", "max_drop"]


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        kind: which.
        text: as it was given.
        value: seconds, images a second, or points; of MACs their number or share of dense.
        is_share: whether the value is a share of the dense network's MACs.
    """

    kind: Kind
    text: str
    value: float
    is_share: bool = False

    @classmethod
    def of(
        cls,
        macs: str | float | None = None,
        latency: str | float | None = None,
        throughput: float | None = None,
        max_drop: float | None = None,
    ) -> Target:
        """The target that is given, exactly one.

        Args:
            macs: ``"60%"`` or 0.6 of dense, or ``"0.8G"``.
            latency: of a batch, ``"20ms"`` or seconds.
            throughput: images a second.
            max_drop: points of answers that may differ from the dense network's, 0.5 for 1 in 200.

        Raises:
            InputError: for none, several, or one that can't be.
        """
        given: dict[str, Any] = {
            name: value
            for name, value in (
                ("macs", macs),
                ("latency", latency),
                ("throughput", throughput),
                ("max_drop", max_drop),
            )
            if value is not None
        }
        if len(given) != 1:
            said = " and ".join(f"{name} {value}" for name, value in given.items())
            raise InputError(
                f"{said} are several targets: give one"
                if given
                else "no target: give macs, latency, throughput or max_drop"
            )
        [(name, value)] = given.items()
        if macs is not None:
            budget = parse_budget(macs)
            share = budget.fraction is not None
            return cls("macs", str(macs), budget.fraction or budget.macs or 0.0, share)
        seconds = parse_latency(latency) if isinstance(latency, str) else None
        value = value if seconds is None else seconds
        sound = isinstance(value, int | float) and not isinstance(value, bool)
        if not sound or not 0 < value < float("inf"):
            raise InputError(f"{name} is a positive number, got {value!r}")
        if max_drop is not None and max_drop >= 100:
            raise InputError(f"max_drop is below 100 points, got {max_drop:g}")
        return cls("max_drop" if max_drop is not None else _TIMES[name], str(given[name]), value)

    @property
    def is_time(self) -> bool:
        """Whether it is about this machine's speed."""
        return self.kind in ("latency", "throughput")

    @property
    def default_batch(self) -> int:
        """Images in a batch, where nobody says otherwise."""
        return 32 if self.kind == "throughput" else 1

    def limit(self, dense: float, batch_size: int) -> float:
        """The most that a schedule may cost: MACs of an image, or seconds of a batch.

        Args:
            dense: what the dense network costs, in the same unit.
            batch_size: images in a batch.
        """
        if self.kind == "throughput":
            return batch_size / self.value
        return self.value * dense if self.is_share else self.value

    def amount(self, cost: float, batch_size: int) -> str:
        """A cost in the target's unit, for people."""
        if self.kind == "throughput":
            return f"{batch_size / cost:.4g} images/s"
        return f"{1e3 * cost:.3g} ms" if self.kind == "latency" else f"{cost / 1e9:.4g} GMACs"

    def __str__(self) -> str:
        return f"{self.kind.replace('_', '-')} {self.text}"


_TIMES: dict[str, Kind] = {"latency": "latency", "throughput": "throughput"}
