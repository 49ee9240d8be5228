"""Categories, instances, paired images, graphs and none: read, laid out and checked."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import nibabel
import numpy as np
import pytest
from kit.points import KIND, Tables, three
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from fedshift import UserError
from fedshift.cli.sites import inspect_sites
from fedshift.sites import check, load_federation
from fedshift.sites.labels import FORMS, form_of
from fedshift.sites.pictures import draw_site
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import Label


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(tmp_path)


def test_a_form_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="no form of label 'maks'; nearest: mask"):
        form_of(DataSettings(form="maks"))


# Categories.


def test_a_category_is_a_cell_of_the_table(tables: Tables) -> None:
    for name, text in (("p", "Benign"), ("q", "malignant"), ("r", "Benign"), ("s", "")):
        tables.png(name, category=text)
    assert tables.federation("category").parts == ("Benign", "malignant")
    cases = tables.cases("category")
    found = {
        name: case.labels["category"].grid.tolist() for name, case in cases.items() if case.labels
    }
    assert found == {"p": [1], "q": [2], "r": [1]}
    grouped = {"any": ["Benign", "malignant"]}
    assert tables.federation("category", labels=grouped).parts == ("any",)
    with pytest.raises(UserError, match=r"q.png has the category 'malignant' \(line 3 of the"):
        tables.cases("category", labels={"x": "Benign"})
    assert "value-outside" in tables.codes("category", labels={"x": "Benign"})
    with pytest.raises(UserError, match=r"data.labels.x is the number 1, and .* category have nam"):
        tables.federation("category", labels={"x": 1})


def test_a_category_that_is_to_be_ignored_is_no_label(tables: Tables) -> None:
    for name, text in (("p", "a"), ("q", "b"), ("r", "a"), ("s", "?")):
        tables.png(name, category=text)
    labels = {"a": "a", "background": "b", "ignore": "?"}
    cases = tables.cases("category", labels=labels)
    assert cases["q"].labels["category"].native.tolist() == [0]
    assert not cases["s"].labels and not cases["s"].ignores


def test_categories_spelt_otherwise_are_asked_about(tables: Tables) -> None:
    for name, text in (("p", "a b"), ("q", "A b"), ("r", "a b")):
        tables.png(name, category=text)
    assert "'A b' and 'a b' differ in capitals or spaces alone" in tables.faults("category")


def test_only_labels_with_parts_can_say_that_there_is_nothing(tables: Tables) -> None:
    """An image without a pair has none, whatever the column ``empty`` says."""
    for name in ("p", "q", "r"):
        tables.png(name, pair_path=pair(tables, f"pair_{name}.png"))
    tables.png("s", pair_path="", empty="negative")
    assert not tables.cases("image")["s"].labels


def test_categories_that_are_numbers_are_names(tables: Tables) -> None:
    for name, text in (("p", "0"), ("q", "1"), ("r", "2")):
        tables.png(name, category=text)
    labels = {"high": ["1", "2"], "low": "0"}
    assert tables.federation("category", labels=labels).parts == ("high", "low")
    found = {n: c.labels["category"].grid.tolist() for n, c in
             tables.cases("category", labels=labels).items()}  # fmt: skip
    assert found == {"p": [2], "q": [1], "r": [1]}


@pytest.mark.parametrize("blank", ["n/a", "nan", "NaN", "N/A"])
def test_a_category_that_is_missing_is_no_category(tables: Tables, blank: str) -> None:
    for name, text in (("p", "a"), ("q", "b"), ("r", "a"), ("s", blank)):
        tables.png(name, category=text)
    assert tables.federation("category").parts == ("a", "b")
    assert not tables.cases("category")["s"].labels


def test_a_label_that_is_missing_is_no_file(tables: Tables) -> None:
    for k, name in enumerate("pqr"):
        tables.png(name, pair_path=pair(tables, f"pair_{name}.png", seed=k))
    tables.png("s", pair_path="n/a")
    assert not tables.cases("image")["s"].labels and tables.faults("image") == ""


def test_a_category_that_may_be_missing_is_asked_about(tables: Tables) -> None:
    for name, text in (("p", "a"), ("q", "None"), ("r", "a")):
        tables.png(name, category=text)
    assert "M.tsv holds the category 'None', which can be one or say that there is none: empty" in (
        tables.faults("category")
    )
    assert tables.federation("category", labels={"none": "None", "a": "a"}).parts == ("none", "a")


def test_a_category_that_was_not_looked_for_is_a_contradiction(tables: Tables) -> None:
    for name, text in (("p", "a"), ("q", "b"), ("r", "b"), ("s", "b")):
        tables.png(name, category=text, annotates="b")
    told = tables.faults("category")
    assert "p.png: has the category 'a' (line 2 of the manifest), and its label is said" in told
    assert set(tables.cases("category")) == {"q", "r", "s"}
    assert "left out: 1 of 4 images (row 2: not-annotated)" in tables.open("category").notes


# Instances.


def objects(tables: Tables, name: str, values: np.ndarray) -> str:
    Image.fromarray(values).save(tables.folder / name)
    return name


def test_instances_keep_their_numbers(tables: Tables) -> None:
    values = np.zeros((30, 40), np.uint16)
    values[5:9, 10:14], values[20:22, 30:33] = 7, 300
    for name in ("p", "q", "r"):
        tables.png(name, instances_path=objects(tables, "o.png", values))
    assert tables.federation("instances").parts == ("object",)
    label = tables.cases("instances")["p"].labels["instances"]
    assert label.native.dtype == np.uint16 and np.array_equal(label.native[0], values)
    np.testing.assert_array_equal(label.grid[0, 9:39, 4:44], values)
    assert tables.federation("instances", labels={"nucleus": "1-65535"}).parts == ("nucleus",)
    with pytest.raises(UserError, match="instances are of one kind, and every value is an obj"):
        tables.federation("instances", labels={"a": 1, "b": 2})
    # A number of its own would be an object like all others.
    with pytest.raises(UserError, match=r"data.labels=\{nucleus: 1-65535\}"):
        tables.federation("instances", labels={"nucleus": "1-9", "background": "10-65535"})
    assert "label-twice" in tables.codes("instances")


def test_an_image_without_instances_is_unlabelled_or_negative(tables: Tables) -> None:
    for k, name in enumerate(("p", "q", "r", "s")):
        values = np.zeros((30, 40), np.uint8)
        values[5:9, 10 + k : 14 + k] = name != "s"
        tables.png(name, instances_path=objects(tables, f"o{name}.png", values))
    assert not tables.cases("instances")["s"].labels
    assert tables.codes("instances") == ["empty-mask"]
    case = tables.cases("instances", empty_masks="negative")["s"]
    assert case.labelled.all() and not case.labels["instances"].native.any()
    assert tables.codes("instances", empty_masks="negative") == []


# Paired images.


def pair(tables: Tables, name: str, shape: tuple[int, int] = (30, 40), seed: int = 0) -> str:
    values = np.random.default_rng(seed).integers(0, 255, shape).astype(np.uint8)
    Image.fromarray(values).save(tables.folder / name)
    return name


def test_a_paired_image_goes_with_its_image(tables: Tables) -> None:
    for k, name in enumerate(("p", "q", "r")):
        tables.png(name, pair_path=pair(tables, f"pair_{name}.png", seed=k))
    case = tables.cases("image", normalise_pair="none", size=16)["q"]
    label = case.labels["image"]
    expected = np.asarray(Image.open(tables.folder / "pair_q.png"), np.float32)
    np.testing.assert_array_equal(label.native[0, 0], expected)
    np.testing.assert_array_equal(label.grid[0, 0], expected[7:23, 12:28])
    # By itself as images are, by what the grid covers.
    scaled = tables.cases("image", size=16)["q"].labels["image"].grid
    np.testing.assert_allclose(np.percentile(scaled, (1, 99)), [0, 1], atol=1e-6)


def test_pairs_of_two_tables_are_joined_by_their_id(tables: Tables) -> None:
    for k, name in enumerate(("p", "q", "r")):
        tables.png(name, pair_id=f"id{k}")
        pair(tables, f"ct_{name}.png", seed=k)
    tables.write("CT.tsv", "path pair_id", *(f"ct_{n}.png id{k}" for k, n in enumerate("pqr")))
    case = tables.cases("image", label_table="CT.tsv", normalise="none")["r"]
    expected = np.asarray(Image.open(tables.folder / "ct_r.png"), np.float32)
    np.testing.assert_array_equal(case.labels["image"].native[0, 0], expected)
    tables.write("CT.tsv", "path pair_id", "ct_p.png id0", "ct_q.png id0")
    assert "lines 2 and 3 have the pair_id 'id0'; keep the one" in tables.faults(
        "image", label_table="CT.tsv"
    )
    tables.write("CT.tsv", "path pair", "ct_p.png id0")
    assert "CT.tsv has no column 'pair_id', by which pairs are found" in tables.faults(
        "image", label_table="CT.tsv"
    )


def test_a_paired_image_of_another_shape_is_refused(tables: Tables) -> None:
    for name, shape in (("p", (30, 40)), ("q", (30, 41)), ("r", (30, 40)), ("s", (40, 30))):
        tables.png(name, pair_path=pair(tables, f"pair_{name}.png", shape))
    told = tables.faults("image")
    assert "pair_q.png: has 41 x 30 x 1 voxels, and its image" in told
    assert "pair_s.png" in told and "pair_p.png" not in told
    assert set(tables.cases("image")) == {"p", "r"}


def test_a_paired_volume_is_laid_on_its_image_by_their_places(tables: Tables) -> None:
    values = np.random.default_rng(0).normal(size=(12, 14, 10)).astype(np.float32)
    image = nibabel.Nifti1Image(values, np.diag([1, 1.5, 2, 1.0]))
    turned = image.as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    nibabel.save(image, tables.folder / "p.nii.gz")
    nibabel.save(turned, tables.folder / "pair.nii.gz")
    tables.row("p.nii.gz", pair_path="pair.nii.gz")
    for case in tables.cases("image", size=16, normalise="none", slice_axis=2).values():
        np.testing.assert_array_equal(case.labels["image"].grid, case.image)


def paired(tables: Tables, **cells: str) -> None:
    """Three images, and the images of another table that are to be their pairs."""
    for k, name in enumerate("pqr"):
        tables.png(name, pair_id=f"id{k}", **cells)
        pair(tables, f"ct_{name}.png", seed=k)


def test_a_pair_of_somebody_else_is_told(tables: Tables) -> None:
    paired(tables)
    tables.write(
        "CT.tsv", "path pair_id subject site", "ct_p.png id0 p A", "ct_q.png id1 z A",
        "ct_r.png id2 R B",
    )  # fmt: skip
    told = tables.faults("image", label_table="CT.tsv")
    assert "q.png: is of the subject 'q', and " in told
    assert "CT.tsv (line 3) gives its pair to the subject 'z'; mend pair_id" in told
    assert "CT.tsv (line 4) gives its pair to the site 'B'" in told and "p.png" not in told
    # Sites by another rule have other names there.
    told = tables.faults("image", label_table="CT.tsv", site_pattern="^([pqr])")
    assert "to the subject 'z'" in told and "site 'B'" not in told


def test_pairs_of_nobody_are_told(tables: Tables) -> None:
    paired(tables)
    tables.write("CT.tsv", "path pair_id", "ct_p.png id0", "ct_q.png id1", "ct_r.png id9")
    settings = tables.settings("image", label_table="CT.tsv")
    found = [
        finding.told()
        for finding in check(load_federation(KIND, settings, 0), settings, 0)
        if finding.code == "label-without-image"
    ]
    assert found == [
        f"{tables.folder}/CT.tsv: has 1 row for images that the manifest does not list, the first "
        "on line 4; add the images to the manifest, or take the rows out"
    ]


@pytest.mark.parametrize("blank", ["", "n/a"])
def test_an_image_without_a_pair_id_is_unlabelled(tables: Tables, blank: str) -> None:
    paired(tables)
    tables.png("s", pair_id=blank)
    tables.write("CT.tsv", "path pair_id", *(f"ct_{n}.png id{k}" for k, n in enumerate("pqr")))
    cases = tables.cases("image", label_table="CT.tsv")
    assert not cases["s"].labels and cases["p"].labels


@pytest.mark.parametrize("data", [{"label_table": "M.tsv"}, {}])
def test_an_image_is_not_its_own_pair(tables: Tables, data: dict[str, str]) -> None:
    paired(tables)
    for row in tables.rows:
        row["pair_path"] = f"./{row['path']}"
    assert "is given as its own pair; name the image of the other kind" in tables.faults(
        "image", **data
    )


def test_a_paired_image_that_is_constant_is_told(tables: Tables) -> None:
    paired(tables)
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(tables.folder / "ct_q.png")
    for row in tables.rows:
        row["pair_path"] = f"ct_{row['path']}"
    assert tables.codes("image") == ["constant"]


def test_pairs_and_label_tables_name_paths_as_manifests_do(tables: Tables) -> None:
    paired(tables)
    (tables.folder / "é").mkdir()
    for row in tables.rows:
        for name in (row["path"], f"ct_{row['path']}"):
            (tables.folder / name).rename(tables.folder / "é" / name)
        row["path"] = f"é/{row['path']}"
    decomposed = unicodedata.normalize("NFD", "é")
    lines = [f".\\{decomposed}\\ct_{n}.png id{k}" for k, n in enumerate("pqr")]
    tables.write("CT.tsv", "path pair_id", *lines)
    assert all(case.labels for case in tables.cases("image", label_table="CT.tsv").values())
    tables.write("P.tsv", "path x y", *(f"{decomposed}\\{n}.png 10.5 10" for n in "pqr"))
    assert all(case.labels for case in tables.cases("points", label_table="P.tsv").values())


# Graphs.


def graph(tables: Tables, name: str, matrix: np.ndarray) -> str:
    if name.endswith("csv"):
        np.savetxt(tables.folder / name, matrix, delimiter=",")
    elif name.endswith("npz"):
        np.savez(tables.folder / name, edges=matrix)
    else:
        np.save(tables.folder / name, matrix)
    return name


def symmetric(nodes: int, seed: int = 0) -> np.ndarray:
    half = np.triu(np.random.default_rng(seed).normal(size=(nodes, nodes)).astype(np.float32), 1)
    return half + half.T


def test_graphs_are_matrices_beside_images_or_alone(tables: Tables) -> None:
    for k, (name, end) in enumerate((("p", "npy"), ("q", "csv"), ("r", "npz"))):
        tables.png(name, graph_path=graph(tables, f"{name}.{end}", symmetric(5, k)))
    cases = tables.cases("graph")
    for k, name in enumerate("pqr"):
        label = cases[name].labels["graph"]
        np.testing.assert_allclose(label.native[0], symmetric(5, k), atol=1e-6)
        assert label.grid.shape == label.native.shape
    # The upper triangle alone, and the matrix as its own image.
    tables.rows.clear()
    for k, name in enumerate("pqr"):
        upper = symmetric(9, k)[np.triu_indices(9, 1)]
        tables.row(graph(tables, f"{name}.npz", upper))
    case = tables.cases("graph", normalise="none", size=9)["q"]
    np.testing.assert_array_equal(case.labels["graph"].grid[0], symmetric(9, 1))
    np.testing.assert_array_equal(case.image[0, 0], symmetric(9, 1))
    assert tables.codes("graph", size=9) == []


@pytest.mark.parametrize("wide", [False, True])
def test_an_upper_triangle_is_a_column_or_a_row_of_a_table(tables: Tables, wide: bool) -> None:
    for k, name in enumerate("pqr"):
        upper = symmetric(9, k)[np.triu_indices(9, 1)].reshape((1, -1) if wide else (-1, 1))
        tables.png(name, graph_path=graph(tables, f"{name}.csv", upper))
    for k, name in enumerate("pqr"):
        label = tables.cases("graph")[name].labels["graph"]
        np.testing.assert_allclose(label.native[0], symmetric(9, k), atol=1e-6)


def test_tables_in_the_column_path_are_matrices_where_graphs_are_read(tables: Tables) -> None:
    for k, name in enumerate("pqr"):
        tables.row(graph(tables, f"{name}.csv", symmetric(9, k)))
    text = (tables.folder / "p.csv").read_text()
    (tables.folder / "p.csv").write_text(text, encoding="utf-16")
    cases = tables.cases("graph", normalise="none", size=9)
    for k, name in enumerate("pqr"):
        label = cases[name].labels["graph"].grid[0]
        np.testing.assert_allclose(label, symmetric(9, k), atol=1e-6)
        np.testing.assert_array_equal(cases[name].image[0, 0], label)
    assert tables.codes("graph", size=9) == []


@pytest.mark.filterwarnings("error")
def test_weights_that_are_too_large_are_told(tables: Tables) -> None:
    three(tables)
    for k, row in enumerate(tables.rows):
        row["graph_path"] = graph(
            tables, f"g{k}.npy", symmetric(4).astype(float) * 10.0 ** (100 * k)
        )
    assert "g1.npy" in tables.faults("graph") and "too large" in tables.faults("graph")


def test_a_graph_is_drawn_as_large_as_its_image() -> None:
    axes = Figure().add_axes((0, 0, 1, 1))
    picture = axes.imshow(np.zeros((64, 48)))
    FORMS["graph"].draw(axes, symmetric(8), ())
    assert axes.images[1].get_extent() == picture.get_extent() and axes.get_aspect() == 1


def test_graphs_of_a_federation_have_one_size(tables: Tables) -> None:
    for k, name in enumerate("pqrs"):
        tables.png(name, graph_path=graph(tables, f"{name}.npy", symmetric(5 + (name == "r"), k)))
    told = tables.faults("graph")
    assert told == (
        f"A: {tables.folder}/r.npy: has 6 nodes, and 3 of the federation's 4 graphs have 5: a node "
        "must be the same region in all; make all graphs by one parcellation, or leave it out"
    )
    # So have those that are the images of other labels.
    for row in tables.rows:
        row |= {"path": row["graph_path"], "category": row["subject"]}
    assert tables.codes("category", size=9) == ["graph-size"]


def test_the_matrix_of_a_graph_is_no_picture(tables: Tables) -> None:
    """Its nodes have no size in mm, and those of two people look alike."""
    one = symmetric(24, 0)
    for k, name in enumerate("pqr"):
        tables.row(graph(tables, f"{name}.npy", one + symmetric(24, k) / 100))
    settings = tables.settings("graph")
    assert check(load_federation(KIND, settings, 0), settings, 0) == []
    assert not any("spacing" in note for note in tables.open("graph").notes)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.zeros((4, 5)), r"holds an array of the shape \(4, 5\), and a graph is a square matrix"),
        (np.triu(np.ones((4, 4))), "is not symmetric: .* from node 0 to 1, and .* back; give an"),
        (np.full((3, 3), np.nan), "holds NaN or infinite values"),
        (np.array([["a", "b"], ["b", "a"]]), "holds <U1 in place of numbers; save it as numbers"),
    ],
)
def test_a_matrix_that_is_no_graph_is_refused(
    tables: Tables, matrix: np.ndarray, expected: str
) -> None:
    three(tables)
    for row in tables.rows:
        row["graph_path"] = graph(tables, "g.npy", symmetric(4))
    tables.rows[0]["graph_path"] = graph(tables, "bad.npy", matrix)
    told = tables.faults("graph")
    assert re.search(f"bad.npy: {expected}", told), told
    (tables.folder / "bad.npy").rename(tables.folder / "bad.csv")
    (tables.folder / "bad.csv").write_text("1,x\nx,1\n")
    tables.rows[0]["graph_path"] = "bad.csv"
    assert "bad.csv: is no readable matrix of numbers" in tables.faults("graph")


@pytest.mark.parametrize("text", ["0,5;0,6;0,7\n", "0,5\t0,6\t0,7\n", "0,5 0,6 0,7\n"])
def test_decimal_commas_are_not_taken_for_marks_between_numbers(tables: Tables, text: str) -> None:
    """Six numbers would be a graph of four nodes, three one of three."""
    three(tables)
    for k, row in enumerate(tables.rows):
        row["graph_path"] = graph(tables, f"g{k}.npy", symmetric(4, k))
    tables.rows[0]["graph_path"] = "edges.csv"
    (tables.folder / "edges.csv").write_text(text)
    told = tables.faults("graph")
    assert "edges.csv: is no readable matrix of numbers (commas may stand between" in told
    assert "as .csv with decimal points" in told
    (tables.folder / "edges.csv").write_text("0.5, 0.6,0.7,0.5,0.6,0.7\n")
    assert tables.faults("graph") == ""


# None.


def test_images_without_labels_train_and_are_scored(tables: Tables) -> None:
    three(tables)
    opened = tables.open("none")
    assert opened.parts == ()
    assert all(opened.counts(split)["labelled"] == 1 for split in ("train", "val", "test"))
    assert tables.codes("none") == []


# Drawing.


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_is_drawn(form: str) -> None:
    """What is drawn must show: the picture changes where the label lies."""
    labels = {
        "mask": np.pad(np.ones((4, 4), np.uint8), 6),
        "instances": np.pad(np.full((4, 4), 9, np.uint16), 6),
        "landmarks": np.array([[7.5, 7.5, 1]], np.float32),
        "points": np.array([[7.5, 7.5, 1], [np.nan] * 3], np.float32),
        "boxes": np.array([[5, 5, 10, 10, 1], [np.nan] * 5], np.float32),
        "category": np.uint8(1),
        "image": np.pad(np.ones((1, 4, 4), np.float32), ((0, 0), (6, 6), (6, 6))),
        "graph": symmetric(16),
        "none": np.zeros(0, np.uint8),
    }
    shown = []
    for drawn in (False, True):
        figure = Figure(figsize=(2, 2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(np.zeros((16, 16)), cmap="gray")
        if drawn:
            FORMS[form].draw(axes, labels[form], ("a",))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        shown.append(np.asarray(canvas.buffer_rgba()))
    assert np.array_equal(*shown) == (form == "none")


def test_a_label_is_the_same_array_where_both_grids_are_one(tables: Tables) -> None:
    for name in ("p", "q", "r"):
        tables.png(name, (48, 48), points_path="P.tsv")
    tables.write("P.tsv", "path x y", *(f"{n}.png 1 1" for n in "pqr"))
    label: Label = tables.cases("points")["p"].labels["points"]
    assert label.native is label.grid


def test_images_of_a_site_are_drawn_with_their_labels(tables: Tables) -> None:
    """What is drawn depends on the label, and a site without one is drawn, too."""
    for name in ("p", "q", "r"):
        tables.png(name, points_path="P.tsv")
    pictures = []
    for place in ("5 5", "20 20"):
        tables.write("P.tsv", "path x y", *(f"{n}.png {place}" for n in "pqr"))
        pictures.append(draw_site(tables.open("points")))
    pictures.append(draw_site(tables.open("none")))
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len({*pictures}) == 3


def test_what_the_grid_cuts_off_takes_no_room_in_a_picture(tables: Tables) -> None:
    """A point outside would shrink the image to make room for itself."""
    for name in ("p", "q", "r"):
        tables.png(name, points_path="P.tsv")
    pictures = []
    for place in ("5 15", "0 0"):
        lines = [f"{name}.png {at}" for name in "pqr" for at in ("20 15", place)]
        tables.write("P.tsv", "path x y", *lines)
        opened = tables.open("points", size=16)
        assert any("cuts off points" in note for note in opened.notes)
        pictures.append(draw_site(opened))
    assert pictures[0] == pictures[1]


def test_inspect_draws_into_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSHIFT_CACHE", str(tmp_path / "cache"))
    overrides = ["federation=fetal_head_phantom", "task=landmarks", "federation.subjects=3"]
    inspect_sites([*overrides, "federation.slices=1"], tmp_path / "drawn")
    assert len([*(tmp_path / "drawn").glob("vendor_?.png")]) == 4
    assert "ofd_1" in capsys.readouterr().out
