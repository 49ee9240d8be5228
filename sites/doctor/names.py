"""The names that the table and the label files give to values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fedshift.sites.doctor.image import Image, said_by_row
from fedshift.sites.findings import Finding
from fedshift.sites.labels.meaning import parse_label_values
from fedshift.sites.manifest import read_manifest
from fedshift.sites.namesakes import Named, differing, look_alikes, twice
from fedshift.sites.settings import IGNORE, DataSettings
from fedshift.sites.types import Federation


def check_label_values(federation: Federation, data: DataSettings) -> list[Finding]:
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


def check_names(
    images: Sequence[Image], structures: Sequence[str], data: DataSettings
) -> list[Finding]:
    """The names that label files give to their values, against their meaning and each other's."""
    table = read_manifest(data).label_values if data.manifest and data.labels is None else {}
    rows = {
        file: [name for name in parse_label_values(text, file).values() if name != IGNORE]
        for file, text in table.items()
    }
    named: list[Image] = []
    files: list[Named] = []
    for image in images:
        file = image.source.label_path
        if image.legend is not None and (image.facts.names or file in rows):
            named.append(image)
            files.append(Named(file, image.facts.names, image.legend))
    by_hand = said_by_row(data)
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


def _listed_only(image: Image, structures: Sequence[str]) -> Iterable[Finding]:
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
