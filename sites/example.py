"""An example federation as files: the cardiac phantom, a folder a site as hospitals have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedshift import UserError
from fedshift.sites import phantoms

_ANATOMY = "cardiac"
_TABLE = "MANIFEST.tsv"
_COLUMNS = ("path", "label_path", "site", "subject", "vendor", "label_values")


def site_names(sites: int) -> list[str]:
    """What the sites of an example are called: ``hospital-1`` and so on."""
    return [f"hospital-{number}" for number in range(1, sites + 1)]


def labels() -> dict[str, int]:
    """The values of the structures in the label files, as ``data.labels`` has them."""
    return {name: number for number, name in enumerate(phantoms.parts(_ANATOMY), start=1)}


def write_example(
    folder: Path,
    *,
    sites: int = 3,
    subjects: int = 8,
    slices: int = 3,
    size: int = 64,
    seed: int = 0,
) -> dict[str, Path]:
    """Write a folder for each of so many ``sites``: NIfTI images (float32) and labels (uint8) of
    ``subjects`` subjects of ``slices`` slices of ``size`` x ``size`` pixels, and a table of its
    own. ``folder`` itself gets a table of all, as a simulation takes it. Each site has a scanner of
    one of the phantom's vendors in turn. The same arguments give the same images.

    Returns each site's folder, by name. Raises :class:`UserError` where ``folder`` already holds a
    table, and for numbers that no phantom can be drawn with.
    """
    import nibabel

    if sites < 1 or subjects < 1:
        raise UserError("an example has at least one site and one subject a site")
    if (folder / _TABLE).exists():
        raise UserError(f"{folder / _TABLE} is there already; name another folder")
    vendors = phantoms.vendors(_ANATOMY)
    meant = ",".join(f"{value}={name}" for name, value in labels().items())
    everything: list[tuple[str, ...]] = []
    for number, site in enumerate(site_names(sites)):
        vendor = vendors[number % len(vendors)]
        place = folder / site / "images"
        place.mkdir(parents=True, exist_ok=True)
        rows: list[tuple[str, ...]] = []
        for one in range(1, subjects + 1):
            subject = f"{site}-{one:03d}"
            image, label, (slice_mm, row_mm, column_mm) = phantoms.draw(
                _ANATOMY,
                vendor=vendor,
                subject=subject,
                seed=seed,
                shift=1.0,
                size=size,
                slices=slices,
            )
            # Columns to the left and rows to the back, as scanners write axial slices.
            affine = np.diag([-column_mm, -row_mm, slice_mm, 1.0])
            names = (f"{subject}.nii.gz", f"{subject}_label.nii.gz")
            for name, array in zip(names, (image, label), strict=True):
                nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), place / name)
            paths = [f"images/{name}" for name in names]
            rows.append((*paths, site, subject, vendor, meant))
        _write(folder / site / _TABLE, rows)
        everything += [(*(f"{site}/{path}" for path in row[:2]), *row[2:]) for row in rows]
    _write(folder / _TABLE, everything)
    return {site: folder / site for site in site_names(sites)}


def _write(path: Path, rows: list[tuple[str, ...]]) -> None:
    lines = ("\t".join(row) + "\n" for row in (_COLUMNS, *rows))
    path.write_text("".join(lines), encoding="utf-8")
