"""DICOM files written by hand: frames, where they lie, and what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)

Dicom = FileDataset


SERIES = generate_uid()


UPRIGHT = np.eye(3)


def made(pixels: np.ndarray, **tags: Any) -> Dicom:
    """A file of one (R, C) or several (F, R, C) frames without a place; ``tags`` win."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", MRImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.Modality = SERIES, "MR"
    colours = pixels.shape[-1] == 3 and pixels.ndim > 2
    data.Rows, data.Columns = pixels.shape[-3:-1] if colours else pixels.shape[-2:]
    if pixels.ndim - colours == 3:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel = 3 if colours else 1
    if colours:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.update(tagged(tags))
    data.HighBit = data.BitsStored - 1
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW" if data.BitsAllocated > 8 else "OB"
    return data


def tagged(tags: dict[str, Any]) -> Dataset:
    data = Dataset()
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    return data


def placed(pixels: np.ndarray, position: Any, turn: np.ndarray = UPRIGHT, **tags: Any) -> Dicom:
    """A classic slice at ``position``; 0.5 mm between its rows, 0.75 mm between its columns."""
    tags = {"PixelSpacing": [0.5, 0.75], **tags}
    tags.setdefault("ImageOrientationPatient", decimals(turn[:, :2].T.ravel()))
    return made(pixels, ImagePositionPatient=decimals(position), **tags)


def decimals(values: Any) -> list[str]:
    return [f"{value:.10f}" for value in values]


def stored(folder: Path, *files: Dicom) -> Path:
    folder.mkdir(exist_ok=True)
    for k, data in enumerate(files):
        data.save_as(folder / f"{k:03}.dcm")
    return folder


def item(**parts: Any) -> Dataset:
    """A functional group: ``PlanePosition={...}`` becomes PlanePositionSequence of one item."""
    return tagged({f"{name}Sequence": [tagged(tags)] for name, tags in parts.items()})


def enhanced(pixels: np.ndarray, positions: np.ndarray, turn: np.ndarray, **more: Any) -> Dicom:
    """Frames (F, R, C) at ``positions``, whose slope is the frame's number + 1, intercept -3."""
    own = [
        item(
            PlanePosition={"ImagePositionPatient": decimals(position)},
            PixelValueTransformation={"RescaleSlope": k + 1, "RescaleIntercept": -3},
            FrameContent={"TemporalPositionIndex": more.get("times", [1] * len(pixels))[k]},
        )
        for k, position in enumerate(positions)
    ]
    shared = item(
        PlaneOrientation={"ImageOrientationPatient": decimals(turn[:, :2].T.ravel())},
        PixelMeasures={"PixelSpacing": [0.5, 0.75], "SliceThickness": 9},
        PixelValueTransformation={"RescaleSlope": 77, "RescaleIntercept": 77},
    )
    return made(
        pixels,
        SOPClassUID=EnhancedMRImageStorage,
        PerFrameFunctionalGroupsSequence=own,
        SharedFunctionalGroupsSequence=[shared],
        FrameOfReferenceUID="1.2.3",
        RescaleSlope=99,
        PixelSpacing=[9, 9],
    )


def along(turn: np.ndarray, heights: Any, start: Any = (-11.0, 7.0, 4.0)) -> np.ndarray:
    return np.array(start) + np.outer(heights, turn[:, 2])
