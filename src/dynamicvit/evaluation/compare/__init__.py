"""The paper's comparison: every way to save the same work, on anyone's model and images."""

from dynamicvit.evaluation.compare.experiment import Entry, Experiment, Row
from dynamicvit.evaluation.compare.identity import data_identity, weights_identity
from dynamicvit.evaluation.compare.table import Line, lines_of, write_csv
from dynamicvit.evaluation.compare.timing import Timing

__all__ = [
    "Entry",
    "Experiment",
    "Line",
    "Row",
    "Timing",
    "data_identity",
    "lines_of",
    "weights_identity",
    "write_csv",
]
