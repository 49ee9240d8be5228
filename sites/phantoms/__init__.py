"""Built-in phantoms: subjects drawn from anatomy, scanned by vendors drawn from physics.

A subject's anatomy depends on the seed and the subject's name alone; its scan also on the vendor.
One subject can so be scanned by two vendors, which gives exact pairs. A site may also draw outlines
by its own convention, or be faulty: see :func:`draw`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from fedshift import UserError, derive_seed
from fedshift.sites.phantoms import cardiac, ct, fetal_head

_SMALLEST = 32
FAULTS = ("noise", "labels")
"""How a site can be faulty: its images are noise alone, or its labels are of other subjects."""
OUTLINE_MM = 5.0
"""The furthest that a site's convention puts an outline from the true one."""
Drawn = tuple[np.ndarray, np.ndarray, tuple[float, float, float]]


@dataclass(frozen=True)
class Anatomy:
    """What can be drawn: its structures (class ``k + 1`` is ``structures[k]``) and vendors."""

    structures: tuple[str, ...]
    vendors: tuple[str, ...]
    draw: Callable[..., Drawn]

    @property
    def unseen_vendor(self) -> str:
        """The vendor that no site trains on by default: the last."""
        return self.vendors[-1]


ANATOMIES: dict[str, Anatomy] = {
    "cardiac": Anatomy(cardiac.STRUCTURES, tuple(cardiac.VENDORS), cardiac.draw),
    "ct": Anatomy(ct.STRUCTURES, tuple(ct.VENDORS), ct.draw),
    "fetal_head": Anatomy(fetal_head.STRUCTURES, tuple(fetal_head.VENDORS), fetal_head.draw),
}


def _find(anatomy: str) -> Anatomy:
    if anatomy not in ANATOMIES:
        raise UserError(f"anatomy={anatomy} is not a phantom; choose from {', '.join(ANATOMIES)}.")
    return ANATOMIES[anatomy]


def structures(anatomy: str) -> tuple[str, ...]:
    """Return the structures' names: class ``k + 1`` is the k-th. Unknown anatomy: UserError."""
    return _find(anatomy).structures


def vendors(anatomy: str) -> tuple[str, ...]:
    """Return the four vendors' names. Unknown anatomy: UserError."""
    return _find(anatomy).vendors


def draw(
    anatomy: str,
    *,
    vendor: str,
    subject: str,
    seed: int,
    shift: float,
    size: int,
    slices: int,
    outline: float = 0.0,
    fault: str = "",
) -> Drawn:
    """Draw one subject and scan it.

    Returns the image (S, H, W) float32 in the scanner's own units, at least 0, the label (S, H, W)
    uint8, and the spacing (slice, row, column) in mm. ``size`` is H and W, ``slices`` is S; the
    field of view is the anatomy's own, so a larger size gives finer pixels of the same subject.
    ``shift`` from 0 to 1 moves every acquisition parameter from the protocol common to all
    vendors to the vendor's own. ``outline`` from -1 to 1 moves the outer outline of the labelled
    structures in or out, by up to ``OUTLINE_MM``; the image stays as it is. ``fault``
    ``noise`` gives an image of noise alone, ``labels`` the label of another subject; empty is
    none. The same arguments always give the same bits.

    Raises UserError for an unknown anatomy, vendor or fault, a shift outside 0 to 1, an outline
    outside -1 to 1, a size below 32 or fewer than one slice.
    """
    found = _find(anatomy)
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

    def drawn(name: str) -> Drawn:
        return found.draw(
            np.random.default_rng(derive_seed(seed, name, "anatomy")),
            np.random.default_rng(derive_seed(seed, name, vendor, "scan")),
            vendor=vendor,
            shift=shift,
            size=size,
            slices=slices,
        )

    image, label, spacing = drawn(subject)
    if fault == "labels":
        label = drawn(f"{subject} mixed up")[1]
    elif fault == "noise":
        rng = np.random.default_rng(derive_seed(seed, subject, vendor, "noise"))
        # The magnitude of complex noise, as of a receiver that hears no signal.
        image = rng.rayleigh(float(image.mean()), image.shape).astype(np.float32)
    if outline:
        label = _outlined(label, outline * OUTLINE_MM, spacing[1:])
    return image, label, spacing


def _outlined(label: np.ndarray, out_mm: float, pixel_mm: tuple[float, float]) -> np.ndarray:
    """``label`` (S, H, W) with the outline of all structures together moved out by ``out_mm``,
    or in; what the outline passes over takes the structure nearest to it, or the background.

    A pixel's centre is half a pixel inside or outside the outline next to it, so the outline moves
    by whole pixels.
    """
    moved = label.copy()
    for plane, original in zip(moved, label, strict=True):
        labelled = original > 0
        if not labelled.any():
            continue
        passed = ~labelled if out_mm > 0 else labelled
        distance, nearest = ndimage.distance_transform_edt(
            passed, sampling=pixel_mm, return_indices=True
        )
        reached = passed & (distance - pixel_mm[0] / 2 <= abs(out_mm))
        plane[reached] = original[tuple(nearest)][reached]
    return moved
