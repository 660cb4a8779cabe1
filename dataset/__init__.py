"""From image files to batches on the device: readers, layouts, splits, the pixel cache, augmentation, the phantom.

`loading.load_dataset` is the entry; `python dataset/data.py` prints a summary and draws a contact sheet.
"""
