"""NIfTI-1 and NIfTI-2, plain or compressed, by nibabel."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from fedshift.sites.findings import FileFault
from fedshift.sites.readers.volume import Volume


def read_nifti(path: Path, data: bytes) -> Volume:
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
            raise FileFault(
                "colours", path, "holds colours or complex numbers", "export its magnitude"
            )
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
        raise FileFault(
            "damaged",
            path,
            f"is not a readable NIfTI file ({reason})",
            "export or copy it again",
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
