"""Columns of tables of labels under nearly the right name are asked about, never passed over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kit.points import Tables, three

from fedshift.sites.labels.columns import image_names, wide_names
from fedshift.sites.labels.table import read_labels


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    found = Tables(tmp_path)
    three(found)
    return found


def told(tables: Tables, form: str, header: str, *values: str) -> str:
    """What stands in the way of a table with a row an image, whose cells are 1, 2, ..., or at the
    end ``values``."""
    columns = header.split(" ")
    cells = [str(k) for k in range(1, len(columns) + 1 - len(values))]
    rows = [" ".join([f"{image}.png", *cells, *values]) for image in "pqr"]
    tables.write("T.tsv", f"path {header}", *rows)
    return tables.faults(form, label_table="T.tsv")


@pytest.mark.parametrize(
    ("header", "column"),
    [
        ("a_x a_y b_x by", "b_x"),
        ("a_x a_y b_x b_Y", "b_x"),
        ("a_x a_y b_y", "b_y"),
        ("a_x a_y b_z", "b_z"),
        ("a_X a_Y b_x b_y", "a_X"),
        ("a.x a.y b_x b_y", "a.x"),
        ("a_x a_y b_x_px b_y_px", "b_x_px"),
        ("a_x a_y x_b y_b", "x_b"),
        ("a_x a_y bx by", "bx"),
        ("a_x a_y bX bY", "bX"),
        ("a_x a_y spacing_z", "spacing_z"),
        ("a.x a.y", "a.x"),
    ],
)
def test_what_may_be_half_a_landmark_is_asked_about(
    tables: Tables, header: str, column: str
) -> None:
    sentence = told(tables, "landmarks", header)
    assert f"T.tsv has the column {column!r}, which is in no pair NAME_x and NAME_y" in sentence


def test_other_columns_stay_beside_landmarks(tables: Tables) -> None:
    header = "a_x a_y b_x b_y image mm_per_pixel quality licence max"
    assert told(tables, "landmarks", header, "n", "0.5", "good", "own", "3") == ""
    assert tables.federation("landmarks", label_table="T.tsv").parts == ("a", "b")


@pytest.mark.parametrize(
    "name",
    [
        "spacing_mm",
        "spacing",
        "pixel_size",
        "PixelSpacing",
        "voxel_size",
        "voxelsize",
        "image_shape",
        "origin",
        "resolution",
        "dimension",
        "image_dimensions",
        "mm_per_pixel",
        "subject",
        "vendor",
    ],
)
def test_what_an_image_has_is_no_landmark_unasked(tables: Tables, name: str) -> None:
    sentence = told(tables, "landmarks", f"a_x a_y {name}_x {name}_y", "0.5", "0.5")
    assert f"T.tsv has the columns {name}_x and {name}_y: a landmark, or how the" in sentence


def test_anatomy_is_not_taken_for_what_an_image_has(tables: Tables) -> None:
    names = ("apex", "acl_origin", "skin", "Öffnung", "margin_in", "dimple")
    header = " ".join(["path", *(f"{name}_{axis}" for name in names for axis in "xy")])
    tables.write("T.tsv", header, " ".join(["p.png", *map(str, range(12))]))
    table = read_labels(str(tables.folder / "T.tsv"), ("x",))
    assert wide_names(table) == names and image_names(table) == ()


@pytest.mark.parametrize(
    "column",
    [
        "Class",
        "label",
        "labels",
        "category",
        "category_id",
        "className",
        "classname",
        "cell_type",
        "clas",
        "Name",
    ],
)
@pytest.mark.parametrize(("form", "places"), [("points", "x y"), ("boxes", "x1 y1 x2 y2")])
def test_what_may_be_the_column_of_classes_is_asked_about(
    tables: Tables, form: str, places: str, column: str
) -> None:
    sentence = told(tables, form, f"{places} {column}", "A")
    assert (
        f"T.tsv has no column 'class', and {column!r} may be meant: rename it to class" in sentence
    )
    # With one there is no doubt.
    assert told(tables, form, f"{places} {column} class", "A", "B") == ""


def test_names_of_boxes_are_asked_about(tables: Tables) -> None:
    assert "'name' may be meant" in told(tables, "boxes", "x1 y1 x2 y2 name", "A")


@pytest.mark.parametrize("column", ["score", "file_name", "area", "source", "image_id", "reader"])
def test_other_columns_stay_beside_points_of_one_class(tables: Tables, column: str) -> None:
    assert told(tables, "points", f"x y {column}") == ""


@pytest.mark.parametrize("key", ["label", "Class"])
def test_keys_are_asked_about_as_columns_are(tables: Tables, key: str) -> None:
    rows = [{"path": f"{image}.png", key: "rod", "x": 3, "y": 4} for image in "pqr"]
    tables.write("T.json", json.dumps(rows))
    assert f"{key!r} may be meant" in tables.faults("points", label_table="T.json")


@pytest.mark.parametrize(
    "sizes", ["w h", "width height", "Width Height", "bbox_width bbox_height", "x2 y2", "xmax ymax"]
)
def test_boxes_by_a_corner_and_a_size_are_no_points(tables: Tables, sizes: str) -> None:
    column, _ = sizes.split(" ")
    for form, header in (("points", "x y"), ("landmarks", "x y"), ("boxes", "x y")):
        naming = "name" if form == "landmarks" else "class"
        sentence = told(tables, form, f"{header} {sizes} {naming}", "A")
        assert f"T.tsv has the columns x, y and {column!r}: boxes, or points" in sentence
    assert told(tables, "points", "x y image_width class", "A") == ""


def test_sizes_beside_points_are_asked_about_in_json_and_in_boxes_path(tables: Tables) -> None:
    rows = [{"class": "rod", "x": 3, "y": 4, "w": 2, "h": 2}]
    for row in tables.rows:
        row["boxes_path"] = "T.json"
    tables.write("T.json", json.dumps([{"path": f"{i}.png"} | rows[0] for i in "pqr"]))
    assert "T.json has the columns x, y and 'w'" in tables.faults("points")


def test_a_key_that_an_object_has_twice_is_refused(tables: Tables) -> None:
    for again in ("x", " x"):
        text = f'[{{"path": "p.png", "x": 3, "y": 3, "{again}": 40}}]'
        (tables.folder / "T.json").write_text(text)
        sentence = tables.faults("points", label_table="T.json")
        assert "T.json is no readable JSON (an object has the key 'x' twice); mend it" in sentence


def test_a_capital_in_path_does_not_give_all_rows_to_one_image(tables: Tables) -> None:
    for row in tables.rows:
        row["points_path"] = f"{row['subject']}.tsv"
        tables.write(row["points_path"], "Path x y", "p.png 1 2", "q.png 3 4")
    assert "p.tsv has the column 'Path', and rows say" in tables.faults("points")


@pytest.mark.parametrize("column", ["Annotates", "Spacing (mm)", "Empty", "spacing mm"])
def test_a_column_of_the_manifest_in_another_spelling_is_asked_about(
    tables: Tables, column: str
) -> None:
    for row in tables.rows:
        row[column] = "0.5"
    sentence = tables.faults("none")
    assert f"M.tsv has the column {column!r}, and " in sentence
    assert "rename it, or say with data.columns." in sentence
