"""Speed and memory of dense and pruned inference, measured side by side."""

from dynamicvit.evaluation.bench.machine import (
    available_cores,
    peak_resident_memory,
    processor_name,
)
from dynamicvit.evaluation.bench.measure import (
    BATCH_SIZES,
    REFERENCE,
    Progress,
    bench,
    bench_files,
)
from dynamicvit.evaluation.bench.memory import MEASURED, peak_memory
from dynamicvit.evaluation.bench.plan import Setting, settings_of
from dynamicvit.evaluation.bench.report import (
    PERCENTILES,
    BenchReport,
    BenchRow,
    MemoryRow,
    Peak,
    Spread,
    Times,
)
from dynamicvit.evaluation.bench.timer import time_in_turn, timer_of

__all__ = [
    "BATCH_SIZES",
    "MEASURED",
    "PERCENTILES",
    "REFERENCE",
    "BenchReport",
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
    "time_in_turn",
    "timer_of",
]
