"""Structures that a site lacks, or whose sizes suggest that two were exchanged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from fedshift.sites.doctor.image import Image, said_by_row
from fedshift.sites.findings import Finding
from fedshift.sites.labels import form_of
from fedshift.sites.labels.annotation import never_shown
from fedshift.sites.manifest import read_manifest
from fedshift.sites.settings import DataSettings


def check_structures(
    images: Sequence[Image], structures: Sequence[str], data: DataSettings
) -> list[Finding]:
    """Parts that a site lacks, and structures whose sizes suggest that two were exchanged."""
    form = form_of(data)
    says = "values" if form.by_value else "names"
    volumes: dict[str, np.ndarray] = {}
    for image in images:
        counts = image.facts.values
        if counts is not None and image.facts.has_labels:
            own = np.array([sum(counts.get(v, 0) for v in group) for group in image.values])
            volumes[image.site] = volumes.get(image.site, 0) + own
    shown = {
        site: [name for name, voxels in zip(structures, volume, strict=True) if voxels]
        for site, volume in volumes.items()
    }
    findings = [
        Finding(
            "error",
            "structure-nowhere",
            "",
            "",
            f"no label file holds the {form.part} {name!r}",
            f"take it out of {'data.labels' if data.labels else 'label_values, or of the files'}, "
            f"or mend its {says}",
        )
        for name in structures
        if volumes and not any(name in own for own in shown.values())
    ]
    if not form.together:
        return findings
    said = _said(images, data)
    for site, names in never_shown(shown, _annotated(images)).items():
        for name in names:
            problem = f"no label of this site holds the {form.part} {name!r}, other sites' do"
            if said[site]:
                way_out = f"check its {says} in the label files"
                findings.append(Finding("warning", "structure-absent", site, "", problem, way_out))
                continue
            findings.append(
                Finding(
                    "error",
                    "structure-unsaid",
                    site,
                    "",
                    f"{problem}: if nobody drew it, it would be learnt as "
                    f"{'background' if form.by_value else 'absent'}",
                    f"set data.annotates={{{site}: [{', '.join(shown[site])}]}} if it was not "
                    f"drawn, or data.annotates={{{site}: [{', '.join(structures)}]}} if it was "
                    "looked for",
                )
            )
    return findings + (_check_exchanged(volumes, structures) if form.by_value else [])


def _check_exchanged(volumes: Mapping[str, np.ndarray], structures: Sequence[str]) -> list[Finding]:
    """Two structures whose volumes stand in the opposite ratio elsewhere."""
    complete = {site: np.log(volume) for site, volume in volumes.items() if volume.all()}
    if len(complete) < 3:
        return []
    findings = []
    for a in range(len(structures)):
        for b in range(a + 1, len(structures)):
            ratio = {site: float(logs[a] - logs[b]) for site, logs in complete.items()}
            for site, own in ratio.items():
                usual = float(np.median([r for other, r in ratio.items() if other != site]))
                # Twice as large elsewhere, twice as small here.
                if own * usual < 0 and min(abs(own), abs(usual)) > math.log(2):
                    findings.append(
                        Finding(
                            "warning",
                            "structures-exchanged",
                            site,
                            "",
                            f"{structures[a]!r} and {structures[b]!r} seem exchanged: their "
                            f"volume ratio is {math.exp(own):.2g}, elsewhere {math.exp(usual):.2g}",
                            "check their values in the label files against data.labels",
                        )
                    )
    return findings


def _annotated(images: Sequence[Image]) -> dict[str, set[str] | None]:
    """By site, what some label of it is said to tell of; None: everything. An image without a
    label tells of nothing."""
    found: dict[str, set[str] | None] = {}
    for image in images:
        if not image.facts.has_labels:
            continue
        before, own = found.get(image.site, set()), image.source.annotates
        found[image.site] = None if before is None or own is None else before | {*own}
    return found


def _said(images: Sequence[Image], data: DataSettings) -> dict[str, bool]:
    """By site, whether the config or the table says which structures its labels tell of."""
    if data.manifest is None:
        return defaultdict(bool)
    label_values, rows = read_manifest(data).label_values, said_by_row(data)
    said: dict[str, bool] = defaultdict(bool)
    for image in images:
        named = data.labels is None and image.source.label_path in label_values
        said[image.site] |= named or image.site in data.annotates or image.source.path in rows
        # A file that names its structures tells of those that it lists.
        said[image.site] |= form_of(data).by_value and bool(image.facts.names)
    return said
