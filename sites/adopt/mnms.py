"""M&Ms (Campello et al., 2021) and M&Ms-2 (Martin-Isla et al., 2023): cardiac cine MRI.

M&Ms is published as 4-D files: ``CODE/CODE_sa.nii.gz`` and ``CODE_sa_gt.nii.gz``, drawn at the
frames that the table's columns ED and ES count from 0. Frames saved as volumes of their own are
adopted: ``CODE_sa_ED.nii.gz``, ``CODE_sa_ED_gt.nii.gz`` and the same for ES. M&Ms-2 is published
so.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedshift import UserError
from fedshift.sites.adopt.files import Tree, read_table, stem
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row, choose, one_of

CODES = ("External code", "ExternalCode")
CODES_2 = ("SUBJECT_CODE",)
VALUES = "0=background,1=left ventricle,2=myocardium,3=right ventricle"
_CINE = re.compile(r"(?P<code>.+)_sa", re.I)
_FRAME = re.compile(r"(?P<code>.+)_(?P<view>sa|la)_(?P<phase>ED|ES)(?P<gt>_gt)?", re.I)


def _table(tree: Tree, codes: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """The rows of the set's table by subject; empty where no table has the column."""
    for file in tree.files:
        if file.suffix.lower() == ".csv" and len(file.parts) <= 3:
            try:
                rows = read_table(tree.root / file)
            except UserError:
                continue
            if rows and {c.lower() for c in codes} & {c.lower() for c in rows[0]}:
                return {one_of(row, codes): row for row in rows}
    return {}


def _frames(tree: Tree) -> list[tuple[re.Match[str], Path]]:
    files = [(_FRAME.fullmatch(stem(file)), file) for file in tree.images]
    return [(match, file) for match, file in files if match]


def detect(tree: Tree) -> bool:
    # Names first: they are cheap, and other sets' tables need not be read.
    volumes = [stem(file) for file in tree.images]
    shaped = any(_CINE.fullmatch(name) or _FRAME.fullmatch(name) for name in volumes)
    return shaped and bool(_table(tree, CODES))


def detect_2(tree: Tree) -> bool:
    return bool(_frames(tree)) and bool(_table(tree, CODES_2))


def adopt(tree: Tree, options: Options) -> Adopted:
    found = Adopted("M&Ms")
    table = _table(tree, CODES)
    frames = _frames(tree)
    if not frames:
        cine = sum(bool(_CINE.fullmatch(stem(file))) for file in tree.images)
        raise UserError(
            f"{tree.root} holds the {cine} cine files of M&Ms as they are published, 4-D, and one "
            "volume a file is read; save the frames ED and ES of its table as volumes of their "
            "own (CODE_sa_ED.nii.gz, CODE_sa_ED_gt.nii.gz; docs/sites.md has the lines for it) and "
            "adopt again."
        )
    _rows(tree, frames, table, found, options)
    found.left_out["cine files (4-D)"] += [
        str(f) for f in tree.images if re.fullmatch(r".+_sa(_gt)?", stem(f), re.I)
    ]
    for row in found.rows:
        said = table.get(row.subject, {})
        centre = one_of(said, ("Centre", "Center"))
        row.site = f"centre {centre}" if centre else ""
        row.vendor = one_of(said, ("VendorName", "Vendor"))
    found.origin |= {"site": "Centre in the set's table", "vendor": "the set's table"}
    return found


def adopt_2(tree: Tree, options: Options) -> Adopted:
    found = Adopted("M&Ms-2")
    table = _table(tree, CODES_2)
    # A spreadsheet drops the zeros that the folders' names begin with.
    by_number = {code.lstrip("0"): row for code, row in table.items()}
    _rows(tree, _frames(tree), table, found, options)
    found.left_out["cine files (4-D)"] += [
        str(f) for f in tree.images if stem(f).lower().endswith("_cine")
    ]
    for row in found.rows:
        said = by_number.get(row.subject.lstrip("0"), {})
        row.vendor = one_of(said, ("VENDOR",))
        row.scanner = one_of(said, ("SCANNER",))
        row.extra["field_T"] = one_of(said, ("FIELD",))
        # The table names no hospital; the set is known for its scanners.
        row.site = row.scanner or row.vendor
    if any(row.site for row in found.rows) and not options.site:
        found.guesses["the set's table names no hospital; each scanner is taken as a site"] += [
            row.subject for row in found.rows if row.site
        ]
    found.origin |= {
        "site": "SCANNER in the set's table",
        "vendor": "VENDOR in the set's table",
        "scanner": "SCANNER in the set's table",
        "field_T": "FIELD in the set's table",
    }
    return found


def _rows(
    tree: Tree,
    frames: list[tuple[re.Match[str], Path]],
    table: dict[str, dict[str, str]],
    found: Adopted,
    options: Options,
) -> None:
    """A row for each frame; its label beside it."""
    labels = {
        (file.parent, match["code"], match["view"].lower(), match["phase"].upper()): file
        for match, file in frames
        if match["gt"]
    }
    images = [(match, file) for match, file in frames if not match["gt"]]
    views: dict[str, int] = {}
    for match, _ in images:
        views[match["view"].lower()] = views.get(match["view"].lower(), 0) + 1
    words = {view: str(n) for view, n in sorted(views.items())}
    chosen = choose("--sequence", "views", words, options.sequence)
    for match, file in images:
        view, phase = match["view"].lower(), match["phase"].upper()
        label = labels.pop((file.parent, match["code"], view, phase), None)
        if view not in chosen:
            found.left_out["images of another view"].append(str(file))
            continue
        found.rows.append(
            Row(
                tree.root / file,
                tree.root / label if label else None,
                subject=match["code"],
                label_values=VALUES if label else "",
                extra={"sequence": view, "phase": phase},
            )
        )
    found.left_out["labels without an image"] += [str(file) for file in labels.values()]
    found.origin |= {
        "subject": "the code in the names",
        "label_values": "the set's documentation",
        "sequence": "the view in the names (sa short axis, la long axis)",
        "phase": "the names",
    }


LAYOUT = Layout("mnms", "M&Ms", detect, adopt)
LAYOUT_2 = Layout("mnms2", "M&Ms-2", detect_2, adopt_2)
