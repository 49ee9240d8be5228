"""A plain DICOM slice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid


def write_dicom(path: Path, pixels: np.ndarray, z: float, series: str) -> FileDataset:
    """Write a slice at height ``z`` whose stored values v mean 2 v - 5."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = MRImageStorage
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = series
    data.Manufacturer, data.ManufacturerModelName = "ACME ", "Scan 3"
    data.Rows, data.Columns = pixels.shape
    data.PixelSpacing, data.SliceThickness = [0.5, 0.75], 2.0
    data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = [-10, -20, z]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = 2, -5
    data.PixelData = pixels.astype("<u2").tobytes()
    data.save_as(path)
    return data
