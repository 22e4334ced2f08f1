"""Schedules found for a target: where and how much to drop, on images without labels."""

from dynamicvit.tuning.judge import Gain, Verdict
from dynamicvit.tuning.result import Tried, Tuned
from dynamicvit.tuning.targets import Target
from dynamicvit.tuning.tuner import tune

__all__ = ["Gain", "Target", "Tried", "Tuned", "Verdict", "tune"]
