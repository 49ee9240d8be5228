"""From an image's own grid to the network's, and back for predictions.

Volumes are (S, R, C): slices, rows, columns. A file with an orientation is turned to the nearest
canonical axes (x to the right, y to the front, z up); slices run along one of them, upwards, and a
slice is laid out as radiologists look at it: of the two remaining axes the later one runs up the
rows and the earlier one runs leftwards over the columns. An axial slice so has the front of the
body at the top and the patient's right on the left, as in DICOM. An image without orientation
(PNG) is taken as it is seen. Either way the voxels are only permuted: the image's own grid is
its own matrix and spacing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

CLEAR = 1.15
"""A spacing this many times the others' says which way an image is sliced. Not 1.1, which is a
usual ratio (1.1 x 1 x 1 mm) and would be left to the header's rounding."""
TOLERANCE = 0.1
"""How many voxels two grids may lie apart at a corner and still be one: headers round."""
SHEAR = 0.5
"""Degrees off the right angle that pass for a header's rounding."""
BETWEEN = 0.25
"""Two sums of direction cosines this close are 5 degrees of tilt apart: from 2 cos 40 to 2 cos 45
and from 2 sin 40 to 2 sin 45."""
_TURNED = np.eye(3) + 0.006 * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])


@dataclass(frozen=True)
class Grid:
    """The in-plane relation of one image's own grid to the network's.

    The network's grid is centred on the image: the image is resampled to ``spacing_mm`` about its
    centre, then cropped or padded to ``size`` x ``size``. ``shape`` and ``native_mm`` are the
    image's own rows and columns and their spacing.
    """

    shape: tuple[int, int]
    native_mm: tuple[float, float]
    spacing_mm: tuple[float, float]
    size: int

    @cached_property
    def axes(self) -> tuple[Axis, Axis]:
        """The row axis and the column axis."""
        steps = [self.spacing_mm[k] / self.native_mm[k] for k in (0, 1)]
        # Headers round: 0.50000001 mm is 0.5 mm, and need not be resampled.
        steps = [1.0 if abs(step - 1) < 1e-4 else step for step in steps]
        return Axis(self.shape[0], steps[0], self.size), Axis(self.shape[1], steps[1], self.size)

    @property
    def identity(self) -> bool:
        """Whether both grids are the same, so that nothing needs to be computed."""
        return self.shape == (self.size, self.size) and all(axis.step == 1 for axis in self.axes)

    def image(self, volume: np.ndarray) -> np.ndarray:
        """Bring (S, R, C) to (S, size, size) float32: linear, padded with the image's minimum.

        Where the image shrinks, the linear kernel is widened to the new pixel, so that noise and
        texture finer than the new grid are averaged and not aliased.
        """
        if self.identity:
            return volume.astype(np.float32, copy=False)
        rows, columns = self.axes
        out = np.full((len(volume), self.size, self.size), volume.min(), np.float32)
        inside = out[:, rows.network, columns.network]
        if rows.step == columns.step == 1:
            inside[:] = volume[:, rows.native, columns.native]
        else:
            for k, image in enumerate(volume):
                inside[k] = rows.down @ image.astype(np.float32, copy=False) @ columns.down.T
        return out

    def label(self, volume: np.ndarray) -> np.ndarray:
        """Bring labels (S, R, C) of whole numbers to (S, size, size): nearest pixel, padded with
        0."""
        if self.identity:
            return volume
        rows, columns = self.axes
        out = np.zeros((len(volume), self.size, self.size), volume.dtype)
        out[:, rows.network, columns.network] = volume[
            :, rows.nearest[:, None], columns.nearest[None, :]
        ]
        return out

    def points_to_grid(self, points: np.ndarray) -> np.ndarray:
        """Bring points (..., 2), x and y in the image's own pixels, to the network's, whose centres
        are at whole numbers, too; one outside the network's grid stays outside."""
        rows, columns = self.axes
        x, y = columns.to_network(points[..., 0]), rows.to_network(points[..., 1])
        return np.stack([x, y], axis=-1)

    def points_to_native(self, points: np.ndarray) -> np.ndarray:
        """Bring points (..., 2), x and y in the network's pixels, to the image's own."""
        rows, columns = self.axes
        x, y = columns.to_own(points[..., 0]), rows.to_own(points[..., 1])
        return np.stack([x, y], axis=-1)

    def values_to_native(self, values: np.ndarray, outside: float = np.nan) -> np.ndarray:
        """Bring real values of pixels (S, C, size, size) to (S, C, *shape) float32.

        Linear, as :meth:`to_native` brings probabilities, and no class is chosen; what lies outside
        the network's grid is ``outside``. Values are of a place, such as a depth or a probability:
        what a pixel holds in all, such as a count, changes with the pixel's size.
        Raises ``ValueError`` for values of another shape.
        """
        slices, channels = values.shape[:2]
        if values.shape[2:] != (self.size, self.size):
            raise ValueError(
                f"expected values (S, C, {self.size}, {self.size}), got {values.shape}"
            )
        values = values.astype(np.float32, copy=False)
        if self.identity:
            return values
        rows, columns = self.axes
        out = np.full((slices, channels, *self.shape), outside, np.float32)
        inside = out[:, :, rows.native, columns.native]
        covered = values[:, :, rows.network, columns.network]
        if rows.step == columns.step == 1:
            inside[:] = covered
        else:
            inside[:] = rows.up @ covered @ columns.up.T
        return out

    def to_native(self, probabilities: np.ndarray) -> np.ndarray:
        """Bring class probabilities (S, C, size, size) to labels (S, *shape) uint8.

        Probabilities are interpolated linearly and the most probable class is taken (the first
        on a tie); what lies outside the network's grid is background.
        """
        slices, classes = probabilities.shape[:2]
        if probabilities.shape[2:] != (self.size, self.size) or classes > 255:
            raise ValueError(
                f"expected probabilities (S, C <= 255, {self.size}, {self.size}), "
                f"got {probabilities.shape}"
            )
        if self.identity:
            return probabilities.argmax(axis=1).astype(np.uint8)
        rows, columns = self.axes
        out = np.zeros((slices, *self.shape), np.uint8)
        inside = out[:, rows.native, columns.native]
        covered = probabilities[:, :, rows.network, columns.network]
        if rows.step == columns.step == 1:
            inside[:] = covered.argmax(axis=1)
        else:
            for k, probability in enumerate(covered):
                inside[k] = (rows.up @ probability @ columns.up.T).argmax(axis=0)
        return out


@dataclass(frozen=True)
class Axis:
    """One in-plane axis: ``length`` own pixels, a network pixel being ``step`` of them.

    With ``n = round(length / step)`` resampled pixels centred on the image, resampled pixel ``i``
    lies at own coordinate ``(i - (n - 1) / 2) * step + (length - 1) / 2``; network pixel ``r`` is
    resampled pixel ``r + first``. Without resampling both are whole numbers and nothing is
    interpolated.
    """

    length: int
    step: float
    size: int

    @cached_property
    def resampled(self) -> int:
        """How many resampled pixels cover the image."""
        return max(1, round(self.length / self.step))

    @cached_property
    def first(self) -> int:
        """The resampled pixel under network pixel 0; negative where the image is padded."""
        return (self.resampled - self.size) // 2

    @cached_property
    def network(self) -> slice:
        """The network's pixels that the image covers."""
        return slice(max(0, -self.first), min(self.size, self.resampled - self.first))

    @cached_property
    def native(self) -> slice:
        """The image's own pixels whose centres the network's pixels cover."""
        position = self.to_network(np.arange(self.length))
        # Only a cropped end loses pixels; elsewhere the last ones may lie just outside, because
        # the number of resampled pixels was rounded.
        low = self.network.start - 0.5 if self.first > 0 else -np.inf
        high = self.network.stop - 0.5 if self.first + self.size < self.resampled else np.inf
        inside = np.flatnonzero((position >= low) & (position < high))
        return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)

    @cached_property
    def nearest(self) -> np.ndarray:
        """The own pixel nearest to each covered network pixel."""
        position = np.floor(self._native_position() + 0.5).astype(int)
        return position.clip(0, self.length - 1)

    @cached_property
    def down(self) -> np.ndarray:
        """Weights (covered network pixels, own pixels) that resample an image."""
        return _linear(self._native_position(), self.length, max(1.0, self.step))

    @cached_property
    def up(self) -> np.ndarray:
        """Weights (covered own pixels, covered network pixels) that bring probabilities back."""
        position = self.to_network(np.arange(self.native.start, self.native.stop))
        covered = self.network.stop - self.network.start
        return _linear(position - self.network.start, covered, max(1.0, 1 / self.step))

    def to_own(self, network: np.ndarray) -> np.ndarray:
        """Own coordinates of ``network`` ones."""
        pixel = network + self.first
        return (pixel - (self.resampled - 1) / 2) * self.step + (self.length - 1) / 2

    def to_network(self, own: np.ndarray) -> np.ndarray:
        """Network coordinates of ``own`` ones."""
        centred = (own - (self.length - 1) / 2) / self.step
        return centred + (self.resampled - 1) / 2 - self.first

    def _native_position(self) -> np.ndarray:
        return self.to_own(np.arange(self.network.start, self.network.stop))


def _linear(positions: np.ndarray, length: int, width: float) -> np.ndarray:
    """Triangle-kernel weights (len(positions), length) of half-width ``width``; rows add up to 1.

    Positions beyond the ends take the end pixel's value.
    """
    clipped = positions.clip(0, length - 1)
    weights = np.maximum(0, 1 - np.abs(clipped[:, None] - np.arange(length)) / width)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def orient(
    array: np.ndarray, affine: np.ndarray | None, axis: int | None
) -> tuple[np.ndarray, int]:
    """Lay a file's array (i, j, k) out as (S, R, C); return it and the canonical slice axis.

    ``affine`` (4 x 4, voxel to mm, x right, y front, z up) or None for an image as it is seen,
    whose i, j, k are columns, rows, slices. ``axis`` is the canonical axis to slice along; None
    takes :func:`preferred_axis`, and so does an image of a single slice, which has no other plane.
    """
    if affine is None:
        return array.transpose(2, 1, 0), 2
    own, _ = preferred_axis(array.shape, affine)
    axis = own if axis is None else axis
    order, signs = canonical_axes(affine, axis)
    if array.shape[order[axis]] > 1 and array.shape[canonical_axes(affine)[0][own]] == 1:
        axis = own
        order, signs = canonical_axes(affine, axis)
    data = array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    stack = np.moveaxis(data, axis, 0).transpose(0, 2, 1)
    return stack[:, ::-1, ::-1], axis


def orient_points(
    voxels: np.ndarray, shape: tuple[int, ...], affine: np.ndarray | None, axis: int
) -> np.ndarray:
    """Where voxels (n, 3) of an array (i, j, k) of ``shape`` lie in what :func:`orient` makes of
    it, as slice, row and column (n, 3); ``axis`` is the one that it returned."""
    if affine is None:
        return voxels[:, ::-1].astype(float)
    order, signs = canonical_axes(affine, axis)
    along = [
        voxels[:, own] if sign > 0 else shape[own] - 1 - voxels[:, own]
        for own, sign in zip(order, signs, strict=True)
    ]
    across, down = [k for k in range(3) if k != axis]
    # Rows and columns are laid out against their axes.
    rows, columns = (shape[order[k]] - 1 - along[k] for k in (down, across))
    return np.stack([along[axis], rows, columns], axis=1)


def orient_spacing(affine: np.ndarray, axis: int) -> tuple[float, float, float]:
    """Spacing in mm along (slice, row, column) of what :func:`orient` lays out."""
    order, _ = canonical_axes(affine, axis)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
    across, down = [k for k in range(3) if k != axis]
    # An affine's column lengths carry rounding: 0.78125 comes out as 0.7812499.
    slice_mm, row_mm, column_mm = (round(float(sizes[k]), 5) for k in (axis, down, across))
    return slice_mm, row_mm, column_mm


def preferred_axis(shape: tuple[int, ...], affine: np.ndarray | None) -> tuple[int, bool]:
    """The canonical axis that an image by itself would be sliced along, and whether it is clear.

    ``shape`` is that of the array (i, j, k). Clear is the only axis of length 1, or else the axis
    whose spacing exceeds the others' by more than 15 %; among axes that come closer to each other
    the last is taken, and another image of the same kind might as well have chosen another one.
    Without ``affine`` the slices are the array's last axis, whatever is asked for.
    """
    if affine is None:
        return 2, True
    order, _ = canonical_axes(affine)
    single = [k for k in range(3) if shape[order[k]] == 1]
    if len(single) == 1:
        return single[0], True
    sizes = np.linalg.norm(affine[:3, :3], axis=0)[list(order)]
    thickest = [k for k in range(3) if sizes[k] * CLEAR >= sizes.max()]
    return thickest[-1], len(thickest) == 1


def canonical_axes(
    affine: np.ndarray, axis: int | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """For each canonical axis (right, front, up) the array axis nearest to it, and its sign.

    The assignment is the one whose direction cosines add up to most. Where slices run along the
    canonical ``axis`` and the array's thickest axis is clear and within 60 degrees of it, the two
    belong together: an oblique stack is not cut across its slices because another axis of the
    body is a little nearer to their normal.
    """
    order = _assignments(affine, axis)[0][1]
    seen = _TURNED @ affine[:3, :3]
    return order, tuple(1 if seen[k, order[k]] > 0 else -1 for k in range(3))


def between_axes(affine: np.ndarray, axis: int) -> bool:
    """Whether a stack tilted 5 degrees otherwise may be laid out by other axes than this one."""
    best, second = _assignments(affine, axis)[:2]
    return best[0] - second[0] < BETWEEN


def _assignments(affine: np.ndarray, axis: int | None) -> list[tuple[float, tuple[int, ...]]]:
    """Sums of direction cosines and the array axis of each canonical axis, the largest first.

    A stack at 45 degrees lies between two axes, and rounding in its header would decide: so it is
    looked at from a frame that is turned by a third of a degree about each axis, which decides
    the same way for every stack that is nearer to 45 degrees than that, however it is stored.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    seen = np.abs(_TURNED @ (affine[:3, :3] / sizes))
    orders = list(itertools.permutations(range(3)))
    thickest = [k for k in range(3) if sizes[k] * CLEAR >= sizes.max()]
    if axis is not None and len(thickest) == 1 and seen[axis, thickest[0]] >= 0.5:
        orders = [order for order in orders if order[axis] == thickest[0]]
    sums = [(float(sum(seen[k, order[k]] for k in range(3))), order) for order in orders]
    return sorted(sums, reverse=True)


def corners(shape: Sequence[int]) -> np.ndarray:
    """The eight corner voxels (8, 4) of an array, homogeneous."""
    ends = itertools.product(*((0, n - 1) for n in shape))
    return np.array([(*corner, 1) for corner in ends], float)


def invertible(affine: np.ndarray) -> bool:
    """Whether ``affine`` is finite and none of its axes vanishes or lies in the others' plane."""
    if not np.isfinite(affine).all():
        return False
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(sizes.all()) and abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3


def shear(affine: np.ndarray, shape: Sequence[int]) -> float:
    """The degrees by which two axes, of more than one voxel, miss the right angle at most."""
    long = [k for k in range(3) if shape[k] > 1]
    cosines = (affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))[:, long]
    off = np.abs(cosines.T @ cosines - np.eye(len(long))).max(initial=0)
    return float(np.degrees(np.arcsin(min(1.0, off))))
