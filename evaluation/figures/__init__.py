"""Figures of an evaluation: confusion matrix, curves, reliability and forest plots."""
