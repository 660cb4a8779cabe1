"""From a table of predictions to metrics, comparisons and figures; nothing is computed inside a training loop."""

from evaluation.comparison import Comparison, compare
from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions, read_predictions

__all__ = ["Comparison", "Predictions", "compare", "compute_metrics", "read_predictions"]
