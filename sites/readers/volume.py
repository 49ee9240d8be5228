"""What every reader returns, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedshift.sites.findings import FileFault, Remark

UNITS_MM = {
    "nm": 1e-6,
    "nanometer": 1e-6,
    "µm": 1e-3,
    "μm": 1e-3,
    "um": 1e-3,
    "micron": 1e-3,
    "microns": 1e-3,
    "micrometer": 1e-3,
    "mm": 1.0,
    "millimeter": 1.0,
    "millimeters": 1.0,
    "cm": 10.0,
    "centimeter": 10.0,
    "m": 1000.0,
    "meter": 1000.0,
}
"""Units of length as headers write them, in lower case, in mm."""

Contents = Sequence[tuple[Path, bytes]]
"""The files behind one image: one, or those of a DICOM folder."""


def unit_mm(path: Path, unit: str) -> float:
    """How many mm a header's unit of length is; where it names none, they are mm."""
    if unit.lower() in ("", "?", "???", "none"):
        return 1.0
    if unit.lower() not in UNITS_MM:
        raise FileFault(
            "units", path, f"measures in {unit!r}, which is no known length", "save it in mm"
        )
    return UNITS_MM[unit.lower()]


@dataclass(frozen=True)
class Volume:
    """A decoded file: ``array`` (i, j, k) as stored.

    ``affine`` takes voxels to mm (x to the right, y to the front, z up); it is None where the file
    has no usable orientation, and i, j, k are then columns, rows and slices. ``spacing_mm`` is
    what the header says along i, j, k; None where it says nothing. ``modality`` is DICOM's word
    (CT, MR, US, ...), empty where the file does not say. ``names`` are what the file itself calls
    its label values. ``remarks`` are what the user should know of a file that is used. ``frame``
    and ``series`` are DICOM's FrameOfReferenceUID and SeriesInstanceUID, empty in other formats.
    ``turned`` is the Exif orientation (1 to 8) by which a photograph was turned upright.

    ``codes`` are a NIfTI file's own affines by name (sform, qform), the one that ``affine`` is
    first. ``assumed`` says that the file gives no orientation and ``affine`` is a convention.
    """

    array: np.ndarray
    affine: np.ndarray | None
    spacing_mm: tuple[float, float, float] | None
    modality: str = ""
    names: Mapping[int, str] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
    frame: str = ""
    series: str = ""
    turned: int = 1
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)
    assumed: bool = False

    @property
    def places(self) -> Mapping[str, np.ndarray]:
        """Every affine by which the file says where it lies, the preferred first; may be empty."""
        if self.codes or self.affine is None or self.assumed:
            return self.codes
        return {"header": self.affine}
