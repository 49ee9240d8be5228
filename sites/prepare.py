"""Preparing an image and its label: onto the network's grid, whatever the label's form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedshift.sites import readers
from fedshift.sites.geometry import Grid
from fedshift.sites.image import decode_image, grid_of, normalise
from fedshift.sites.labels import form_of
from fedshift.sites.labels.annotation import contradiction, contradicts, no_structure
from fedshift.sites.legend import Legend
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource, Label


@dataclass(frozen=True)
class Prepared:
    """One image, ready for the cache; ``label`` is None where nothing tells of the image.

    ``cropped`` is the fraction of the label that lies outside the network's grid. ``shows`` are the
    parts that the label holds; those it is not said to annotate are left out of ``label``.
    """

    image: np.ndarray
    label: Label | None
    labelled: np.ndarray
    grid: Grid
    slice_mm: float
    spacing_known: bool
    cropped: float
    shows: tuple[int, ...]


def prepare_file(
    source: ImageSource,
    contents: readers.Contents,
    label_contents: readers.Contents | None,
    legend: Legend | None,
    data: DataSettings,
    *,
    parts: int,
    annotated: Sequence[int] | None = None,
    negative: bool = False,
) -> Prepared:
    """Prepare an image from the bytes of its files. ``legend`` says what its label calls the
    federation's ``parts``, None without one; the label tells of the parts ``annotated``, None for
    all. An empty slice of a ``negative`` image was looked at, and so was an image without a label.

    Raises:
        UserError: the image or its label cannot be used, or the label tells of nothing.
        LabelMapError: the label holds what is in no part.
    """
    form = form_of(data)
    decoded = decode_image(source, contents, data.slice_axis)
    grid, slice_mm, known = grid_of(decoded, data)
    native: np.ndarray | None = None
    labelled = np.zeros(len(decoded.image), bool)
    if label_contents is not None and legend is not None:
        drawing = form.decode(source, label_contents, decoded, data, legend)
        if annotated is not None and not annotated:
            raise no_structure(source, drawing.names, form, data)
        native = form.classify(drawing, legend, source, decoded.image)
        if annotated is not None and contradicts(form, form.shows(native), annotated):
            raise contradiction(source, form)
        labelled = form.looked_at(drawing, native, negative=negative)
    elif (negative and parts) or not form.needed:
        native = form.blank(decoded.image, parts)
        labelled = ~labelled
    return _finish(decoded.image, native, labelled, annotated, grid, slice_mm, known, data)


def prepare_phantom(
    source: ImageSource, data: DataSettings, annotated: Sequence[int] | None = None
) -> Prepared:
    """Draw a phantom; its grid is the network's, and every slice is labelled: truth is known."""
    from fedshift.sites import phantoms

    recipe = dict(source.phantom or {})
    image, label, spacing = phantoms.draw(recipe.pop("anatomy"), form=data.form, **recipe)
    in_plane = (float(spacing[1]), float(spacing[2]))
    grid = Grid((image.shape[1], image.shape[2]), in_plane, in_plane, image.shape[1])
    labelled = np.ones(len(image), bool)
    return _finish(image, label, labelled, annotated, grid, float(spacing[0]), True, data)


def _finish(
    image: np.ndarray,
    native: np.ndarray | None,
    labelled: np.ndarray,
    annotated: Sequence[int] | None,
    grid: Grid,
    slice_mm: float,
    known: bool,
    data: DataSettings,
) -> Prepared:
    form = form_of(data)
    label, cropped = None, 0.0
    shows: tuple[int, ...] = ()
    # An empty label cannot be told from one that nobody has drawn yet.
    if native is not None and labelled.any():
        shows = form.shows(native[labelled])
        if annotated is not None:
            native = form.only(native, annotated)
        native = form.normalised(native, grid, data)
        label = Label(form.to_grid(native, grid), native)
        cropped = form.cropped(native, grid)
    else:
        labelled = np.zeros(len(image), bool)
    prepared = grid.image(normalise(image, data, grid))
    return Prepared(prepared, label, labelled, grid, slice_mm, known, cropped, shows)
