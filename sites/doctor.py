"""The doctor: what is wrong with a federation's images, which file, and the way out.

``fedshift sites check`` prints what it finds, and every command that trains or scores asks it
first: an error stops the command unless ``data.accept`` names its code.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from fedshift.sites.findings import Finding, Severity, listed
from fedshift.sites.labels import (
    LabelMapError,
    called,
    is_negative,
    never_shown,
    no_structure,
    parse_label_values,
)
from fedshift.sites.legend import Legend
from fedshift.sites.likeness import NEAR, keyed_alike
from fedshift.sites.manifest import read_manifest
from fedshift.sites.namesakes import Named, differing, look_alikes, twice
from fedshift.sites.opening import legends
from fedshift.sites.orientation import NAMES, BandSums, Placement, odd_ones_out
from fedshift.sites.plan import PLANES
from fedshift.sites.settings import IGNORE, MOST_STRUCTURES, DataSettings
from fedshift.sites.splits import Item, split_site
from fedshift.sites.survey import HOUNSFIELD_LOW, OTHER, Facts, in_mm, survey
from fedshift.sites.types import IGNORED, SPLITS, Federation, ImageSource, SiteSpec

SUBJECT_FLOOR, SITE_FLOOR = 0.5, 0.15
"""The smallest effect (see :mod:`.orientation`) that counts for a subject and for a whole site."""
MOST_NAMED = 20
"""A label file with more values, none of which has a name, was not drawn with them."""
OUTLIER = 4.0
"""A spacing this many times the federation's median, or that small a part of it, is suspect."""


@dataclass(frozen=True)
class _Image:
    """One usable image: its row, what was found in it, and its label's values by class."""

    site: str
    source: ImageSource
    facts: Facts
    values: tuple[tuple[int, ...], ...] = ()
    """The label values of each structure in this file."""
    legend: Legend | None = None

    @property
    def ignores(self) -> bool:
        """Whether its label holds pixels that are not to count."""
        classes = self.legend.classes(self.facts.names) if self.legend is not None else {}
        return any(classes.get(value) == IGNORED for value in self.facts.values or ())

    def finding(self, severity: Severity, code: str, problem: str, way_out: str) -> Finding:
        source = self.source
        return Finding(severity, code, self.site, source.path, problem, way_out, source.row)

    def of_label(self, severity: Severity, code: str, problem: str, way_out: str) -> Finding:
        source = self.source
        return Finding(severity, code, self.site, source.label_path, problem, way_out, source.row)


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
    (:func:`.likeness.keyed`), an entry an image.
    """
    findings: list[Finding] = []
    images: list[_Image] = []
    for site in federation.sites:
        files = tuple(image for image in site.images if image.phantom is None)
        if not files:
            continue
        opened = _check_site(replace(site, images=files), federation, data, findings)
        images += opened
        findings += _check_splits(site, opened, data, seed)
        findings += _check_orientation(site.name, opened)
    findings += _check_planes(images, data)
    findings += _check_spacings(images, data)
    findings += _check_hounsfield(images, data)
    findings += _check_modalities(images)
    unsaid = _check_values(images, data)
    findings += unsaid
    if not unsaid:  # Else the structures are not known yet.
        findings += _check_structures(images, federation.structures, data)
    findings += _check_label_values(federation, data)
    findings += _check_names(images, federation.structures, data)
    findings += _check_labelled(federation, images, data)
    findings += _check_duplicates(federation, images)
    findings += _check_likeness(federation, hashes or {})
    if data.site_pattern is not None and data.manifest is not None:
        unmatched = read_manifest(data).unmatched
        if unmatched:
            findings.append(
                Finding(
                    "warning",
                    "rows-unmatched",
                    "",
                    data.manifest,
                    f"has {unmatched} rows that match no site",
                    "widen data.site_pattern, or leave them out on purpose",
                )
            )
    # What a whole site lacks follows from its files, which come first.
    return sorted(findings, key=lambda f: (f.severity, f.site, not f.file, f.row, f.file))


def _check_site(
    site: SiteSpec, federation: Federation, data: DataSettings, findings: list[Finding]
) -> list[_Image]:
    """What the survey found in the site's files one by one; returns the usable ones."""
    try:
        meanings = legends(site, federation.structures, data)
    except LabelMapError as error:
        problem, _, way_out = str(error).rstrip(".").rpartition("; ")
        findings.append(Finding("error", "label-map", site.name, "", problem, way_out))
        return []
    opened = []
    for source, found, legend in zip(site.images, survey(site, data), meanings, strict=True):
        findings += [
            Finding(
                trouble.severity,
                trouble.code,
                site.name,
                source.label_path if trouble.on == "label" else source.path,
                trouble.problem,
                trouble.way_out,
                source.row,
            )
            for trouble in found.troubles
        ]
        if found.facts is None or found.left_out:
            continue
        if source.annotates is not None and not source.annotates:
            fault = no_structure(source, found.facts.names)
            findings.append(
                Finding(
                    "error",
                    fault.code,
                    site.name,
                    source.label_path,
                    fault.problem,
                    fault.way_out,
                    source.row,
                )
            )
            continue
        mapping = legend.classes(found.facts.names) if legend is not None else {}
        classes = range(1, len(federation.structures) + 1)
        values = tuple(tuple(v for v, c in mapping.items() if c == k) for k in classes)
        image = _Image(site.name, source, found.facts, values, legend)
        opened.append(image)
        if found.facts.values is not None:
            findings += _check_label(image, mapping, data)
    if not opened:
        faults = [finding for finding in findings if finding.site == site.name]
        codes = dict.fromkeys(fault.code for fault in faults)
        n = len(site.images)
        first = faults[0]
        # What is an error itself is told at length.
        named = f": {first.file} {first.problem}" if first.severity == "warning" else ""
        findings.append(
            Finding(
                "error",
                "site-empty",
                site.name,
                "",
                f"{f'none of its {n} images' if n > 1 else 'its only image'} can be used "
                f"({listed(codes)}){named}",
                "mend what is told of them, or leave the site out of data.sites",
            )
        )
    return opened


def _check_label(
    image: _Image, mapping: Mapping[int, int], data: DataSettings
) -> Iterable[Finding]:
    facts = image.facts
    if not facts.has_labels and is_negative(image.source, data):
        return
    if not facts.has_labels:
        yield image.of_label(
            "warning",
            "empty-mask",
            "is an empty mask, and counts as unlabelled",
            "draw it, empty its cell label_path, or say that it was looked at and nothing is there "
            "(data.empty_masks=negative, or negative in the column empty)",
        )
        return
    outside = [value for value in facts.values or () if value not in mapping]
    if outside and facts.n_values > MOST_STRUCTURES + 1:
        yield image.of_label(
            "error",
            "too-many-values",
            f"holds {facts.n_values} values",
            f"at most {MOST_STRUCTURES} structures fit; give each of its values to one in "
            "data.labels ('data.labels={NAME: 1-65535}' where every value is one object)",
        )
        return
    if outside:
        told = ", ".join(called(value, facts.names) for value in outside[:3])
        told += ", ..." if len(outside) > 3 else ""
        yield image.of_label(
            "error",
            "value-outside",
            f"holds the value{'s' if len(outside) > 1 else ''} {told}, which "
            f"{'are' if len(outside) > 1 else 'is'} in no structure",
            "give it to one, or to background, in data.labels",
        )
    if "size" in data.auto or "spacing_mm" in data.auto:
        return
    cropped = facts.reach[_axis(image, data)].outside(_half(image, data))
    if cropped > 0.01:
        yield image.of_label(
            "warning",
            "cropped",
            f"has {cropped:.0%} of its labelled pixels outside the network's grid",
            "raise data.size or data.spacing_mm",
        )


def _check_labelled(
    federation: Federation, images: Sequence[_Image], data: DataSettings
) -> Iterable[Finding]:
    """Whether there is anything to learn from."""
    training = {site.name for site in federation.sites if site.role == "train"}
    own = [image for image in images if image.site in training]
    if own and not any(_looked_at(image, data).any() for image in own):
        yield Finding(
            "error",
            "no-labels",
            "",
            "",
            "no site can train: none of their images has a label",
            "fill the column label_path with masks (boxes, points and labels of whole images are "
            "not read)",
        )


def _axis(image: _Image, data: DataSettings) -> int:
    """The canonical axis that the image's slices run along; without orientation, its last."""
    facts = image.facts
    return data.slice_axis if data.slice_axis is not None and facts.oriented else facts.axis


def _half(image: _Image, data: DataSettings) -> float:
    """Half the side of the network's grid, in the units of :class:`.survey.Reach`."""
    spacing = image.facts.spacing_mm
    if spacing is None:  # Its reach is in pixels.
        own = data.default_spacing_mm
        return data.size / 2 * (data.spacing_mm / own if own and data.spacing_mm else 1.0)
    in_plane = [spacing[k] for k in range(3) if k != _axis(image, data)]
    return data.size / 2 * (data.spacing_mm or min(in_plane))


def _check_splits(
    site: SiteSpec, images: Sequence[_Image], data: DataSettings, seed: int
) -> list[Finding]:
    items = [Item(image.source.subject, _looked_at(image, data)) for image in images]
    if not items:
        return []
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
            "empty-split",
            site.name,
            "",
            f"no labelled slice falls to {' and '.join(empty)}",
            "add labelled subjects, or change data.split or data.split_gap",
        )
    ]


def _looked_at(image: _Image, data: DataSettings) -> np.ndarray:
    """The image's slices (S,) that its label tells of."""
    flags = image.facts.flags(_axis(image, data))
    if image.facts.values is not None and is_negative(image.source, data):
        return np.ones_like(flags)
    return flags


def _check_orientation(site: str, images: Sequence[_Image]) -> list[Finding]:
    """Judge the site as a whole; if it is sound, each subject; if all are, each image."""
    by_subject: dict[str, list[tuple[_Image, BandSums]]] = defaultdict(list)
    for image in images:
        if image.facts.bands:
            sums = image.facts.band_sums(image.values)
            by_subject[image.source.subject].append((image, sums))
    groups = list(by_subject.values())
    everything = [one for group in groups for one in group]
    if len(groups) > 1 and (finding := _misplaced(everything, SITE_FLOOR)):
        return [finding]
    judged = [_misplaced(group, SUBJECT_FLOOR) for group in groups]
    if any(judged):
        return [finding for finding in judged if finding]
    odd = odd_ones_out([sums for _, sums in everything])
    return [_placed([everything[k][0]], key, "warning") for k, key in odd.items()]


def _misplaced(found: Sequence[tuple[_Image, BandSums]], floor: float) -> Finding | None:
    placement = reduce(BandSums.__add__, [sums for _, sums in found]).suspect(floor)
    if placement is None:
        return None
    # What is ignored around a structure counts as its surroundings, and may look as it does.
    ignored = any(image.ignores for image, _ in found)
    return _placed([image for image, _ in found], placement, "warning" if ignored else "error")


def _placed(images: Sequence[_Image], placement: Placement, severity: Severity) -> Finding:
    more = f" (and {len(images) - 1} more of the same)" if len(images) > 1 else ""
    return images[0].of_label(
        severity,
        "label-turned",
        f"fits its image{more} far better {NAMES[placement]}",
        "look at both on top of each other, and export the wrong one again",
    )


def _check_planes(images: Sequence[_Image], data: DataSettings) -> list[Finding]:
    """Images whose slices run along another axis than those of the federation."""
    if data.slice_axis is None:
        return []
    # Whoever set the axis by hand has decided; a plan has not asked.
    severity: Severity = "error" if "slice_axis" in data.planned else "warning"
    findings = []
    for image in images:
        facts = image.facts
        if facts.oriented and facts.clear and facts.axis != data.slice_axis:
            alone = facts.shape[facts.axis] == 1  # never cut across
            problem = (
                "the network would see another plane of the body"
                if alone
                else "cut as those are, it is cut across its own slices, and is coarse in one "
                "direction of the network's picture"
            )
            findings.append(
                image.finding(
                    severity,
                    "slice-axis",
                    f"has {PLANES[facts.axis]} slices, and the federation's are "
                    f"{PLANES[data.slice_axis]}: {problem}",
                    "leave it out, or set data.slice_axis by hand if that is meant"
                    if severity == "error"
                    else "leave it out if that is not meant",
                )
            )
        elif not facts.oriented and facts.shape[2] > 1 and data.slice_axis != facts.axis:
            findings.append(
                image.finding(
                    "warning",
                    "slice-axis",
                    "is a stack without orientation, and is cut along its last axis whatever "
                    "data.slice_axis says",
                    "give it an orientation, or make sure that this is the federation's plane",
                )
            )
    return findings


def _check_spacings(images: Sequence[_Image], data: DataSettings) -> list[Finding]:
    findings = []
    in_plane: dict[int, tuple[float, ...]] = {}
    for number, image in enumerate(images):
        spacing = image.facts.spacing_mm
        if spacing is not None:
            in_plane[number] = tuple(spacing[k] for k in range(3) if k != _axis(image, data))
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


def _check_modalities(images: Sequence[_Image]) -> Iterable[Finding]:
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


def _check_hounsfield(images: Sequence[_Image], data: DataSettings) -> Iterable[Finding]:
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


def _check_values(images: Sequence[_Image], data: DataSettings) -> list[Finding]:
    """Label values that nobody has given a meaning, and that do not speak for themselves."""
    if data.labels is not None or data.manifest is None:
        return []
    table = read_manifest(data).label_values
    unnamed = [
        image
        for image in images
        if image.facts.has_labels
        and image.source.label_path not in table
        and not image.facts.names
        and image.facts.n_values <= MOST_STRUCTURES + 1
    ]
    for rule in (_smoothed, _differ_by_site, _one_value_each, _lonely, _far_apart):
        if findings := rule(unnamed):
            return findings
    return []


def _held(image: _Image) -> frozenset[int]:
    """The label's values above 0."""
    return frozenset(value for value in image.facts.values or () if value > 0)


def _ask(values: Iterable[int]) -> str:
    every = sorted(values)
    told = ", ".join(map(str, every[:4])) + (", ..." if len(every) > 4 else "")
    return (
        f"say what they mean: data.labels={{NAME: [{told}]}} where they are one structure, a name "
        "each where they are several, with background: VALUE for what is none and ignore: VALUE "
        "for what is not to count"
    )


def _smoothed(images: Sequence[_Image]) -> list[Finding]:
    return [
        image.of_label(
            "error",
            "label-values",
            f"holds {image.facts.n_values} values, as a smoothed mask or an image does, and "
            "nothing says what they mean",
            "export the mask without smoothing, or give every value in data.labels",
        )
        for image in images
        if image.facts.n_values > MOST_NAMED
    ]


def _differ_by_site(images: Sequence[_Image]) -> list[Finding]:
    by_site: dict[str, frozenset[int]] = defaultdict(frozenset)
    for image in images:
        by_site[image.site] |= _held(image)
    sites_of: dict[frozenset[int], list[str]] = defaultdict(list)
    for site, values in sorted(by_site.items()):
        sites_of[values].append(site)
    if len(sites_of) < 2:
        return []
    groups = sorted(sites_of.items(), key=lambda entry: -len(entry[1]))
    told = "; ".join(
        f"{listed(sites)} hold{'' if len(sites) > 1 else 's'} {listed(map(str, sorted(values)))}"
        for values, sites in groups[:3]
    )
    odd = next(image for image in images if image.site == groups[-1][1][0])
    problem = (
        f"holds {listed(map(str, sorted(_held(odd))))}; values differ from site to site ({told}), "
        "and nothing says what they mean"
    )
    return [odd.of_label("error", "label-values", problem, _ask(frozenset().union(*sites_of)))]


def _one_value_each(images: Sequence[_Image]) -> list[Finding]:
    """Masks of one value each that is not the same, as of 1-bit files beside 8-bit ones."""
    held = Counter(_held(image) for image in images)
    if len(held) < 2 or any(len(values) > 1 for values in held):
        return []
    rare = min(held, key=lambda values: held[values])
    odd = next(image for image in images if _held(image) == rare)
    used = frozenset().union(*held)
    problem = (
        f"holds {min(rare)} alone, as {held[rare]} of {len(images)} label files do, where others "
        f"hold {listed(map(str, sorted(used - rare)))} alone, and nothing says what they mean"
    )
    return [odd.of_label("error", "label-values", problem, _ask(used))]


def _lonely(images: Sequence[_Image]) -> list[Finding]:
    files = Counter(value for image in images for value in _held(image))
    return [
        image.of_label(
            "error",
            "label-values",
            f"alone of {len(images)} label files holds the value {value}",
            "give it a structure, or background, in data.labels, or mend the file",
        )
        for image in images
        for value in sorted(_held(image))
        if files[value] == 1 and len(images) > 2
    ]


def _far_apart(images: Sequence[_Image]) -> list[Finding]:
    """Values that number no structures, as of masks with few tones of grey at their edges."""
    used = frozenset().union(*(_held(image) for image in images))
    if len(used) < 2 or max(used) <= max(MOST_NAMED, 2 * len(used)):
        return []
    widest = max(images, key=lambda image: len(_held(image)))
    problem = (
        f"holds {listed(map(str, sorted(_held(widest))))}; values so far apart are the grey edge "
        "of a smoothed mask, or a mark for what is to be ignored, as often as structures, and "
        "nothing says what they mean"
    )
    return [widest.of_label("error", "label-values", problem, _ask(used))]


def _check_structures(
    images: Sequence[_Image], structures: Sequence[str], data: DataSettings
) -> list[Finding]:
    """Structures that a site lacks, or whose sizes suggest that two were exchanged."""
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
            f"no label file holds the structure {name!r}",
            f"take it out of {'data.labels' if data.labels else 'label_values, or of the files'}, "
            "or mend its values",
        )
        for name in structures
        if volumes and not any(name in own for own in shown.values())
    ]
    said = _said(images, data)
    for site, names in never_shown(shown, _annotated(images)).items():
        for name in names:
            problem = f"no label of this site holds the structure {name!r}, other sites' do"
            if said[site]:
                way_out = "check its values in the label files"
                findings.append(Finding("warning", "structure-absent", site, "", problem, way_out))
                continue
            findings.append(
                Finding(
                    "error",
                    "structure-unsaid",
                    site,
                    "",
                    f"{problem}: if nobody drew it, it would be learnt as background",
                    f"set data.annotates={{{site}: [{', '.join(shown[site])}]}} if it was not "
                    f"drawn, or data.annotates={{{site}: [{', '.join(structures)}]}} if it was "
                    "looked for",
                )
            )
    return findings + _check_exchanged(volumes, structures)


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


def _annotated(images: Sequence[_Image]) -> dict[str, set[str] | None]:
    """By site, what some label of it is said to tell of; None: everything."""
    found: dict[str, set[str] | None] = {}
    for image in images:
        before, own = found.get(image.site, set()), image.source.annotates
        found[image.site] = None if before is None or own is None else before | {*own}
    return found


def _said(images: Sequence[_Image], data: DataSettings) -> dict[str, bool]:
    """By site, whether the config or the table says which structures its labels tell of."""
    if data.manifest is None:
        return defaultdict(bool)
    label_values, rows = read_manifest(data).label_values, _said_by_row(data)
    said: dict[str, bool] = defaultdict(bool)
    for image in images:
        named = data.labels is None and image.source.label_path in label_values
        said[image.site] |= named or image.site in data.annotates or image.source.path in rows
        # A file that names its structures tells of those that it lists.
        said[image.site] |= bool(image.facts.names)
    return said


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
                            "values-differ",
                            site.name,
                            path,
                            f"{name!r} has the value {value} here and {usual} at {where}; names "
                            "decide",
                            "nothing is needed if label_values is right",
                        )
                    )
    return findings


def _check_names(
    images: Sequence[_Image], structures: Sequence[str], data: DataSettings
) -> list[Finding]:
    """The names that label files give to their values, against their meaning and each other's."""
    table = read_manifest(data).label_values if data.manifest and data.labels is None else {}
    rows = {
        file: [name for name in parse_label_values(text, file).values() if name != IGNORE]
        for file, text in table.items()
    }
    named: list[_Image] = []
    files: list[Named] = []
    for image in images:
        file = image.source.label_path
        if image.legend is not None and (image.facts.names or file in rows):
            named.append(image)
            files.append(Named(file, image.facts.names, image.legend))
    by_hand = _said_by_row(data)
    findings = [
        named[number].of_label("error", "names-differ", problem, way_out)
        for number, problem, way_out in differing(files, structures, data.labels or {})
    ]
    findings += [
        named[number].of_label("warning", "names-alike", problem, way_out)
        for number, problem, way_out in look_alikes(files, structures, data.labels, rows)
    ]
    for image, one in zip(named, files, strict=True):
        findings += [
            image.of_label(
                "warning",
                "name-twice",
                f"has one name twice, {values}, and both count",
                "delete the one that is not meant from the file",
            )
            for values in twice(one)
        ]
        said = image.site in data.annotates or image.source.path in by_hand
        if not said and image.source.label_path not in rows:
            findings += _listed_only(image, structures)
    return findings


def _listed_only(image: _Image, structures: Sequence[str]) -> Iterable[Finding]:
    """What the label file lists without a voxel, beside what it draws."""
    counts = image.facts.values or {}
    if not image.facts.has_labels:
        return
    for name, values in zip(structures, image.values, strict=True):
        if {*values} & {*image.facts.names} and not any(counts.get(value) for value in values):
            yield image.of_label(
                "warning",
                "structure-empty",
                f"lists {name!r} and draws nothing of it, which counts as looked at and not there",
                "if nobody drew it, delete it from the file, or say in the column annotates what "
                "was drawn",
            )


def _said_by_row(data: DataSettings) -> set[str]:
    """The images of which the column annotates says what their labels tell of."""
    if data.manifest is None:
        return set()
    table = read_manifest(data)
    return {image.path for found in table.images.values() for image in found if image.annotates}


def _check_duplicates(federation: Federation, images: Sequence[_Image]) -> list[Finding]:
    """One person at two sites, one picture in two rows, one label for two people."""
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
                        "subject-twice",
                        site.name,
                        source.path,
                        f"is of the subject {subject!r}, who is also at {other}: the same person "
                        "may train one site and test another",
                        "rename the subject if it is another person, or keep it at one site",
                        source.row,
                    )
                )
    seen: dict[str, _Image] = {}
    for image in images:
        twin = seen.setdefault(image.facts.pixels, image)
        if twin is not image:
            findings.append(
                image.finding(
                    # One subject's images never fall into two splits.
                    "warning" if _whose(image) == _whose(twin) else "error",
                    "duplicate",
                    f"shows pixel for pixel what {twin.source.path} shows (site {twin.site}, "
                    f"subject {twin.source.subject})",
                    "keep one of the two rows",
                )
            )
    owner: dict[str, _Image] = {}
    for image in images:
        # One blank mask may serve all healthy people.
        if not image.facts.has_labels:
            continue
        other_image = owner.setdefault(image.source.label_path, image)
        same = other_image.facts.pixels == image.facts.pixels  # Told above.
        if _whose(other_image) != _whose(image) and not same:
            problem = (
                f"is the label of {image.source.path} (subject {image.source.subject}) and of "
                f"{other_image.source.path} (subject {other_image.source.subject}, site "
                f"{other_image.site})"
            )
            if _alike(image.facts, other_image.facts):  # As one scan reconstructed twice.
                problem += ", which look alike: one person may train one site and test another"
                way_out = "nothing is needed if one scan is meant to be at both, else keep one row"
                findings.append(image.of_label("warning", "label-twice", problem, way_out))
                continue
            way_out = "mend label_path in one of the two rows"
            findings.append(image.of_label("error", "label-twice", problem, way_out))
    by_site: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        by_site[image.site].append(image)
    findings += [
        one.finding(
            "warning",
            "near-duplicate",
            f"looks like {twin.source.path} (subject {twin.source.subject})",
            "look at both; if they are one, keep one of the two rows",
        )
        for own in by_site.values()
        for one, twin in _look_alikes(own)
    ]
    return findings


def _whose(image: _Image) -> tuple[str, str]:
    return image.site, image.source.subject


def _alike(one: Facts, other: Facts) -> bool:
    """Whether two pictures look alike, whatever is equal in them."""
    if not (one.picture and other.picture):
        return False
    return (int(one.picture, 16) ^ int(other.picture, 16)).bit_count() <= NEAR


def _look_alikes(images: Sequence[_Image]) -> Iterable[tuple[_Image, _Image]]:
    """Pairs of different subjects' pictures that look alike but are not equal."""
    seen = [image for image in images if image.facts.picture]
    hashes = np.array([int(image.facts.picture, 16) for image in seen], np.uint64)
    for k, image in enumerate(seen):
        for j in np.flatnonzero(np.bitwise_count(hashes[:k] ^ hashes[k]) <= NEAR):
            other = seen[j]
            if (
                image.source.subject != other.source.subject
                and image.facts.pixels != other.facts.pixels
            ):
                yield image, other


def _check_likeness(
    federation: Federation, hashes: Mapping[str, Sequence[Sequence[str]]]
) -> list[Finding]:
    """Pictures that two sites' keyed hashes say are one."""
    findings = []
    names = [site.name for site in federation.sites if site.name in hashes]
    for k, name in enumerate(names):
        images = federation.site(name).images
        for other in names[:k]:
            same = [
                image
                for image, own in zip(images, hashes[name], strict=True)
                if any(keyed_alike(own, theirs) for theirs in hashes[other])
            ]
            findings += [
                Finding(
                    "warning",
                    "near-duplicate",
                    name,
                    image.path,
                    f"looks like an image at {other}",
                    "ask that site for it; if they are one, keep it at one site",
                    image.row,
                )
                for image in same
            ]
    return findings
