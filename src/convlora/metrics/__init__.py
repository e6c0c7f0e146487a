"""Segmentation scores: pure functions, and an accumulator of constant size for whole data sets."""

from convlora.metrics.stateful import SegmentationMetrics

__all__ = ["SegmentationMetrics"]
