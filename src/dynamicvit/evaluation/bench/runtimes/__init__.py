"""How a network is run: one file here to a kind of runtime."""

from dynamicvit.evaluation.bench.runtimes.base import Job, Runtime
from dynamicvit.evaluation.bench.runtimes.compiled import Compiled
from dynamicvit.evaluation.bench.runtimes.eager import Eager
from dynamicvit.evaluation.bench.runtimes.exported import Exported
from dynamicvit.evaluation.bench.runtimes.onednn import OneDNN

#: By name, in the order in which they are told of.
RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Eager(),
        Compiled(),
        OneDNN(),
        Exported("onnx", "fp32", "int8"),
        Exported("openvino", "fp32", "bf16", "int8"),
    )
}

__all__ = ["RUNTIMES", "Exported", "Job", "Runtime"]
