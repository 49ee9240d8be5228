"""What every reader returns, and what it is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fedshift.sites.findings import Remark

Contents = Sequence[tuple[Path, bytes]]
"""The files behind one image: one, or those of a DICOM folder."""


@dataclass(frozen=True)
class Volume:
    """A decoded file: ``array`` (i, j, k) as stored.

    ``affine`` takes voxels to mm (x to the right, y to the front, z up); it is None where the file
    has no usable orientation, and i, j, k are then columns, rows and slices. ``spacing_mm`` is
    what the header says along i, j, k; None where it says nothing. ``modality`` is DICOM's word
    (CT, MR, US, ...), empty where the file does not say. ``names`` are what the file itself calls
    its label values. ``remarks`` are what the user should know of a file that is used. ``frame``
    and ``series`` are DICOM's FrameOfReferenceUID and SeriesInstanceUID, empty in other formats.

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
    codes: Mapping[str, np.ndarray] = field(default_factory=dict)
    assumed: bool = False

    @property
    def places(self) -> Mapping[str, np.ndarray]:
        """Every affine by which the file says where it lies, the preferred first; may be empty."""
        if self.codes or self.affine is None or self.assumed:
            return self.codes
        return {"header": self.affine}
