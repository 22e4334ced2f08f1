"""What a model is worth: accuracy, speed, and the comparison with other methods."""

from dynamicvit.evaluation.accuracy import EvaluationResult, evaluate

__all__ = ["EvaluationResult", "evaluate"]
