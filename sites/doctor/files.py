"""What is wrong with a site's files one by one, and with what is left of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fedshift.sites.doctor.image import Image, axis_of, half_of, looked_at
from fedshift.sites.findings import FileFault, Finding, listed
from fedshift.sites.labels import form_of
from fedshift.sites.labels.annotation import (
    annotated_classes,
    contradiction,
    contradicts,
    is_negative,
    no_structure,
)
from fedshift.sites.labels.meaning import LabelMapError
from fedshift.sites.opening import legends
from fedshift.sites.settings import MOST_STRUCTURES, DataSettings
from fedshift.sites.splits import Item, split_site
from fedshift.sites.survey import survey
from fedshift.sites.types import SPLITS, Federation, SiteSpec


def check_site(
    site: SiteSpec, federation: Federation, data: DataSettings, findings: list[Finding]
) -> list[Image]:
    """What the survey found in the site's files one by one; returns the usable ones."""
    try:
        meanings = legends(site, federation.parts, data)
    except LabelMapError as error:
        problem, _, way_out = str(error).rstrip(".").rpartition("; ")
        findings.append(Finding("error", "label-map", site.name, "", problem, way_out))
        return []
    opened = []
    form = form_of(data)
    for source, found, legend in zip(site.images, survey(site, data), meanings, strict=True):
        findings += [
            Finding(
                trouble.severity,
                trouble.code,
                site.name,
                source.label_path or source.path if trouble.on == "label" else source.path,
                trouble.problem,
                trouble.way_out,
                source.row,
            )
            for trouble in found.troubles
        ]
        if found.facts is None or found.left_out:
            continue
        mapping = legend.classes(found.facts.names) if legend is not None else {}
        fault: FileFault | None = None
        if (told := annotated_classes(source, federation.parts)) is not None:
            shown = [mapping[value] for value in found.facts.values or () if value in mapping]
            if not told:
                fault = no_structure(source, found.facts.names, form, data)
            elif contradicts(form, shown, told):
                fault = contradiction(source, form)
        if fault is not None:
            findings.append(
                Finding(
                    "error",
                    fault.code,
                    site.name,
                    fault.path,
                    fault.problem,
                    fault.way_out,
                    source.row,
                )
            )
            continue
        classes = range(1, len(federation.parts) + 1)
        values = tuple(tuple(v for v, c in mapping.items() if c == k) for k in classes)
        own = source.label_path and not form.shared(source)
        label = source.label_path if own else source.path
        image = Image(site.name, source, found.facts, values, legend, label)
        opened.append(image)
        if found.facts.values is not None:
            findings += _check_label(image, mapping, federation.parts, data)
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
    image: Image, mapping: Mapping[int, int], parts: Sequence[str], data: DataSettings
) -> Iterable[Finding]:
    facts, form = image.facts, form_of(data)
    if not facts.has_labels and is_negative(image.source, data):
        return
    if not facts.has_labels:
        yield image.of_label(
            "warning",
            "empty-mask",
            f"is an empty {form.name}, and counts as unlabelled"
            if form.by_value
            else f"has no {form.marks} in its label, and counts as unlabelled",
            f"draw it, {form.emptied(data)}, or say that it was looked at and nothing "
            "is there (data.empty_masks=negative, or negative in the column empty)",
        )
        return
    # A label without parts has nothing to give a meaning to.
    outside = [value for value in facts.values or () if parts and value not in mapping]
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
        yield image.of_label(
            "error",
            "value-outside",
            f"holds {form.told(image.source, outside, facts.names)}, which "
            f"{'are' if len(outside) > 1 else 'is'} in no {form.part}",
            "give it to one, or to background, in data.labels",
        )
    for part, values in zip(parts, image.values, strict=True):
        held = [facts.names.get(value, "") for value in values if value in (facts.values or ())]
        if form.one_each and len(held) > 1:
            yield image.of_label(
                "error",
                "label-map",
                f"has {listed(map(repr, held))} for one {form.part}, {part!r}, of which an image "
                "has one",
                "give but one of them to it in data.labels, and the others to background",
            )
    if "size" in data.auto or "spacing_mm" in data.auto or not facts.reach:
        return
    cropped = facts.reach[axis_of(image, data)].outside(half_of(image, data))
    if cropped > 0.01:
        yield image.of_label(
            "warning",
            "cropped",
            f"has {cropped:.0%} of its {form.marks} outside the network's grid",
            "raise data.size or data.spacing_mm",
        )


def check_labelled(
    federation: Federation, images: Sequence[Image], data: DataSettings
) -> Iterable[Finding]:
    """Whether there is anything to learn from."""
    training = {site.name for site in federation.sites if site.role == "train"}
    own = [image for image in images if image.site in training]
    form = form_of(data)
    if form.needed and own and not any(looked_at(image, data).any() for image in own):
        yield Finding(
            "error",
            "no-labels",
            "",
            "",
            "no site can train: none of their images has a label",
            f"{form.filled(data.columns)}, or take a task of the form of the labels that there are "
            "(`fedshift tasks` lists them)",
        )


def check_splits(
    site: SiteSpec, images: Sequence[Image], data: DataSettings, seed: int
) -> list[Finding]:
    items = [Item(image.source.subject, looked_at(image, data)) for image in images]
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
