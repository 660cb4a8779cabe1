"""Metrics with 95 % intervals. A new one is a function and a row of `table.py`."""

from evaluation.metrics.table import OVERALL, PER_CLASS, compute_metrics

__all__ = ["OVERALL", "PER_CLASS", "compute_metrics"]
