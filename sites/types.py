"""What a federation is made of: domains, sites, cases, and the arrays a site trains on.

A :class:`SiteSpec` is cheap: names and where the images are. :func:`fedshift.sites.open_site`
turns it into :class:`SiteData`, whose arrays are memory-mapped from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fedshift.sites.geometry import Grid

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

IGNORED = 255
"""The class index of pixels that are neither trained on nor scored."""


@dataclass(frozen=True)
class Domain:
    """The acquisition conditions of an image: who built the scanner, which one, which protocol."""

    vendor: str
    scanner: str = ""
    protocol: str = ""


@dataclass(frozen=True)
class ImageSource:
    """Where one image and its label come from, before anything is read.

    ``path`` and ``label_path``, the label of the form that is read, are files (or, for DICOM, a
    folder with one series); a phantom has neither and is drawn from ``phantom``, the keyword
    arguments of its generator. ``row`` is the line of the table that lists the image. ``annotates``
    are the parts that its label tells of, None for all. ``empty`` is what an empty label means
    here: ``negative`` (looked at, nothing there), ``unknown``, or nothing where
    ``data.empty_masks`` decides. ``modality`` is the table's word for how it was taken (CT, MR,
    ...), for files that do not say it themselves. ``category`` is the table's own label.
    """

    case: str
    subject: str
    domain: Domain
    session: str = ""
    path: str = ""
    label_path: str = ""
    spacing_mm: tuple[float, ...] | None = None
    phantom: Mapping[str, Any] | None = None
    row: int = 0
    annotates: tuple[str, ...] | None = None
    empty: str = ""
    modality: str = ""
    category: str = ""

    @property
    def labelled(self) -> bool:
        """Whether the table gives it a label."""
        return bool(self.label_path or self.category)


@dataclass(frozen=True)
class SiteSpec:
    """A site: its name (its identity everywhere) and its images.

    A site with ``role="unseen"`` trains nothing; every model is scored there.
    """

    name: str
    images: tuple[ImageSource, ...]
    role: Literal["train", "unseen"] = "train"

    @property
    def vendors(self) -> tuple[str, ...]:
        """The site's vendors, sorted, each once."""
        return tuple(sorted({image.domain.vendor for image in self.images}))


@dataclass(frozen=True)
class Federation:
    """A named list of sites (unique names, sorted) that label the same parts.

    ``parts[k]`` is the name of part ``k + 1``: of a mask its structures, of which class 0 is the
    background; else its landmarks, classes or categories.
    """

    name: str
    sites: tuple[SiteSpec, ...]
    parts: tuple[str, ...]

    def site(self, name: str) -> SiteSpec:
        """Return the site called ``name``; raise ``KeyError`` when there is none."""
        for site in self.sites:
            if site.name == name:
                return site
        raise KeyError(name)


@dataclass(frozen=True)
class Label:
    """A label of one form, slice by slice: on the network's ``grid``, and ``native``, in the
    image's own geometry. Its form (:mod:`.labels`) says what the arrays (S, ...) hold: a mask is
    (S, H, W) and (S, H0, W0) uint8 class indices, 0 for the background."""

    grid: np.ndarray
    native: np.ndarray


@dataclass(frozen=True)
class Case:
    """One scored unit: a volume, a single image, or the block of a volume's slices in one split.

    ``image`` (S, C, H, W) float32 lies on the network's grid with ``spacing_mm`` (slice, row,
    column). ``labels`` maps a form (:mod:`fedshift.sites.labels`) to the case's label of it;
    ``labelled`` (S,) says which slices carry one. ``grid`` relates the network's grid to the
    image's own, of ``native_spacing_mm``.

    ``annotates`` are the parts (by number, from 1) that the label tells of, None for all: a pixel
    labelled 0 is then the background or one of the others. Where ``ignores``, some pixels are
    :data:`IGNORED`.
    """

    id: str
    subject: str
    session: str
    domain: Domain
    image: np.ndarray
    labels: Mapping[str, Label]
    labelled: np.ndarray
    spacing_mm: tuple[float, float, float]
    native_spacing_mm: tuple[float, float, float]
    grid: Grid
    annotates: tuple[int, ...] | None = None
    ignores: bool = False


@dataclass(frozen=True)
class SiteData:
    """A site's opened data: cases by split, all of one network grid size.

    ``notes`` are sentences a reader of the report must know (a single subject split by blocks
    of slices, unknown pixel spacing, a case left out because it cannot be read, ...).
    """

    name: str
    role: Literal["train", "unseen"]
    parts: tuple[str, ...]
    splits: Mapping[Split, tuple[Case, ...]]
    notes: tuple[str, ...] = field(default=())

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the network's grid."""
        return self._shape[2], self._shape[3]

    @property
    def channels(self) -> int:
        """How many channels the images have."""
        return self._shape[1]

    @property
    def _shape(self) -> tuple[int, ...]:
        for cases in self.splits.values():
            if cases:
                return cases[0].image.shape
        raise ValueError(f"site {self.name} has no case in any split")

    def counts(self, split: Split) -> dict[str, int]:
        """How many subjects, cases, slices and labelled slices ``split`` holds."""
        cases = self.splits[split]
        return {
            "subjects": len({case.subject for case in cases}),
            "cases": len(cases),
            "slices": sum(len(case.image) for case in cases),
            "labelled": sum(int(case.labelled.sum()) for case in cases),
        }


@dataclass(frozen=True)
class Table:
    """A manifest, read: images by site, and what its ``label_values`` say by label file."""

    images: Mapping[str, tuple[ImageSource, ...]]
    label_values: Mapping[str, str]
    forms: tuple[str, ...]
    """The forms of label of which some row names one."""
    unmatched: int
    """Rows in which ``data.site_pattern`` found nothing; they belong to no site."""
