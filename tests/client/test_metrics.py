"""Metrics of a case: hand-computed shapes, MedPy where it is defined, and the empty-mask rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedshift import UserError
from fedshift.client.metrics import border, score_case, surface_distances

UNIT = (1.0, 1.0, 1.0)


def square(top: int, left: int, side: int, shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    """One slice, (1, H, W), with a filled square."""
    mask = np.zeros((1, *shape), np.uint8)
    mask[0, top : top + side, left : left + side] = 1
    return mask


def score(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: tuple[float, float, float] = UNIT,
    tolerance_mm: float = 1.0,
) -> dict[str, Any]:
    (row,) = score_case(reference, prediction, spacing_mm, ["it"], tolerance_mm)
    return row


def blobs(shape: tuple[int, ...], seed: int, share: float = 0.3) -> np.ndarray:
    """A random mask with pieces of some size: neighbour sums of noise, the largest ``share``."""
    noise = np.random.default_rng(seed).standard_normal(shape)
    for axis in range(len(shape)):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    return noise > np.quantile(noise, 1 - share)


def test_overlap_and_volume_of_two_squares_computed_by_hand() -> None:
    # 10 x 10 and 8 x 8 that share 6 x 8 = 48 pixels of 1 x 0.5 x 2 mm = 1 uL.
    row = score(square(4, 4, 10), square(8, 5, 8), (1.0, 0.5, 2.0))
    assert row["structure"] == "it"
    assert row["dice"] == pytest.approx(2 * 48 / 164)
    assert row["jaccard"] == pytest.approx(48 / 116)
    assert row["precision"] == pytest.approx(48 / 64)
    assert row["recall"] == pytest.approx(48 / 100)
    assert row["volume_ml"] == pytest.approx(0.064)
    assert row["reference_volume_ml"] == pytest.approx(0.100)
    assert row["volume_error_ml"] == pytest.approx(-0.036)
    assert row["failed"] == 0


def test_every_value_is_a_plain_python_number() -> None:
    for prediction in (square(6, 5, 8), square(0, 0, 0)):
        row = score(square(4, 4, 10), prediction)
        assert {type(value) for key, value in row.items() if key != "structure"} == {int, float}
        assert type(row["failed"]) is int


def test_distances_of_a_square_moved_by_two_rows_computed_by_hand() -> None:
    # A 4 x 4 square has 12 border pixels. To the border of the square two rows below: the top row
    # is 2 away (4 pixels), the outer pixels of the second row 1 (2), those of the third and
    # fourth lie on it (4), and the inner two of the fourth are 1 below its top row.
    lists = surface_distances(square(4, 4, 4)[0] > 0, square(6, 4, 4)[0] > 0, np.ones(2))
    by_hand = sorted([2.0] * 4 + [1.0] * 2 + [0.0] * 4 + [1.0] * 2)
    assert sorted(lists[0]) == sorted(lists[1]) == by_hand
    row = score(square(4, 4, 4), square(6, 4, 4), tolerance_mm=1.0)
    assert row["hd95_mm"] == 2.0
    assert row["assd_mm"] == pytest.approx((4 * 2 + 4 * 1) / 12)
    assert row["nsd"] == pytest.approx(8 / 12)


def test_percentile_pools_both_lists_instead_of_taking_the_larger() -> None:
    # One pixel against itself and 39 far ones: 1 list of {0}, the other of 40 distances.
    reference = np.zeros((1, 1, 200), np.uint8)
    reference[0, 0, 0] = 1
    prediction = reference.copy()
    prediction[0, 0, 100:139] = 1
    distances = [0.0, 0.0, *range(100, 139)]
    row = score(reference, prediction)
    assert row["hd95_mm"] == pytest.approx(np.percentile(distances, 95))
    assert row["assd_mm"] == pytest.approx(np.mean(distances))


def test_spacing_scales_each_axis_by_itself() -> None:
    pixel = np.zeros((3, 8, 8), np.uint8)
    pixel[1, 2, 2] = 1
    for axis, expected in enumerate((5.0, 0.7, 1.1)):
        row = score(pixel, np.roll(pixel, 1, axis), (5.0, 0.7, 1.1))
        assert row["hd95_mm"] == row["assd_mm"] == pytest.approx(expected)


def test_a_distance_equal_to_the_tolerance_is_within_it() -> None:
    # 3 * 0.7 is 2.0999999999999996 and 3 * 1.1 is 3.3000000000000003 in binary.
    for step, tolerance in ((0.7, 2.1), (1.1, 3.3)):
        near, far = square(5, 5, 1), square(5, 8, 1)
        assert score(near, far, (1.0, 1.0, step), tolerance)["nsd"] == 1.0
        assert score(near, far, (1.0, 1.0, step), tolerance - 1e-6)["nsd"] == 0.0


def test_a_single_slice_is_measured_in_its_plane() -> None:
    reference, prediction = square(4, 4, 12), square(6, 6, 8)
    row = score(reference, prediction, (8.0, 1.0, 1.0))
    # The inner square's border is 2 from the outer's; the outer's corners are 2 * sqrt(2) away.
    lists = [2.0] * 28 + [2.0] * 32 + [math.hypot(1, 2)] * 8 + [math.hypot(2, 2)] * 4
    assert len(lists) == 28 + 44
    assert row["hd95_mm"] == pytest.approx(np.percentile(lists, 95), abs=1e-12)
    # As a volume of two such slices every voxel touches the outside, so the inner square, all
    # of it border of both masks, lies at distance 0.
    volume = score(np.repeat(reference, 2, axis=0), np.repeat(prediction, 2, axis=0))
    assert volume["assd_mm"] < row["assd_mm"]


@pytest.mark.parametrize("shape", [(7,), (6, 9), (5, 6, 7), (1, 6, 6), (2, 1, 3)])
def test_border_is_where_a_face_neighbour_is_outside(shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(3).random(shape) < 0.8
    expected = np.zeros(shape, bool)
    for index in np.ndindex(shape):
        for axis in range(len(shape)):
            for step in (-1, 1):
                at = list(index)
                at[axis] += step
                inside = 0 <= at[axis] < shape[axis]
                expected[index] |= bool(mask[index]) and not (inside and mask[tuple(at)])
    np.testing.assert_array_equal(border(mask), expected)


def test_both_ways_of_measuring_agree_with_all_pairs_of_voxels() -> None:
    """Few voxels apart are looked up in a tree, many by a distance transform."""
    spacing = np.array([3.0, 0.6, 0.9])
    first = blobs((6, 20, 22), 0)
    nearly = first.copy()
    nearly[2, 3:5, 3:5] ^= True
    for second in (nearly, blobs((6, 20, 22), 1)):
        a, b = (np.argwhere(border(mask)) * spacing for mask in (first, second))
        pairs = np.linalg.norm(a[:, None] - b[None], axis=2)
        lists = surface_distances(first, second, spacing)
        np.testing.assert_allclose(lists[0], pairs.min(axis=1), atol=1e-12)
        np.testing.assert_allclose(lists[1], pairs.min(axis=0), atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 40, 36), (1, 64, 48), (3, 1, 9)])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_medpy_where_both_masks_are_there(shape: tuple[int, int, int], seed: int) -> None:
    medpy = pytest.importorskip("medpy.metric.binary")
    spacing = tuple(np.random.default_rng(seed).uniform(0.4, 8.0, 3))
    reference = blobs(shape, seed)
    for prediction in (
        blobs(shape, seed + 100),
        np.roll(reference, (1, 2), (1, 2)),
        reference & blobs(shape, seed + 200, 0.95),
    ):
        row = score(reference.astype(np.uint8), prediction.astype(np.uint8), spacing, 2.0)
        plane = 1 if shape[0] == 1 else 0
        masks = [mask[0] if plane else mask for mask in (prediction, reference)]
        given = {"voxelspacing": spacing[plane:]}
        directed = [
            getattr(medpy, "__surface_distances")(*pair, **given) for pair in (masks, masks[::-1])
        ]
        assert row["hd95_mm"] == pytest.approx(medpy.hd95(*masks, **given), abs=1e-6)
        assert row["assd_mm"] == pytest.approx(medpy.assd(*masks, **given), abs=1e-6)
        assert row["nsd"] == pytest.approx((np.concatenate(directed) <= 2.0).mean(), abs=1e-6)
        assert row["dice"] == pytest.approx(medpy.dc(*masks), abs=1e-12)
        assert row["jaccard"] == pytest.approx(medpy.jc(*masks), abs=1e-12)
        assert row["precision"] == pytest.approx(medpy.precision(*masks), abs=1e-12)
        assert row["recall"] == pytest.approx(medpy.recall(*masks), abs=1e-12)


def test_a_structure_absent_from_both_is_perfect() -> None:
    first, second = score_case(square(3, 3, 5), square(3, 3, 5), UNIT, ["there", "absent"], 2.0)
    assert first["dice"] == 1.0
    assert second == {
        "structure": "absent",
        "dice": 1.0,
        "hd95_mm": 0.0,
        "assd_mm": 0.0,
        "nsd": 1.0,
        "volume_ml": 0.0,
        "reference_volume_ml": 0.0,
        "false_positive_ml": 0.0,
        "false_positive_components": 0,
        "failed": 0,
        "jaccard": 1.0,
        "precision": 1.0,
        "recall": 1.0,
        "volume_error_ml": 0.0,
    }


@pytest.mark.parametrize("missed", [True, False])
def test_exactly_one_empty_mask_fails_at_the_diagonal_of_the_grid(missed: bool) -> None:
    there, empty = np.zeros((2, 2, 6, 10), np.uint8)
    there[1, 2:4, 3:6] = 1
    masks = (there, empty) if missed else (empty, there)
    row = score(*masks, (5.0, 2.0, 1.5))
    assert row["failed"] == 1
    assert row["hd95_mm"] == row["assd_mm"] == pytest.approx(math.sqrt(10**2 + 12**2 + 15**2))
    assert [row[name] for name in ("dice", "jaccard", "nsd", "precision", "recall")] == [0.0] * 5
    assert row["volume_error_ml"] == pytest.approx((-1 if missed else 1) * 6 * 15 / 1000)


def test_a_failed_single_slice_has_the_diagonal_of_its_plane() -> None:
    row = score(square(3, 3, 5, (30, 40)), square(0, 0, 0, (30, 40)), (8.0, 1.0, 1.0))
    assert row["hd95_mm"] == pytest.approx(50.0)


def test_each_structure_is_scored_apart_from_the_others() -> None:
    reference, prediction = np.zeros((2, 2, 12, 12), np.uint8)
    reference[:, 1:5, 1:5], reference[:, 6:10, 6:10] = 1, 2
    prediction[:, 1:5, 1:5], prediction[:, 6:10, 7:11] = 1, 2
    both = score_case(reference, prediction, UNIT, ["a", "b"], 1.0)
    for value, row in enumerate(both, start=1):
        alone = score((reference == value).astype(np.uint8), (prediction == value).astype(np.uint8))
        assert {**alone, "structure": row["structure"]} == row
    assert both[0]["dice"] == 1.0
    assert both[1]["dice"] == pytest.approx(0.75)


def test_read_only_memory_is_enough() -> None:
    labels = square(3, 3, 5)
    labels.flags.writeable = False
    assert score(labels, labels)["dice"] == 1.0


@pytest.mark.parametrize("tolerance", [-1.0, math.nan, math.inf])
def test_a_tolerance_that_is_no_distance_is_refused(tolerance: float) -> None:
    with pytest.raises(UserError, match=r"tolerance_mm is .*0 mm or more"):
        score(square(3, 3, 5), square(3, 3, 5), tolerance_mm=tolerance)


def test_masks_that_cannot_be_compared_are_refused() -> None:
    mask = square(3, 3, 5)
    with pytest.raises(ValueError, match=r"must both be \(S, H, W\)"):
        score(mask, mask[:, :-1])
    with pytest.raises(ValueError, match="three positive numbers"):
        score(mask, mask, (1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="label 2 has no name"):
        score(mask, mask * 2)
