"""Predictions of one checkpoint or an ensemble, and their evaluation on a split or on external images."""
