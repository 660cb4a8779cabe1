"""Trackers of a training: TensorBoard, MLflow and the images that they show."""
