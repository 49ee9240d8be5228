"""NIfTI-1 and NIfTI-2, plain or compressed, by nibabel."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.sites import geometry
from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.readers.volume import Volume

NO_ORIENTATION = Remark(
    "no-orientation",
    "says nothing of its place in space (qform and sform have the code 0 or are unusable)",
    "its axes are taken to run leftwards, to the front and up, so look at it beside the others",
)
_MILLIMETRES = {"meter": 1000.0, "micron": 0.001}


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
    zooms = [abs(float(zoom)) for zoom in header["pixdim"][1:4]]
    # A third spacing of 0 is no fault in an image of two dimensions.
    spacing = (zooms[0], zooms[1], zooms[2] if array.shape[2:] != (1,) else zooms[2] or 1.0)
    # A spacing of 0 has become 1 mm in the image's header, and in the affines made of it.
    sized = all(math.isfinite(mm) and mm > 0 for mm in spacing)
    shape = (*array.shape, 1, 1)[:3]
    unit = str(image.header.get_xyzt_units()[0])
    scale = _MILLIMETRES.get(unit, 1.0)
    codes = {
        name: np.diag([scale, scale, scale, 1.0]) @ affine
        for name, affine in _coded(image.header, sized, shape).items()
    }
    remarks = [_units(unit)] if scale != 1 else []
    affine = next(iter(codes.values()), None)
    if len(codes) > 1:
        remarks += _disagreement(codes, shape)
    elif not codes:
        remarks.append(NO_ORIENTATION)
        if sized:
            affine = np.diag([scale, scale, scale, 1.0]) @ image.header.get_base_affine()
    return Volume(
        array,
        affine,
        (spacing[0] * scale, spacing[1] * scale, spacing[2] * scale),
        remarks=tuple(remarks),
        codes=codes,
        assumed=not codes,
    )


def _coded(header: Any, sized: bool, shape: Sequence[int]) -> dict[str, np.ndarray]:
    """The affines whose code is not 0 and that can be used: sform, then qform.

    A sheared one comes last: an sform that holds the registration to an atlas is often sheared,
    and the qform beside it is where the scanner saw the patient.
    """
    affines = {"sform": header.get_sform(coded=True)[0]}
    try:
        affines["qform"] = header.get_qform(coded=True)[0] if sized else None
    except ValueError:  # no rotation
        affines["qform"] = None
    usable = {
        name: affine
        for name, affine in affines.items()
        if affine is not None and geometry.invertible(affine)
    }

    def crooked(item: tuple[str, np.ndarray]) -> bool:
        return geometry.shear(item[1], shape) > geometry.SHEAR

    return dict(sorted(usable.items(), key=crooked))


def _disagreement(codes: Mapping[str, np.ndarray], shape: Sequence[int]) -> list[Remark]:
    (name, used), (other, unused) = codes.items()
    apart = geometry.corners(shape) @ (used - unused)[:3].T
    away = float(np.linalg.norm(apart, axis=1).max())
    if away <= geometry.TOLERANCE * np.linalg.norm(used[:3, :3], axis=0).min():
        return []
    return [
        Remark(
            "codes-disagree",
            f"has an sform and a qform that place it up to {away:.3g} mm apart",
            f"the {name} is used, so mend it or set the code of the {other} to 0",
        )
    ]


def _units(unit: str) -> Remark:
    return Remark(
        "units",
        f"gives its lengths in {unit}s, which are converted to mm",
        "mend the header's units if its spacing is in mm",
    )
