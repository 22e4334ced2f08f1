"""How fast and how large: dense and pruned inference, measured side by side."""

from dynamicvit.benchmark.files import bench_files
from dynamicvit.benchmark.machine import available_cores, processor_name, versions
from dynamicvit.benchmark.measure import BATCH_SIZES, REFERENCE, Progress, bench
from dynamicvit.benchmark.memory import MEASURED, MemoryRow, Peak, peak_memory, peak_resident_memory
from dynamicvit.benchmark.plan import PRECISIONS, Setting, settings_of
from dynamicvit.benchmark.rows import BenchRow
from dynamicvit.benchmark.runtimes import RUNTIMES
from dynamicvit.benchmark.timer import timer_of
from dynamicvit.benchmark.times import Spread, Times

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
