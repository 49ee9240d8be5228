"""What a site's data look like: counts, spacing, intensity, labels, vendors; never an image."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from fedshift.sites.labels import FORMS
from fedshift.sites.types import SPLITS, SiteData

PERCENTILES = (1, 25, 50, 75, 99)


def fingerprint(site: SiteData) -> dict[str, Any]:
    """Describe ``site`` in numbers that can be written as JSON.

    ``spacing_mm`` is the range of the spacings (slice, row, column) of the images' own grids,
    ``intensity`` the percentiles of the prepared images, and ``vendors`` counts cases.
    ``parts`` are those that labels tell apart, each with the mean of what a case holds of it and
    its unit (of a mask the volume in mL, of points a number), over the cases that annotate it, in
    the images' own geometry (for a block of slices, what is in the block); None without any.
    """
    cases = [case for split in SPLITS for case in site.splits[split]]
    intensity = np.percentile(np.concatenate([case.image.ravel() for case in cases]), PERCENTILES)
    spacings = np.array([case.native_spacing_mm for case in cases])
    amounts: dict[str, list[float]] = {name: [] for name in site.parts}
    unit = ""
    for case in cases:
        for form, label in case.labels.items():
            held = FORMS[form].amounts(label.native, len(site.parts), case.native_spacing_mm)
            unit = FORMS[form].unit
            for k in case.annotates or range(1, len(held) + 1):
                amounts[site.parts[k - 1]].append(float(held[k - 1]))
    return {
        "name": site.name,
        "role": site.role,
        "vendors": dict(sorted(Counter(case.domain.vendor for case in cases).items())),
        "scanners": sorted({case.domain.scanner for case in cases if case.domain.scanner}),
        "splits": {split: site.counts(split) for split in SPLITS},
        "parts": {
            name: (float(np.mean(found)), unit) if found else None
            for name, found in amounts.items()
        },
        "spacing_mm": {
            name: [float(value) for value in function(spacings, axis=0)]
            for name, function in (("min", np.min), ("median", np.median), ("max", np.max))
        },
        "intensity": {f"p{p}": float(v) for p, v in zip(PERCENTILES, intensity, strict=True)},
        "notes": list(site.notes),
    }
