"""DICOM images: a file, or a folder that holds one series; by pydicom."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.sites.findings import FileFault
from fedshift.sites.readers.files import file_list
from fedshift.sites.readers.volume import Contents, Volume


def dicom_domain(path: Path) -> tuple[str, str]:
    """Vendor and scanner from the tags of a DICOM file or of the first file of a folder.

    Empty texts where the tags or the file are missing: reading the image later says why.
    """
    import pydicom

    try:
        header = pydicom.dcmread(file_list(path)[0], stop_before_pixels=True, force=False)
    except (pydicom.errors.InvalidDicomError, OSError, IndexError):
        return "", ""
    vendor, scanner = header.get("Manufacturer", ""), header.get("ManufacturerModelName", "")
    return str(vendor or "").strip(), str(scanner or "").strip()


def read_dicom(path: Path, contents: Contents) -> Volume:
    import pydicom

    files = []
    for file, data in contents:
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
        except (pydicom.errors.InvalidDicomError, EOFError, ValueError, AttributeError) as error:
            reason = type(error).__name__
            raise FileFault(
                "damaged",
                file,
                f"is not a readable DICOM file ({reason})",
                "remove it or export it again",
            ) from None
        files.append((file, dataset))
    series = {str(dataset.get("SeriesInstanceUID", "")) for _, dataset in files}
    if len(series) > 1:
        raise FileFault(
            "several-series",
            path,
            f"holds {len(series)} DICOM series",
            "put each in a folder of its own",
        )
    if len(files) > 1 and any("NumberOfFrames" in dataset for _, dataset in files):
        raise FileFault(
            "several-series",
            path,
            "holds several multi-frame files",
            "give one of them as the path",
        )
    first = files[0][1]
    row_column = _pixel_spacing(first)
    between = first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1.0
    ordered, affine, step = _stack(path, [dataset for _, dataset in files], row_column)
    frames = [_frame(*files[k]) for k in ordered]
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise FileFault(
            "mixed-slices",
            path,
            f"mixes slices of different shapes {sorted(shapes)}",
            "separate them",
        )
    # (S, R, C) -> (i, j, k) = (columns, rows, slices)
    array = np.concatenate(frames).transpose(2, 1, 0)
    frame = str(first.get("FrameOfReferenceUID") or "")
    uid = str(first.get("SeriesInstanceUID") or "")
    if row_column is None:
        return Volume(array, None, None, frame=frame, series=uid)
    spacing = (row_column[1], row_column[0], step if step else abs(float(between)))
    return Volume(array, affine, spacing, frame=frame, series=uid)


def _frame(file: Path, dataset: Any) -> np.ndarray:
    """The pixels of one DICOM file as (S, R, C) float32 in the units of its rescale tags."""
    try:
        pixels = dataset.pixel_array
    except (
        RuntimeError,
        NotImplementedError,
        AttributeError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
        if syntax is not None and syntax.is_compressed:
            raise FileFault(
                "compressed",
                file,
                f"is compressed as {syntax.name}, which cannot be decoded here",
                "install pylibjpeg with its plug-ins or save the series uncompressed",
            ) from None
        reason = " ".join(str(error).split())[:120]
        raise FileFault(
            "damaged", file, f"has no readable pixels ({reason})", "export it again"
        ) from None
    pixels = pixels.astype(np.float32)
    if int(dataset.get("SamplesPerPixel", 1)) == 3:
        # ITU-R BT.601 luma; an ultrasound frame saved in colour is mostly grey already.
        pixels = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    pixels = pixels * np.float32(dataset.get("RescaleSlope", 1) or 1)
    pixels = pixels + np.float32(dataset.get("RescaleIntercept", 0) or 0)
    if dataset.get("PhotometricInterpretation") == "MONOCHROME1":
        pixels = -pixels  # stored with white as the smallest value
    return pixels if pixels.ndim == 3 else pixels[None]


def _pixel_spacing(dataset: Any) -> tuple[float, float] | None:
    """Row and column spacing in mm: the plain tag, a multi-frame's shared one, or ultrasound's."""
    if dataset.get("PixelSpacing"):
        return float(dataset.PixelSpacing[0]), float(dataset.PixelSpacing[1])
    for shared in dataset.get("SharedFunctionalGroupsSequence", []):
        for measures in shared.get("PixelMeasuresSequence", []):
            if measures.get("PixelSpacing"):
                return float(measures.PixelSpacing[0]), float(measures.PixelSpacing[1])
    for region in dataset.get("SequenceOfUltrasoundRegions", []):
        if region.get("PhysicalUnitsXDirection") == 3 == region.get("PhysicalUnitsYDirection"):
            # Unit 3 is cm a pixel.
            return 10 * float(region.PhysicalDeltaY), 10 * float(region.PhysicalDeltaX)
    return None


def _stack(
    path: Path, datasets: list[Any], row_column: tuple[float, float] | None
) -> tuple[list[int], np.ndarray | None, float | None]:
    """Order slices along their normal; return the order, the affine and the slice spacing in mm.

    Without positions (ultrasound, photographs of film) the instance number orders them, and there
    is no affine. DICOM's patient axes point left and back; ours point right and front.
    """
    oriented = all(
        d.get("ImagePositionPatient") and d.get("ImageOrientationPatient") for d in datasets
    )
    if not oriented or row_column is None:
        order = sorted(
            range(len(datasets)), key=lambda k: int(datasets[k].get("InstanceNumber") or 0)
        )
        return order, None, None
    cosines = np.array(datasets[0].ImageOrientationPatient, float)
    if any(
        not np.allclose(np.array(d.ImageOrientationPatient, float), cosines, atol=1e-3)
        for d in datasets
    ):
        raise FileFault(
            "mixed-slices",
            path,
            "mixes slices of different orientations",
            "put each in a folder of its own",
        )
    normal = np.cross(cosines[:3], cosines[3:])
    positions = np.array([d.ImagePositionPatient for d in datasets], float)
    along = positions @ normal
    order = np.argsort(along, kind="stable").tolist()
    first = datasets[0]
    step = abs(float(first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1.0))
    if len(datasets) > 1:
        steps = np.diff(along[order])
        step = float(np.median(steps))
        if steps.min() < 0.01:
            raise FileFault(
                "mixed-slices",
                path,
                "holds several images at one position",
                "keep one time point or echo",
            )
        if steps.max() > 1.5 * step:
            raise FileFault(
                "missing-slices",
                path,
                f"lacks slices: two neighbours are {steps.max():.3g} mm apart, others "
                f"{step:.3g} mm",
                "export the whole series",
            )
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * row_column[1]
    affine[:3, 1] = cosines[3:] * row_column[0]
    affine[:3, 2] = normal * step
    affine[:3, 3] = positions[order[0]]
    affine[:2] *= -1
    return order, affine, step
