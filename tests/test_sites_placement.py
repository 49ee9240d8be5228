"""Where an image lies in space, and its label on it, against resampling in world coordinates."""

from __future__ import annotations

import itertools

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from fedshift.sites.geometry import canonical_axes, orient, orient_spacing, preferred_axis

ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""All 48: the 24 that a rotation reaches and their mirror images, as files store them."""


def affine_of(
    angles: tuple[float, float, float] = (0, 0, 0),
    sizes: tuple[float, float, float] = (0.5, 0.75, 3.0),
    centre: tuple[float, float, float] = (0, 0, 0),
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(sizes)
    affine[:3, 3] = centre
    return affine


def stored(
    array: np.ndarray, affine: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes in another order and turned round, written out by hand."""
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        turned[old, new] = sign
        turned[old, 3] += 0 if sign > 0 else array.shape[old] - 1
    moved = array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    return moved, affine @ turned


def test_a_stack_at_45_degrees_is_laid_out_alike_whatever_its_header_rounds_to() -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(4, 5, 3))
    for angles in itertools.product((0, 45, 135, 225), repeat=3):
        affine = affine_of(angles)
        expected, axis = orient(array, affine, None)
        for order, signs in ORIENTATIONS[::5]:
            moved, own = stored(array, affine, order, signs)
            own[:3, :3] += rng.normal(scale=1e-5, size=(3, 3))
            got, got_axis = orient(moved, own, None)
            assert got_axis == axis and np.array_equal(got, expected), (angles, order, signs)
            assert np.allclose(orient_spacing(own, axis), orient_spacing(affine, axis), atol=1e-4)


def test_tilts_about_one_axis_turn_to_the_nearest_canonical_axes() -> None:
    for axis, degrees in itertools.product(range(3), (-140, -80, -44, -30, 10, 44, 46, 100, 170)):
        angles = [0, 0, 0]
        angles[axis] = degrees
        affine = affine_of(tuple(angles))
        order, signs = canonical_axes(affine)
        known = nibabel.io_orientation(affine)
        for k in range(3):
            assert tuple(known[order[k]]) == (k, signs[k])


@pytest.mark.parametrize(
    ("shape", "sizes", "expected"),
    [
        ((8, 8, 8), (1, 1, 3), (2, True)),
        ((8, 8, 8), (3, 1, 1), (0, True)),
        ((8, 8, 8), (1.1000001, 1, 1), (2, False)),
        ((8, 8, 8), (1, 1, 1), (2, False)),
        ((8, 8, 8), (3, 2.8, 1), (1, False)),
        ((8, 1, 8), (1, 1, 4), (1, True)),
        ((1, 1, 8), (1, 4, 1), (1, True)),
    ],
)
def test_an_image_says_which_way_it_is_sliced_and_whether_that_is_clear(
    shape: tuple[int, ...], sizes: tuple[float, ...], expected: tuple[int, bool]
) -> None:
    for order, signs in ORIENTATIONS[::7]:
        moved, own = stored(np.zeros(shape), affine_of(sizes=sizes), order, signs)
        assert preferred_axis(moved.shape, own) == expected
        assert orient(moved, own, None)[1] == expected[0]
