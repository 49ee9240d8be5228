"""Label values that nobody has given a meaning, and that do not speak for themselves."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from fedshift.sites.doctor.image import Image
from fedshift.sites.findings import Finding, listed
from fedshift.sites.manifest import read_manifest
from fedshift.sites.settings import MOST_STRUCTURES, DataSettings

MOST_NAMED = 20
"""A label file with more values, none of which has a name, was not drawn with them."""


def check_values(images: Sequence[Image], data: DataSettings) -> list[Finding]:
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


def _held(image: Image) -> frozenset[int]:
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


def _smoothed(images: Sequence[Image]) -> list[Finding]:
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


def _differ_by_site(images: Sequence[Image]) -> list[Finding]:
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


def _one_value_each(images: Sequence[Image]) -> list[Finding]:
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


def _lonely(images: Sequence[Image]) -> list[Finding]:
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


def _far_apart(images: Sequence[Image]) -> list[Finding]:
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
