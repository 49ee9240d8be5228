"""Preparing an image: decode, orient, normalise, and bring it onto the network's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedshift.sites import geometry, readers
from fedshift.sites.alignment import lay_on
from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.geometry import Grid
from fedshift.sites.labels import labelled_slices, no_structure, to_classes
from fedshift.sites.legend import Legend
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import IGNORED, ImageSource

BETWEEN_AXES = Remark(
    "between-axes",
    "lies within 5 degrees of halfway between two axes of the body, so that one tilted a little "
    "otherwise is shown turned by 90 degrees",
    "look at it beside the others, and resample those that are turned onto common axes",
)


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the cache; ``label`` and ``reference`` are None without a label file.

    ``cropped`` is the fraction of the labelled pixels that lie outside the network's grid.
    ``shows`` are the classes that the label holds; those it is not said to annotate are background
    in ``label`` and ``reference``.
    """

    image: np.ndarray
    label: np.ndarray | None
    reference: np.ndarray | None
    labelled: np.ndarray
    grid: Grid
    slice_mm: float
    spacing_known: bool
    cropped: float
    shows: tuple[int, ...]


@dataclass(frozen=True)
class Decoded:
    """An image and its label values, laid out as (S, R, C) on the image's own grid.

    ``spacing_mm`` (slice, row, column) is the header's or else the table's; None when neither
    says. ``values`` (uint16) are as in the label file; None without one. ``axis`` is the canonical
    axis that the slices run along.
    """

    image: np.ndarray
    values: np.ndarray | None
    spacing_mm: tuple[float, float, float] | None
    volume: readers.Volume
    label_volume: readers.Volume | None
    axis: int


def decode(
    source: ImageSource,
    contents: readers.Contents,
    label_contents: readers.Contents | None,
    slice_axis: int | None,
    legend: Legend | None = None,
) -> Decoded:
    """Decode ``source`` from bytes; raise ``FileFault`` when image or label cannot be used.

    ``legend`` says which of a drawing's structures are meant; None means all.
    """
    decoded = decode_image(source, contents, slice_axis)
    if label_contents is None:
        return decoded
    return with_label(decoded, source, label_contents, legend)


def decode_image(
    source: ImageSource, contents: readers.Contents, slice_axis: int | None
) -> Decoded:
    """Decode the image of ``source`` alone; raise ``FileFault`` when it cannot be used."""
    volume = readers.decode(Path(source.path), contents)
    if volume.affine is not None:
        _refuse_shear(source, volume.affine, volume.array.shape)
    image, axis = geometry.orient(volume.array, volume.affine, slice_axis)
    if volume.affine is not None and geometry.between_axes(volume.affine, axis):
        volume = replace(volume, remarks=(*volume.remarks, BETWEEN_AXES))
    return Decoded(image, None, _spacing(volume, axis, source), volume, None, axis)


def with_label(
    decoded: Decoded,
    source: ImageSource,
    contents: readers.Contents,
    legend: Legend | None,
) -> Decoded:
    """``decoded`` with the label of ``source``; raise ``FileFault`` when it cannot be used."""
    volume = decoded.volume
    label = readers.decode(Path(source.label_path), contents, True, volume, legend)
    label = lay_on(volume, label, source)
    values, _ = geometry.orient(label.array, volume.affine, decoded.axis)
    return replace(decoded, values=values, label_volume=label)


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


def prepare_file(
    source: ImageSource,
    contents: readers.Contents,
    label_contents: readers.Contents | None,
    legend: Legend | None,
    data: DataSettings,
    *,
    annotated: Sequence[int] | None = None,
    negative: bool = False,
) -> Prepared:
    """Prepare an image from the bytes of its files. ``legend`` says what the values of its label
    mean, None without one; the label tells of the classes ``annotated``, None for all. An empty
    slice of a ``negative`` image was looked at, and so was an image without a label file.

    Raises:
        UserError: the image or its label cannot be used, or the label tells of nothing.
        LabelMapError: a label value outside the map.
    """
    decoded = decode(source, contents, label_contents, data.slice_axis, legend)
    reference: np.ndarray | None = None
    labelled: np.ndarray | None = None
    if decoded.values is not None and decoded.label_volume is not None and legend is not None:
        names = decoded.label_volume.names
        if annotated is not None and not annotated:
            raise no_structure(source, names)
        reference = to_classes(decoded.values, legend.classes(names), source, names)
        labelled = labelled_slices(decoded.values, reference, negative=negative)
    elif negative:
        reference = np.zeros(decoded.image.shape, np.uint8)
        labelled = np.ones(len(reference), bool)
    grid, slice_mm, known = grid_of(decoded, data)
    return _finish(
        image=decoded.image,
        reference=reference,
        labelled=labelled,
        annotated=annotated,
        grid=grid,
        slice_mm=slice_mm,
        known=known,
        data=data,
    )


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


def cropped_fraction(classes: np.ndarray, grid: Grid) -> float:
    """The fraction of the labelled pixels (S, R, C) that lie outside the network's grid."""
    shown = (classes != 0) & (classes != IGNORED)
    total = np.count_nonzero(shown)
    if grid.identity or not total:
        return 0.0
    rows, columns = grid.axes
    return 1 - np.count_nonzero(shown[:, rows.native, columns.native]) / total


def prepare_phantom(
    source: ImageSource, data: DataSettings, annotated: Sequence[int] | None = None
) -> Prepared:
    """Draw a phantom; its grid is the network's, and every slice is labelled: truth is known."""
    from fedshift.sites import phantoms

    recipe = dict(source.phantom or {})
    image, label, spacing = phantoms.draw(recipe.pop("anatomy"), **recipe)
    in_plane = (float(spacing[1]), float(spacing[2]))
    grid = Grid((image.shape[1], image.shape[2]), in_plane, in_plane, image.shape[1])
    return _finish(
        image=image,
        reference=label,
        labelled=np.ones(len(image), bool),
        annotated=annotated,
        grid=grid,
        slice_mm=float(spacing[0]),
        known=True,
        data=data,
    )


def _finish(
    *,
    image: np.ndarray,
    reference: np.ndarray | None,
    labelled: np.ndarray | None,
    annotated: Sequence[int] | None,
    grid: Grid,
    slice_mm: float,
    known: bool,
    data: DataSettings,
) -> Prepared:
    if reference is None or labelled is None or not labelled.any():
        # An empty mask cannot be told from one that nobody has drawn yet.
        label = reference = None
        labelled = np.zeros(len(image), bool)
        cropped = 0.0
        shows: tuple[int, ...] = ()
    else:
        shows = tuple(np.flatnonzero(np.bincount(reference[labelled].ravel())).tolist())
        if annotated is not None:
            told = np.isin(reference, [0, IGNORED, *annotated])
            reference = np.where(told, reference, np.uint8(0))
        label = grid.label(reference)
        cropped = cropped_fraction(reference, grid)
    prepared = grid.image(normalise(image, data, grid))
    return Prepared(prepared, label, reference, labelled, grid, slice_mm, known, cropped, shows)


def normalise(image: np.ndarray, data: DataSettings, grid: Grid) -> np.ndarray:
    """Normalise one image (S, H, W), all its slices together, to float32.

    ``percentile``: the 1st and the 99th percentile become 0 and 1; nothing is clipped, because
    what is to be segmented may be the brightest hundredth of the image. ``zscore``: subtract the
    mean and divide by the standard deviation. ``ct``: clipped to ``data.window``, whose ends
    become 0 and 1. ``none``: values as stored. The statistics are those
    of the pixels that the network's grid covers: a large dark background beside it changes
    nothing. A constant image becomes 0 under the first two.
    """
    image = image.astype(np.float32, copy=False)
    if data.normalise == "none":
        return image
    if data.normalise == "ct":
        assert data.window is not None
        lowest, highest = data.window
        return ((image.clip(lowest, highest) - lowest) / (highest - lowest)).astype(np.float32)
    rows, columns = grid.axes
    inside = image[:, rows.native, columns.native]
    if data.normalise == "zscore":
        offset, scale = float(inside.mean(dtype=np.float64)), float(inside.std(dtype=np.float64))
    else:
        low, high = np.percentile(inside, (1, 99))
        offset, scale = float(low), float(high - low)
    if scale <= 0:
        return np.zeros_like(image)
    return (image - np.float32(offset)) / np.float32(scale)
