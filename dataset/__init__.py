"""Readers, layouts, splits, the pixel cache, transforms, weighted oversampling and the phantom."""
