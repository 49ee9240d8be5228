"""Built-in phantoms: subjects drawn from anatomy, scanned by vendors drawn from physics.

A subject's anatomy depends on the seed and the subject's name alone; its scan also on the vendor.
One subject can so be scanned by two vendors, which gives exact pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedshift import UserError, derive_seed
from fedshift.sites.phantoms import cardiac, ct, fetal_head

_SMALLEST = 32
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
    anatomy: str, *, vendor: str, subject: str, seed: int, shift: float, size: int, slices: int
) -> Drawn:
    """Draw one subject and scan it.

    Returns the image (S, H, W) float32 in the scanner's own units, at least 0, the label (S, H, W)
    uint8, and the spacing (slice, row, column) in mm. ``size`` is H and W, ``slices`` is S; the
    field of view is the anatomy's own, so a larger size gives finer pixels of the same subject.
    ``shift`` from 0 to 1 moves every acquisition parameter from the protocol common to all
    vendors to the vendor's own. The same arguments always give the same bits.

    Raises UserError for an unknown anatomy or vendor, a shift outside 0 to 1, a size below 32 or
    fewer than one slice.
    """
    found = _find(anatomy)
    if vendor not in found.vendors:
        raise UserError(
            f"vendor={vendor} does not scan the {anatomy} phantom; "
            f"choose from {', '.join(found.vendors)}."
        )
    if not 0.0 <= shift <= 1.0:
        raise UserError(f"shift={shift} is outside 0 to 1; choose a number between them.")
    if size < _SMALLEST:
        raise UserError(f"size={size} is too small for a phantom; choose {_SMALLEST} or more.")
    if slices < 1:
        raise UserError(f"slices={slices} draws nothing; choose 1 or more.")
    return found.draw(
        np.random.default_rng(derive_seed(seed, subject, "anatomy")),
        np.random.default_rng(derive_seed(seed, subject, vendor, "scan")),
        vendor=vendor,
        shift=shift,
        size=size,
        slices=slices,
    )
