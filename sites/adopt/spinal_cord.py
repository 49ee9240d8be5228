"""The spinal-cord grey-matter challenge (Prados et al., 2017): four sites, four raters."""

from __future__ import annotations

import re
from pathlib import Path

from fedshift.sites.adopt.files import Tree, stem
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row, choose

SITES = {
    "site1": ("UCL", "Philips", "Achieva"),
    "site2": ("Montreal", "Siemens", "TIM Trio"),
    "site3": ("Zurich", "Siemens", "Skyra"),
    "site4": ("Vanderbilt", "Philips", "Achieva"),
}
"""Hospital, vendor and scanner (all 3 T) by the challenge's paper."""

VALUES = "0=background,1=grey matter,2=white matter"
_FILE = re.compile(r"(?P<subject>(?P<site>site[1-4])-sc\d+)-(?:image|mask-(?P<rater>r\d))", re.I)


def _scans(tree: Tree) -> list[tuple[re.Match[str], Path]]:
    files = [(_FILE.fullmatch(stem(file)), file) for file in tree.images]
    return [(match, file) for match, file in files if match]


def detect(tree: Tree) -> bool:
    return bool(_scans(tree))


def adopt(tree: Tree, options: Options) -> Adopted:
    found = Adopted("spinal-cord challenge")
    scans = _scans(tree)
    raters: dict[str, int] = {}
    for match, _ in scans:
        if match["rater"]:
            raters[match["rater"].lower()] = raters.get(match["rater"].lower(), 0) + 1
    words = {rater: str(n) for rater, n in sorted(raters.items())}
    chosen = choose("--label", "raters", words, options.label) if raters else set()
    labels: dict[tuple[Path, str], list[Path]] = {}
    for match, file in scans:
        if match["rater"] and match["rater"].lower() in chosen:
            labels.setdefault((file.parent, match["subject"]), []).append(file)
        elif match["rater"]:
            found.left_out["masks of other raters"].append(str(file))
    if len(chosen) > 1:
        # One label an image: a pattern that names two raters names none.
        choose("--label", "raters", {k: words[k] for k in sorted(chosen)}, "")
    for match, file in scans:
        if match["rater"]:
            continue
        label = labels.pop((file.parent, match["subject"]), [None])[0]
        site, vendor, scanner = SITES[match["site"].lower()]
        found.rows.append(
            Row(
                tree.root / file,
                tree.root / label if label else None,
                subject=match["subject"],
                site=site,
                vendor=vendor,
                scanner=scanner,
                label_values=VALUES if label else "",
                extra={"field_T": "3", "modality": "MR"},
            )
        )
    found.left_out["labels without an image"] += [str(f) for fs in labels.values() for f in fs]
    documented = "the challenge's documentation"
    found.origin = dict.fromkeys(
        ("vendor", "scanner", "label_values", "field_T", "modality"), documented
    ) | {"site": f"siteN in the names, by {documented}", "subject": "siteN-scNN in the names"}
    return found


LAYOUT = Layout("spinal_cord", "spinal-cord challenge", detect, adopt)
