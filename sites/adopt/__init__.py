"""From a folder, as people have it, to a manifest: one module a layout.

A layout looks at names and headers, never at pixels. Nobody's identity is guessed: without a
source of subjects the user is asked.
"""

from __future__ import annotations

from pathlib import Path

from fedshift import UserError
from fedshift.sites.adopt import (
    bids,
    dicom,
    fets,
    hc18,
    mnms,
    monai,
    nnunet,
    pairs,
    prostate,
    spinal_cord,
)
from fedshift.sites.adopt.files import walk
from fedshift.sites.adopt.found import Adopted, Layout, Options, counted, three, values_text
from fedshift.sites.adopt.table import check_out, complete, filled, key_for, write

__all__ = [
    "LAYOUTS",
    "Adopted",
    "Options",
    "adopt",
    "check_out",
    "counted",
    "filled",
    "key_for",
    "three",
    "values_text",
    "write",
]

LAYOUTS: tuple[Layout, ...] = (
    bids.LAYOUT,
    nnunet.NNUNET,
    nnunet.DECATHLON,
    monai.LAYOUT,
    dicom.LAYOUT,
    mnms.LAYOUT,
    mnms.LAYOUT_2,
    fets.LAYOUT,
    prostate.LAYOUT,
    hc18.LAYOUT,
    spinal_cord.LAYOUT,
    pairs.LAYOUT,
)


def adopt(folder: Path, layout: str, options: Options) -> Adopted:
    """Make the rows of a manifest of ``folder``; ``layout`` is a name of :data:`LAYOUTS` or auto.

    Raises:
        UserError: the folder fits no layout or several, the images' sites or subjects are not
            known, a choice is needed (``--sequence``, ``--label``), or nothing is left.
    """
    names = [known.name for known in LAYOUTS]
    if layout != "auto" and layout not in names:
        raise UserError(f"--layout must be auto or one of {', '.join(names)}, not {layout!r}.")
    tree = walk(folder)
    if tree.listing and layout not in ("auto", "monai"):
        raise UserError(f"{folder} is a file; name the folder, or a list with --layout monai.")
    if layout == "auto":
        # Pairs by name are what every other layout looks like from afar: asked last.
        fitting = [known for known in LAYOUTS if known.name != "pairs" and known.detect(tree)]
        if tree.listing:
            fitting = [known for known in fitting if known.name == "monai"]
        elif not fitting and pairs.detect(tree):
            fitting = [pairs.LAYOUT]
    else:
        fitting = [known for known in LAYOUTS if known.name == layout and known.detect(tree)]
    if len(fitting) > 1:
        both = " and ".join(f"{known.title} ({known.name})" for known in fitting)
        raise UserError(f"{folder} looks like {both}; say which with --layout NAME.")
    if not fitting:
        sought = "any layout that is known" if layout == "auto" else f"the layout {layout}"
        raise UserError(
            f"{folder} ({len(tree.files)} files) does not look like {sought}; there are "
            f"{', '.join(names)}, or write the table by hand."
        )
    if options.links and fitting[0].name != dicom.LAYOUT.name:
        raise UserError(f"--links is for DICOM series, and {folder} is {fitting[0].title}.")
    found = fitting[0].adopt(tree, options)
    for reason, left in tree.left_out.items():
        found.left_out[reason] += left
    complete(found, tree, options)
    return found
