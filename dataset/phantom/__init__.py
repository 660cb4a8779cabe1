"""The phantom: synthetic chest radiographs in the Kaggle layout, with lung and lesion masks."""

from dataset.phantom.draw import GROUP_PATTERN, VERSION, write_phantom

__all__ = ["GROUP_PATTERN", "VERSION", "write_phantom"]
