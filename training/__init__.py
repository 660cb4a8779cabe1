"""The loop, optimisation, measured precision, checkpoints, run folders and curves."""
