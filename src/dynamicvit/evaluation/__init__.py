"""Accuracy, speed and memory of a model, and its answers."""

from dynamicvit.evaluation.accuracy import EvaluationResult, evaluate
from dynamicvit.evaluation.predictions import PredictResult, predict
from dynamicvit.evaluation.segmentation import SegmentationResult, evaluate_segmentation

__all__ = [
    "EvaluationResult",
    "PredictResult",
    "SegmentationResult",
    "evaluate",
    "evaluate_segmentation",
    "predict",
]
