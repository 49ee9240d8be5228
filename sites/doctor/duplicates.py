"""One person at two sites, one picture in two rows, one label for two people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedshift.sites.doctor.image import Image
from fedshift.sites.findings import Finding
from fedshift.sites.labels import Form
from fedshift.sites.likeness import NEAR, alike, keyed_alike
from fedshift.sites.types import Federation


def check_duplicates(federation: Federation, images: Sequence[Image], form: Form) -> list[Finding]:
    """What of one person or one scan stands in more than one row."""
    return [
        *_subjects(federation),
        *_pixels(images),
        *_labels([image for image in images if image.source.label_path], form),
        *_pictures(images),
    ]


def _subjects(federation: Federation) -> Iterable[Finding]:
    """One person at two sites."""
    home: dict[str, str] = {}
    for site in federation.sites:
        first_of = {image.subject: image for image in reversed(site.images) if not image.phantom}
        for subject, source in first_of.items():
            other = home.setdefault(subject, site.name)
            if other != site.name:
                yield Finding(
                    "error",
                    "subject-twice",
                    site.name,
                    source.path,
                    f"is of the subject {subject!r}, who is also at {other}: the same person "
                    "may train one site and test another",
                    "rename the subject if it is another person, or keep it at one site",
                    source.row,
                )


def _pixels(images: Sequence[Image]) -> Iterable[Finding]:
    """One picture in two rows."""
    seen: dict[str, Image] = {}
    for image in images:
        twin = seen.setdefault(image.facts.pixels, image)
        if twin is not image:
            yield image.finding(
                # One subject's images never fall into two splits.
                "warning" if image.whose == twin.whose else "error",
                "duplicate",
                f"shows pixel for pixel what {twin.source.path} shows (site {twin.site}, "
                f"subject {twin.source.subject})",
                "keep one of the two rows",
            )


def _labels(images: Sequence[Image], form: Form) -> Iterable[Finding]:
    """One label for two people; one blank mask may serve all healthy ones."""
    owner: dict[str, Image] = {}
    for image in images:
        if not image.facts.has_labels or form.shared(image.source):
            continue
        other = owner.setdefault(image.source.label_path, image)
        # Of equal pixels the images are told already.
        if other.whose == image.whose or other.facts.pixels == image.facts.pixels:
            continue
        problem = (
            f"is the label of {image.source.path} (subject {image.source.subject}) and of "
            f"{other.source.path} (subject {other.source.subject}, site {other.site})"
        )
        if alike(image.facts.picture, other.facts.picture):  # As one scan reconstructed twice.
            yield image.of_label(
                "warning",
                "label-twice",
                f"{problem}, which look alike: one person may train one site and test another",
                "nothing is needed if one scan is meant to be at both, else keep one row",
            )
        else:
            yield image.of_label(
                "error", "label-twice", problem, f"mend {form.columns[0]} in one of the two rows"
            )


def _pictures(images: Sequence[Image]) -> Iterable[Finding]:
    """Pictures of one site that look alike."""
    by_site: dict[str, list[Image]] = defaultdict(list)
    for image in images:
        by_site[image.site].append(image)
    for own in by_site.values():
        for one, twin in _look_alikes(own):
            yield one.finding(
                "warning",
                "near-duplicate",
                f"looks like {twin.source.path} (subject {twin.source.subject})",
                "look at both; if they are one, keep one of the two rows",
            )


def _look_alikes(images: Sequence[Image]) -> Iterable[tuple[Image, Image]]:
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


def check_likeness(
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
