"""Detectors on any network: building, measuring, predicting."""

from kerneldna.detection.coco_metric import CocoMetric
from kerneldna.detection.detectors import create_detector
from kerneldna.detection.prediction import detect, predict, read_image

__all__ = ["CocoMetric", "create_detector", "detect", "predict", "read_image"]
