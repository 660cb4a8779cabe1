"""Sanity checks of CAM methods: whether maps depend on the weights, the class and the batch."""
