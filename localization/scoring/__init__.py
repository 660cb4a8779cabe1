"""Scores of maps: overlap with masks, faithfulness, and controls to compare them with."""
