"""The six-site prostate MRI set of Liu et al. (SAML, 2020): a folder a site, CaseNN by CaseNN."""

from __future__ import annotations

import re
from pathlib import Path

from fedshift.sites.adopt.files import Tree, stem
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row

SITES = {
    "BIDMC": ("GE", "3"),
    "HK": ("Siemens", "1.5"),
    "I2CVB": ("Siemens", "3"),
    "ISBI": ("Siemens", "3"),
    "ISBI_1.5": ("Philips", "1.5"),
    "UCL": ("Siemens", ""),
}
"""Vendor and field strength (T) by the set's own table; UCL scanned at both strengths."""

_CASE = re.compile(r"(case\d+)(_segmentation)?", re.I)


def _cases(tree: Tree) -> list[tuple[re.Match[str], Path]]:
    files = [(_CASE.fullmatch(stem(f)), f) for f in tree.images if f.parent.name in SITES]
    return [(match, file) for match, file in files if match]


def detect(tree: Tree) -> bool:
    return bool(_cases(tree))


def adopt(tree: Tree, options: Options) -> Adopted:
    found = Adopted("prostate, six sites")
    cases = _cases(tree)
    labels = {(f.parent, m[1].lower()): f for m, f in cases if m[2]}
    for match, file in cases:
        if match[2]:
            continue
        label = labels.pop((file.parent, match[1].lower()), None)
        vendor, field = SITES[file.parent.name]
        found.rows.append(
            Row(
                tree.root / file,
                tree.root / label if label else None,
                subject=f"{file.parent.name} {match[1]}",
                site=file.parent.name,
                vendor=vendor,
                extra={"field_T": field, "sequence": "T2w", "modality": "MR"},
            )
        )
    found.left_out["labels without an image"] += [str(file) for file in labels.values()]
    found.notes.append(
        "the set does not say what its label values mean; give data.labels, such as "
        "'{prostate: 1}'."
    )
    documented = "the set's documentation"
    found.origin = {
        "site": "the folders' names",
        "subject": "site and case (a case is a patient in this set)",
        "vendor": documented,
        "field_T": documented,
        "sequence": documented,
        "modality": documented,
    }
    return found


LAYOUT = Layout("prostate", "prostate, six sites", detect, adopt)
