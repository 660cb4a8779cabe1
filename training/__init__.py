"""Training: the epochs, optimisation, measured precision, ranks, run folders and trackers."""
