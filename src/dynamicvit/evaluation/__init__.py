"""Accuracy, speed and memory of a model."""

from dynamicvit.evaluation.accuracy import EvaluationResult, evaluate

__all__ = ["EvaluationResult", "evaluate"]
