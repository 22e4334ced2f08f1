"""Vision transformers that drop the patches they don't need (DynamicViT, NeurIPS 2021)."""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

import dynamicvit.checkpoints.timm_names  # noqa: F401 (timm finds our models by name from here on)
from dynamicvit._version import __version__
from dynamicvit.budgets import keep_ratio_for, tiled_keep_ratios
from dynamicvit.core.model import DynamicViT
from dynamicvit.core.outputs import MaskedOutput, PrunedOutput
from dynamicvit.core.prediction import PredictionModule
from dynamicvit.core.schedule import Schedule
from dynamicvit.core.schedule_file import ScheduleFile
from dynamicvit.core.segmenter import Segmenter, post_process_semantic_segmentation, segmenter
from dynamicvit.costs import count_macs, schedule_macs
from dynamicvit.errors import InputError, UnsupportedBackboneError, UntrainedWarning
from dynamicvit.sparsification import sparsify

if TYPE_CHECKING:
    from dynamicvit.checkpoints.dense import load_dense
    from dynamicvit.checkpoints.inflation import inflate
    from dynamicvit.checkpoints.loading import load
    from dynamicvit.evaluation import evaluate, evaluate_segmentation, predict
    from dynamicvit.plots import visualize
    from dynamicvit.runtimes import export
    from dynamicvit.training import TrainingObjective, train
    from dynamicvit.tuning import tune

__all__ = [
    "DynamicViT",
    "InputError",
    "MaskedOutput",
    "PredictionModule",
    "PrunedOutput",
    "Schedule",
    "ScheduleFile",
    "Segmenter",
    "TrainingObjective",
    "UnsupportedBackboneError",
    "UntrainedWarning",
    "__version__",
    "count_macs",
    "evaluate",
    "evaluate_segmentation",
    "export",
    "inflate",
    "keep_ratio_for",
    "load",
    "load_dense",
    "post_process_semantic_segmentation",
    "predict",
    "schedule_macs",
    "segmenter",
    "sparsify",
    "tiled_keep_ratios",
    "train",
    "tune",
    "visualize",
]

# Imported when they are first asked for: they bring data sets, recipes and file formats with them.
# None has the name of a module in this folder, which would take the function's place once imported.
_LATER = {
    "evaluate": "dynamicvit.evaluation",
    "evaluate_segmentation": "dynamicvit.evaluation",
    "export": "dynamicvit.runtimes",
    "inflate": "dynamicvit.checkpoints.inflation",
    "load": "dynamicvit.checkpoints.loading",
    "load_dense": "dynamicvit.checkpoints.dense",
    "predict": "dynamicvit.evaluation",
    "train": "dynamicvit.training",
    "TrainingObjective": "dynamicvit.training",
    "tune": "dynamicvit.tuning",
    "visualize": "dynamicvit.plots",
}

#: Names of 0.1.0, and what they are now.
_RENAMED = {
    "load_released": "dynamicvit.load",
    "adapters": "dynamicvit.backbones",
    "attention": "dynamicvit.layers.attention",
    "baselines": "dynamicvit.methods",
    "benchmark": "dynamicvit.evaluation.bench",
    "catalogue": "dynamicvit.evaluation.catalog",
    "decisions": "dynamicvit.core.decisions",
    "export": "dynamicvit.runtimes",
    "foreign": "dynamicvit.training.external_teacher",
    "hub": "dynamicvit.core.hub",
    "huggingface": "dynamicvit.transformers",
    "loading": "dynamicvit.checkpoints.loading",
    "losses": "dynamicvit.core.losses",
    "macs": "dynamicvit.costs",
    "merging": "dynamicvit.core.merging",
    "model": "dynamicvit.core.model",
    "networks": "dynamicvit.core.networks",
    "onednn": "dynamicvit.layers.onednn",
    "pooling": "dynamicvit.layers.pooling",
    "prediction": "dynamicvit.core.prediction",
    "reduction": "dynamicvit.core.method",
    "registry": "dynamicvit.checkpoints.timm_names",
    "released": "dynamicvit.checkpoints.released",
    "schedule": "dynamicvit.core.schedule",
    "teacher": "dynamicvit.core.teacher",
    "tiles": "dynamicvit.budgets",
    "tokens": "dynamicvit.layers.tokens",
    "visualization": "dynamicvit.plots",
    "weights": "dynamicvit.utils.weights",
}


class _Renamed(MetaPathFinder):
    """Asked last, for modules that nobody found: says where those of 0.1.0 are now."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        """Find nothing.

        Raises:
            ModuleNotFoundError: for a module that has another name now.
        """
        package, _, name = fullname.partition(".")
        if package == __name__ and name in _RENAMED:
            raise ModuleNotFoundError(f"{fullname} is now {_RENAMED[name]}", name=fullname)


sys.meta_path.append(_Renamed())


def __getattr__(name: str) -> Any:
    if name in _LATER:
        value = globals()[name] = getattr(import_module(_LATER[name]), name)
        return value
    if name in _RENAMED:
        # Not an AttributeError, whose words `from dynamicvit import ...` would not show.
        raise ImportError(f"dynamicvit.{name} is now {_RENAMED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
