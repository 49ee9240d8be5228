"""Built-in phantoms: subjects drawn from anatomy, scanned by vendors drawn from physics.

A subject's anatomy depends on the seed and the subject's name alone; its scan also on the vendor.
One subject can so be scanned by two vendors, which gives exact pairs. A site may also draw outlines
by its own convention, or be faulty: see :func:`draw`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedshift import UserError, derive_seed
from fedshift.sites.phantoms import cardiac, ct, dots, fetal_head, graph
from fedshift.sites.phantoms.acquisition import Scan, interpolate
from fedshift.sites.phantoms.truth import FROM_MASK, outlined

_SMALLEST = 32
FAULTS = ("noise", "labels")
"""How a site can be faulty: its images are noise alone, or its labels are of other subjects."""
OUTLINE_MM = 5.0
"""The furthest that a site's convention puts an outline from the true one."""
Drawn = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


@dataclass(frozen=True)
class Anatomy:
    """What can be drawn: ``parts``, the names of what the labels of each form that it offers tell
    apart (part ``k + 1`` is the k-th), and the protocols of its scanners: that of ``reference``,
    which all share at shift 0, those of the vendors, and that of the paired image. A site may draw
    the outlines of an anatomy that is ``outlined`` by a convention of its own."""

    parts: Mapping[str, tuple[str, ...]]
    reference: Any
    vendors: Mapping[str, Any]
    draw: Callable[..., Scan]
    pair: Any = None
    outlined: bool = True


ANATOMIES: dict[str, Anatomy] = {
    "cardiac": Anatomy(
        cardiac.PARTS, cardiac.REFERENCE, cardiac.VENDORS, cardiac.draw, cardiac.PAIR
    ),
    "ct": Anatomy(ct.PARTS, ct.REFERENCE, ct.VENDORS, ct.draw, ct.PAIR),
    "dots": Anatomy(dots.PARTS, dots.REFERENCE, dots.VENDORS, dots.draw, outlined=False),
    "fetal_head": Anatomy(
        fetal_head.PARTS,
        fetal_head.REFERENCE,
        fetal_head.VENDORS,
        fetal_head.draw,
        fetal_head.PAIR,
    ),
    "graph": Anatomy(graph.PARTS, graph.REFERENCE, graph.VENDORS, graph.draw, outlined=False),
}


def _find(anatomy: str) -> Anatomy:
    if anatomy not in ANATOMIES:
        raise UserError(f"anatomy={anatomy} is not a phantom; choose from {', '.join(ANATOMIES)}.")
    return ANATOMIES[anatomy]


def parts(anatomy: str, form: str = "mask") -> tuple[str, ...]:
    """The names of what labels of ``form`` tell apart: part ``k + 1`` is the k-th.

    Raises UserError for an unknown anatomy, or a form of label that it does not offer."""
    offered = _find(anatomy).parts
    if form == "none":
        return ()
    if form not in offered:
        others = [name for name, found in ANATOMIES.items() if form in found.parts]
        raise UserError(
            f"the {anatomy} phantom has no labels of the form {form}; choose from federation="
            f"{'_phantom, '.join(others)}_phantom, or a task whose labels are "
            f"{' or '.join(offered)}."
        )
    return offered[form]


def check_outline(anatomy: str, form: str) -> None:
    """Raise UserError unless a site's convention can move the outlines of labels of ``form``."""
    if form not in FROM_MASK or not _find(anatomy).outlined:
        movable = [name for name, found in ANATOMIES.items() if found.outlined]
        raise UserError(
            f"federation.structure_shift moves outlines, and labels of the form {form} of the "
            f"{anatomy} phantom have none to move; set it to 0, or take the form "
            f"{' or '.join(FROM_MASK)} of the phantom {' or '.join(movable)}."
        )


def vendors(anatomy: str) -> tuple[str, ...]:
    """Return the four vendors' names. Unknown anatomy: UserError."""
    return tuple(_find(anatomy).vendors)


def draw(
    anatomy: str,
    *,
    vendor: str,
    subject: str,
    seed: int,
    shift: float,
    size: int,
    slices: int,
    form: str = "mask",
    outline: float = 0.0,
    fault: str = "",
) -> Drawn:
    """Draw one subject and scan it.

    Returns the image (S, H, W) float32 in the scanner's own units, at least 0, its label of
    ``form`` as :mod:`fedshift.sites.labels` lays it out (a mask is (S, H, W) uint8), and the
    spacing (slice, row, column) in mm. ``size`` is H and W, ``slices`` is S; the field of view is
    the anatomy's own, so a larger size gives finer pixels of the same subject. ``shift`` from 0 to
    1 moves every acquisition parameter from the protocol common to all vendors to the vendor's own.
    ``outline`` from -1 to 1 moves the outer outline of the labelled structures in or out, by up to
    ``OUTLINE_MM``; the image stays as it is. ``fault`` ``noise`` gives an image of noise alone,
    ``labels`` the label of another subject; empty is none. The same arguments always give the same
    bits, and the image is the same for every form.

    Raises UserError for an unknown anatomy, vendor or fault, a form of label that the anatomy does
    not offer or whose outline cannot be moved, a shift outside 0 to 1, an outline outside -1 to 1,
    a size below 32 or fewer than one slice.
    """
    found = _find(anatomy)
    parts(anatomy, form)
    if outline:
        check_outline(anatomy, form)
    if vendor not in found.vendors:
        raise UserError(
            f"vendor={vendor} does not scan the {anatomy} phantom; "
            f"choose from {', '.join(found.vendors)}."
        )
    if not 0.0 <= shift <= 1.0:
        raise UserError(f"shift={shift} is outside 0 to 1; choose a number between them.")
    if not -1.0 <= outline <= 1.0:
        raise UserError(f"outline={outline} is outside -1 to 1; choose a number between them.")
    if fault not in ("", *FAULTS):
        raise UserError(f"fault={fault} is unknown; choose from {', '.join(FAULTS)}.")
    if size < _SMALLEST:
        raise UserError(f"size={size} is too small for a phantom; choose {_SMALLEST} or more.")
    if slices < 1:
        raise UserError(f"slices={slices} draws nothing; choose 1 or more.")

    def scanned(name: str, by: str, protocol: Any) -> Scan:
        return found.draw(
            np.random.default_rng(derive_seed(seed, name, "anatomy")),
            np.random.default_rng(derive_seed(seed, name, by, "scan")),
            protocol,
            size=size,
            slices=slices,
        )

    own = interpolate(found.reference, found.vendors[vendor], shift)
    image, labels, spacing = scanned(subject, vendor, own)
    told = subject
    if fault == "labels":
        told = f"{subject} mixed up"
        labels = scanned(told, vendor, own).labels
    elif fault == "noise":
        rng = np.random.default_rng(derive_seed(seed, subject, vendor, "noise"))
        # The magnitude of complex noise, as of a receiver that hears no signal.
        image = rng.rayleigh(float(image.mean()), image.shape).astype(np.float32)
    if form == "none":
        label = np.zeros((slices, 0), np.uint8)
    elif form == "image":
        label = scanned(told, "pair", found.pair).image[:, None]
    elif outline:
        label = FROM_MASK[form](outlined(labels["mask"], outline * OUTLINE_MM, spacing[1:]))
    else:
        label = labels[form] if form in labels else FROM_MASK[form](labels["mask"])
    return image, label, spacing
