"""Reading images and labels from bytes, so that each is hashed and decoded in one read.

One module a family of formats; :func:`decode` says what all of them must give.
"""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedshift.sites.findings import FileFault
from fedshift.sites.legend import Legend
from fedshift.sites.readers import dicom_seg, matrix, metaimage, nrrd, raster, rtstruct
from fedshift.sites.readers.dicom import dicom_domain, read_dicom
from fedshift.sites.readers.dicom_frames import readable
from fedshift.sites.readers.files import SUFFIXES, file_list, is_dicom, read, state, stem
from fedshift.sites.readers.matrix import read_matrix
from fedshift.sites.readers.metaimage import read_metaimage
from fedshift.sites.readers.nifti import read_nifti
from fedshift.sites.readers.nrrd import read_nrrd
from fedshift.sites.readers.raster import read_raster, turn_label
from fedshift.sites.readers.volume import Contents, Volume

__all__ = [
    "SUFFIXES",
    "Contents",
    "Volume",
    "decode",
    "dicom_domain",
    "drawn_on_image",
    "file_list",
    "is_dicom",
    "is_matrix",
    "may_name",
    "read",
    "state",
    "stem",
]

FORMATS = (
    "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), PNG, BMP, TIFF, JPEG (no "
    "labels), DICOM (.dcm, .ima, or a folder with one series), matrices of graphs (.npy, .npz, "
    ".csv)"
)
_CONVERSIONS = {
    ".mgz": "mri_convert of FreeSurfer writes .nii.gz",
    ".mgh": "mri_convert of FreeSurfer writes .nii.gz",
    ".hdr": "Analyze does not say where left is; fslchfiletype or nibabel writes .nii.gz, and the "
    "sides must be checked",
    ".img": "Analyze does not say where left is; fslchfiletype or nibabel writes .nii.gz, and the "
    "sides must be checked",
    ".mnc": "mnc2nii of MINC writes .nii",
    ".par": "dcm2niix writes .nii.gz",
    ".rec": "dcm2niix writes .nii.gz from the .par file",
    ".npy": "nibabel writes .nii.gz from an array and its affine",
    ".npz": "nibabel writes .nii.gz from an array and its affine",
    ".mat": "nibabel writes .nii.gz from an array and its affine",
    ".h5": "nibabel writes .nii.gz from an array and its affine",
    ".bz2": "bunzip2 unpacks it",
    ".xz": "unxz unpacks it",
    ".gz": "gunzip unpacks it",
    ".zip": "unzip unpacks it",
    ".vtk": "3D Slicer reads it and saves .nrrd",
    ".vti": "3D Slicer reads it and saves .nrrd",
    ".gif": "any picture editor saves PNG",
    ".webp": "any picture editor saves PNG",
    ".jp2": "any picture editor saves PNG",
    ".heic": "any picture editor saves PNG or JPEG",
    ".svs": "OpenSlide cuts regions of a slide as PNG",
    ".ndpi": "OpenSlide cuts regions of a slide as PNG",
    ".json": "the annotation tool (labelme, CVAT, Label Studio) exports masks as PNG",
    ".xml": "the annotation tool exports masks as PNG",
}


def decode(
    path: Path,
    contents: Contents,
    label: bool = False,
    image: Volume | None = None,
    legend: Legend | None = None,
) -> Volume:
    """Decode an image to float32, or a label to whole numbers from 0 to 65535.

    ``image`` is what a label belongs to: a photograph that was turned upright turns it. A label
    that is a DICOM SEG or RTSTRUCT has no grid of its own: it is laid on the image's. Its
    structures may overlap; ``legend`` says which of them are meant, and None means all.

    Raises:
        FileFault: the file is not of a known format, is damaged, holds more than one volume,
            holds values that are not finite, or (label) values that are not whole numbers.
    """
    name = path.name.lower()
    if is_dicom(path):
        if label and drawn_on_image(path, contents):
            volume = _read_drawn(path, contents, image, legend)
        else:
            volume = read_dicom(path, contents, label)
    elif name.endswith((".nii", ".nii.gz")):
        volume = read_nifti(path, contents[0][1])
    elif path.suffix.lower() in nrrd.SUFFIXES:
        volume = read_nrrd(path, contents)
    elif path.suffix.lower() in metaimage.SUFFIXES:
        volume = read_metaimage(path, contents)
    elif is_matrix(path.name) and not label:
        volume = Volume(read_matrix(path, contents[0][1])[:, :, None], None, None)
    elif path.suffix.lower() in raster.FORMATS:
        volume = read_raster(path, contents[0][1], label)
    else:
        way = _CONVERSIONS.get(path.suffix.lower())
        raise FileFault(
            "unknown-format",
            path,
            "is in no format that is read here" + (f": {way}" if way else ""),
            f"give {FORMATS}",
        )
    if volume.array.ndim != 3 or volume.array.size == 0:
        raise FileFault(
            "dimensions",
            path,
            f"has the shape {volume.array.shape}",
            "an image must be 2-D or 3-D, one volume a file",
        )
    if image is not None and image.turned != 1:
        volume = turn_label(path, volume, image)
    array = volume.array
    finite = array.dtype.kind in "uib" or bool(np.isfinite(array).all())
    if not finite:
        raise FileFault(
            "not-finite", path, "holds NaN or infinite values", "export it again without them"
        )
    if not label:
        array = array.astype(np.float32, copy=False)
    elif array.min() < 0 or array.max() > 65535 or (array != np.rint(array)).any():
        raise FileFault(
            "no-label-image",
            path,
            "is no label image: its values are not whole numbers from 0 to 65535",
            "export the label again as whole numbers",
        )
    else:
        array = array.astype(np.uint16, copy=False)
    return replace(volume, array=array)


_DRAWN = dict.fromkeys(dicom_seg.SOP_CLASSES, dicom_seg.read_seg) | dict.fromkeys(
    rtstruct.SOP_CLASSES, rtstruct.read_rtstruct
)


def is_matrix(path: str) -> bool:
    """Whether an image is the matrix of a graph: no picture, whose pixels have a size."""
    return path.lower().endswith((*matrix.SUFFIXES, *matrix.TABLES))


def may_name(path: Path) -> bool:
    """Whether a label of this format can bring names for its values."""
    return is_dicom(path) or path.suffix.lower() in nrrd.SUFFIXES


def drawn_on_image(path: Path, contents: Contents) -> bool:
    """Whether the label ``path`` is a DICOM SEG or RTSTRUCT, or a folder that holds one."""
    return is_dicom(path) and any(_sop_class(data) in _DRAWN for _, data in contents)


def _sop_class(data: bytes) -> str:
    import pydicom

    # Up to the SOP class only: what follows may be long.
    try:
        with readable(Path()):
            header = pydicom.filereader.read_partial(
                io.BytesIO(data), stop_when=lambda tag, vr, length: tag > 0x00080016
            )
            return str(header.get("SOPClassUID", ""))
    except FileFault:
        return ""  # reading the file says what is wrong


def _read_drawn(
    path: Path,
    contents: Contents,
    image: Volume | None,
    legend: Legend | None,
) -> Volume:
    import pydicom

    if image is None:
        raise ValueError(f"{path} is laid on its image, which is not given")
    drawings = [(file, data) for file, data in contents if _sop_class(data) in _DRAWN]
    if len(drawings) > 1:
        names = ", ".join(file.name for file, _ in drawings[:3])
        raise FileFault(
            "several-labels",
            path,
            f"holds {len(drawings)} DICOM SEG or RTSTRUCT files, such as {names}",
            "give the file that is meant as label_path",
        )
    file, data = drawings[0]
    with readable(file, "is not a readable DICOM file"):
        dataset = pydicom.dcmread(io.BytesIO(data))
        reader = _DRAWN[str(dataset.SOPClassUID)]
    return reader(path, dataset, image, legend)
