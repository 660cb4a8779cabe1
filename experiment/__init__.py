"""Runs and their checkpoints: the run folder, the checkpoint file and the selection of one."""
