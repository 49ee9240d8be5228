"""The labels of phantoms, of every form, against computations of their own from the masks."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from skimage import measure

from fedshift import UserError
from fedshift.sites import DataSettings, load_federation, open_site, phantoms
from fedshift.sites.phantoms import dots, graph, truth

SUBJECTS = [f"s{number}" for number in range(6)]


def scan(anatomy: str, form: str, subject: str = "s0", **changed: Any) -> np.ndarray:
    """The label of that form."""
    return drawn(anatomy, form, subject, **changed)[1]


def drawn(anatomy: str, form: str, subject: str = "s0", **changed: Any) -> phantoms.Drawn:
    recipe = {"vendor": "vendor_a", "seed": 0, "shift": 1.0, "size": 64, "slices": 3, **changed}
    return phantoms.draw(anatomy, form=form, subject=subject, **recipe)


@pytest.mark.parametrize(
    ("anatomy", "mask", "mean", "std", "pixel"),
    [
        ("cardiac", "6f04ef472f65c2ad", 233.8555, 193.61, 514.1443),
        ("ct", "ef1addeda3eeef43", 0.3107394, 0.3823793, 1.003744),
        ("fetal_head", "c06daa2ff7f5795d", 32.68802, 48.12013, 1.434172),
    ],
)
def test_images_and_masks_are_what_they_were_before_there_were_other_labels(
    anatomy: str, mask: str, mean: float, std: float, pixel: float
) -> None:
    recipe = {"vendor": "vendor_b", "seed": 7, "shift": 0.7, "size": 48}
    image, label, _ = drawn(anatomy, "mask", "s1", **recipe)
    assert hashlib.sha256(label.tobytes()).hexdigest()[:16] == mask
    # Within what another processor's rounding may change.
    assert (image.mean(), image.std(), image[1, 20, 30]) == pytest.approx((mean, std, pixel), 1e-4)


@pytest.mark.parametrize("anatomy", phantoms.ANATOMIES)
def test_the_image_is_the_same_for_every_form_and_labels_are_laid_out_as_theirs(
    anatomy: str,
) -> None:
    first, *_ = phantoms.ANATOMIES[anatomy].parts
    image, _, spacing = drawn(anatomy, first)
    shapes = {
        "mask": (3, 64, 64),
        "instances": (3, 64, 64),
        "image": (3, 1, 64, 64),
        "graph": (3, 64, 64),
        "category": (3,),
        "none": (3, 0),
    }
    types = {"mask": np.uint8, "instances": np.uint16, "category": np.uint8, "none": np.uint8}
    for form in (*phantoms.ANATOMIES[anatomy].parts, "none"):
        same, label, again = drawn(anatomy, form)
        assert same.tobytes() == image.tobytes() and again == spacing
        assert label.dtype == types.get(form, np.float32)
        parts = len(phantoms.parts(anatomy, form))
        if form in shapes:
            assert label.shape == shapes[form]
        else:
            width = 5 if form == "boxes" else 3
            assert label.shape[::2] == (3, width)
            there = np.isfinite(label[..., 0])
            assert set(np.unique(label[there][:, -1])) <= {*range(1, parts + 1)}
            assert not np.isfinite(label[~there]).any() and there.any()
            assert (label[there] >= -0.5).all() and (label[there][:, :-1] <= 63.5).all()
        if form == "category":
            assert set(label.tolist()) <= {*range(1, parts + 1)}
        assert label.tobytes() == scan(anatomy, form).tobytes()
        if form not in ("category", "none"):
            assert label.tobytes() != scan(anatomy, form, fault="labels").tobytes()


@pytest.mark.parametrize("size", [64, 131])
def test_the_ends_of_a_head_are_those_of_the_ellipse_fitted_to_its_mask(size: int) -> None:
    """The variance along an ellipse's axis of half length a is a^2 / 4."""
    for subject in SUBJECTS:
        mask = scan("fetal_head", "mask", subject, size=size)
        landmarks = scan("fetal_head", "landmarks", subject, size=size)
        assert (landmarks[..., 2] == [1, 2, 3, 4]).all()
        for plane, points in zip(mask, landmarks[..., :2], strict=True):
            places = np.flip(np.argwhere(plane), axis=1)
            variances, (short, long) = (
                each.T for each in np.linalg.eigh(np.cov(places, rowvar=False))
            )
            long, short = long * np.sign(long[0]), short * np.sign(short[1])
            ends = 2 * np.sqrt(variances[1]) * long, 2 * np.sqrt(variances[0]) * short
            expected = places.mean(axis=0) + np.stack([-ends[0], ends[0], -ends[1], ends[1]])
            assert np.linalg.norm(points - expected, axis=1).max() < 0.6


@pytest.mark.parametrize("size", [64, 131])
def test_the_landmarks_of_a_heart_are_where_its_mask_has_them(size: int) -> None:
    for subject in SUBJECTS:
        mask = scan("cardiac", "mask", subject, size=size)
        landmarks = scan("cardiac", "landmarks", subject, size=size)
        assert (landmarks[..., 2] == [1, 2, 3]).all()
        for plane, (centre, front, back) in zip(mask, landmarks[..., :2], strict=True):
            cavity = np.flip(np.argwhere(plane == 1), axis=1)
            assert np.linalg.norm(cavity.mean(axis=0) - centre) < 0.5
            # Both ventricles and what is neither meet in a square of four pixels.
            squares = np.lib.stride_tricks.sliding_window_view(plane, (2, 2))
            meet = [(squares == k).any(axis=(2, 3)) for k in (0, 2, 3)]
            corners = np.flip(np.argwhere(np.logical_and.reduce(meet)), axis=1) + 0.5
            for point in (front, back):
                assert np.linalg.norm(corners - point, axis=1).min() < 1.0
            assert front[1] < back[1]


@pytest.mark.parametrize("anatomy", ["cardiac", "ct", "fetal_head"])
def test_boxes_and_instances_are_the_connected_pieces_of_the_mask(anatomy: str) -> None:
    for subject in SUBJECTS:
        mask = scan(anatomy, "mask", subject)
        expected = [
            {
                (x1 - 0.5, y1 - 0.5, x2 - 0.5, y2 - 0.5, k)
                for k in range(1, plane.max() + 1)
                for y1, x1, y2, x2 in (
                    piece.bbox for piece in measure.regionprops(measure.label(plane == k))
                )
            }
            for plane in mask
        ]
        found = scan(anatomy, "boxes", subject)
        assert [{tuple(row) for row in rows[np.isfinite(rows[:, 0])]} for rows in found] == expected
        if "instances" in phantoms.ANATOMIES[anatomy].parts:
            numbered = [measure.label(plane) for plane in mask]
            assert np.array_equal(scan(anatomy, "instances", subject), numbered)


def test_a_lesion_is_in_the_slices_that_say_so() -> None:
    for subject in SUBJECTS:
        category = scan("ct", "category", subject, slices=6)
        assert (category - 1 == scan("ct", "mask", subject, slices=6).any(axis=(1, 2))).all()


def test_categories_follow_the_anatomy() -> None:
    """A contracted heart's cavity is small beside its wall; a head's age is its width."""
    thickness: dict[int, list[float]] = {1: [], 2: []}
    for number in range(20):
        mask = scan("cardiac", "mask", f"s{number}")
        (category,) = set(scan("cardiac", "category", f"s{number}").tolist())
        thickness[category].append(float((mask == 2).sum() / (mask == 1).sum()))
        ends = scan("fetal_head", "landmarks", f"s{number}", slices=1)[0, 2:, :2]
        width_mm = np.linalg.norm(ends[1] - ends[0]) * 150 / 64
        (category,) = scan("fetal_head", "category", f"s{number}", slices=1)
        assert category == 1 + (width_mm >= 70)
    assert np.mean(thickness[2]) > 1.3 * np.mean(thickness[1])


def test_a_dot_lies_in_the_middle_of_its_pixels_and_of_its_box() -> None:
    for subject in SUBJECTS:
        points, boxes, instances, mask = (
            scan("dots", form, subject, size=128)
            for form in ("points", "boxes", "instances", "mask")
        )
        for k in range(3):
            there = np.isfinite(points[k, :, 0])
            numbers = np.arange(1, there.sum() + 1)
            assert np.array_equal(np.unique(instances[k])[1:], numbers)
            for number, (x, y, part), box in zip(
                numbers, points[k, there], boxes[k, there], strict=True
            ):
                own = np.argwhere(instances[k] == number)
                assert np.linalg.norm(own.mean(axis=0) - [y, x]) < 0.3
                assert (mask[k][instances[k] == number] == part).all() and box[4] == part
                assert np.allclose(
                    [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2], [x, y], atol=1e-3
                )
                assert ((own > box[[1, 0]]) & (own < box[[3, 2]])).all()
                assert (own.min(axis=0) - box[[1, 0]] < 1.5).all()
            assert (mask[k] > 0).sum() == (instances[k] > 0).sum()
            assert scan("dots", "category", subject)[k] == 1 + (there.sum() >= dots.MANY)


def test_dishes_hold_a_varying_number_of_dots_of_two_classes_apart_from_each_other() -> None:
    counts = []
    for number in range(10):
        for rows in scan("dots", "points", f"s{number}"):
            places = rows[np.isfinite(rows[:, 0])]
            counts.append(len(places))
            apart = np.linalg.norm(places[:, None, :2] - places[None, :, :2], axis=2)
            apart[np.diag_indices_from(apart)] = np.inf
            assert apart.min() * 96 / 64 > 4.0
    assert min(counts) < dots.MANY - 4 and max(counts) > dots.MANY + 4


def test_reflections_are_no_dots_and_grow_in_number_with_the_lamps() -> None:
    """With nothing else that changes, they are what brightens the picture."""
    dish = dots.Colonies(*np.zeros((3, 0)), np.zeros(0, int))
    x, y = np.meshgrid(*[np.linspace(-40, 40, 160)] * 2)
    means = []
    for count in (0.0, 3.0, 9.0):
        lamp = dots.Camera(0.0, 0.0, count, 1.0, 0.0, 0.0, 0.0, 1.0)
        shots = [dots.photograph(np.random.default_rng(k), dish, x, y, lamp) for k in range(20)]
        means.append(np.mean(shots))
    assert means[2] - means[0] == pytest.approx(3 * (means[1] - means[0]), rel=0.25)


@pytest.mark.parametrize("anatomy", ["cardiac", "ct", "fetal_head"])
def test_a_paired_image_is_of_the_subject_and_not_of_the_scanner(anatomy: str) -> None:
    image, pair, _ = drawn(anatomy, "image")
    other = drawn(anatomy, "image", vendor="vendor_c", shift=0.5)
    assert not np.array_equal(other[0], image) and np.array_equal(other[1], pair)
    assert pair.min() >= 0 and not np.array_equal(pair[:, 0], image)
    # The same anatomy, and another appearance.
    ranked = [np.argsort(np.argsort(each.ravel())) for each in (image, pair)]
    assert 0.4 < np.corrcoef(*ranked)[0, 1] < 0.999


def test_a_graph_is_symmetric_and_its_group_is_told_by_the_planted_edges() -> None:
    place = graph.communities(64)
    (a, b), _ = graph.PLANTED
    planted = {1: [], 2: []}
    for number in range(12):
        for vendor in ("vendor_a", "vendor_c"):
            image, matrix, _ = drawn("graph", "graph", f"s{number}", vendor=vendor)
            assert np.array_equal(matrix, matrix.transpose(0, 2, 1)) and np.array_equal(
                image, matrix
            )
            assert not matrix[:, range(64), range(64)].any()
            (group,) = set(scan("graph", "category", f"s{number}", vendor=vendor).tolist())
            between = matrix[:, place == a][:, :, place == b].mean()
            within = matrix[:, place == a][:, :, place == a].mean()
            planted[group].append(between / within)
    assert min(planted[2]) > max(planted[1])


@pytest.mark.parametrize(
    ("anatomy", "form", "says"),
    [
        ("ct", "landmarks", "ct phantom .* landmarks; .*cardiac_phantom, fetal_head_phantom"),
        ("graph", "mask", "or a task whose labels are graph or category"),
        ("cardiac", "points", "federation=dots_phantom"),
        ("knee", "mask", "choose from cardiac, ct"),
    ],
)
def test_what_a_phantom_does_not_offer_is_refused_with_the_way_out(
    anatomy: str, form: str, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        phantoms.parts(anatomy, form)
    with pytest.raises(UserError, match=says):
        scan(anatomy, form)


def test_a_convention_for_outlines_moves_boxes_too_and_is_refused_where_there_is_no_outline() -> (
    None
):
    for subject in SUBJECTS:
        moved = scan("fetal_head", "boxes", subject, outline=1.0)
        mask = scan("fetal_head", "mask", subject, outline=1.0)
        assert np.array_equal(moved, truth.boxes(mask))
        assert (moved[..., 2] > scan("fetal_head", "boxes", subject)[..., 2]).all()
    for anatomy, form in (("fetal_head", "landmarks"), ("dots", "mask"), ("cardiac", "image")):
        with pytest.raises(UserError, match="structure_shift"):
            scan(anatomy, form, outline=0.5)


@pytest.mark.parametrize("anatomy", phantoms.ANATOMIES)
def test_a_site_opens_with_the_labels_of_the_form_that_is_asked_for(
    anatomy: str, tmp_path: Path
) -> None:
    node = {"kind": "phantom", "anatomy": anatomy, "shift": 1.0, "sites": {"x": ["vendor_b"]}}
    node |= {"subjects": 3, "slices": 1, "size": 32}
    for form in (*phantoms.ANATOMIES[anatomy].parts, "none"):
        data = DataSettings.from_config({"cache": str(tmp_path)}, form)
        federation = load_federation(node, data, 0)
        assert federation.parts == phantoms.parts(anatomy, form)
        site = open_site(federation.sites[0], federation.parts, data, 0)
        (case, *_) = site.splits["test"]
        label = scan(anatomy, form, case.subject, vendor="vendor_b", size=32, slices=1)
        if form == "image":
            low, high = np.percentile(label, (1, 99))
            label = (label - low) / (high - low)
        assert case.labelled.all() and case.labels.keys() == {form}
        for kept in (case.labels[form].grid, case.labels[form].native):
            np.testing.assert_allclose(kept, label, atol=1e-6)


def test_a_federation_refuses_what_its_phantom_has_not() -> None:
    node = {"kind": "phantom", "anatomy": "ct", "shift": 1.0, "sites": {"x": ["vendor_b"]}}
    node |= {"subjects": 5, "slices": 3, "size": 64}
    with pytest.raises(UserError, match="fetal_head_phantom"):
        load_federation(node, DataSettings.from_config({}, "landmarks"), 0)
    node |= {"structure_shift": 0.5, "anatomy": "cardiac"}
    with pytest.raises(UserError, match="structure_shift moves outlines"):
        load_federation(node, DataSettings.from_config({}, "landmarks"), 0)
