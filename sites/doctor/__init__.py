"""The doctor: what is wrong with a federation's images, which file, and the way out.

``fedshift sites check`` prints what it finds, and every command that trains or scores asks it
first: an error stops the command unless ``data.accept`` names its code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fedshift.sites.doctor.acquisition import (
    check_graphs,
    check_hounsfield,
    check_modalities,
    check_spacings,
)
from fedshift.sites.doctor.coordinates import check_coordinates
from fedshift.sites.doctor.duplicates import check_duplicates, check_likeness
from fedshift.sites.doctor.files import check_labelled, check_site, check_splits
from fedshift.sites.doctor.image import Image
from fedshift.sites.doctor.names import check_label_values, check_names
from fedshift.sites.doctor.placement import check_orientation, check_planes
from fedshift.sites.doctor.structures import check_structures
from fedshift.sites.doctor.values import check_values
from fedshift.sites.findings import Finding, number_of
from fedshift.sites.labels import form_of
from fedshift.sites.manifest import read_manifest
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import Federation

__all__ = ["check"]


def check(
    federation: Federation,
    data: DataSettings,
    seed: int,
    hashes: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> list[Finding]:
    """Report what is wrong with a manifest's federation, errors first; each file is read once.

    Phantoms are right by construction and are passed over. Of a grid that is not planned yet nobody
    knows what it cuts off. ``seed`` is the run's: whether every split gets labels depends on it.
    ``hashes`` are what sites let go of their pictures for the search for duplicates across sites
    (:func:`fedshift.sites.likeness.keyed`), an entry an image.
    """
    form = form_of(data)
    findings: list[Finding] = []
    images: list[Image] = []
    for site in federation.sites:
        files = tuple(image for image in site.images if image.phantom is None)
        if not files:
            continue
        opened = check_site(replace(site, images=files), federation, data, findings)
        images += opened
        findings += check_splits(site, opened, data, seed)
        findings += check_orientation(site.name, opened)
    findings += check_planes(images, data)
    findings += check_spacings(images, data)
    findings += check_hounsfield(images, data)
    findings += check_modalities(images)
    findings += check_graphs(images, form)
    findings += check_coordinates(images, form, data)
    unsaid: list[Finding] = []
    if form.by_value:
        unsaid = check_values(images, data)
        findings += unsaid
        findings += check_label_values(federation, data)
        findings += check_names(images, federation.parts, data)
    if not unsaid:  # Else the parts are not known yet.
        findings += check_structures(images, federation.parts, data)
    findings += check_labelled(federation, images, data)
    findings += check_duplicates(federation, images, form)
    findings += check_likeness(federation, hashes or {})
    if data.manifest is not None:
        table = read_manifest(data)
        findings += form.check_joined(table, data)
        unmatched = table.unmatched
        if data.site_pattern is not None and unmatched:
            findings.append(
                Finding(
                    "warning",
                    "rows-unmatched",
                    "",
                    data.manifest,
                    f"has {number_of(unmatched, 'row that matches', 'rows that match')} no site",
                    "widen data.site_pattern, or leave them out on purpose",
                )
            )
    # What a whole site lacks follows from its files, which come first.
    return sorted(findings, key=lambda f: (f.severity, f.site, not f.file, f.row, f.file))
