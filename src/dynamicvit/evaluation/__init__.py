"""Accuracy, speed and memory of a model, and its answers."""

from dynamicvit.evaluation.accuracy import EvaluationResult, evaluate
from dynamicvit.evaluation.predictions import PredictResult, predict

__all__ = ["EvaluationResult", "PredictResult", "evaluate", "predict"]
