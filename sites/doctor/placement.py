"""Labels that fit their image better when turned, and slices in another plane than the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import reduce

from fedshift.sites.doctor.image import Image
from fedshift.sites.findings import Finding, Severity
from fedshift.sites.orientation import NAMES, BandSums, Placement, odd_ones_out
from fedshift.sites.plan import PLANES
from fedshift.sites.settings import DataSettings

SUBJECT_FLOOR, SITE_FLOOR = 0.5, 0.15
"""The smallest effect that counts for a subject and for a whole site; see
:mod:`fedshift.sites.orientation`."""


def check_orientation(site: str, images: Sequence[Image]) -> list[Finding]:
    """Judge the site as a whole; if it is sound, each subject; if all are, each image."""
    by_subject: dict[str, list[tuple[Image, BandSums]]] = defaultdict(list)
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


def _misplaced(found: Sequence[tuple[Image, BandSums]], floor: float) -> Finding | None:
    placement = reduce(BandSums.__add__, [sums for _, sums in found]).suspect(floor)
    if placement is None:
        return None
    # What is ignored around a structure counts as its surroundings, and may look as it does.
    ignored = any(image.ignores for image, _ in found)
    return _placed([image for image, _ in found], placement, "warning" if ignored else "error")


def _placed(images: Sequence[Image], placement: Placement, severity: Severity) -> Finding:
    more = f" (and {len(images) - 1} more of the same)" if len(images) > 1 else ""
    return images[0].of_label(
        severity,
        "label-turned",
        f"fits its image{more} far better {NAMES[placement]}",
        "look at both on top of each other, and export the wrong one again",
    )


def check_planes(images: Sequence[Image], data: DataSettings) -> list[Finding]:
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
