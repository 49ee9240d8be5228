"""The doctor: what is wrong with a federation's images, which file, and the way out."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np

from fedshift import UserError
from fedshift.sites import prepare, readers
from fedshift.sites.cache import digest
from fedshift.sites.labels import LabelMapError, parse_label_values, to_classes
from fedshift.sites.manifest import read_manifest
from fedshift.sites.opening import value_maps
from fedshift.sites.orientation import NAMES, BandSums, Placement, band_sums, odd_ones_out
from fedshift.sites.settings import DataSettings
from fedshift.sites.splits import Item, split_site
from fedshift.sites.types import SPLITS, Federation, ImageSource, SiteSpec

Severity = Literal["error", "warning"]
SUBJECT_FLOOR, SITE_FLOOR = 0.5, 0.15
"""The smallest effect (see :mod:`.orientation`) that counts for a subject and for a whole site."""
OUTLIER = 4.0
"""A spacing this many times the federation's median, or that small a part of it, is suspect."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: ``error`` when results would be, ``warning`` when they may be.

    ``file`` is empty when the finding concerns a whole site, and ``site`` when the federation.
    """

    severity: Severity
    site: str
    file: str
    problem: str
    way_out: str


@dataclass
class _Image:
    """What the checks across images need of one; nothing of its size."""

    site: str
    source: ImageSource
    content: str
    in_plane_mm: tuple[float, float] | None
    labelled: np.ndarray
    volumes: np.ndarray | None = None
    """Pixels of each structure; None without a label."""
    bands: BandSums | None = field(default=None, repr=False)


def check(federation: Federation, data: DataSettings, seed: int) -> list[Finding]:
    """Read every image of a manifest's federation once and report what is wrong, errors first.

    Phantoms are right by construction and are passed over. ``seed`` is the run's: whether every
    split gets labels depends on it.
    """
    findings: list[Finding] = []
    images: list[_Image] = []
    for site in federation.sites:
        files = [image for image in site.images if image.phantom is None]
        if not files:
            continue
        opened = _check_site(SiteSpec(site.name, tuple(files)), federation, data, findings)
        images += opened
        findings += _check_splits(site, opened, data, seed)
        findings += _check_orientation(site.name, opened)
    findings += _check_spacings(images, data)
    findings += _check_structures(images, federation.structures)
    findings += _check_label_values(federation, data)
    findings += _check_duplicates(federation, images)
    if data.site_pattern is not None and data.manifest is not None:
        unmatched = read_manifest(data).unmatched
        if unmatched:
            findings.append(
                Finding(
                    "warning",
                    "",
                    data.manifest,
                    f"{unmatched} rows match no site",
                    "widen data.site_pattern, or leave them out on purpose",
                )
            )
    return sorted(findings, key=lambda f: (f.severity, f.site, f.file))


def _check_site(
    site: SiteSpec, federation: Federation, data: DataSettings, findings: list[Finding]
) -> list[_Image]:
    """Read the site's images one by one; return those that could be read."""
    try:
        maps = value_maps(site, federation.structures, data)
    except LabelMapError as error:
        findings.append(_from_error(site.name, "", error))
        return []
    opened = []
    for source, mapping in zip(site.images, maps, strict=True):
        try:
            contents = readers.read(Path(source.path))
            label = readers.read(Path(source.label_path)) if source.label_path else None
            decoded = prepare.decode(source, contents, label, data.slice_axis, mapping)
        except UserError as error:
            named = source.label_path if source.label_path in str(error) else ""
            findings.append(_from_error(site.name, named or source.path, error))
            continue
        spacing = decoded.spacing_mm
        image = _Image(
            site.name,
            source,
            digest(*(part for _, part in contents)),
            spacing[1:] if spacing else None,
            np.zeros(len(decoded.image), bool),
        )
        opened.append(image)
        findings += _check_headers(site.name, source, decoded)
        if decoded.image.min() == decoded.image.max():
            findings.append(
                Finding(
                    "warning", site.name, source.path, "the image is constant", "export it again"
                )
            )
        if decoded.values is None:
            continue
        image.labelled = np.any(decoded.values, axis=(1, 2))
        if not image.labelled.any():
            findings.append(
                Finding(
                    "warning",
                    site.name,
                    source.label_path,
                    "the mask is empty, and counts as unlabelled",
                    "draw it, or empty its cell label_path",
                )
            )
            continue
        try:
            classes = to_classes(decoded.values, mapping, source)
        except LabelMapError as error:
            findings.append(_from_error(site.name, source.label_path, error))
            continue
        structures = len(federation.structures)
        image.volumes = np.bincount(classes.ravel(), minlength=structures + 1)[1:]
        image.bands = band_sums(decoded.image[image.labelled], classes[image.labelled], structures)
        cropped = prepare.cropped_fraction(classes, prepare.grid_of(decoded, data)[0])
        if cropped > 0.01:
            findings.append(
                Finding(
                    "warning",
                    site.name,
                    source.label_path,
                    f"{cropped:.0%} of the labelled pixels lie outside the network's grid",
                    "raise data.size or data.spacing_mm",
                )
            )
    return opened


def _from_error(site: str, file: str, error: UserError) -> Finding:
    problem, _, way_out = str(error).rstrip(".").rpartition("; ")
    return Finding("error", site, file, problem, way_out)


def _check_headers(site: str, source: ImageSource, decoded: prepare.Decoded) -> list[Finding]:
    """Spacing of header against table, and the label's place in space against the image's."""
    findings = []
    header = decoded.volume.spacing_mm
    affine = decoded.volume.affine
    if header is not None and not all(math.isfinite(mm) and mm > 0 for mm in header):
        findings.append(
            Finding(
                "error",
                site,
                source.path,
                f"the header's spacing is {_mm(header)} mm",
                "mend the header, or set data.default_spacing_mm",
            )
        )
    elif header is not None and affine is not None:
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if not np.allclose(sizes, header, rtol=0.05):
            findings.append(
                Finding(
                    "warning",
                    site,
                    source.path,
                    f"the header's spacing is {_mm(header)} mm, its affine's {_mm(sizes)} mm",
                    "export it again; the affine is used",
                )
            )
        table = source.spacing_mm
        # A table's order of axes is its author's: sorted, the two must agree.
        if table is not None and len(table) == 3 and _differ(sorted(table), sorted(sizes)):
            findings.append(_table_differs(site, source, sizes))
    elif header is not None and source.spacing_mm is not None:
        table = source.spacing_mm
        if _differ(table[:2], header[:2][: len(table)]):
            findings.append(_table_differs(site, source, header))
    label = decoded.label_volume
    if affine is not None and label is not None and label.affine is not None:
        moved = _corner_distance(affine, label.affine, decoded.volume.array.shape)
        voxel = float(np.linalg.norm(affine[:3, :3], axis=0).min())
        if moved > 0.5 * voxel:
            findings.append(
                Finding(
                    "error",
                    site,
                    source.label_path,
                    f"its affine places it up to {moved:.3g} mm away from the image {source.path}",
                    "copy the image's header to the label, or export both again",
                )
            )
    return findings


def _table_differs(site: str, source: ImageSource, header: Iterable[float]) -> Finding:
    return Finding(
        "warning",
        site,
        source.path,
        f"the table's spacing is {_mm(source.spacing_mm or ())} mm, the header's {_mm(header)} mm",
        "mend the wrong one; the header is used",
    )


def _differ(one: Sequence[float], other: Sequence[float]) -> bool:
    return not np.allclose(one, other, rtol=0.05)


def _mm(values: Iterable[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _corner_distance(one: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> float:
    """The largest distance in mm between corners placed by either affine, whatever their order.

    Each file is turned to canonical axes by its own affine, so a label stored along other axes is
    no fault as long as it fills the same box.
    """
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1).T
    placed = [corners @ affine[:3, :3].T + affine[:3, 3] for affine in (one, other)]
    distance = np.linalg.norm(placed[0][:, None] - placed[1][None], axis=2)
    return float(max(distance.min(axis=0).max(), distance.min(axis=1).max()))


def _check_splits(
    site: SiteSpec, images: Sequence[_Image], data: DataSettings, seed: int
) -> list[Finding]:
    if not images:
        return [
            Finding("error", site.name, "", "no image can be read", "mend the manifest's paths")
        ]
    items = [Item(image.source.subject, image.labelled) for image in images]
    parts, _ = split_site(
        items,
        role=site.role,
        fractions=data.split,
        gap=data.split_gap,
        seed=seed,
        site=site.name,
    )
    labelled = {
        split: sum(
            int(items[p.index].labelled[p.start : p.stop].sum()) for p in parts if p.split == split
        )
        for split in SPLITS
    }
    empty = [split for split in SPLITS if not labelled[split] and data.split[split] > 0]
    if site.role == "unseen" or not any(labelled.values()) or not empty:
        return []
    return [
        Finding(
            "warning",
            site.name,
            "",
            f"no labelled slice falls to {' and '.join(empty)}",
            "add labelled subjects, or change data.split or data.split_gap",
        )
    ]


def _check_orientation(site: str, images: Sequence[_Image]) -> list[Finding]:
    """Judge the site as a whole; if it is sound, each subject; if all are, each image."""
    by_subject: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        if image.bands is not None:
            by_subject[image.source.subject].append(image)
    groups = list(by_subject.values())
    everything = [image for group in groups for image in group]
    if len(groups) > 1 and (finding := _misplaced(site, everything, SITE_FLOOR)):
        return [finding]
    judged = [_misplaced(site, group, SUBJECT_FLOOR) for group in groups]
    if any(judged):
        return [finding for finding in judged if finding]
    odd = odd_ones_out([image.bands for image in everything if image.bands is not None])
    return [_placed(site, [everything[k]], key, "warning") for k, key in odd.items()]


def _misplaced(site: str, images: Sequence[_Image], floor: float) -> Finding | None:
    found = [image.bands for image in images if image.bands is not None]
    placement = reduce(BandSums.__add__, found).suspect(floor)
    return _placed(site, images, placement, "error") if placement else None


def _placed(
    site: str, images: Sequence[_Image], placement: Placement, severity: Severity
) -> Finding:
    more = f" (and {len(images) - 1} more of the same)" if len(images) > 1 else ""
    return Finding(
        severity,
        site,
        images[0].source.label_path,
        f"the label fits its image{more} far better {NAMES[placement]}",
        "look at both on top of each other, and export the wrong one again",
    )


def _check_spacings(images: Sequence[_Image], data: DataSettings) -> list[Finding]:
    findings = []
    known = [image for image in images if image.in_plane_mm is not None]
    median = float(np.median([image.in_plane_mm for image in known])) if known else 0.0
    for image in known:
        worst = max((mm / median for mm in image.in_plane_mm or ()), key=lambda r: abs(math.log(r)))
        if not 1 / OUTLIER < worst < OUTLIER:
            findings.append(
                Finding(
                    "warning",
                    image.site,
                    image.source.path,
                    f"its in-plane spacing is {_mm(image.in_plane_mm or ())} mm, the federation's "
                    f"median {median:.4g} mm",
                    "mend the header or the table, which may be in other units",
                )
            )
    unknown: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        if image.in_plane_mm is None and data.default_spacing_mm is None:
            unknown[image.site].append(image)
    for site, those in unknown.items():
        findings.append(
            Finding(
                "warning",
                site,
                those[0].source.path,
                f"the pixel spacing of {len(those)} images is unknown: distances are in pixels",
                "fill the column spacing_mm, or set data.default_spacing_mm",
            )
        )
    return findings


def _check_structures(images: Sequence[_Image], structures: Sequence[str]) -> list[Finding]:
    """Structures that a site lacks, or whose sizes suggest that two were exchanged."""
    volumes: dict[str, np.ndarray] = {}
    for image in images:
        if image.volumes is not None:
            volumes[image.site] = volumes.get(image.site, 0) + image.volumes
    findings = []
    for k, name in enumerate(structures):
        lacking = [site for site, volume in volumes.items() if volume[k] == 0]
        if volumes and len(lacking) == len(volumes):
            findings.append(
                Finding(
                    "error",
                    "",
                    "",
                    f"no label file holds the structure {name!r}",
                    "take it out of data.labels, or mend its values",
                )
            )
            continue
        findings += [
            Finding(
                "warning",
                site,
                "",
                f"no label of this site holds the structure {name!r}, other sites' do",
                "check its values in the label files against data.labels",
            )
            for site in lacking
        ]
    complete = {site: np.log(volume) for site, volume in volumes.items() if volume.all()}
    if len(complete) < 3:
        return findings
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
                            site,
                            "",
                            f"{structures[a]!r} and {structures[b]!r} seem exchanged: their "
                            f"volume ratio is {math.exp(own):.2g}, elsewhere {math.exp(usual):.2g}",
                            "check their values in the label files against data.labels",
                        )
                    )
    return findings


def _check_label_values(federation: Federation, data: DataSettings) -> list[Finding]:
    """The table gives one name different values at different sites."""
    if data.manifest is None or data.labels is not None:
        return []
    table = read_manifest(data).label_values
    first: dict[str, tuple[int, str]] = {}
    findings = []
    for site in federation.sites:
        texts = {table[i.label_path]: i.label_path for i in site.images if i.label_path in table}
        for text, path in texts.items():
            for value, name in parse_label_values(text, path).items():
                usual, where = first.setdefault(name, (value, site.name))
                if usual != value:
                    findings.append(
                        Finding(
                            "warning",
                            site.name,
                            path,
                            f"{name!r} has the value {value} here and {usual} at {where}; names "
                            "decide",
                            "nothing is needed if label_values is right",
                        )
                    )
    return findings


def _check_duplicates(federation: Federation, images: Sequence[_Image]) -> list[Finding]:
    findings = []
    home: dict[str, str] = {}
    for site in federation.sites:
        first_of = {image.subject: image for image in reversed(site.images) if not image.phantom}
        for subject, source in first_of.items():
            other = home.setdefault(subject, site.name)
            if other != site.name:
                findings.append(
                    Finding(
                        "error",
                        site.name,
                        source.path,
                        f"the subject {subject!r} is also at {other}: it may train one site and "
                        "test another",
                        "rename it if it is another person, or keep it at one site",
                    )
                )
    seen: dict[str, _Image] = {}
    for image in images:
        twin = seen.setdefault(image.content, image)
        if twin is not image:
            findings.append(
                Finding(
                    "error",
                    image.site,
                    image.source.path,
                    f"it is byte for byte {twin.source.path} (site {twin.site}, subject "
                    f"{twin.source.subject})",
                    "keep one of the two rows",
                )
            )
    return findings
