"""Where each frame of a DICOM file lies, whether it is the file's only one or one of many.

A classic file says it in its own tags, an enhanced one in functional groups, of which a frame's
own goes before the shared ones. Lengths are mm, and directions and positions are DICOM's: x to the
left, y to the back, z up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.sites.findings import FileFault, Remark

# More than any scanner writes; a damaged header may ask for more than memory holds.
MOST_FRAMES = 100_000
# Pixels are measured where the beam meets the detector, not in the patient (PS3.3, 10.7.1.3).
PROJECTIONS = {"CR", "DR", "DX", "IO", "MG", "PX", "RF", "RG", "XA"}


@dataclass(frozen=True)
class Frame:
    """Frame ``index`` (from 0) of ``file``; None where the file does not say, or not usably.

    ``position`` (3,) is the centre of its first pixel; ``orientation`` (2, 3) the unit vectors
    along a row and along a column; ``spacing`` the distances between rows and between columns;
    ``between`` the distance of slices and ``thickness`` their own, as tagged. ``caveat`` is what
    should be known of ``spacing``.
    """

    file: Path
    dataset: Any
    index: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: tuple[float, float] | None
    between: float | None
    thickness: float | None
    caveat: Remark | None = None

    def get(self, group: str, keyword: str) -> Any:
        """The frame's value of a tag: see :func:`value`."""
        return value(self.dataset, self.index, group, keyword)


def value(dataset: Any, index: int, group: str, keyword: str) -> Any:
    """``keyword`` in frame ``index``'s functional group, in the shared one, or in the file itself.

    None where all three lack it or leave it empty.
    """
    items = (dataset.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    items = [*items, *(dataset.get("SharedFunctionalGroupsSequence") or [])]
    for holder in [*(macro for item in items for macro in item.get(group) or []), dataset]:
        found = holder.get(keyword)
        if found is not None and found != "":
            return found
    return None


def count(dataset: Any) -> int:
    """How many frames the file says it holds."""
    return int(dataset.get("NumberOfFrames") or 1)


def frames(file: Path, dataset: Any) -> list[Frame]:
    """The frames of one file, in the order in which it stores them.

    Raises:
        FileFault: the header holds what no number can be read from, or functional groups for
            another number of frames than it says.
    """
    with readable(file):
        number = count(dataset)
        groups = dataset.get("PerFrameFunctionalGroupsSequence")
        described = len(groups) if groups else number
        if described != number or not 1 <= number <= MOST_FRAMES:
            raise FileFault(
                "damaged",
                file,
                f"says it holds {number} frames and describes {described}",
                "export it again",
            )
        return [_frame(file, dataset, index, number) for index in range(number)]


@contextmanager
def readable(file: Path, problem: str = "has a header that cannot be read") -> Iterator[None]:
    """Turn what malformed bytes raise, wherever they are first used, into a fault of ``file``."""
    import pydicom

    try:
        yield
    except (
        pydicom.errors.BytesLengthException,
        pydicom.errors.InvalidDicomError,
        struct.error,
        ArithmeticError,
        AttributeError,
        EOFError,
        LookupError,
        MemoryError,
        NotImplementedError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        if isinstance(error, pydicom.errors.InvalidDicomError):
            reason = "it lacks DICOM's prefix"
        raise FileFault(
            "damaged", file, f"{problem} ({reason})", "remove it or export it again"
        ) from None


def _frame(file: Path, dataset: Any, index: int, number: int) -> Frame:
    position, orientation = _place(dataset, index, number)
    spacing, caveat = _pixel_spacing(dataset, index)
    measures = "PixelMeasuresSequence"
    return Frame(
        file,
        dataset,
        index,
        position,
        orientation,
        spacing,
        _distance(value(dataset, index, measures, "SpacingBetweenSlices")),
        _distance(value(dataset, index, measures, "SliceThickness")),
        caveat,
    )


def _place(dataset: Any, index: int, number: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    if dataset.get("DetectorInformationSequence"):
        return _nuclear(dataset, index)
    orientation = _directions(
        value(dataset, index, "PlaneOrientationSequence", "ImageOrientationPatient")
    )
    position = value(dataset, index, "PlanePositionSequence", "ImagePositionPatient")
    if number > 1 and position is dataset.get("ImagePositionPatient"):
        position = None  # one position says nothing about the frames after the first
    return _vector(position, 3), orientation


def _nuclear(dataset: Any, index: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Nuclear medicine: the first slice's place, and each frame's slice (PS3.3, C.8.4.15)."""
    detector = dataset.DetectorInformationSequence[0]
    orientation = _directions(detector.get("ImageOrientationPatient"))
    first = _vector(detector.get("ImagePositionPatient"), 3)
    if count(dataset) == 1:
        return first, orientation
    slices, step = dataset.get("SliceVector"), dataset.get("SpacingBetweenSlices")
    if first is None or orientation is None or not slices or not step:
        return None, orientation
    # The sign says on which side of the first slice the others lie.
    return first + np.cross(*orientation) * float(step) * (int(slices[index]) - 1), orientation


def _pixel_spacing(dataset: Any, index: int) -> tuple[tuple[float, float] | None, Remark | None]:
    """The distances between rows and between columns, and what should be known of them."""
    plain = _pair(value(dataset, index, "PixelMeasuresSequence", "PixelSpacing"))
    detector = _pair(dataset.get("ImagerPixelSpacing"))
    way_out = (
        "distances may be upper bounds; fill the column spacing_mm only from a calibrated image"
    )
    if plain is not None and plain != detector:
        calibrated = detector is not None or dataset.get("PixelSpacingCalibrationType")
        if calibrated or dataset.get("Modality") not in PROJECTIONS:
            return plain, None
        return plain, Remark(
            "detector-spacing",
            "does not say whether its pixel spacing is that in the body or at the detector, where "
            "the body is drawn larger than it is",
            way_out,
        )
    if detector is not None:
        calibrated = plain is not None and dataset.get("PixelSpacingCalibrationType")
        return detector, None if calibrated else Remark(
            "detector-spacing",
            "gives its pixel spacing at the detector, where the body is drawn larger than it is",
            way_out,
        )
    scanned = _pair(dataset.get("NominalScannedPixelSpacing"))
    if scanned is not None:
        return scanned, Remark(
            "scanned-spacing",
            "gives only the pixel spacing on the film or paper that was scanned",
            "distances are those on the film",
        )
    return _ultrasound(dataset) or (None, _aspect(dataset))


def _ultrasound(dataset: Any) -> tuple[tuple[float, float] | None, Remark | None] | None:
    found = []
    for region in dataset.get("SequenceOfUltrasoundRegions") or []:
        # Unit 3 is cm a pixel; other regions show velocities or time.
        if region.get("PhysicalUnitsXDirection") == 3 == region.get("PhysicalUnitsYDirection"):
            pair = _pair([region.get("PhysicalDeltaY"), region.get("PhysicalDeltaX")])
            found += [(10 * pair[0], 10 * pair[1])] if pair else []
    if not found:
        return None
    if not np.allclose(found, found[0], rtol=0.01):
        return None, Remark(
            "several-scales",
            "shows regions of different scale in one ultrasound image, so its spacing is unknown",
            "cut the image to one region",
        )
    return found[0], None


def _aspect(dataset: Any) -> Remark | None:
    ratio = _pair(dataset.get("PixelAspectRatio"))
    if ratio is None or abs(ratio[0] / ratio[1] - 1) < 1e-3:
        return None
    return Remark(
        "pixel-aspect",
        f"has pixels {ratio[0]:g} high to {ratio[1]:g} wide and no spacing; they count as square",
        "fill the column spacing_mm",
    )


def _vector(found: Any, length: int) -> np.ndarray | None:
    if found is None or not hasattr(found, "__len__") or len(found) != length:
        return None
    vector = np.array([float(part) for part in found])
    return vector if np.isfinite(vector).all() else None


def _pair(found: Any) -> tuple[float, float] | None:
    if found is None or None in list(found):
        return None
    vector = _vector(found, 2)
    if vector is None or not (np.abs(vector) > 0).all():
        return None
    return abs(float(vector[0])), abs(float(vector[1]))


def _directions(found: Any) -> np.ndarray | None:
    """Two unit vectors at a right angle; None where the tag holds anything else, such as zeros."""
    vector = _vector(found, 6)
    if vector is None:
        return None
    pair = vector.reshape(2, 3)
    lengths = np.linalg.norm(pair, axis=1)
    if not np.allclose(lengths, 1, atol=0.01) or abs(pair[0] @ pair[1]) > 0.01:
        return None
    return pair / lengths[:, None]


def _distance(found: Any) -> float | None:
    if found is None:
        return None
    distance = abs(float(found))
    return distance if np.isfinite(distance) and distance > 0 else None
