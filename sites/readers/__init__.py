"""Reading images and labels from bytes, so that each is hashed and decoded in one read.

One module a family of formats; :func:`decode` says what all of them must give.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from fedshift.sites.findings import FileFault
from fedshift.sites.readers.dicom import dicom_domain, read_dicom
from fedshift.sites.readers.files import file_list, is_dicom, read
from fedshift.sites.readers.nifti import read_nifti
from fedshift.sites.readers.raster import read_png
from fedshift.sites.readers.volume import Contents, Volume

__all__ = ["Contents", "Volume", "decode", "dicom_domain", "file_list", "is_dicom", "read"]

FORMATS = ".nii, .nii.gz, .png, .dcm, or a folder with one DICOM series"


def decode(path: Path, contents: Contents, label: bool = False) -> Volume:
    """Decode an image to float32, or a label to whole numbers from 0 to 65535.

    Raises:
        FileFault: the file is not of a known format, is damaged, holds more than one volume,
            holds values that are not finite, or (label) values that are not whole numbers.
    """
    name = path.name.lower()
    if is_dicom(path):
        volume = read_dicom(path, contents, label)
    elif name.endswith((".nii", ".nii.gz")):
        volume = read_nifti(path, contents[0][1])
    elif name.endswith(".png"):
        volume = read_png(path, contents[0][1], label)
    else:
        raise FileFault(
            "unknown-format", path, "is in no format that is read here", f"give {FORMATS}"
        )
    if volume.array.ndim != 3 or volume.array.size == 0:
        raise FileFault(
            "dimensions",
            path,
            f"has the shape {volume.array.shape}",
            "an image must be 2-D or 3-D, one volume a file",
        )
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
