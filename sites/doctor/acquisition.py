"""Spacings, modalities and units that do not fit the federation's."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from fedshift.sites import readers
from fedshift.sites.doctor.image import Image, axis_of
from fedshift.sites.findings import Finding, listed, number_of
from fedshift.sites.labels import Form
from fedshift.sites.settings import DataSettings
from fedshift.sites.survey import HOUNSFIELD_LOW, OTHER, in_mm

OUTLIER = 4.0
"""A spacing this many times the federation's median, or that small a part of it, is suspect."""


def check_spacings(images: Sequence[Image], data: DataSettings) -> list[Finding]:
    findings = []
    images = [image for image in images if not readers.is_matrix(image.source.path)]
    in_plane: dict[int, tuple[float, ...]] = {}
    for number, image in enumerate(images):
        spacing = image.facts.spacing_mm
        if spacing is not None:
            in_plane[number] = tuple(spacing[k] for k in range(3) if k != axis_of(image, data))
    # Modalities differ in spacing by nature.
    alike: dict[str, list[float]] = defaultdict(list)
    for number, pair in in_plane.items():
        alike[images[number].facts.modality] += pair
    medians = {modality: float(np.median(lengths)) for modality, lengths in alike.items()}
    for number, pair in in_plane.items():
        median = medians[images[number].facts.modality]
        worst = max((mm / median for mm in pair), key=lambda ratio: abs(math.log(ratio)))
        if not 1 / OUTLIER < worst < OUTLIER:
            findings.append(
                images[number].finding(
                    "warning",
                    "spacing-outlier",
                    f"has an in-plane spacing of {in_mm(pair)} mm, the federation's median is "
                    f"{median:.4g} mm",
                    "mend the header or the table, which may be in other units",
                )
            )
    if data.default_spacing_mm is not None:
        return findings
    unknown = [image for number, image in enumerate(images) if number not in in_plane]
    if unknown and in_plane:
        findings += [
            image.finding(
                "error",
                "spacing-mixed",
                f"has no known pixel spacing, {len(in_plane)} other images have: it would not be "
                "resampled, and its distances would be in pixels beside theirs in mm",
                "fill the column spacing_mm, or set data.default_spacing_mm",
            )
            for image in unknown
        ]
    elif unknown:
        findings += [
            image.finding(
                "warning",
                "spacing-unknown",
                "has no known pixel spacing: distances are in pixels",
                "fill the column spacing_mm, or set data.default_spacing_mm",
            )
            for image in unknown
        ]
    return findings


def check_modalities(images: Sequence[Image]) -> Iterable[Finding]:
    """Sites that hold more than one known modality."""
    held: dict[str, set[str]] = defaultdict(set)
    for image in images:
        held[image.site] |= {image.facts.modality} - {"", OTHER}
    for site, modalities in held.items():
        if len(modalities) > 1:
            yield Finding(
                "warning",
                "modalities-mixed",
                site,
                "",
                f"its images are {listed(sorted(modalities))}, and one network takes all for the "
                "same kind of image",
                "keep the rows of one, or make them sites with data.site_column",
            )


def check_graphs(images: Sequence[Image], form: Form) -> Iterable[Finding]:
    """Graphs of another number of nodes than most: no node of theirs is one of the others'."""
    nodes: dict[int, int] = {}
    for number, image in enumerate(images):
        if form.one_size and image.facts.values:
            nodes[number] = image.facts.values[1]
        elif readers.is_matrix(image.source.path):
            nodes[number] = image.facts.shape[0]
    usual, alike = Counter(nodes.values()).most_common(1)[0] if nodes else (0, 0)
    for number, own in nodes.items():
        if own != usual:
            yield images[number].of_label(
                "error",
                "graph-size",
                f"has {number_of(own, 'node', 'nodes')}, and {alike} of the federation's "
                f"{len(nodes)} graphs have {usual}: a node must be the same region in all",
                "make all graphs by one parcellation, or leave it out",
            )


def check_hounsfield(images: Sequence[Image], data: DataSettings) -> Iterable[Finding]:
    """Values that one window for all takes for what they are not."""
    if data.normalise != "ct":
        return
    for image in images:
        facts = image.facts
        if facts.modality not in ("", "CT"):
            problem = "is said to be something else than CT, whose values are no Hounsfield units"
        elif facts.low > HOUNSFIELD_LOW:
            problem = f"has no value below {facts.low:g}, although air lies at -1000 in CT"
        else:
            continue
        yield image.finding(
            "warning",
            "not-hounsfield",
            problem,
            "export it in Hounsfield units, leave it out, or set data.normalise=percentile",
        )
