"""The doctor finds each planted fault, names its file, and is silent on sound data."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from kit.repository import ROOT

from fedshift.sites import DataSettings, Finding, check, load_federation

MANIFEST = {"name": "m", "kind": "manifest"}
AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])
SITES = ("A", "B", "C")
Pair = tuple[np.ndarray, np.ndarray]


def scan(seed: int) -> Pair:
    """An image (32, 32, 4) of two bright parts away from the centre, and its label 1, 2."""
    rng = np.random.default_rng(seed)
    label = np.zeros((32, 32, 4), np.uint8)
    label[4:13, 6:20] = 1
    label[5:9, 8:12] = 2
    image = rng.normal(20, 2, label.shape) + 8 * (label > 0) + 8 * (label == 2)
    return image.astype(np.float32), label


class Planter:
    """Three sites of three subjects; faults are written over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, dict[str, str]] = {}
        for s, site in enumerate(SITES):
            for k in range(3):
                name = f"{site}{k}"
                self.write(name, *scan(10 * s + k))
                self.rows[name] = {
                    "path": f"{name}.nii.gz",
                    "label_path": f"{name}_mask.nii.gz",
                    "site": site,
                    "subject": name,
                    "spacing_mm": "1x1x4",
                }

    def write(
        self,
        name: str,
        image: np.ndarray,
        label: np.ndarray,
        affine: np.ndarray = AFFINE,
        label_affine: np.ndarray | None = None,
    ) -> None:
        nibabel.save(nibabel.Nifti1Image(image, affine), self.folder / f"{name}.nii.gz")
        placed = affine if label_affine is None else label_affine
        nibabel.save(nibabel.Nifti1Image(label, placed), self.folder / f"{name}_mask.nii.gz")

    def check(self, **settings: object) -> list[Finding]:
        columns = list(next(iter(self.rows.values())))
        lines = ["\t".join(columns)]
        lines += ["\t".join(row[column] for column in columns) for row in self.rows.values()]
        table = self.folder / "table.tsv"
        table.write_text("\n".join(lines) + "\n")
        data = DataSettings.from_config(
            {
                "manifest": str(table),
                "size": 32,
                "labels": {"outer": 1, "inner": 2},
                **settings,
            }
        )
        return check(load_federation(MANIFEST, data, 0), data, 0)


@pytest.fixture
def planter(tmp_path: Path) -> Planter:
    return Planter(tmp_path)


def test_sound_data_give_no_finding(planter: Planter) -> None:
    assert planter.check() == []


TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    # File axes are (right, front, up); rows are shown front at the top, columns right first.
    "flipped left to right": lambda a: a[::-1],
    "flipped top to bottom": lambda a: a[:, ::-1],
    "turned by 180 degrees": lambda a: a[::-1, ::-1],
    "transposed": lambda a: a.transpose(1, 0, 2),
}


@pytest.mark.parametrize("turn", list(TURNS))
def test_a_turned_label_is_found_for_a_subject_and_for_a_site(planter: Planter, turn: str) -> None:
    image, label = scan(0)
    planter.write("A0", image, np.ascontiguousarray(TURNS[turn](label)))
    (finding,) = planter.check()
    assert (finding.severity, finding.site) == ("error", "A")
    assert finding.file.endswith("A0_mask.nii.gz") and turn in finding.problem
    for k in range(3):
        image, label = scan(k)
        planter.write(f"A{k}", image, np.ascontiguousarray(TURNS[turn](label)))
    (finding,) = planter.check()
    assert turn in finding.problem and "2 more" in finding.problem


def test_a_structure_in_pixels_to_ignore_stops_no_run(planter: Planter) -> None:
    """Its rim looks as it does, so its outline has no contrast; a bright spot elsewhere has."""
    for name in planter.rows:
        rng = np.random.default_rng(100 * ord(name[0]) + int(name[1]))
        label = np.zeros((32, 32, 4), np.uint8)
        label[3:17, 6:22] = 3
        label[7:13, 10:18] = 1
        image = rng.normal(20, 2, label.shape) + 12 * (label > 0) + 12 * (label == 1)[::-1]
        planter.write(name, image.astype(np.float32), label)
    for meaning, severity in (("background", "error"), ("ignore", "warning")):
        found = planter.check(labels={"outer": 1, meaning: 3})
        turned = {finding.severity for finding in found if finding.code == "label-turned"}
        assert turned == {severity}


def test_one_turned_image_among_many_of_its_subject_is_found(planter: Planter) -> None:
    for k in range(3, 12):
        name = f"A{k}"
        image, label = scan(100 + k)
        planter.write(name, image, np.ascontiguousarray(label[::-1]) if k == 7 else label)
        planter.rows[name] = {
            **planter.rows["A0"],
            "path": f"{name}.nii.gz",
            "label_path": f"{name}_mask.nii.gz",
        }
    (finding,) = planter.check()
    assert finding.severity == "warning" and finding.file.endswith("A7_mask.nii.gz")
    assert "flipped left to right" in finding.problem


@pytest.mark.parametrize("degrees", [90, 270])
def test_a_quarter_turn_is_named_by_its_direction(planter: Planter, degrees: int) -> None:
    image, label = scan(0)
    # What is shown is (rows, columns) = (y reversed, x reversed): undo that, turn, redo it.
    shown = label.transpose(2, 1, 0)[:, ::-1, ::-1]
    turned = np.rot90(shown, k=degrees // 90, axes=(1, 2))  # rot90 turns anticlockwise
    planter.write("A0", image, np.ascontiguousarray(turned[:, ::-1, ::-1].transpose(2, 1, 0)))
    (finding,) = planter.check()
    # A label turned anticlockwise must be turned clockwise to fit.
    way = "clockwise" if degrees == 90 else "anticlockwise"
    assert finding.problem.endswith(f"by 90 degrees {way}")


def only(findings: list[Finding], file: str, text: str) -> Finding:
    (finding,) = [f for f in findings if text in f.problem]
    assert finding.file.endswith(file), finding
    assert finding.way_out
    return finding


def test_an_affine_that_disagrees_is_found(planter: Planter) -> None:
    image, label = scan(0)
    moved = AFFINE.copy()
    moved[0, 3] = 7
    planter.write("A0", image, label, label_affine=moved)
    only(planter.check(), "A0_mask.nii.gz", "7 mm away")


def test_a_label_stored_along_other_axes_is_sound(planter: Planter) -> None:
    image, label = scan(0)
    flip = AFFINE.copy()
    flip[0, 0], flip[0, 3] = -1, 31
    planter.write("A0", image, np.ascontiguousarray(label[::-1]), label_affine=flip)
    assert planter.check() == []


def test_wrong_spacings_are_found(planter: Planter) -> None:
    planter.rows["A0"]["spacing_mm"] = "0.5x0.5x4"
    only(planter.check(), "A0.nii.gz", "spacing 0.5 x 0.5 x 4 mm in the table")
    planter.rows["A0"]["spacing_mm"] = ""
    planter.write("A0", *scan(0), affine=np.diag([0.1, 0.1, 0.4, 1.0]))
    only(planter.check(), "A0.nii.gz", "in-plane spacing of 0.1 x 0.1 mm")


def test_zero_spacing_in_a_header_is_found(planter: Planter) -> None:
    image = nibabel.Nifti1Image(scan(0)[0], AFFINE)
    image.set_sform(None, code=0)
    content = bytearray(image.to_bytes())
    content[80:84] = np.float32(0).tobytes()  # pixdim[1], which nibabel would read as 1
    planter.rows["A0"]["path"] = "A0.nii"
    (planter.folder / "A0.nii").write_bytes(content)
    finding = only(planter.check(), "A0.nii", "spacing is 0 x 1 x 4 mm")
    assert finding.severity == "error"


def test_shapes_that_differ_and_unreadable_files_are_found(planter: Planter) -> None:
    image, label = scan(0)
    planter.write("A0", image, label[..., :3])
    (planter.folder / "B1.nii.gz").write_bytes(b"nothing")
    (planter.folder / "C2_mask.nii.gz").unlink()
    findings = planter.check()
    assert only(findings, "A0_mask.nii.gz", "has the shape").severity == "error"
    assert only(findings, "B1.nii.gz", "not a readable NIfTI").severity == "warning"
    assert only(findings, "C2_mask.nii.gz", "does not exist").severity == "error"
    assert len(findings) == 3


def test_empty_masks_and_constant_images_are_found(planter: Planter) -> None:
    image, label = scan(0)
    planter.write("A0", image, 0 * label)
    planter.write("B0", 0 * image + 3, label)
    findings = planter.check()
    only(findings, "A0_mask.nii.gz", "empty mask")
    only(findings, "B0.nii.gz", "constant")


def test_renamed_lacking_and_exchanged_labels_are_found(planter: Planter) -> None:
    image, label = scan(0)
    planter.write("A0", image, np.where(label == 2, 5, label).astype(np.uint8))
    assert only(planter.check(), "A0_mask.nii.gz", "value 5").severity == "error"
    planter.write("A0", image, label)
    for k in range(3):
        image, label = scan(10 + k)
        planter.write(f"B{k}", image, np.array([0, 2, 1], np.uint8)[label])
    finding = only(planter.check(), "", "seem exchanged")
    assert finding.site == "B"
    for k in range(3):
        image, label = scan(20 + k)
        planter.write(f"C{k}", image, (label > 0).astype(np.uint8))
    assert only(planter.check(), "", "holds the structure 'inner', other").site == "C"


def test_duplicate_subjects_and_images_are_found(planter: Planter) -> None:
    planter.rows["B0"]["subject"] = "A0"
    only(planter.check(), "B0.nii.gz", "subject 'A0', who is also at A")
    planter.rows["B0"]["subject"] = "B0"
    copied = (planter.folder / "A1.nii.gz").read_bytes()
    (planter.folder / "C1.nii.gz").write_bytes(copied)
    assert only(planter.check(), "C1.nii.gz", "pixel for pixel").severity == "error"
    # Twice of one subject, as with the labels of two raters, is in one split.
    image, label = scan(21)
    planter.write("C1", image, label)
    planter.write("C2", image, label)
    planter.rows["C2"]["subject"] = "C1"
    assert only(planter.check(), "C2.nii.gz", "pixel for pixel").severity == "warning"


def test_one_label_in_the_rows_of_two_subjects_is_found(planter: Planter) -> None:
    planter.rows["A1"]["label_path"] = planter.rows["A0"]["label_path"]
    (finding,) = planter.check()
    assert (finding.severity, finding.code, finding.site) == ("error", "label-twice", "A")
    assert finding.file.endswith("A0_mask.nii.gz")
    assert "A1.nii.gz (subject A1)" in finding.problem and "(subject A0," in finding.problem
    # One scan reconstructed twice shows the same, though not pixel for pixel.
    image, label = scan(0)
    first = planter.rows["A0"]["label_path"]
    planter.write("A1", image * 1.5 + 7, label)
    planter.rows["A1"]["label_path"] = first
    found = [finding for finding in planter.check() if finding.code == "label-twice"]
    assert [finding.severity for finding in found] == ["warning"]
    assert "look alike" in found[0].problem
    planter.write("A1", *scan(1))
    planter.rows["A1"]["label_path"] = first
    # Two images of one subject may have one label, and all healthy people one blank mask.
    planter.rows["A1"]["subject"] = "A0"
    assert planter.check() == []
    planter.rows["A1"]["subject"] = "A1"
    for name in ("A0", "B0"):
        image, label = scan(ord(name[0]))
        planter.write(name, image, np.zeros_like(label))
    for name in ("A1", "A2"):
        planter.rows[name]["label_path"] = planter.rows["A0"]["label_path"]
    found = planter.check(empty_masks="negative")
    assert "label-twice" not in {finding.code for finding in found}


def test_labels_that_the_grid_cuts_off_are_found(planter: Planter) -> None:
    image, label = np.zeros((80, 80, 2), np.float32), np.zeros((80, 80, 2), np.uint8)
    label[2:40, 30:50], label[10:14, 40:44] = 1, 2
    image += label + np.random.default_rng(0).normal(0, 0.1, label.shape)
    planter.write("A0", image.astype(np.float32), label)
    planter.rows["A0"]["spacing_mm"] = ""
    # Rows 24 to 55 of the first axis are kept of 80: 16 of 38 columns of the label.
    only(planter.check(), "A0_mask.nii.gz", "58% of its labelled pixels")


def test_an_image_cut_along_another_axis_than_its_site_is_found(planter: Planter) -> None:
    """Of a planned axis an error; who sets it by hand has decided; a near-isotropic one follows."""
    image, label = scan(0)
    planter.write("A0", image, label, affine=np.diag([1.0, 4.0, 1.0, 1.0]))
    planter.write("B0", *scan(10), affine=np.diag([1.0, 1.0, 1.1, 1.0]))
    for name in ("A0", "B0"):
        planter.rows[name]["spacing_mm"] = ""
    found = only(planter.check(slice_axis=2), "A0.nii.gz", "has coronal slices")
    assert found.severity == "warning"
    planned = planter.check(slice_axis=2, planned={"slice_axis": "they agree"})
    assert only(planned, "A0.nii.gz", "the federation's are axial").severity == "error"
    assert not [f for f in planned if "B0" in f.file]
    assert "cut across its own slices" in found.problem and "by hand" not in found.way_out
    # A single slice is never cut across: it does show another plane.
    planter.write("A0", image[:, :1], label[:, :1], affine=np.diag([1.0, 4.0, 1.0, 1.0]))
    only(planter.check(slice_axis=2), "A0.nii.gz", "would see another plane of the body")


def test_values_that_are_no_hounsfield_units_are_found(planter: Planter) -> None:
    for row in planter.rows.values():
        row["modality"] = "CT of the chest (HU)"
    for s, site in enumerate(SITES):
        for k in range(3):
            image, label = scan(10 * s + k)
            planter.write(f"{site}{k}", image * 10 - 900, label)
    image, label = scan(0)
    planter.write("A0", image, label)
    planter.rows["B0"]["modality"] = "MR"
    findings = planter.check(normalise="ct", window=[-100, 300])
    assert only(findings, "A0.nii.gz", "although air lies at -1000").code == "not-hounsfield"
    only(findings, "B0.nii.gz", "is said to be something else than CT")
    assert len(findings) == 3
    (mixed,) = planter.check()  # without a window
    assert (mixed.code, mixed.site) == ("modalities-mixed", "B")


def test_a_structure_that_no_label_shows_is_told_once(planter: Planter) -> None:
    (finding,) = planter.check(labels={"outer": 1, "inner": 2, "third": 3})
    assert (finding.code, finding.site) == ("structure-nowhere", "")
    # Also where the only site that is said to draw it does not.
    said = {"A": ["outer", "inner"], "B": ["outer", "inner"]}
    (finding,) = planter.check(labels={"outer": 1, "inner": 2, "third": 3}, annotates=said)
    assert finding.code == "structure-nowhere" and "'third'" in finding.problem


def test_a_site_without_a_usable_image_is_an_error(planter: Planter) -> None:
    for k in range(3):
        (planter.folder / f"A{k}.nii.gz").unlink()
    findings = planter.check()
    assert [(f.severity, f.code, f.site) for f in findings[:1]] == [("error", "site-empty", "A")]
    told = "none of its 3 images can be used (missing-file): "
    assert findings[0].problem.startswith(told) and "A0.nii.gz" in findings[0].problem
    assert [f.code for f in findings[1:]] == ["missing-file"] * 3


DATA = Path(os.environ.get("FEDSHIFT_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not here")
@pytest.mark.parametrize(
    ("folder", "rows", "config", "expected"),
    [
        ("spinal_cord_mri", 1, {"spacing_mm": 0.5}, set()),
        (
            "cardiac_cine_mri",
            5,
            {"site_pattern": "SC-(HF-NI|HF-I|HYP|N)-"},
            {"no known pixel spacing: distances are in pixels"},
        ),
        ("fetal_head_ultrasound", 4, {"spacing_mm": 1.0, "size": 192}, set()),
    ],
)
def test_real_images_raise_no_false_alarm(
    folder: str, rows: int, config: dict[str, object], expected: set[str], tmp_path: Path
) -> None:
    """Every ``rows``-th row of each set; that the cine slices' spacing is unknown is true."""
    source = DATA / folder / "MANIFEST.tsv"
    header, *lines = source.read_text().splitlines()
    for name in {line.split("\t")[0].split("/")[0] for line in lines} | {"labels"}:
        if (source.parent / name).exists():
            (tmp_path / name).symlink_to(source.parent / name)
    table = tmp_path / "table.tsv"
    table.write_text("\n".join([header, *lines[::rows]]) + "\n")
    data = DataSettings.from_config({"manifest": str(table), **config})
    findings = check(load_federation(MANIFEST, data, 0), data, 0)
    unexpected = [f for f in findings if not any(text in f.problem for text in expected)]
    assert unexpected == []
    assert len({f.site for f in findings}) == (4 if expected else 0)


@pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not here")
def test_a_flipped_real_volume_is_found(tmp_path: Path) -> None:
    source = DATA / "spinal_cord_mri" / "MANIFEST.tsv"
    header, *lines = source.read_text().splitlines()
    cells = dict(zip(header.split("\t"), lines[0].split("\t"), strict=True))
    label = nibabel.load(source.parent / cells["label_path"])
    flipped = np.ascontiguousarray(np.asarray(label.dataobj)[:, ::-1])
    nibabel.save(nibabel.Nifti1Image(flipped, label.affine), tmp_path / "mask.nii.gz")
    (tmp_path / "image.nii.gz").symlink_to(source.parent / cells["path"])
    table = tmp_path / "table.csv"
    table.write_text("path,label_path,site,subject\nimage.nii.gz,mask.nii.gz,UCL,one\n")
    data = DataSettings.from_config({"manifest": str(table)})
    (finding,) = check(load_federation(MANIFEST, data, 0), data, 0)
    assert "flipped top to bottom" in finding.problem
