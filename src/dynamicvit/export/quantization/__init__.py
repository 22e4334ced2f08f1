"""Files that compute in int8: post-training, calibrated on images (the paper's future work)."""

from dynamicvit.export.quantization.agreement import Agreement
from dynamicvit.export.quantization.images import CALIBRATION_IMAGES
from dynamicvit.export.quantization.writer import INT8, LEAST_AGREEMENT, Int8Result, export_int8

__all__ = [
    "CALIBRATION_IMAGES",
    "INT8",
    "LEAST_AGREEMENT",
    "Agreement",
    "Int8Result",
    "export_int8",
]
