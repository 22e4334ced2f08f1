"""Schedules in files: where and how much a model drops, found once and used anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamicvit.core.schedule import Schedule
from dynamicvit.errors import InputError
from dynamicvit.utils.fields import read_json
from dynamicvit.utils.files import write_text
from dynamicvit.utils.outputs import WRITER
from dynamicvit.utils.words import shortened

FORMAT_VERSION = 1
"""Version of the files that this code writes, and the newest that it reads."""

#: What a file must have, and what it may have besides.
_NEEDED = ("format_version", "depth", "stages", "keep_ratios", "policy", "method")
_OPTIONAL = ("written_by", "num_patches", "found_for", "restore_before")


@dataclass(frozen=True)
class ScheduleFile:
    """A schedule, and what it is for.

    Attributes:
        schedule: where and how much is dropped, and what becomes of dropped tokens.
        depth: number of blocks of the networks that it fits; ``None`` if unknown.
        method: name of the method that it was made for; ``None`` for any.
        num_patches: N of the images that it was made with; others keep the same shares.
        found_for: target, model and costs, if it was searched for; any values of JSON.
        source: what messages call it: its path.
    """

    schedule: Schedule
    depth: int | None = None
    method: str | None = None
    num_patches: int | None = None
    found_for: Mapping[str, Any] = field(default_factory=dict)
    source: str = field(default="the schedule", compare=False)

    def save(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: for a path that can't be written.
        """
        back = self.schedule.restore_before
        about = {
            "written_by": WRITER,
            "format_version": FORMAT_VERSION,
            "depth": self.depth,
            "num_patches": self.num_patches,
            "stages": list(self.schedule.stages),
            "keep_ratios": list(self.schedule.keep_ratios),
            "policy": self.schedule.policy,
            **({} if back is None else {"restore_before": back}),
            "method": self.method,
            "found_for": dict(self.found_for),
        }
        write_text(path, json.dumps(about, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> ScheduleFile:
        """Read a file.

        Raises:
            InputError: for one that can't be read, is of a newer version, lacks something or has
                something unknown, or says what can't be, such as growing ratios.
        """
        values = read_json(path)
        if not isinstance(values, dict) or "keep_ratios" not in values:
            raise InputError(f"{path}: is no schedule; dynamicvit tune writes one")
        version = values.get("format_version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise InputError(
                f"{path}: is of format {version}, and this dynamicvit reads up to "
                f"{FORMAT_VERSION}; install a newer one"
            )
        for key in _NEEDED:
            if values.get(key) is None:
                raise InputError(f"{path}: a schedule needs {key}, and it is missing")
        for key in values:
            if key not in (*_NEEDED, *_OPTIONAL):
                raise InputError(f"{path}: a schedule has no {shortened(key)}")
        found_for = values.get("found_for") or {}
        if not isinstance(found_for, dict):
            raise InputError(f"{path}: found_for must be a mapping, got {shortened(found_for)}")
        try:
            schedule = Schedule.for_depth(
                *(values[key] for key in ("depth", "keep_ratios", "stages", "policy")),
                values.get("restore_before"),
            )
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        patches = values.get("num_patches")
        return cls(schedule, values["depth"], values["method"], patches, found_for, str(path))

    @classmethod
    def of(cls, given: ScheduleSource, depth: int | None = None) -> ScheduleFile:
        """What is given, by any of its names, as one of these.

        Args:
            given: a schedule, which fits any method; one of these, or its path.
            depth: number of blocks of the network that it is for, if it is known.

        Raises:
            InputError: as :meth:`load`; for a schedule of another depth.
        """
        if isinstance(given, Schedule):
            return cls(given)
        found = given if isinstance(given, cls) else cls.load(given)
        if depth is not None and found.depth not in (None, depth):
            raise InputError(
                f"{found.source}: is a schedule for {found.depth} blocks; this network has {depth}"
            )
        return found


ScheduleSource = Schedule | ScheduleFile | str | Path
"""A schedule, or a file of one."""
