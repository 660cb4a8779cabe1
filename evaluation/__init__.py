"""Predictions, metrics and plots of an evaluation. Every number is computed from `predictions.csv`, never in a loop."""
