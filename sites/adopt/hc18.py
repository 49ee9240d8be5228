"""HC18 (van den Heuvel et al., 2018): fetal heads by ultrasound, outlines as annotations.

A file's number is the examination: 010_HC.png and 010_2HC.png are of one woman.
"""

from __future__ import annotations

import re
from pathlib import Path

from fedshift import UserError
from fedshift.sites.adopt.files import Tree, read_table, stem
from fedshift.sites.adopt.found import Adopted, Layout, Options, Row, one_of

_IMAGE = re.compile(r"(\d+)_\d*HC", re.I)
OUTLINE, FILLED = "_annotation", "_mask"
_TABLE = re.compile(r"(training|test)_set_pixel_size.*\.csv", re.I)


def _tables(tree: Tree) -> list[Path]:
    return [file for file in tree.files if _TABLE.fullmatch(file.name)]


def detect(tree: Tree) -> bool:
    return bool(_tables(tree)) and any(_IMAGE.fullmatch(stem(file)) for file in tree.images)


def adopt(tree: Tree, options: Options) -> Adopted:
    found = Adopted("HC18")
    spacing = {
        one_of(row, ("filename",)): one_of(row, ("pixel size(mm)",))
        for table in _tables(tree)
        for row in read_table(tree.root / table)
    }
    labels = {(f.parent, stem(f).lower()): f for f in tree.images}
    images = [f for f in tree.images if _IMAGE.fullmatch(stem(f))]
    filled = [f for f in images if (f.parent, stem(f).lower() + FILLED) in labels]
    outlined = [f for f in images if (f.parent, stem(f).lower() + OUTLINE) in labels]
    end = FILLED
    if options.label:
        if options.label.lower() not in ("annotation", "mask"):
            raise UserError(f"--label {options.label!r} must be mask or annotation for HC18.")
        end = f"_{options.label.lower()}"
    elif outlined and not filled:
        raise UserError(
            f"the {len(outlined)} annotations of HC18 are outlines, not filled masks; fill them "
            "(scipy.ndimage.binary_fill_holes), save each as 000_HC_Mask.png and adopt again, or "
            "take the outlines as they are with --label annotation."
        )
    if end == OUTLINE:
        found.notes.append("the labels are outlines, a line wide, not filled heads.")
    elif filled:
        found.left_out["outlines, for which there is a filled mask"] += [
            str(labels[file.parent, stem(file).lower() + OUTLINE])
            for file in filled
            if file in outlined
        ]
    for file in images:
        label = labels.get((file.parent, stem(file).lower() + end))
        match = _IMAGE.fullmatch(stem(file))
        assert match is not None
        found.rows.append(
            Row(
                tree.root / file,
                tree.root / label if label else None,
                subject=match[1],
                site="Radboudumc",
                vendor="GE",
                spacing_mm=spacing.get(file.name, ""),
                extra={"part": file.parent.name, "modality": "US"},
            )
        )
    if {"training_set", "test_set"} <= {row.extra["part"] for row in found.rows}:
        for row in found.rows:  # both sets count their examinations from 0
            row.subject = f"{row.extra['part']} {row.subject}"
    documented = "the set's documentation"
    found.origin = {
        "site": documented,
        "vendor": documented,
        "modality": documented,
        "subject": "the number in the names (an examination in this set)",
        "spacing_mm": "the set's table",
        "part": "the folders' names",
    }
    return found


LAYOUT = Layout("hc18", "HC18", detect, adopt)
