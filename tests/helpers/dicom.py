"""Small DICOM files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid


def write_dicom(path: Path, pixels: np.ndarray, **tags: object) -> None:
    """Write one frame of 12-bit grey (height, width); `tags` add or replace elements."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    frame = pydicom.dataset.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    frame.Rows, frame.Columns = pixels.shape
    frame.SamplesPerPixel, frame.PixelRepresentation = 1, 0
    frame.BitsAllocated, frame.BitsStored, frame.HighBit = 16, 12, 11
    frame.PhotometricInterpretation = "MONOCHROME2"
    for name, value in tags.items():
        setattr(frame, name, value)
    frame.PixelData = pixels.astype("<u2").tobytes()
    frame.save_as(path, enforce_file_format=True)
