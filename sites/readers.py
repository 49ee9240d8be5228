"""Reading NIfTI, PNG and DICOM from bytes, so that an image is hashed and decoded in one read."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedshift import UserError

Contents = Sequence[tuple[Path, bytes]]
"""The files behind one image: one, or those of a DICOM folder."""

FORMATS = ".nii, .nii.gz, .png, .dcm, or a folder with one DICOM series"


@dataclass(frozen=True)
class Volume:
    """A decoded file: ``array`` (i, j, k) as stored.

    ``affine`` takes voxels to mm (x to the right, y to the front, z up); it is None where the file
    has no usable orientation, and i, j, k are then columns, rows and slices. ``spacing_mm`` is
    what the header says along i, j, k; None where it says nothing.
    """

    array: np.ndarray
    affine: np.ndarray | None
    spacing_mm: tuple[float, float, float] | None


def is_dicom(path: Path) -> bool:
    """Whether ``path`` is read as DICOM: a folder, or a .dcm or .ima file."""
    return path.suffix.lower() in (".dcm", ".ima") or path.is_dir()


def file_list(path: Path) -> list[Path]:
    """The files behind ``path``, sorted: itself, or a folder's files (hidden ones left out)."""
    if not path.is_dir():
        return [path]
    return sorted(
        file
        for file in path.iterdir()
        if file.is_file() and not file.name.startswith(".") and file.name.upper() != "DICOMDIR"
    )


def read(path: Path) -> Contents:
    """Read all bytes behind ``path``; raise ``UserError`` when there is nothing to read."""
    try:
        contents = [(file, file.read_bytes()) for file in file_list(path)]
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; mend the path in the manifest or put the file there."
        ) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); mend its permissions."
        ) from None
    if not contents:
        raise UserError(f"{path} is an empty folder; a folder must hold one DICOM series.")
    return contents


def decode(path: Path, contents: Contents, label: bool = False) -> Volume:
    """Decode an image to float32, or a label to whole numbers from 0 to 65535.

    Raises:
        UserError: the file is not of a known format, is damaged, holds more than one volume,
            holds values that are not finite, or (label) values that are not whole numbers.
    """
    name = path.name.lower()
    if is_dicom(path):
        volume = _dicom(path, contents)
    elif name.endswith((".nii", ".nii.gz")):
        volume = _nifti(path, contents[0][1])
    elif name.endswith(".png"):
        volume = _png(path, contents[0][1], label)
    else:
        raise UserError(f"{path} is in no format that is read here; give {FORMATS}.")
    if volume.array.ndim != 3 or volume.array.size == 0:
        raise UserError(
            f"{path} has the shape {volume.array.shape}; an image must be 2-D or 3-D, "
            "one volume a file."
        )
    array = volume.array
    finite = array.dtype.kind in "uib" or bool(np.isfinite(array).all())
    if not finite:
        raise UserError(f"{path} holds NaN or infinite values; export it again without them.")
    if not label:
        array = array.astype(np.float32, copy=False)
    elif array.min() < 0 or array.max() > 65535 or (array != np.rint(array)).any():
        raise UserError(f"{path} is no label image: its values are not whole numbers from 0 up.")
    else:
        array = array.astype(np.uint16, copy=False)
    return Volume(array, volume.affine, volume.spacing_mm)


def _nifti(path: Path, data: bytes) -> Volume:
    import nibabel

    try:
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
        # The first field is the header's length: 540 in NIfTI-2, in either byte order.
        two = data[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")
        kind = nibabel.Nifti2Image if two else nibabel.Nifti1Image
        # Unchecked, because nibabel's check quietly turns a spacing of 0 into 1 mm.
        header = kind.header_class(data[: kind.header_class.sizeof_hdr], check=False)
        image = kind.from_bytes(data)
        if image.get_data_dtype().fields or image.get_data_dtype().kind == "c":
            raise UserError(f"{path} holds colours or complex numbers; export its magnitude.")
        array = np.asanyarray(image.dataobj)
    except (
        nibabel.filebasedimages.ImageFileError,
        nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
        EOFError,
        OSError,
        ValueError,
        OverflowError,
        MemoryError,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{path} is not a readable NIfTI file ({reason}); export or copy it again."
        ) from None
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        array = array[..., None]
    # A third spacing of 0 is no fault in an image of two dimensions.
    zooms = [abs(float(zoom)) for zoom in header["pixdim"][1:4]]
    spacing = (zooms[0], zooms[1], zooms[2] if array.shape[2:] != (1,) else zooms[2] or 1.0)
    affine = np.asarray(image.affine, float)
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    # Without an affine of its own, the file's is made from the spacing.
    usable &= int(header["sform_code"]) > 0 or min(spacing) > 0
    return Volume(array, affine if usable else None, spacing)


def _png(path: Path, data: bytes, label: bool) -> Volume:
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=["PNG"])
        image.load()
    except (
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise UserError(
            f"{path} is not a readable PNG file ({type(error).__name__}); export or copy it again."
        ) from None
    if image.mode in ("RGB", "RGBA", "LA") and label:
        array = np.asarray(image)
        # Colours have no agreed number; grey saved as colour does.
        grey = array[..., :3] if image.mode != "LA" else array[..., :1]
        if (grey != grey[..., :1]).any():
            raise UserError(f"{path} is a label in colours; save it as grey or palette values.")
        array = grey[..., 0]
    elif image.mode in ("RGB", "RGBA", "LA", "P", "PA") and not label:
        array = np.asarray(image.convert("RGB").convert("L"))
    else:
        array = np.asarray(image)
    return Volume(array.astype(np.uint16 if label else np.float32).T[..., None], None, None)


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


def _dicom(path: Path, contents: Contents) -> Volume:
    import pydicom

    files = []
    for file, data in contents:
        try:
            dataset = pydicom.dcmread(io.BytesIO(data))
        except (pydicom.errors.InvalidDicomError, EOFError, ValueError, AttributeError) as error:
            reason = type(error).__name__
            raise UserError(
                f"{file} is not a readable DICOM file ({reason}); remove it or export it again."
            ) from None
        files.append((file, dataset))
    series = {str(dataset.get("SeriesInstanceUID", "")) for _, dataset in files}
    if len(series) > 1:
        raise UserError(
            f"{path} holds {len(series)} DICOM series; put each in a folder of its own."
        )
    if len(files) > 1 and any("NumberOfFrames" in dataset for _, dataset in files):
        raise UserError(f"{path} holds several multi-frame files; give one of them as the path.")
    first = files[0][1]
    row_column = _pixel_spacing(first)
    between = first.get("SpacingBetweenSlices") or first.get("SliceThickness") or 1.0
    ordered, affine, step = _stack(path, [dataset for _, dataset in files], row_column)
    frames = [_frame(*files[k]) for k in ordered]
    shapes = {frame.shape for frame in frames}
    if len(shapes) > 1:
        raise UserError(f"{path} mixes slices of different shapes {sorted(shapes)}; separate them.")
    # (S, R, C) -> (i, j, k) = (columns, rows, slices)
    array = np.concatenate(frames).transpose(2, 1, 0)
    if row_column is None:
        return Volume(array, None, None)
    spacing = (row_column[1], row_column[0], step if step else abs(float(between)))
    return Volume(array, affine, spacing)


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
            raise UserError(
                f"{file} is compressed as {syntax.name}, which cannot be decoded here; install "
                "pylibjpeg with its plug-ins or save the series uncompressed."
            ) from None
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{file} has no readable pixels ({reason}); export it again.") from None
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
        raise UserError(f"{path} mixes slices of different orientations; put each in its folder.")
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
            raise UserError(
                f"{path} holds several images at one position; keep one time point or echo."
            )
        if steps.max() > 1.5 * step:
            raise UserError(
                f"{path} lacks slices: two neighbours are {steps.max():.3g} mm apart, others "
                f"{step:.3g} mm; export the whole series."
            )
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * row_column[1]
    affine[:3, 1] = cosines[3:] * row_column[0]
    affine[:3, 2] = normal * step
    affine[:3, 3] = positions[order[0]]
    affine[:2] *= -1
    return order, affine, step
