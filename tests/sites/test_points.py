"""Landmarks, points and boxes: read from tables, laid out and resampled with their images."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from kit.points import KIND, Tables, bright, three
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fedshift import UserError
from fedshift.runs.config import load
from fedshift.sites import check, load_federation
from fedshift.sites.findings import grouped
from fedshift.sites.geometry import Grid


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


# Reading.


def test_landmarks_are_columns_by_name_or_rows_by_name(tables: Tables) -> None:
    three(tables)
    wide = tables.write(
        "wide.tsv", "path apex_x apex_y base_x base_y", "p.png 1 2 3.5 4", "q.png 5 6 7 8"
    )
    tables.write("rows.csv", "path,name,x,y", "p.png,apex,1,2", "p.png,base,3.5,4")
    tables.write("rows.json", json.dumps([
        {"path": "p.png", "name": "base", "x": 3.5, "y": 4},
        {"path": "p.png", "name": "apex", "x": 1, "y": 2},
    ]))  # fmt: skip
    for table in (wide, "rows.csv", "rows.json"):
        federation = tables.federation("landmarks", label_table=table)
        case = tables.cases("landmarks", label_table=table)["p"]
        label = case.labels["landmarks"].native
        assert label.shape == (1, 2, 3) and label.dtype == np.float32
        order = [federation.parts.index(name) for name in ("apex", "base")]
        np.testing.assert_array_equal(label[0, order, :2], [[1, 2], [3.5, 4]])
        np.testing.assert_array_equal(label[0, :, 2], [1, 2])
    cases = tables.cases("landmarks", label_table=wide)
    assert cases["q"].labelled.all() and not cases["r"].labelled.any() and not cases["r"].labels


def test_points_vary_in_number_and_are_padded(tables: Tables) -> None:
    three(tables, points_path="P.tsv")
    tables.write("P.tsv", "path class x y", *(f"p.png b {k} 2" for k in range(4)), "q.png a 5 6")
    assert tables.federation("points").parts == ("a", "b")
    cases = tables.cases("points")
    np.testing.assert_array_equal(
        cases["p"].labels["points"].native[0], [[k, 2, 2] for k in range(4)]
    )
    np.testing.assert_array_equal(cases["q"].labels["points"].native[0], [[5, 6, 1]])
    # Nobody has said that there is nothing on the third.
    assert not cases["r"].labels
    negative = tables.cases("points", empty_masks="negative")["r"]
    assert negative.labelled.all() and np.isnan(negative.labels["points"].native).all()


def test_a_table_beside_its_image_needs_no_path(tables: Tables) -> None:
    for name in ("p", "q", "r"):
        tables.png(name, points_path=tables.write(f"{name}.tsv", "x y", f"{len(name)} 2", "3 4"))
    assert tables.federation("points").parts == ("point",)
    label = tables.cases("points")["q"].labels["points"].native
    np.testing.assert_array_equal(label[0], [[1, 2, 1], [3, 4, 1]])


def test_boxes_count_edges_and_give_points_by_their_centres(tables: Tables) -> None:
    three(tables, boxes_path="B.tsv")
    tables.write("B.tsv", "path class x1 y1 x2 y2", "p.png cell 0 0 40 30", "p.png cell 10 5 11 7")
    box = tables.cases("boxes")["p"].labels["boxes"].native[0]
    # The whole image, and one column of two pixels, whose centres are whole numbers.
    np.testing.assert_array_equal(box, [[-0.5, -0.5, 39.5, 29.5, 1], [9.5, 4.5, 10.5, 6.5, 1]])
    points = tables.cases("points")["p"].labels["points"].native[0]
    np.testing.assert_array_equal(points, [[19.5, 14.5, 1], [10, 5.5, 1]])


def test_classes_are_named_by_the_settings(tables: Tables) -> None:
    three(tables, points_path="P.tsv")
    tables.write("P.tsv", "path class x y", "p.png rod 1 1", "q.png cone 2 2", "q.png dust 3 3")
    labels = {"receptor": ["rod", "cone"], "background": "dust"}
    assert tables.federation("points", labels=labels).parts == ("receptor",)
    cases = tables.cases("points", labels=labels)
    np.testing.assert_array_equal(cases["q"].labels["points"].native[0], [[2, 2, 1]])
    outside = r"[qr].png.* the class 'dust' \(line 4 of .*P.tsv\), which is in n"
    with pytest.raises(UserError, match=outside):
        tables.cases("points", labels={"receptor": ["rod", "cone"]})
    assert re.search(outside, tables.faults("points", labels={"receptor": ["rod", "cone"]}))


@pytest.mark.parametrize(
    ("form", "header", "line", "name"),
    [
        ("landmarks", "path tip_x tip_y base_x base_y", "1 2 3 4", "tip"),
        ("points", "path class x y", "tip 1 2", "tip"),
        ("boxes", "path class x1 y1 x2 y2", "tip 1 2 3 4", "tip"),
    ],
)
def test_numbers_say_nothing_of_labels_with_names(
    tables: Tables, form: str, header: str, line: str, name: str
) -> None:
    three(tables)
    tables.write("T.tsv", header, *(f"{image}.png {line}" for image in "pqr"))
    with pytest.raises(UserError) as told:
        tables.federation(form, label_table="T.tsv", labels={name: 1, "base": "2-3"})
    assert str(told.value) == (
        f"data.labels.{name} is the number 1, and labels of the form {form} have names: write "
        f"those that they have, 'data.labels={{{name}: [NAME, ...]}}' (a name that is a number in "
        'quotation marks, "1"), or leave data.labels out to keep them.'
    )


@pytest.mark.parametrize(
    ("form", "header", "line"),
    [
        ("points", "path class x y", "{} 5 6"),
        ("boxes", "path class x1 y1 x2 y2", "{} 1 2 3 4"),
        ("landmarks", "path name x y", "{} 5 6"),
    ],
)
def test_names_that_are_numbers_are_joined_ordered_and_left_out(
    tables: Tables, form: str, header: str, line: str
) -> None:
    three(tables)
    rows = [f"{image}.png {line.format(k)}" for k, image in enumerate("pqr")]
    tables.write("T.tsv", header, *rows)
    assert tables.federation(form, label_table="T.tsv").parts == ("0", "1", "2")
    data = {"label_table": "T.tsv", "labels": {"b": ["2", "1"], "background": "0"}}
    assert tables.federation(form, **data).parts == ("b",)
    cases = tables.cases(form, **data)
    shown = {name: np.isfinite(case.labels[form].native[..., 0]).any() for name, case in
             cases.items() if case.labels}  # fmt: skip
    assert shown["q"] and shown["r"] and not shown.get("p")
    ordered = {"label_table": "T.tsv", "labels": {"2": "2", "1": "1", "0": "0"}}
    assert tables.federation(form, **ordered).parts == ("2", "1", "0")


@pytest.mark.parametrize("labels", [{"p": ["tip", "base"]}, {"p": "tip", "q": ["base", "side"]}])
def test_two_landmarks_of_one_name_are_told_before_a_run(
    tables: Tables, labels: dict[str, Any]
) -> None:
    three(tables)
    header = "path tip_x tip_y base_x base_y side_x side_y"
    tables.write("T.tsv", header, "p.png 1 2 3 4 5 6", "q.png 1 2 n/a n/a n/a n/a")
    labels = {"background": "side", **labels} if len(labels) == 1 else labels
    data = {"label_table": "T.tsv", "labels": labels}
    with pytest.raises(UserError, match="gives two points of"):
        tables.open("landmarks", **data)
    told = tables.faults("landmarks", **data)
    assert re.search(r"p.png: has '(tip' and 'base|base' and 'side)' for one landmark, ", told)
    assert tables.codes("landmarks", **data).count("label-map") == 1


@pytest.mark.parametrize(
    ("form", "header", "place"),
    [
        ("points", "path class x y", "1 2"),
        ("landmarks", "path name x y", "1 2"),
        ("boxes", "path class x1 y1 x2 y2", "1 2 3 4"),
    ],
)
def test_a_name_that_is_missing_is_no_name(
    tables: Tables, form: str, header: str, place: str
) -> None:
    three(tables)
    tables.write("T.tsv", header, f"p.png tip {place}", f"q.png n/a {place}", f"r.png nan {place}")
    assert tables.federation(form, label_table="T.tsv").parts == ("tip",)
    assert "T.tsv: has no name in the column" in tables.faults(form, label_table="T.tsv")
    tables.write("T.tsv", header, f"p.png tip {place}", f"q.png null {place}")
    assert "'null', which can be one or say that there is none" in tables.faults(
        form, label_table="T.tsv"
    )


def test_what_is_background_was_looked_at(tables: Tables) -> None:
    """An image of which only things are listed that are no part shows none of the parts."""
    three(tables)
    tables.write("T.tsv", "path class x y", "p.png a 1 2", "q.png background 3 4", "r.png b 1 1")
    labels = {"a": "a", "background": ["background", "b"]}
    assert tables.federation("points", label_table="T.tsv").parts == ("a", "b")
    assert tables.cases("points", label_table="T.tsv")["q"].labelled.all()
    cases = tables.cases("points", label_table="T.tsv", labels=labels)
    assert all(case.labelled.all() for case in cases.values())
    assert np.isnan(cases["r"].labels["points"].native).all()


def test_points_cannot_be_ignored(tables: Tables) -> None:
    three(tables)
    tables.write("T.tsv", "path class x y", "p.png a 1 2", "q.png Ignore 3 4")
    with pytest.raises(UserError, match=r"T.tsv: around points to ignore nothing says how much"):
        tables.federation("points", label_table="T.tsv")
    labels = {"a": "a", "ignore": "Ignore"}
    with pytest.raises(UserError, match=r"data.labels.ignore: around .*; give them to background"):
        tables.federation("points", label_table="T.tsv", labels=labels)


def test_a_class_that_is_a_number_stands_in_quotation_marks(tables: Tables) -> None:
    three(tables)
    tables.write("T.tsv", "path class x y", *(f"{image}.png 0 1 2" for image in "pqr"))
    with pytest.raises(UserError, match=r"data\.labels\.big must be .*, not 0\.") as told:
        tables.federation("points", label_table="T.tsv", labels={"big": 0})
    written = re.search('"(data.labels=.*?)"', str(told.value))
    assert written is not None
    labels = load([written[1]])["data"]["labels"]
    assert tables.federation("points", label_table="T.tsv", labels=labels).parts == ("big",)
    assert tables.codes("points", label_table="T.tsv", labels=labels) == []


def test_boxes_are_checked_in_the_plane_of_the_run(tables: Tables) -> None:
    """Drawn in axial slices, where a volume of even spacing is cut unless it is said otherwise."""
    for k, name in enumerate(("p", "q", "r")):
        values = np.random.default_rng(k).normal(size=(20, 24, 30)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tables.folder / f"{name}.nii.gz")
        tables.row(f"{name}.nii.gz", subject=name, boxes_path="B.tsv")
    lines = [f"{name}.nii.gz 3 4 9 12 7" for name in ("p", "q", "r")]
    tables.write("B.tsv", "path x1 y1 x2 y2 z", *lines)
    assert tables.codes("boxes", slice_axis=2) == []
    assert len(tables.open("boxes", slice_axis=2).splits["train"]) == 1
    assert "box-across" in tables.codes("boxes", slice_axis=0)


# What was looked for.


def test_a_landmark_without_coordinates_was_not_looked_for_unless_it_is_said(
    tables: Tables,
) -> None:
    three(tables)
    tables.write(
        "L.tsv", "path a_x a_y b_x b_y", "p.png 1 2 3 4", "q.png 1 2 n/a n/a", "r.png 1 2 3 4"
    )
    case = tables.cases("landmarks", label_table="L.tsv")["q"]
    assert case.annotates == (1,)
    case = tables.cases("landmarks", label_table="L.tsv", annotates={"A": ["a", "b"]})["q"]
    assert case.annotates is None
    label = case.labels["landmarks"].native[0]
    assert np.isnan(label[1, :2]).all() and label[1, 2] == 2
    # What a site is not said to tell of is left out, and keeps its row.
    for case in tables.cases("landmarks", label_table="L.tsv", annotates={"A": "b"}).values():
        label = case.labels["landmarks"].native[0]
        assert np.isnan(label[0, :2]).all() and label[0, 2] == 1


def test_landmarks_whose_names_are_numbered_were_not_looked_for_either(tables: Tables) -> None:
    three(tables)
    header = "path label\u00a01_x label\u00a01_y label\u00a02_x label\u00a02_y"
    tables.write("L.tsv", header, "p.png 1 2 3 4", "q.png 1 2 n/a n/a", "r.png 1 2 3 4")
    assert tables.federation("landmarks", label_table="L.tsv").parts == ("label 1", "label 2")
    assert tables.cases("landmarks", label_table="L.tsv")["q"].annotates == (1,)


def test_a_class_that_a_site_never_shows_is_asked_about(tables: Tables) -> None:
    lines = []
    for site in ("A", "B"):
        for k in range(3):
            tables.png(f"{site}{k}", points_path="P.tsv", site=site)
            lines += [f"{site}{k}.png a {k + 1} 2"] + [f"A{k}.png b 3 {k + 1}"] * (site == "A")
    tables.write("P.tsv", "path class x y", *lines)
    assert tables.codes("points") == ["structure-unsaid"]
    assert tables.codes("points", annotates={"B": "a"}) == []


# In place.


def centre(plane: np.ndarray) -> np.ndarray:
    """x and y of the blob in a plane of noise-free background."""
    weight = (plane - plane.min()) ** 2
    return np.array(ndimage.center_of_mass(weight))[::-1]


CODES = [
    "".join(code)
    for axes in itertools.permutations(("RL", "AP", "SI"))
    for code in itertools.product(*axes)
]


@pytest.mark.parametrize("code", CODES[::5])
@pytest.mark.parametrize("slice_axis", [0, 1, 2])
@pytest.mark.parametrize("points_in", ["pixel", "ras", "lps"])
def test_points_lie_where_their_image_shows_them(
    tables: Tables, code: str, slice_axis: int, points_in: str
) -> None:
    """A blob is drawn at a voxel, the volume stored in any orientation and cut along any axis; in
    the opened case the point must lie on the blob, in the image's own geometry and on the grid."""
    rng = np.random.default_rng(CODES.index(code))
    shape, sizes = (22, 26, 18), np.array([1.0, 1.2, 1.5])
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", (4, -6, 5), degrees=True).as_matrix()
    affine[:3, :3] *= sizes
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    own = nibabel.orientations.axcodes2ornt(tuple("RAS"))
    turn = nibabel.orientations.ornt_transform(own, nibabel.orientations.axcodes2ornt(tuple(code)))
    voxels = [rng.integers(5, np.array(shape) - 5) for _ in range(3)]
    lines = []
    for name, voxel in zip(("p", "q", "r"), voxels, strict=True):
        volume = bright(np.zeros(shape, np.float32), voxel)
        image = nibabel.Nifti1Image(volume, affine).as_reoriented(turn)
        nibabel.save(image, tables.folder / f"{name}.nii.gz")
        tables.row(f"{name}.nii.gz", subject=name)
        mm = affine[:3, :3] @ voxel + affine[:3, 3]
        stored = np.linalg.inv(image.affine) @ [*mm, 1]
        given = {"pixel": stored[:3], "ras": mm, "lps": mm * [-1, -1, 1]}[points_in]
        lines.append(" ".join([f"{name}.nii.gz", *(f"{value:.6f}" for value in given)]))
    tables.write("L.tsv", "path tip_x tip_y tip_z", *lines)
    cases = tables.cases(
        "landmarks",
        label_table="L.tsv",
        points_in=points_in,
        slice_axis=slice_axis,
        normalise="none",
        spacing_mm=1.1,
        size=24,
    )
    for case in cases.values():
        label = case.labels["landmarks"]
        (k,) = np.flatnonzero(np.isfinite(label.native[:, 0, 0]))
        peaks = case.image[:, 0].max(axis=(1, 2))
        assert abs(int(np.argmax(peaks)) - k) == 0
        np.testing.assert_allclose(label.grid[k, 0, :2], centre(case.image[k, 0]), atol=0.15)
        back = case.grid.points_to_native(label.grid[k, 0, :2])
        np.testing.assert_allclose(back, label.native[k, 0, :2], atol=1e-4)
        assert case.labelled.all()  # It is looked for on every slice of its volume.


@pytest.mark.parametrize("shape", [(30, 40), (40, 25), (9, 70)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.6, 0.9), (2.5, 2.0)])
def test_points_and_boxes_follow_resampling_and_cropping(
    shape: tuple[int, int], spacing: tuple[float, float]
) -> None:
    """Against the grid's own resampling of a picture of them."""
    grid = Grid(shape, spacing, (1.0, 1.0), 32)
    rng = np.random.default_rng(0)
    for _ in range(5):
        at = rng.uniform(3, np.array(shape) - 4)
        plane = bright(np.zeros(shape, np.float32), at, 1.2)
        moved = grid.points_to_grid(at[::-1])
        shown = grid.image(plane[None])[0]
        if not (moved > 3).all() or not (moved < 28).all():
            continue
        np.testing.assert_allclose(moved, centre(shown), atol=0.2)
        np.testing.assert_allclose(grid.points_to_native(moved), at[::-1], atol=1e-9)


def test_what_the_grid_cuts_off_is_counted(tables: Tables) -> None:
    three(tables, points_path="P.tsv", boxes_path="B.tsv")
    lines = [f"{name}.png {x} 15" for name in ("p", "q", "r") for x in (0, 20, 21, 39)]
    tables.write("P.tsv", "path x y", *lines)
    opened = tables.open("points", size=16)
    assert any("cuts off points in 3 of 3 images (up to 50.0%)" in note for note in opened.notes)
    assert tables.codes("points", size=16) == ["cropped"] * 3
    tables.write("B.tsv", "path x1 y1 x2 y2", *(f"{n}.png 0 7 40 23" for n in ("p", "q", "r")))
    opened = tables.open("boxes", size=16)
    assert any("cuts off boxes in 3 of 3 images (up to 60.0%)" in note for note in opened.notes)


def test_blocks_of_slices_keep_their_own_points(tables: Tables) -> None:
    """A single subject is cut into blocks: each block's label is that of its slices."""
    volume = np.random.default_rng(0).normal(size=(20, 24, 30)).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tables.folder / "p.nii.gz")
    tables.row("p.nii.gz", points_path="P.tsv")
    tables.write("P.tsv", "path x y z", *(f"p.nii.gz {k % 7 + 2} 5 {k}" for k in range(30)))
    opened = tables.open("points", slice_axis=2, split_gap=2)
    seen = 0
    for cases in opened.splits.values():
        for case in cases:
            label = case.labels["points"].native
            assert label.shape[:2] == (len(case.image), 1) and case.labelled.all()
            seen += len(label)
    assert 20 < seen < 30


# Bad input: one sentence that names the file, and nothing lost.

BAD: dict[str, tuple[str, Callable[[Tables], Any], str]] = {
    "outside": (
        "points",
        lambda t: t.write("T.tsv", "path x y", "p.png 40 3", "q.png 1 1"),
        r"T.tsv has a point at 40, 3 on line 2, outside .*p.png, which has 40 x 30 pixels; mend it",
    ),
    "no number": (
        "points",
        lambda t: t.write("T.tsv", "path x y", "p.png 1,5 3", "q.png 1 1"),
        r"T.tsv holds '1,5' in the column 'x' on line 2, which is no number; write a number",
    ),
    "no coordinate": (
        "landmarks",
        lambda t: t.write("T.tsv", "path a_x a_y", "p.png 3 n/a", "q.png 1 1"),
        r"T.tsv has no number in the column 'a_y' on line 2; fill it, or take the row out",
    ),
    "no area": (
        "boxes",
        lambda t: t.write("T.tsv", "path x1 y1 x2 y2", "p.png 3 4 3 9", "q.png 1 1 2 2"),
        r"T.tsv has a box without area on line 2 \(3, 4, 3, 9\); x2 must lie to the right of x1",
    ),
    "no area, by its centre": (
        "points",
        lambda t: t.write("T.tsv", "path x1 y1 x2 y2", "p.png 3 4 9 2", "q.png 1 1 2 2"),
        r"T.tsv has a box without area on line 2 \(3, 4, 9, 2\); x2 must lie to the right of x1",
    ),
    "box outside": (
        "boxes",
        lambda t: t.write("T.tsv", "path x1 y1 x2 y2", "p.png 3 4 43 9", "q.png 1 1 2 2"),
        r"T.tsv has a box at 3, 4, 43, 9 on line 2, outside .*p.png, which has 40 x 30 pixels",
    ),
    "box outside, by its centre": (
        "points",
        lambda t: t.write("T.tsv", "path x1 y1 x2 y2", "p.png 3 4 43 9", "q.png 1 1 2 2"),
        r"T.tsv has a box at 3, 4, 43, 9 on line 2, outside .*p.png, which has 40 x 30 pixels",
    ),
    "box outside by little": (
        "boxes",
        lambda t: t.write("T.tsv", "path x1 y1 x2 y2", "p.png 40 4 40.5 9", "q.png 1 1 2 2"),
        r"T.tsv has a box at 40, 4, 40.5, 9 on line 2, outside .*p.png",
    ),
    "landmark twice": (
        "landmarks",
        lambda t: t.write("T.tsv", "path name x y", "p.png a 3 4", "p.png a 5 6", "q.png a 1 1"),
        r"T.tsv gives 'a' of .*p.png a second time on line 3; keep one of the two",
    ),
    "names that are one": (
        "landmarks",
        lambda t: t.write("T.tsv", "path a_x a_y A_x A_y", "p.png 3 4 5 6"),
        r"T.tsv has the landmark 'A' twice; rename one of them",
    ),
    "both kinds": (
        "landmarks",
        lambda t: t.write("T.tsv", "path a_x a_y x y", "p.png 3 4 5 6"),
        r"has the columns a_x and x: points by name or a point a row\? Take one kind",
    ),
    "names and classes": (
        "points",
        lambda t: t.write("T.tsv", "path name class x y", "p.png a b 5 6"),
        r"has the columns name and class: one point of each name, or any number of each class\?",
    ),
    "points for landmarks": (
        "landmarks",
        lambda t: t.write("T.tsv", "path class x y", "p.png a 5 6"),
        r"T.tsv has any number of points an image, .*: take a task that learns from points",
    ),
    "landmarks for points": (
        "points",
        lambda t: t.write("T.tsv", "path a_x a_y", "p.png 5 6"),
        r"T.tsv has one point of each name an image: take a task that learns from landmarks",
    ),
    "no columns": (
        "boxes",
        lambda t: t.write("T.tsv", "path x y", "p.png 5 6"),
        r"T.tsv has no boxes \(columns x1, y1, x2 and y2\)",
    ),
    "no class": (
        "points",
        lambda t: t.write("T.csv", "path,class,x,y", "p.png,,5,6", "q.png,a,5,6"),
        r"T.csv has no name in the column 'class' on line 2; fill it, or take the row out",
    ),
    "no path": (
        "points",
        lambda t: t.write("T.tsv", "x y", "5 6"),
        r"T.tsv has no column 'path', which says of each row whose image it is; add it",
    ),
    "no list": (
        "points",
        lambda t: t.write("T.json", "{}"),
        r"T.json is no list of objects; write a list whose objects have the columns as keys",
    ),
    "no JSON": (
        "points",
        lambda t: t.write("T.json", "[{"),
        r"T.json is no readable JSON \(.*\); mend it",
    ),
    "no table": (
        "points",
        lambda t: t.write("T.txt", "path x y", "p.png 1 1"),
        r"T.txt is no table of labels; give a .tsv or .csv file, or a list of objects as .json",
    ),
    "none of them": (
        "points",
        lambda t: t.write("T.tsv", "path x y", "z.png 1 1"),
        r"T.tsv has no label for any image of .*M.tsv; mend the column by which they are joined",
    ),
}


@pytest.mark.parametrize("text", ["-nan", "+nan", "1_2", "infinity", "-inf", "1e999", "٣", "0x1"])
@pytest.mark.parametrize("column", ["x", "y", "z"])
def test_only_a_decimal_number_is_a_number(tables: Tables, text: str, column: str) -> None:
    three(tables)
    row = {"x": "1", "y": "2", "z": "0"} | {column: text}
    tables.write("T.tsv", "path x y z", " ".join(["p.png", *row.values()]), "q.png 1 1 0")
    told = tables.faults("points", label_table="T.tsv")
    assert f"T.tsv: holds {text!r} in the column '{column}' on line 2, which is no number" in told


@pytest.mark.parametrize("bad", BAD)
def test_bad_tables_of_labels_are_told_in_a_sentence(tables: Tables, bad: str) -> None:
    form, write, expected = BAD[bad]
    three(tables)
    told = tables.faults(form, label_table=write(tables))
    assert len(re.findall(expected, told.replace("sv: ", "sv "))) == 1, told


def test_an_image_with_a_bad_label_is_left_out_and_the_others_train(tables: Tables) -> None:
    three(tables, points_path="P.tsv")
    tables.png("s", points_path="P.tsv")
    tables.write("P.tsv", "path x y", "p.png 40 3", *(f"{n}.png 1 1" for n in ("q", "r", "s")))
    opened = tables.open("points")
    assert {c.id for cases in opened.splits.values() for c in cases} == {"q", "r", "s"}
    assert "left out: 1 of 4 images (row 2: point-outside)" in opened.notes


def test_rows_for_images_that_are_not_listed_are_told(tables: Tables) -> None:
    three(tables)
    tables.write("P.tsv", "path x y", *(f"{n}.png 5 5" for n in ("p", "q", "r", "z", "z")))
    assert tables.codes("points", label_table="P.tsv") == ["label-without-image"]


def test_sentences_speak_of_tables_where_labels_stand_in_one(tables: Tables) -> None:
    three(tables, points_path="")
    assert "fill the column points_path, or give their table as data.label_table" in tables.faults(
        "landmarks"
    )
    header = "path tip_x tip_y base_x base_y"
    tables.write("T.tsv", header, "p.png 1 2 3 4", "q.png n/a n/a n/a n/a", "r.png 1 2 n/a n/a")
    data = {"label_table": "T.tsv", "annotates": {"A": ["tip", "base"]}}
    settings = tables.settings("landmarks", **data)
    told = [f.told() for f in check(load_federation(KIND, settings, 0), settings, 0)]
    assert any("draw it, take its rows out of data.label_table, or say" in one for one in told)
    # An image without landmarks does not say that its site looked for all.
    tables.rows[2]["site"] = tables.rows[1]["site"] = "B"
    assert "structure-unsaid" not in tables.codes("landmarks", label_table="T.tsv")
    settings = tables.settings("landmarks", label_table="T.tsv", annotates={"B": ["tip", "base"]})
    told = [f.told() for f in check(load_federation(KIND, settings, 0), settings, 0)]
    assert any("'base', other sites' do; check its names in the label" in one for one in told)


def test_a_fault_of_one_table_is_told_once(tables: Tables) -> None:
    three(tables, points_path="P.tsv")
    settings = tables.settings("points", labels={"a": "a"})
    found = check(load_federation(KIND, settings, 0), settings, 0)
    told = [group.told() for group in grouped(found) if group.first.code == "missing-file"]
    assert told == [
        f"A: {tables.folder}/P.tsv (for 3 images): does not exist; mend the path in the table or "
        "put it there"
    ]


def test_another_forms_table_says_which_task_it_serves(tables: Tables) -> None:
    three(tables, label_path="")
    told = tables.faults("landmarks")
    assert "no column 'points_path'" in told and "it has mask (column 'label_path')" in told
    for row in tables.rows:
        row["boxes_path"] = "B.tsv"
    tables.write("B.tsv", "path x1 y1 x2 y2", "p.png 1 1 2 2")
    assert "take a task that learns from boxes or points" in tables.faults("mask")


def test_points_on_a_volume_need_a_slice(tables: Tables) -> None:
    volume = np.zeros((20, 24, 6), np.float32)
    volume[3] = 1
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tables.folder / "p.nii.gz")
    tables.row("p.nii.gz", points_path="P.tsv")
    tables.write("P.tsv", "x y", "3 4")
    told = tables.faults("points")
    assert "P.tsv: has no z on line 2, and" in told and "p.nii.gz is a volume; fill" in told
    tables.rows[0]["points_path"] = tables.write("Z.tsv", "x y z", "3 4 6")
    assert "has a point at 3, 4, 6 on line 2, outside" in tables.faults("points")


def test_mm_need_an_image_that_says_where_it_lies(tables: Tables) -> None:
    three(tables, points_path="P.tsv")
    tables.write("P.tsv", "path x y z", "p.png 1 1 0", "q.png 1 1 0", "r.png 1 1 0")
    assert "does not say where it lies, and its label is in mm" in tables.faults(
        "points", points_in="ras"
    )


@pytest.mark.parametrize(
    ("form", "header", "lines"),
    [
        ("points", "path class x y", [".1 .4", ".9 1", "0 0"]),
        ("landmarks", "path tip_x tip_y", [".1 .4", ".9 1", "0 0"]),
        ("boxes", "path class x1 y1 x2 y2", [".1 .2 .4 .5", ".1 .2 .4 .5", ".5 0 1 1"]),
    ],
)
def test_coordinates_that_may_be_shares_are_told(
    tables: Tables, form: str, header: str, lines: list[str]
) -> None:
    three(tables)
    name = "" if form == "landmarks" else "a "
    written = [f"{image}.png {name}{line}" for image, line in zip("pqr", lines, strict=True)]
    tables.write("T.tsv", header, *written)
    assert "coordinates-small" in tables.codes(form, label_table="T.tsv")
    place = "1 2 3 4" if form == "boxes" else "1 2"
    tables.write("T.tsv", header, *written[:2], f"r.png {name}{place}")
    assert "coordinates-small" not in tables.codes(form, label_table="T.tsv")


def test_a_point_that_is_given_twice_is_told(tables: Tables) -> None:
    three(tables)
    header = "path class x y"
    tables.write("T.tsv", header, "p.png a 5 6", "q.png a 5 6", "r.png a 5 6", "r.png b 5 6")
    assert tables.codes("points", label_table="T.tsv") == []
    tables.write("T.tsv", header, "p.png a 5 6", "q.png b 5 6", "p.png a 5.0 6", "r.png a 1 2")
    settings = tables.settings("points", label_table="T.tsv")
    found = check(load_federation(KIND, settings, 0), settings, 0)
    (one,) = [finding for finding in found if finding.code == "placed-twice"]
    assert one.problem == (
        f"has the same of its points on the lines 2 and 4 of {tables.folder}/T.tsv"
    )


def test_columns_that_may_say_how_an_image_lies_are_no_landmark(tables: Tables) -> None:
    three(tables)
    rows = [f"{name}.png 3 4 .5 .5" for name in "pqr"]
    tables.write("T.tsv", "path tip_x tip_y pixel_spacing_x pixel_spacing_y", *rows)
    assert "T.tsv has the columns pixel_spacing_x and pixel_spacing_y: a landmark, or" in (
        tables.faults("landmarks", label_table="T.tsv")
    )
    rows = [f"{name}.png a 3 4 .5 .5" for name in "pqr"]
    tables.write("T.tsv", "path class x y spacing_x spacing_y", *rows)
    assert tables.federation("points", label_table="T.tsv").parts == ("a",)


@pytest.mark.parametrize(
    ("form", "header", "line", "entry"),
    [
        ("points", "class x y", "a 5 6", {"class": "a", "x": 5, "y": 6}),
        ("landmarks", "name x y", "a 5 6", {"name": "a", "x": 5, "y": 6}),
        ("boxes", "class x1 y1 x2 y2", "a 1 2 3 4", dict(zip(
            ("class", "x1", "y1", "x2", "y2"), ("a", 1, 2, 3, 4), strict=True
        ))),
    ],
)  # fmt: skip
def test_a_table_without_rows_marks_nothing(
    tables: Tables, form: str, header: str, line: str, entry: dict[str, Any]
) -> None:
    column = "boxes_path" if form == "boxes" else "points_path"
    for name in "pqrstu":
        file = f"{name}.json" if name in "prt" else f"{name}.csv"
        tables.png(name, **{column: file})
        if name in "pqrs":
            tables.write(file, *([json.dumps([entry])] if name in "pr" else [header, line]))
    (tables.folder / "t.json").write_text("[]")
    (tables.folder / "u.csv").write_text("")
    cases = tables.cases(form)
    assert [name for name in "pqrstu" if cases[name].labels] == [*"pqrs"]
    cases = tables.cases(form, empty_masks="negative")
    for name in "tu":
        assert (
            cases[name].labelled.all() and np.isnan(cases[name].labels[form].native[..., 0]).all()
        )
    assert tables.codes(form) == ["empty-mask", "empty-mask"]
