"""An image before its label: decoded, laid out, its grid and its intensities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedshift.sites import geometry, readers
from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.geometry import Grid
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource

BETWEEN_AXES = Remark(
    "between-axes",
    "lies within 5 degrees of halfway between two axes of the body, so that one tilted a little "
    "otherwise is shown turned by 90 degrees",
    "look at it beside the others, and resample those that are turned onto common axes",
)


@dataclass(frozen=True)
class Decoded:
    """An image laid out as (S, R, C) on its own grid.

    ``spacing_mm`` (slice, row, column) is the header's or else the table's; None when neither
    says. ``axis`` is the canonical axis that the slices run along.
    """

    image: np.ndarray
    spacing_mm: tuple[float, float, float] | None
    volume: readers.Volume
    axis: int


def decode_image(
    source: ImageSource, contents: readers.Contents, slice_axis: int | None
) -> Decoded:
    """Decode the image of ``source``; raise ``FileFault`` when it cannot be used."""
    volume = readers.decode(Path(source.path), contents)
    if volume.affine is not None:
        _refuse_shear(source, volume.affine, volume.array.shape)
    image, axis = geometry.orient(volume.array, volume.affine, slice_axis)
    if volume.affine is not None and geometry.between_axes(volume.affine, axis):
        volume = replace(volume, remarks=(*volume.remarks, BETWEEN_AXES))
    return Decoded(image, _spacing(volume, axis, source), volume, axis)


def _refuse_shear(source: ImageSource, affine: np.ndarray, shape: tuple[int, ...]) -> None:
    if (degrees := geometry.shear(affine, shape)) > geometry.SHEAR:
        raise FileFault(
            "sheared",
            source.path,
            f"is sheared: its axes are {degrees:.3g} degrees off the right angle, as those of a "
            "scan with a tilted gantry or of an affine registration",
            "resample it and its label onto a straight grid",
        )


def _spacing(
    volume: readers.Volume, axis: int, source: ImageSource
) -> tuple[float, float, float] | None:
    if volume.affine is not None:
        return geometry.orient_spacing(volume.affine, axis)
    header = volume.spacing_mm
    if header is not None and all(np.isfinite(s) and s > 0 for s in header):
        return header[2], header[1], header[0]
    table = source.spacing_mm
    if table is None:
        return None
    row, column, through = (*table, *(table[0], 1.0)[len(table) - 1 :])
    return through, row, column


def grid_of(decoded: Decoded, data: DataSettings) -> tuple[Grid, float, bool]:
    """The image's grid, its slice spacing in mm, and whether the spacing is known.

    Where it is unknown a pixel counts as 1 mm and is not resampled.
    """
    spacing = decoded.spacing_mm
    known = spacing is not None or data.default_spacing_mm is not None
    if spacing is None:
        in_plane = data.default_spacing_mm or 1.0
        spacing = (1.0, in_plane, in_plane)
    native = spacing[1:]
    target = (data.spacing_mm, data.spacing_mm) if data.spacing_mm and known else native
    shape = (decoded.image.shape[1], decoded.image.shape[2])
    return Grid(shape, native, target, data.size), spacing[0], known


def normalise(
    image: np.ndarray, data: DataSettings, grid: Grid, how: str | None = None
) -> np.ndarray:
    """Normalise one image (S, H, W), all its slices together, to float32; ``how`` in place of
    ``data.normalise``.

    ``percentile``: the 1st and the 99th percentile become 0 and 1; nothing is clipped, because
    what is to be segmented may be the brightest hundredth of the image. ``zscore``: subtract the
    mean and divide by the standard deviation. ``ct``: clipped to ``data.window``, whose ends
    become 0 and 1. ``none``: values as stored. The statistics are those
    of the pixels that the network's grid covers: a large dark background beside it changes
    nothing. A constant image becomes 0 under the first two.
    """
    how = how or data.normalise
    image = image.astype(np.float32, copy=False)
    if how == "none":
        return image
    if how == "ct":
        assert data.window is not None
        lowest, highest = data.window
        return ((image.clip(lowest, highest) - lowest) / (highest - lowest)).astype(np.float32)
    rows, columns = grid.axes
    inside = image[:, rows.native, columns.native]
    if how == "zscore":
        offset, scale = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    else:
        low, high = np.percentile(inside, (1, 99))
        offset, scale = float(low), float(high - low)
    if scale <= 0:
        return np.zeros_like(image)
    return (image - np.float32(offset)) / np.float32(scale)
