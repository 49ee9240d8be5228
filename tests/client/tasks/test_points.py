"""Landmarks and points: heatmaps, the change of geometry, matching and the measures of a case."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass
from torch.nn import functional as F

from fedshift import UserError
from fedshift.client.augmentation import Augmentation
from fedshift.client.heatmaps import heatmap_loss, heatmaps, highest, peaks, warp_points
from fedshift.client.metrics.points import matched
from fedshift.client.tasks.landmarks import Landmarks
from fedshift.client.tasks.points import Points
from fedshift.client.worker import describe
from fedshift.server.shift import _label_shift, _total_variation
from fedshift.sites.geometry import Grid
from fedshift.sites.types import Case, Domain, Label, SiteData

NAN = math.nan
SIZE = (24, 32)
SQUARE = (32, 32)


def rows(*points: Sequence[float]) -> torch.Tensor:
    return torch.tensor([points], dtype=torch.float32)


def point_case(
    points: Sequence[Sequence[Sequence[float]]],
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    size: tuple[int, int] = SQUARE,
    annotates: tuple[int, ...] | None = None,
) -> Case:
    """A case whose slices hold ``points``, x, y and the part's number; the image is empty."""
    label = np.array(points, np.float32)
    return Case(
        id="one",
        subject="who",
        session="",
        domain=Domain("vendor"),
        image=np.zeros((len(label), 1, *size), np.float32),
        labels=dict.fromkeys(("landmarks", "points"), Label(label, label)),
        labelled=np.ones(len(label), bool),
        spacing_mm=spacing_mm,
        native_spacing_mm=spacing_mm,
        grid=Grid(size, spacing_mm[1:], spacing_mm[1:], size[0]),
        annotates=annotates,
    )


def drawn(
    points: np.ndarray, parts: int, sigma: float, size: tuple[int, int] = SQUARE
) -> np.ndarray:
    """Perfect heatmaps of a label (S, N, 3)."""
    return heatmaps(torch.from_numpy(points), parts, size, sigma).numpy()


def test_a_map_is_the_largest_of_its_points_gaussians() -> None:
    points = rows((5, 7, 1), (9.5, 7.25, 1), (20, 3, 2), (NAN, NAN, 2))

    found = heatmaps(points, 3, SIZE, 2.0)[0].numpy()

    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    first = np.exp(-((x - 5) ** 2 + (y - 7) ** 2) / 8)
    second = np.exp(-((x - 9.5) ** 2 + (y - 7.25) ** 2) / 8)
    np.testing.assert_allclose(found[0], np.maximum(first, second), atol=1e-6)
    np.testing.assert_allclose(found[1], np.exp(-((x - 20) ** 2 + (y - 3) ** 2) / 8), atol=1e-6)
    assert not found[2].any()
    assert not heatmaps(torch.zeros(2, 0, 3), 3, SIZE, 2.0).any()


def test_an_empty_map_loses_one_a_point_and_what_is_not_told_of_loses_nothing() -> None:
    points = rows((12, 12, 1), (20, 12, 2))
    empty = torch.zeros(1, 2, *SIZE)

    assert float(heatmap_loss(empty, points, 1.5)) == pytest.approx(1, abs=1e-3)
    assert float(heatmap_loss(heatmaps(points, 2, SIZE, 1.5), points, 1.5)) == 0
    half = torch.cat([heatmaps(points, 2, SIZE, 1.5)[:, :1], empty[:, 1:]], dim=1)
    told = torch.tensor([[True, True, False]])
    assert float(heatmap_loss(half, points, 1.5)) == pytest.approx(0.5, abs=1e-3)
    assert float(heatmap_loss(half, points, 1.5, told)) == 0
    assert float(heatmap_loss(half, points, 1.5, torch.tensor([[True, False, False]]))) == 0


@pytest.mark.parametrize("place", [(11.0, 9.0), (11.3, 8.8), (0.0, 23.0), (30.6, 12.45)])
def test_the_place_of_a_heatmaps_maximum_is_found_between_pixels(
    place: tuple[float, float],
) -> None:
    heat = drawn(np.array([[(*place, 1)]], np.float32), 1, 2.0, SIZE)[0]

    (index, x, y), height = highest(heat, 2.0)

    # Within a pixel of the border the window is too small to refine far.
    tolerance = 0.5 if min(place[0], place[1], 31 - place[0], 23 - place[1]) < 1 else 0.1
    assert index == 0 and np.abs(np.array([x, y]) - place).max() <= tolerance
    assert height > 0.85
    np.testing.assert_allclose(peaks(heat[0], 2.0, 0.5), [[x, y]])


def test_peaks_are_the_local_maxima_from_the_threshold_on() -> None:
    heat = drawn(np.array([[(5, 5, 1), (16, 5, 1), (26, 18, 1)]], np.float32), 1, 1.5)[0, 0]
    heat[:, 20:] *= 0.3

    np.testing.assert_allclose(peaks(heat, 1.5, 0.5), [(5, 5), (16, 5)], atol=0.05)
    assert len(peaks(heat, 1.5, 0.2)) == 3
    assert peaks(heat, 1.5, 1.0 + 1e-6).shape == (0, 2)


@pytest.mark.parametrize("place", [(10.5, 12.0), (10.0, 12.5), (10.5, 12.5), (16.5, 16.5)])
def test_a_point_halfway_between_pixels_is_one_point(place: tuple[float, float]) -> None:
    case = point_case([[(*place, 1)]])
    exact = drawn(np.array([[(*place, 1)]], np.float32), 1, 2.0)
    assert np.count_nonzero(exact == exact.max()) > 1

    np.testing.assert_allclose(peaks(exact[0, 0], 2.0, 0.4), [place], atol=1e-6)
    np.testing.assert_allclose(highest(exact[0], 2.0)[0], (0, *place), atol=1e-6)
    (row,) = Points(("cell",)).score([case], lambda images: exact, ("cell",))
    assert row.values["f1"] == 1 and row.values["radial_error_mm"] == pytest.approx(0, abs=1e-6)


def flooded(heat: np.ndarray, radius: int) -> list[list[tuple[int, int]]]:
    """The pixels of each maximum of a map, by walking: pixels that no other within ``radius`` rows
    and columns exceeds, those side by side together, and none within ``radius`` of an earlier one's
    rows and columns."""
    inside = set(np.ndindex(heat.shape))

    def near(pixel: tuple[int, int], reach: int) -> set[tuple[int, int]]:
        steps = range(-reach, reach + 1)
        return {(pixel[0] + i, pixel[1] + j) for i in steps for j in steps} & inside

    left = sorted(p for p in inside if all(heat[q] <= heat[p] for q in near(p, radius)))
    left = [p for p in left if heat[p] > 0]
    found: list[list[tuple[int, int]]] = []
    closed: set[tuple[int, int]] = set()
    while left:
        part, edge = {left[0]}, [left[0]]
        while edge:
            new = (near(edge.pop(), 1) & {*left}) - part
            part |= new
            edge += new
        left = [p for p in left if p not in part]
        if not part & closed:
            rows, columns = (range(min(of), max(of) + 1) for of in zip(*part, strict=True))
            box = [(row, column) for row in rows for column in columns]
            closed |= set().union(*(near(pixel, radius) for pixel in box))
            found.append(sorted(part))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_equal_neighbours_are_one_maximum(seed: int) -> None:
    """Maps of few levels have many ties."""
    heat = np.random.default_rng(seed).integers(0, 4, (14, 17)).astype(np.float32)

    found = peaks(heat, 0.5, 0.5)

    expected = flooded(heat, 1)
    assert len(found) == len(expected)
    for (x, y), part in zip(found.tolist(), expected, strict=True):
        (top, bottom), (left, right) = ((min(of), max(of)) for of in zip(*part, strict=True))
        assert top - 1 <= y <= bottom + 1 and left - 1 <= x <= right + 1


@pytest.mark.parametrize("flip", [False, True])
def test_points_go_where_the_image_goes(flip: bool) -> None:
    """Each point is a blob in the image: after augmentation the blob lies at the point."""
    places = torch.tensor([(12.0, 10.0), (17.5, 12.25), (14.0, 14.5)])
    labels = torch.cat([places, torch.ones(3, 1)], dim=1)[None].transpose(0, 1)
    images = heatmaps(labels, 1, SIZE, 1.0)
    generator = torch.Generator().manual_seed(3)

    moved, points = Augmentation(flip=flip)(images, labels, generator, warp_points)

    assert moved.shape == images.shape and (points[..., 2] == 1).all()
    for image, (x, y, _) in zip(moved[:, 0].numpy(), points[:, 0].tolist(), strict=True):
        down, along = center_of_mass(image)
        assert (along, down) == pytest.approx((x, y), abs=0.12)
    assert float((points[..., :2] - labels[..., :2]).abs().max()) > 1


def test_a_mirrored_image_exchanges_the_names_that_the_task_says() -> None:
    theta = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]], [[1.0, 0, 0], [0, 1, 0]]])
    labels = torch.tensor([[(4.0, 6.0, 1.0), (10.0, 8.0, 2.0), (20.0, 9.0, 3.0)]]).repeat(2, 1, 1)
    size = torch.Size((2, 1, *SIZE))
    task = Landmarks(("left", "right", "tip"), mirror_pairs=("left:right",))

    mirrored, same = task.warp(labels, theta, size)

    assert mirrored.tolist() == [[21.0, 8.0, 1.0], [27.0, 6.0, 2.0], [11.0, 9.0, 3.0]]
    torch.testing.assert_close(same, labels[1])
    with pytest.raises(UserError, match=r"task\.mirror_pairs"):
        Landmarks(("left", "right", "tip")).warp(labels, theta, size)
    torch.testing.assert_close(
        Landmarks(("a", "b", "c"), mirror_pairs=()).warp(labels, theta, size)[0, 0],
        torch.tensor([27.0, 6.0, 1.0]),
    )


def brute_force(truth: np.ndarray, found: np.ndarray, radius: float) -> tuple[int, float]:
    """The most pairs within ``radius`` and their smallest sum, by trying every assignment."""
    if len(truth) > len(found):
        truth, found = found, truth
    best = (0, 0.0)
    for order in itertools.permutations(range(len(found)), len(truth)):
        distances = [float(np.linalg.norm(truth[i] - found[j])) for i, j in enumerate(order)]
        near = [distance for distance in distances if distance <= radius]
        best = min(best, (-len(near), sum(near)))
    return -best[0], best[1]


@pytest.mark.parametrize("seed", range(12))
def test_matching_takes_the_most_pairs_and_of_these_the_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = (rng.uniform(0, 10, (rng.integers(0, 6), 2)) for _ in range(2))

    distances = matched(truth, found, 3.0)

    most, total = brute_force(truth, found, 3.0)
    assert len(distances) == most and distances.sum() == pytest.approx(total)


class TestLandmarks:
    TASK = Landmarks(("a", "b"), radii_mm=(1.0, 3.0))

    def test_the_error_is_in_mm_on_the_images_own_grid(self) -> None:
        case = point_case([[(10, 8, 1), (20, 12, 2)]], spacing_mm=(5.0, 0.5, 2.0))
        found = drawn(np.array([[(11, 8, 1), (20, 16, 2)]], np.float32), 2, 2.0)

        one, two = self.TASK.score([case], lambda images: found, ("a", "b"))

        assert one.part == "a" and one.values["radial_error_mm"] == pytest.approx(2.0, abs=1e-3)
        assert two.part == "b" and two.values["radial_error_mm"] == pytest.approx(2.0, abs=1e-3)
        assert (one.values["success_1mm"], one.values["success_3mm"]) == (0, 1)
        assert self.TASK.validate(case, lambda images: found) == pytest.approx(2.0, abs=1e-3)
        assert not one.failed and one.case == "one" and one.subject == "who"

    def test_through_slices_the_distance_counts_them(self) -> None:
        case = point_case([[(10, 8, 1), (NAN, NAN, 2)], [(NAN, NAN, 1), (20, 12, 2)]])
        found = drawn(np.array([[(NAN, NAN, 1), (20, 12, 2)], [(10, 8, 1), (0, 0, 0)]]), 2, 2.0)

        one, two = self.TASK.score([case], lambda images: found, ("a", "b"))

        assert one.values["radial_error_mm"] == two.values["radial_error_mm"] == 1.0

    def test_a_landmark_on_several_slices_is_looked_for_in_each(self) -> None:
        case = point_case([[(10, 8, 1)], [(20, 12, 1)]], spacing_mm=(5.0, 1.0, 1.0))
        found = drawn(np.array([[(12, 8, 1)], [(20, 18, 1)]], np.float32), 1, 2.0)
        task = Landmarks(("a",), radii_mm=(3.0,))

        (row,) = task.score([case], lambda images: found, ("a",))

        assert row.values["radial_error_mm"] == pytest.approx((2 + 6) / 2, abs=1e-3)
        assert row.values["success_3mm"] == 0.5

    def test_names_are_matched_and_only_what_was_looked_for_is_scored(self) -> None:
        case = point_case([[(1, 1, 1), (20, 12, 2)]], annotates=(2,))
        found = drawn(np.array([[(20, 12, 1), (3, 3, 2)]], np.float32), 2, 2.0)

        (row,) = self.TASK.score([case], lambda images: found, ("c", "a"))

        assert row.part == "a" and row.values["radial_error_mm"] == pytest.approx(0, abs=1e-3)
        with pytest.raises(UserError, match="none in common"):
            list(self.TASK.score([case], lambda images: found, ("x", "y")))

    def test_what_is_not_found_fails_with_the_diagonal(self) -> None:
        task = Landmarks(("a", "b"), presence=0.2)
        case = point_case([[(10, 8, 1), (NAN, NAN, 2)]], annotates=(1, 2))
        nothing = np.zeros((1, 2, *SQUARE), np.float32)

        one, two = task.score([case], lambda images: nothing, ("a", "b"))

        diagonal = math.sqrt(32**2 + 32**2)
        assert one.failed and one.values["radial_error_mm"] == pytest.approx(diagonal)
        assert not two.failed and two.values["radial_error_mm"] == 0
        assert task.shown(case) == {1}

    def test_a_wrong_setting_is_named(self) -> None:
        with pytest.raises(UserError, match=r"task\.radii_mm must be positive"):
            Landmarks(("a",), radii_mm=(0.0,))
        with pytest.raises(UserError, match=r"task\.radii_mm names a radius twice"):
            Landmarks(("a",), radii_mm=(2.0, 2.0))
        with pytest.raises(UserError, match=r"task\.mirror_pairs holds 'a-b'"):
            Landmarks(("a", "b"), mirror_pairs=("a-b",))

    @pytest.mark.parametrize("pairs", [("a:b", "b:c"), ("a:b", "b:a"), ("b:b",)])
    def test_a_landmark_in_two_pairs_is_refused(self, pairs: tuple[str, ...]) -> None:
        with pytest.raises(UserError, match=r"task\.mirror_pairs=\[.*\] names '\w' twice; "):
            Landmarks(("a", "b", "c"), mirror_pairs=pairs)

    def test_radii_that_one_name_would_stand_for_are_refused(self) -> None:
        with pytest.raises(UserError, match=r"task\.radii_mm names a radius twice: .* six digits"):
            Landmarks(("a",), radii_mm=(2.0000001, 2.0))
        tiny = Landmarks(("a",), radii_mm=(0.00001, 2.5, 3000000.0)).card("landmarks")
        assert [measure.name for measure in tiny.measures[1:]] == [
            "success_0_00001mm",
            "success_2_5mm",
            "success_3000000mm",
        ]


class TestPoints:
    TASK = Points(("cell", "dot"), radius_mm=3.0)

    def test_f1_counts_the_pairs_of_all_slices(self) -> None:
        case = point_case(
            [
                [(5, 5, 1), (15, 5, 1), (25, 20, 2)],
                [(8, 8, 1), (NAN, NAN, NAN), (NAN, NAN, NAN)],
            ],
            spacing_mm=(9.0, 1.0, 2.0),
        )
        found = drawn(
            np.array(
                [
                    [(6, 5, 1), (20, 5, 1), (25, 22, 2)],  # 2 mm off; 10 mm off; 2 mm off.
                    [(8, 8, 1), (27, 8, 1), (NAN, NAN, NAN)],  # Exact; nothing there.
                ],
                np.float32,
            ),
            2,
            self.TASK.sigma,
        )

        cell, dot = self.TASK.score([case], lambda images: found, ("cell", "dot"))

        assert cell.values["f1"] == pytest.approx(2 * 2 / (3 + 4))
        assert cell.values["precision"] == 2 / 4 and cell.values["recall"] == 2 / 3
        assert cell.values["radial_error_mm"] == pytest.approx(1.0, abs=1e-3)
        assert (cell.values["count_error"], cell.values["reference_count"]) == (1, 3)
        assert dot.values["f1"] == 1 and not dot.failed

    def test_nothing_found_where_nothing_is_scores_1(self) -> None:
        nothing, empty = np.zeros((1, 2, *SQUARE), np.float32), [[(NAN, NAN, NAN)]]

        cell, dot = self.TASK.score([point_case(empty)], lambda images: nothing, ("cell", "dot"))
        missed, _ = self.TASK.score(
            [point_case([[(5, 5, 1)]])], lambda images: nothing, ("cell", "dot")
        )

        assert cell.values["f1"] == dot.values["f1"] == 1 and not cell.failed
        assert missed.failed and missed.values["f1"] == missed.values["precision"] == 0
        assert math.isnan(missed.values["radial_error_mm"])

    def test_a_radius_of_0_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"task\.radius_mm"):
            Points(("cell",), radius_mm=0)


MICROSCOPE = (1.0, 0.0005, 0.001)
"""32 x 32 pixels of this many mm are 0.016 x 0.032 mm, from the centre to a corner 0.0179 mm."""


@pytest.mark.parametrize(
    ("task", "name"),
    [
        (Points(("a",)), "radius_mm=3"),
        (Landmarks(("a",), radii_mm=(0.001, 0.018)), "radii_mm=0.018"),
    ],
)
def test_a_radius_that_reaches_from_the_centre_to_the_corners_is_refused(
    task: Landmarks | Points, name: str
) -> None:
    case = point_case([[(10, 8, 1)]], spacing_mm=MICROSCOPE)
    with pytest.raises(
        UserError, match=rf"task\.{name} .* \(0\.0179 mm\), so that any point"
    ) as told:
        task.remarks([case])
    assert "\n" not in str(told.value)
    assert task.remarks([]) == task.remarks([point_case([[(10, 8, 1)]])]) == []


def test_a_radius_beyond_half_the_distance_of_neighbours_is_remarked() -> None:
    """Neighbours of a class lie 4, 4 and 6 mm apart; points of the other do not count."""
    case = point_case(
        [
            [(5, 5, 1), (7, 5, 1), (10, 5, 1), (6, 5, 2)],
            [(6, 6, 1), (NAN,) * 3, (NAN,) * 3, (1, 1, 2)],
        ],
        spacing_mm=(9.0, 1.0, 2.0),
    )
    assert Points(("a", "b"), radius_mm=2.0).remarks([case]) == []
    (said,) = Points(("a", "b"), radius_mm=2.1).remarks([case])
    assert said.startswith("task.radius_mm=2.1 is more than half the median distance")
    assert "(4 mm)" in said
    card = describe(SiteData("s", "train", ("a", "b"), {"train": (case,)}), Points(("a", "b")))
    assert any("task.radius_mm=3 is more than half" in note for note in card.notes)


def test_radii_beyond_half_the_shorter_side_are_remarked() -> None:
    case = point_case([[(10, 8, 1)]], spacing_mm=(1.0, 0.5, 1.0))
    (said,) = Landmarks(("a",), radii_mm=(8.0, 8.5)).remarks([case])
    assert said.startswith(
        "task.radii_mm=8.5 is more than half the shorter side of an image (16 mm)"
    )


@pytest.mark.parametrize("task", [Landmarks(("a", "b")), Points(("a", "b"))])
def test_label_shift_counts_points_by_cell(task: Landmarks | Points) -> None:
    case = point_case([[(0, 0, 1), (31, 31, 2)], [(NAN, NAN, 1), (40, 5, 2)]])

    told = task.described([case], 2)

    assert told is not None and np.isnan(told[0])  # there is no background
    counts = told[1:]
    assert counts.sum() == 3
    assert counts[0] == 1 and counts[17 + 15] == 1 and counts[17 + 16] == 1
    assert task.described([case], 3) is None


@pytest.mark.parametrize("task", [Landmarks(("a", "b")), Points(("a", "b"))])
def test_what_fewer_slices_tell_of_than_the_policy_lets_be_summarised_stays(
    task: Landmarks | Points,
) -> None:
    both = [point_case([[(1, 1, 1), (9, 9, 2)]]) for _ in range(2)]
    first = [point_case([[(1, 1, 1), (NAN, NAN, 2)]], annotates=(1,)) for _ in range(6)]

    few, enough = (task.distribution([*both, *first], least)[1:].reshape(2, 17) for least in (5, 2))

    assert few[0, 0] == 8 and np.isnan(few[1]).all()
    # Two slices of eight tell of b: they stand for all.
    assert enough[1, 5] == 8 and enough[1].sum() == 8


@pytest.mark.parametrize("task", [Landmarks(("a", "b")), Points(("a", "b"))])
def test_label_shift_of_points_is_their_total_variation_wherever_they_lie(
    task: Landmarks | Points,
) -> None:
    def told(places: Sequence[tuple[float, float]], turned: bool) -> np.ndarray:
        cases = [
            point_case([[(31 - x, 31 - y, 1) if turned else (x, y, 1)]], annotates=(1,))
            for x, y in places
        ]
        return task.distribution(cases, 1)

    here, there = [(1, 1)] * 7 + [(20, 9)], [(1, 1)] * 6 + [(9, 30)] * 2
    cells = [Counter((x // 8, y // 8) for x, y in places) for places in (here, there)]
    apart = sum(abs(cells[0][at] - cells[1][at]) for at in cells[0] | cells[1]) / 8 / 2
    for turned in (False, True):
        own, other = (told(places, turned) for places in (here, there))
        assert _label_shift(own, other[None])[0] == pytest.approx(apart) == 0.25
        assert _total_variation(own, other[None])[0] == pytest.approx(apart)


def test_label_shift_leaves_points_out_that_a_site_did_not_look_for() -> None:
    task = Points(("a", "b"))
    alone = [point_case([[(1, 1, 1)]], annotates=(1,)), point_case([[(30, 1, 1)]], annotates=(1,))]
    both = [point_case([[(1, 1, 1), (9, 9, 2)]]), point_case([[(1, 1, 1), (NAN, NAN, 2)]])]
    own, other = task.distribution(alone, 1), task.distribution(both, 1)

    for first, second in ((own, other), (other, own)):
        assert _label_shift(first, second[None])[0] == pytest.approx(0.5)
    only_b = task.distribution([point_case([[(9, 9, 2)]], annotates=(2,))], 1)
    assert np.isnan(_label_shift(own, only_b[None])[0])  # nothing in common
    none = task.distribution([point_case([[(NAN, NAN, 1), (NAN, NAN, 2)]])], 1)
    assert np.isnan(_label_shift(other, none[None])[0])  # no point has a place


@pytest.mark.parametrize("task", [Landmarks(("a", "b")), Points(("a", "b"))])
def test_pictures_are_drawn(task: Landmarks | Points, tmp_path: Path) -> None:
    case = point_case([[(10, 8, 1), (20, 12, 2)], [(NAN, NAN, 1), (NAN, NAN, 2)]])
    case.image[0, 0] = np.random.default_rng(0).random(SQUARE)
    found = drawn(np.asarray(case.labels["points"].native), 2, task.sigma)

    path = task.draw(case, {"local": found, "federated": 0 * found}, tmp_path / "x.png", site="s")

    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_warp_agrees_with_sampling_for_any_affine_map() -> None:
    generator = torch.Generator().manual_seed(0)
    theta = torch.eye(2, 3) + 0.15 * torch.randn(6, 2, 3, generator=generator)
    labels = torch.tensor([[(15.0, 11.0, 1.0)]]).repeat(6, 1, 1)
    images = heatmaps(labels, 1, SIZE, 1.2)

    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)[:, 0].numpy()

    for image, (x, y, _) in zip(
        moved, warp_points(labels, theta, images.shape)[:, 0].tolist(), strict=True
    ):
        down, along = center_of_mass(image)
        assert (along, down) == pytest.approx((x, y), abs=0.15)
