"""The network's grid and back, and orientation, against hand-made grids."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from fedshift.sites import DataSettings
from fedshift.sites.geometry import Grid, orient, orient_spacing
from fedshift.sites.image import normalise


def disc(shape: tuple[int, int], radius: float, offset: tuple[float, float] = (0, 0)) -> np.ndarray:
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    y = rows - (shape[0] - 1) / 2 - offset[0]
    x = columns - (shape[1] - 1) / 2 - offset[1]
    return (y**2 + x**2 <= radius**2).astype(np.uint8)[None]


def one_hot(label: np.ndarray, classes: int) -> np.ndarray:
    return (label[:, None] == np.arange(classes)[None, :, None, None]).astype(np.float32)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


def test_identity_is_exact_both_ways() -> None:
    grid = Grid((16, 16), (0.5, 0.5), (0.5, 0.5), 16)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(3, 16, 16)).astype(np.float32)
    label = rng.integers(0, 3, (3, 16, 16)).astype(np.uint8)
    assert grid.identity
    assert np.array_equal(grid.image(image), image)
    assert np.array_equal(grid.to_native(one_hot(grid.label(label), 3)), label)


@pytest.mark.parametrize("shape", [(20, 31), (9, 16), (33, 10)])
def test_crop_and_pad_without_resampling_move_whole_pixels(shape: tuple[int, int]) -> None:
    grid = Grid(shape, (1.0, 1.0), (1.0, 1.0), 16)
    image = np.arange(1, 1 + shape[0] * shape[1], dtype=np.float32).reshape(1, *shape)
    out = grid.image(image)
    assert out.shape == (1, 16, 16)
    assert set(np.unique(out)) <= set(np.unique(image)), "a value was interpolated"
    covered = min(16, shape[0]) * min(16, shape[1])
    assert np.count_nonzero(out == 1) >= 256 - covered, "padding takes the image's minimum, 1"
    assert len(np.unique(out[out > 1])) in (covered, covered - 1), "a pixel is lost or doubled"
    # Back: inside the crop exact, outside it background.
    label = (image.astype(int) % 3).astype(np.uint8)
    back = grid.to_native(one_hot(grid.label(label), 3))
    rows = slice((shape[0] - 16) // 2, (shape[0] - 16) // 2 + 16) if shape[0] > 16 else slice(None)
    cols = slice((shape[1] - 16) // 2, (shape[1] - 16) // 2 + 16) if shape[1] > 16 else slice(None)
    expected = np.zeros_like(label)
    expected[:, rows, cols] = label[:, rows, cols]
    assert np.array_equal(back, expected)


@pytest.mark.parametrize(("native", "target"), [(0.5, 0.8), (0.9, 0.5), (0.4, 1.0), (0.78, 0.5)])
def test_a_disc_survives_the_round_trip(native: float, target: float) -> None:
    shape = (121, 90)
    label = disc(shape, 14 / native, offset=(3, -4))
    grid = Grid(shape, (native, native), (target, target), 96)
    back = grid.to_native(one_hot(grid.label(label), 2))
    assert back.shape == label.shape
    assert dice(back, label) > 0.95


def test_resampling_keeps_a_linear_ramp_and_the_centre() -> None:
    grid = Grid((40, 40), (1.0, 1.0), (0.5, 0.5), 64)
    rows = np.broadcast_to(np.arange(40, dtype=np.float32)[None, :, None], (1, 40, 40))
    out = grid.image(rows)
    # Network pixel r lies at own row (r - 31.5) / 2 + 19.5, by hand.
    expected = (np.arange(64) - 31.5) / 2 + 19.5
    assert np.allclose(out[0, :, 10], expected, atol=1e-4)


def test_shrinking_averages_noise_instead_of_aliasing_it() -> None:
    noise = np.random.default_rng(1).normal(size=(1, 256, 256)).astype(np.float32)
    out = Grid((256, 256), (0.1, 0.1), (0.8, 0.8), 32).image(noise)
    # A triangle kernel of half-width 8 has sum of squares 2/24 an axis, so std 1/12.
    assert out[:, 4:-4, 4:-4].std() == pytest.approx(1 / 12, rel=0.15)


@pytest.mark.parametrize("step", [(1.0, 1.0), (1.25, 0.8)])
def test_real_values_come_back_where_they_lie(step: tuple[float, float]) -> None:
    """A ramp in mm over rows and columns, against places worked out by hand."""
    grid = Grid((40, 30), (1.0, 1.0), step, 16)
    rows, columns = ((np.arange(16) - 7.5) * mm for mm in step)
    values = np.stack([rows[:, None] + 0 * columns, 2 * columns + 0 * rows[:, None]])[None]

    back = grid.values_to_native(values)

    assert back.shape == (1, 2, 40, 30) and back.dtype == np.float32
    down, along = np.arange(40) - 19.5, np.arange(30) - 14.5
    covered = np.abs(down)[:, None] < 8 * step[0], np.abs(along) < 8 * step[1]
    inside = covered[0] & covered[1]
    assert np.array_equal(np.isfinite(back[0, 0]), inside)
    # Beyond the centres of the outermost pixels their values go on.
    true = down.clip(rows[0], rows[-1])[:, None] + 0 * along
    np.testing.assert_allclose(back[0, 0][inside], true[inside], atol=0.15 * step[0])
    true = 2 * along.clip(columns[0], columns[-1]) + 0 * down[:, None]
    np.testing.assert_allclose(back[0, 1][inside], true[inside], atol=0.3 * step[1])
    assert (grid.values_to_native(values, outside=0)[0, 0][~inside] == 0).all()


def test_the_most_probable_class_is_that_of_the_values_brought_back() -> None:
    grid = Grid((31, 40), (1.0, 1.0), (1.7, 0.9), 24)
    scores = np.random.default_rng(0).random((2, 3, 24, 24)).astype(np.float32)
    values = grid.values_to_native(scores, outside=0)
    assert np.array_equal(grid.to_native(scores), values.argmax(axis=1))
    same = Grid((8, 8), (1.0, 1.0), (1.0, 1.0), 8)
    assert np.array_equal(same.values_to_native(scores[:, :, :8, :8]), scores[:, :, :8, :8])
    with pytest.raises(ValueError, match="expected values"):
        grid.values_to_native(scores[:, :, :8])


def test_outside_the_network_grid_is_background() -> None:
    grid = Grid((100, 100), (1.0, 1.0), (1.25, 1.25), 16)
    back = grid.to_native(one_hot(np.ones((1, 16, 16), np.uint8), 2))
    rows = np.flatnonzero(back[0].any(axis=1))
    assert np.count_nonzero(back) == 20 * 20  # 16 pixels of 1.25 mm
    assert (rows[0], rows[-1]) == (40, 59)


def test_wrong_probability_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected probabilities"):
        Grid((16, 16), (1.0, 1.0), (1.0, 1.0), 16).to_native(np.zeros((1, 2, 8, 8), np.float32))


def test_any_axis_order_and_flip_gives_the_canonical_slices() -> None:
    rng = np.random.default_rng(2)
    array = rng.normal(size=(7, 9, 5))
    affine = np.diag([0.5, 0.75, 3.0, 1.0])
    affine[:3, 3] = (-10, 4, 20)
    expected, axis = orient(array, affine, None)
    assert axis == 2 and expected.shape == (5, 9, 7)
    assert orient_spacing(affine, axis) == (3.0, 0.75, 0.5)
    # Row 0 is the front (largest y), column 0 the right (largest x).
    assert expected[1, 0, 0] == array[6, 8, 1]
    for codes in ("LPS", "SAR", "AIL", "PRS", "ILA"):
        want = nibabel.orientations.axcodes2ornt(codes)
        have = nibabel.orientations.io_orientation(affine)
        transform = nibabel.orientations.ornt_transform(have, want)
        moved = nibabel.Nifti1Image(array, affine).as_reoriented(transform)
        assert nibabel.aff2axcodes(moved.affine) == tuple(codes)
        got, got_axis = orient(np.asarray(moved.dataobj), moved.affine, None)
        assert got_axis == axis
        assert np.array_equal(got, expected)
        assert orient_spacing(moved.affine, axis) == (3.0, 0.75, 0.5)


@pytest.mark.parametrize(
    ("shape", "sizes", "axis"),
    [
        ((8, 8, 8), (1, 1, 1), 2),
        ((8, 8, 8), (3, 1, 1), 0),
        ((8, 8, 8), (1, 3.0000007, 3), 2),
        ((8, 1, 8), (1, 1, 1), 1),
    ],
)
def test_slices_run_along_the_thickest_or_only_axis(
    shape: tuple[int, ...], sizes: tuple[float, ...], axis: int
) -> None:
    assert orient(np.zeros(shape), np.diag([*sizes, 1.0]), None)[1] == axis


def test_normalising_keeps_a_bright_structure_in_a_large_dark_background() -> None:
    """A cord is less than a hundredth of its image, and the brightest part of it."""
    image = np.zeros((2, 200, 200), np.float32)
    image[:, 90:110, 90:110] = np.linspace(500, 1000, 400, dtype=np.float32).reshape(20, 20)
    whole = Grid((200, 200), (1.0, 1.0), (1.0, 1.0), 200)
    around = Grid((200, 200), (1.0, 1.0), (1.0, 1.0), 24)
    bright = normalise(image, DataSettings(normalise="percentile"), around)[:, 90:110, 90:110]
    assert len(np.unique(bright)) == 400, "no two grey levels fall together"
    # Inside the grid 500 is the lowest structure and the percentiles span it, wherever the
    # darkness around it ends.
    inside = image[:, 88:112, 88:112]
    low, high = np.percentile(inside, (1, 99))
    assert np.allclose(bright, (image[:, 90:110, 90:110] - low) / (high - low), atol=1e-6)
    scaled = normalise(image, DataSettings(normalise="zscore"), whole)
    assert scaled.mean() == pytest.approx(0, abs=1e-4) and scaled.std() == pytest.approx(1)
