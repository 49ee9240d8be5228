"""Does a label lie on its image, or on a flipped or transposed copy of it?

A structure differs in brightness from what surrounds it. Between a band of pixels just inside its
outline and one just outside, the effect size d = (mean inside - mean outside) / pooled standard
deviation (Cohen 1988) is large when the label lies on its image and small when it lies elsewhere.
The bands are laid on the image under each of the eight flips and transposes; a label is suspect
when another placement has a far larger effect than its own. Sums add over images, so that a whole
subject or site is judged with more certainty than one image. A single image has too little to
go by: it is suspect only when its own effect has none of the sign and size that is usual at its
site and another placement has both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

BAND = 3
"""Width of the bands in pixels."""
RATIO = 3.0
"""How many times larger another placement's effect must be. Of the 213 subjects of three public
sets (975 images) none reaches both this ratio and the floors that the doctor asks for."""
SOUND = 1.0
"""A label with this effect where it lies is on something of its own, even if a brighter thing lies
where another placement would put it, such as an organ that nobody drew."""
USUAL, LOST, ENOUGH = 0.8, 0.1, 100
"""A single image is suspect when another placement has this part of the site's usual contrast
and its own has less than a tenth of that one's, measured on 100 pixels inside or more: no image of
those sets, and two in five of them when turned on purpose."""

Placement = tuple[bool, bool, bool]
"""Transpose, then flip the rows, then flip the columns."""
OWN: Placement = (False, False, False)
PLACEMENTS: tuple[Placement, ...] = tuple(
    (transpose, rows, columns)
    for transpose in (False, True)
    for rows in (False, True)
    for columns in (False, True)
)
NAMES = {
    (False, False, True): "flipped left to right",
    (False, True, False): "flipped top to bottom",
    (False, True, True): "turned by 180 degrees",
    (True, False, False): "transposed",
    (True, False, True): "turned by 90 degrees clockwise",
    (True, True, False): "turned by 90 degrees anticlockwise",
    (True, True, True): "transposed and turned by 180 degrees",
}


@dataclass(frozen=True)
class BandSums:
    """For each placement (structures, 6): count, sum and sum of squares inside, then outside."""

    sums: dict[Placement, np.ndarray]

    def __add__(self, other: BandSums) -> BandSums:
        both = self.sums.keys() & other.sums.keys()
        return BandSums({key: self.sums[key] + other.sums[key] for key in both})

    def effects(self) -> dict[Placement, float]:
        """The effect size of each placement: root of the sum of squares over the structures."""
        return {key: float(np.linalg.norm(_effects(sums))) for key, sums in self.sums.items()}

    def contrast(self) -> np.ndarray:
        """The signed effect (structures,) of the label where it lies."""
        return _effects(self.sums[OWN])

    def suspect(self, floor: float) -> Placement | None:
        """The placement that fits far better than the label's own; None when there is none, or
        too few pixels to tell.

        ``floor`` is the smallest effect that counts as a fit.
        """
        if self.sums[OWN][:, 0].sum() < ENOUGH:
            return None
        effects = self.effects()
        best = max(effects, key=lambda key: effects[key])
        own = effects[OWN]
        if own >= SOUND or effects[best] < floor or effects[best] < RATIO * own:
            return None
        return best


def odd_ones_out(images: Sequence[BandSums]) -> dict[int, Placement]:
    """Which single images of a site (10 or more) fit only elsewhere, and where they would fit."""
    if len(images) < 10:
        return {}
    direction = reduce(BandSums.__add__, images).contrast()
    direction /= max(float(np.linalg.norm(direction)), 1e-12)
    fits = [
        {key: float(_effects(sums) @ direction) for key, sums in image.sums.items()}
        for image in images
    ]
    usual = float(np.median([fit[OWN] for fit in fits]))
    odd = {}
    for k, fit in enumerate(fits):
        best = max(fit, key=lambda key: fit[key])
        enough = images[k].sums[OWN][:, 0].sum() >= ENOUGH
        if enough and fit[best] >= USUAL * usual > 0 and fit[OWN] <= LOST * fit[best]:
            odd[k] = best
    return odd


def band_sums(image: np.ndarray, label: np.ndarray, structures: int) -> BandSums:
    """Measure ``image`` (S, R, C) under ``label`` (S, R, C) uint8, class indices.

    The four placements that transpose are measured only where rows and columns are equal.
    """
    scale = float(image.std()) or 1.0
    rows, columns = image.shape[1:]
    placements = [key for key in PLACEMENTS if rows == columns or not key[0]]
    sums = {key: np.zeros((structures, 6)) for key in placements}
    for k in range(structures):
        inside, outside = _bands(label == k + 1)
        for key in placements:
            for first, band in ((0, inside), (3, outside)):
                values = image[_place(band, key, rows, columns)].astype(float) / scale
                sums[key][k, first : first + 3] = len(values), values.sum(), values @ values
    return BandSums(sums)


def _bands(mask: np.ndarray) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Coordinates of the bands inside and outside a mask's in-plane outlines."""
    from scipy import ndimage

    if not mask.any():
        nothing = np.nonzero(np.zeros((1, 1, 1), bool))
        return nothing, nothing
    corner, box = [], []
    for axis, margin in enumerate((0, BAND, BAND)):
        used = np.flatnonzero(mask.any(axis=tuple(k for k in range(3) if k != axis)))
        start = max(0, int(used[0]) - margin)
        corner.append(start)
        box.append(slice(start, int(used[-1]) + margin + 1))
    crop = mask[tuple(box)]
    cross = ndimage.generate_binary_structure(2, 1)[None]
    eroded = ndimage.binary_erosion(crop, cross, iterations=BAND, border_value=1)
    dilated = ndimage.binary_dilation(crop, cross, iterations=BAND)
    inside, outside = np.nonzero(crop & ~eroded), np.nonzero(dilated & ~crop)
    return (
        tuple(found + start for found, start in zip(inside, corner, strict=True)),
        tuple(found + start for found, start in zip(outside, corner, strict=True)),
    )


def _place(
    band: tuple[np.ndarray, ...], placement: Placement, rows: int, columns: int
) -> tuple[np.ndarray, ...]:
    slices, row, column = band
    transpose, flip_rows, flip_columns = placement
    if transpose:
        row, column = column, row
    return (
        slices,
        rows - 1 - row if flip_rows else row,
        columns - 1 - column if flip_columns else column,
    )


def _effects(sums: np.ndarray) -> np.ndarray:
    """Signed effect sizes (structures,); 0 for a structure without pixels in either band."""
    used = (sums[:, 0] > 0) & (sums[:, 3] > 0)
    effects = np.zeros(len(sums))
    n_in, s_in, q_in, n_out, s_out, q_out = sums[used].T
    mean_in, mean_out = s_in / n_in, s_out / n_out
    within = q_in - n_in * mean_in**2 + q_out - n_out * mean_out**2
    deviation = np.sqrt(np.maximum(within / (n_in + n_out), 1e-12))
    effects[used] = (mean_in - mean_out) / deviation
    return effects
