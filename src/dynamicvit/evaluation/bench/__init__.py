"""How fast and how large: dense and pruned inference, measured side by side."""

from dynamicvit.evaluation.bench.files import bench_files
from dynamicvit.evaluation.bench.machine import available_cores, processor_name, versions
from dynamicvit.evaluation.bench.measure import BATCH_SIZES, REFERENCE, Progress, bench
from dynamicvit.evaluation.bench.memory import (
    MEASURED,
    MemoryRow,
    Peak,
    peak_memory,
    peak_resident_memory,
)
from dynamicvit.evaluation.bench.plan import PRECISIONS, Setting, settings_of
from dynamicvit.evaluation.bench.rows import BenchRow
from dynamicvit.evaluation.bench.runtimes import RUNTIMES
from dynamicvit.evaluation.bench.timer import timer_of
from dynamicvit.evaluation.bench.times import Spread, Times

__all__ = [
    "BATCH_SIZES",
    "MEASURED",
    "PRECISIONS",
    "REFERENCE",
    "RUNTIMES",
    "BenchRow",
    "MemoryRow",
    "Peak",
    "Progress",
    "Setting",
    "Spread",
    "Times",
    "available_cores",
    "bench",
    "bench_files",
    "peak_memory",
    "peak_resident_memory",
    "processor_name",
    "settings_of",
    "timer_of",
    "versions",
]
