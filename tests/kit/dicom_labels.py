"""DICOM SEG and RTSTRUCT written by hand, on a scan of known geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)

from fedshift.sites.readers import Volume, decode, read

ROWS, COLUMNS, SLICES = 12, 16, 9


SPACING = (0.5, 0.75)  # between rows, between columns


STEP = 3.0


class Scan:
    """A CT series in a folder: its slices, and where a voxel (i, j, k) lies in DICOM's mm."""

    def __init__(self, folder: Path, turn: np.ndarray) -> None:
        folder.mkdir()
        self.folder, self.turn = folder, turn
        self.frame, self.series, self.study = generate_uid(), generate_uid(), generate_uid()
        self.origin = np.array([-10.0, -20.0, 30.0])
        noise = np.random.default_rng(1).integers(0, 500, (SLICES, ROWS, COLUMNS))
        self.slices = [self._write(k, noise[k]) for k in range(SLICES)]

    def mm(self, voxels: np.ndarray) -> np.ndarray:
        return self.origin + (voxels * [SPACING[1], SPACING[0], STEP]) @ self.turn.T

    def _write(self, k: int, pixels: np.ndarray) -> FileDataset:
        data = new_file(CTImageStorage)
        data.FrameOfReferenceUID, data.SeriesInstanceUID = self.frame, self.series
        data.StudyInstanceUID, data.PatientID, data.PatientName = self.study, "P", "P^P"
        data.PatientBirthDate = data.PatientSex = data.AccessionNumber = data.StudyID = ""
        data.StudyDate = data.StudyTime = data.ReferringPhysicianName = ""
        data.Modality, data.InstanceNumber = "CT", k + 1
        data.Rows, data.Columns = ROWS, COLUMNS
        data.PixelSpacing, data.SliceThickness = list(SPACING), STEP
        data.ImageOrientationPatient = [*self.turn[:, 0], *self.turn[:, 1]]
        data.ImagePositionPatient = list(self.mm(np.array([0, 0, k])))
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.PixelData = pixels.astype("<u2").tobytes()
        data.save_as(self.folder / f"{k}.dcm")
        return data

    def image(self) -> Volume:
        return decode(self.folder, read(self.folder))


def new_file(sop_class: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(sop_class)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    return data


def item(**values: object) -> Dataset:
    data = Dataset()
    for key, value in values.items():
        setattr(data, key, value)
    return data


Frame = tuple[int, np.ndarray, np.ndarray]
"""A segment's number, the voxels (4, 3) of the frame's first pixel, of the next along a row and
along a column, and the pixels (R, C)."""


def hand_made_seg(scan: Scan, path: Path, frames: Sequence[Frame], names: Sequence[str]) -> Path:
    """Write a binary segmentation from the standard's words, each bit packed here."""
    data = new_file(SegmentationStorage)
    data.FrameOfReferenceUID = scan.frame
    data.StudyInstanceUID, data.SeriesInstanceUID = scan.study, generate_uid()
    data.Modality, data.SegmentationType, data.ImageType = "SEG", "BINARY", ["DERIVED", "PRIMARY"]
    data.ReferencedSeriesSequence = [item(SeriesInstanceUID=scan.series)]
    data.SegmentSequence = [
        item(
            SegmentNumber=number,
            SegmentLabel=name,
            SegmentAlgorithmType="MANUAL",
            SegmentedPropertyCategoryCodeSequence=[code()],
            SegmentedPropertyTypeCodeSequence=[code()],
        )
        for number, name in enumerate(names, 1)
    ]
    data.SharedFunctionalGroupsSequence = [Dataset()]
    data.PerFrameFunctionalGroupsSequence = []
    bits: list[int] = []
    for number, place, pixels in frames:
        first, right, below = scan.mm(place)
        sizes = np.linalg.norm(right - first), np.linalg.norm(below - first)
        cosines = [*((right - first) / sizes[0]), *((below - first) / sizes[1])]
        data.PerFrameFunctionalGroupsSequence.append(
            item(
                PlanePositionSequence=[item(ImagePositionPatient=[f"{v:.9g}" for v in first])],
                PlaneOrientationSequence=[
                    item(ImageOrientationPatient=[f"{v:.9g}" for v in cosines])
                ],
                PixelMeasuresSequence=[item(PixelSpacing=[f"{sizes[1]:.9g}", f"{sizes[0]:.9g}"])],
                SegmentIdentificationSequence=[item(ReferencedSegmentNumber=number)],
            )
        )
        bits += pixels.astype(int).ravel().tolist()
        data.Rows, data.Columns = pixels.shape
    data.NumberOfFrames = len(frames)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 1
    data.HighBit = data.PixelRepresentation = 0
    bits += [0] * (-len(bits) % 16)
    octets = np.array(bits).reshape(-1, 8) @ (1 << np.arange(8))  # the first pixel lowest
    data.PixelData = octets.astype(np.uint8).tobytes()
    data.save_as(path)
    return path


def code() -> Dataset:
    return item(CodeValue="1", CodingSchemeDesignator="99X", CodeMeaning="x")


def upright(k: float, first: tuple[float, float] = (0, 0)) -> np.ndarray:
    i, j = first
    return np.array([[i, j, k], [i + 1, j, k], [i, j + 1, k]], float)


Contour = np.ndarray
"""Points (N, 3) in voxels of the image, which may lie between them."""


def rtstruct(
    scan: Scan,
    path: Path,
    rois: Mapping[int, tuple[str, Sequence[Contour]]],
    kind: str = "CLOSED_PLANAR",
    digits: int = 4,
) -> Path:
    data = new_file(RTStructureSetStorage)
    data.Modality, data.StructureSetLabel = "RTSTRUCT", "x"
    data.StudyInstanceUID, data.SeriesInstanceUID = scan.study, generate_uid()
    series = item(SeriesInstanceUID=scan.series)
    data.ReferencedFrameOfReferenceSequence = [
        item(
            FrameOfReferenceUID=scan.frame,
            RTReferencedStudySequence=[item(RTReferencedSeriesSequence=[series])],
        )
    ]
    data.StructureSetROISequence = [
        item(ROINumber=number, ROIName=name, ReferencedFrameOfReferenceUID=scan.frame)
        for number, (name, _) in rois.items()
    ]
    data.ROIContourSequence = [
        item(
            ReferencedROINumber=number,
            ContourSequence=[
                item(
                    ContourGeometricType=kind,
                    NumberOfContourPoints=len(contour),
                    ContourData=[f"{v:.{digits}f}" for v in scan.mm(contour).ravel()],
                )
                for contour in contours
            ],
        )
        for number, (_, contours) in rois.items()
    ]
    data.save_as(path)
    return path


def on(k: float, points: Sequence[tuple[float, float]]) -> Contour:
    return np.array([[x, y, k] for x, y in points], float)


def box(k: float, low: tuple[float, float], high: tuple[float, float]) -> Contour:
    (a, b), (c, d) = low, high
    return on(k, [(a, b), (c, b), (c, d), (a, d)])
