"""One usable image, as the checks across images see it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedshift.sites.facts import Facts
from fedshift.sites.findings import Finding, Severity
from fedshift.sites.labels.annotation import is_negative
from fedshift.sites.legend import Legend
from fedshift.sites.manifest import read_manifest
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import IGNORED, ImageSource


@dataclass(frozen=True)
class Image:
    """One usable image: its row, what was found in it, and its label's values by part."""

    site: str
    source: ImageSource
    facts: Facts
    values: tuple[tuple[int, ...], ...] = ()
    """The label's values of each part."""
    legend: Legend | None = None
    label: str = ""
    """The label's file, or that of the image where the label has none of its own."""

    @property
    def ignores(self) -> bool:
        """Whether its label holds pixels that are not to count."""
        classes = self.legend.classes(self.facts.names) if self.legend is not None else {}
        return any(classes.get(value) == IGNORED for value in self.facts.values or ())

    @property
    def whose(self) -> tuple[str, str]:
        """The site and the subject."""
        return self.site, self.source.subject

    def finding(self, severity: Severity, code: str, problem: str, way_out: str) -> Finding:
        """What is wrong with the image."""
        source = self.source
        return Finding(severity, code, self.site, source.path, problem, way_out, source.row)

    def of_label(self, severity: Severity, code: str, problem: str, way_out: str) -> Finding:
        """What is wrong with its label."""
        source = self.source
        return Finding(severity, code, self.site, self.label, problem, way_out, source.row)


def axis_of(image: Image, data: DataSettings) -> int:
    """The canonical axis that the image's slices run along; without orientation, its last."""
    facts = image.facts
    return data.slice_axis if data.slice_axis is not None and facts.oriented else facts.axis


def half_of(image: Image, data: DataSettings) -> float:
    """Half the side of the network's grid, in the units of :class:`fedshift.sites.facts.Reach`."""
    spacing = image.facts.spacing_mm
    if spacing is None:  # Its reach is in pixels.
        own = data.default_spacing_mm
        return data.size / 2 * (data.spacing_mm / own if own and data.spacing_mm else 1.0)
    in_plane = [spacing[k] for k in range(3) if k != axis_of(image, data)]
    return data.size / 2 * (data.spacing_mm or min(in_plane))


def looked_at(image: Image, data: DataSettings) -> np.ndarray:
    """The image's slices (S,) that its label tells of."""
    flags = image.facts.flags(axis_of(image, data))
    if image.facts.values is not None and is_negative(image.source, data):
        return np.ones_like(flags)
    return flags


def said_by_row(data: DataSettings) -> set[str]:
    """The images of which the column annotates says what their labels tell of."""
    if data.manifest is None:
        return set()
    table = read_manifest(data)
    return {image.path for found in table.images.values() for image in found if image.annotates}
