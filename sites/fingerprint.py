"""What a site's data look like: counts, spacing, intensity, labels, vendors; never an image."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from fedshift.sites.types import SPLITS, SiteData

PERCENTILES = (1, 25, 50, 75, 99)


def fingerprint(site: SiteData) -> dict[str, Any]:
    """Describe ``site`` in numbers that can be written as JSON.

    ``spacing_mm`` is the range of the spacings (slice, row, column) of the images' own grids,
    ``intensity`` the percentiles of the prepared images, and ``vendors`` counts cases.
    ``volume_ml`` is the mean of a structure's volume over the cases that annotate it, on their own
    grids (for a block of slices, the volume in the block).
    """
    cases = [case for split in SPLITS for case in site.splits[split]]
    intensity = np.percentile(np.concatenate([case.image.ravel() for case in cases]), PERCENTILES)
    spacings = np.array([case.native_spacing_mm for case in cases])
    volumes: dict[str, list[float]] = {name: [] for name in site.parts}
    for case in cases:
        if "mask" in case.labels:
            native = case.labels["mask"].native
            counts = np.bincount(native.ravel(), minlength=len(site.parts) + 1)
            for k in case.annotates or range(1, len(site.parts) + 1):
                voxels = counts[k] * np.prod(case.native_spacing_mm)
                volumes[site.parts[k - 1]].append(float(voxels / 1000))
    return {
        "name": site.name,
        "role": site.role,
        "vendors": dict(sorted(Counter(case.domain.vendor for case in cases).items())),
        "scanners": sorted({case.domain.scanner for case in cases if case.domain.scanner}),
        "splits": {split: site.counts(split) for split in SPLITS},
        "structures": list(site.parts),
        "spacing_mm": {
            name: [float(value) for value in function(spacings, axis=0)]
            for name, function in (("min", np.min), ("median", np.median), ("max", np.max))
        },
        "intensity": {f"p{p}": float(v) for p, v in zip(PERCENTILES, intensity, strict=True)},
        "volume_ml": {
            name: float(np.mean(found)) if found else None for name, found in volumes.items()
        },
        "notes": list(site.notes),
    }
