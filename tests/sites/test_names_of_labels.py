"""Structures by the names that label files give to their values, whose numbers are arbitrary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from kit.cases import native_mask
from kit.dicom_labels import Scan, box, hand_made_seg, rtstruct, upright
from kit.measured import SEGMENTATION
from pydicom.uid import generate_uid

from fedshift import UserError
from fedshift.server.tables.files import read_cross_site
from fedshift.sites import DataSettings, Finding, check, load_federation, open_site
from fedshift.sites.findings import CODES
from fedshift.sites.types import Federation, SiteData

SIZE, SLICES = 24, 2
AFFINE = np.diag([1.0, 1.0, 4.0, 1.0])
LIVER, HEART = (3, 4), (14, 13)
"""The first corner of each structure, 6 x 6 pixels on every slice."""


class Frame:
    """What :func:`rtstruct` asks of a scan: UIDs, and where a voxel lies in DICOM's mm."""

    def __init__(self) -> None:
        self.frame, self.series, self.study = generate_uid(), generate_uid(), generate_uid()

    def mm(self, voxels: np.ndarray) -> np.ndarray:
        return voxels * [-1.0, -1.0, 4.0]


def truth(*corners: tuple[tuple[int, int], int]) -> np.ndarray:
    """The label (i, j, k) that holds a value at each corner's square."""
    label = np.zeros((SIZE, SIZE, SLICES), np.uint8)
    for (i, j), value in corners:
        label[i : i + 6, j : j + 6] = value
    return label


ORGANS = truth((LIVER, 1), (HEART, 2))


def squares(corner: tuple[int, int]) -> list[np.ndarray]:
    (i, j) = corner
    return [box(k, (i - 0.5, j - 0.5), (i + 5.5, j + 5.5)) for k in range(SLICES)]


class Hospital:
    """A table and its files; every image is other noise over the same two organs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []
        self.table = folder / "table.tsv"

    def add(self, site: str, suffix: str, **cells: str) -> Path:
        """One more subject of ``site``; the label's file is to be written by the caller."""
        number = len(self.rows)
        rng = np.random.default_rng(number)
        image = rng.normal(0, 0.05, ORGANS.shape) + ORGANS
        path = self.folder / f"i{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), AFFINE), path)
        label = self.folder / f"l{number}{suffix}"
        row = {"path": path.name, "label_path": label.name, "site": site, "subject": f"s{number}"}
        self.rows.append(row | cells)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [columns, *([row.get(key, "") for key in columns] for row in self.rows)]
        self.table.write_text("".join("\t".join(line) + "\n" for line in lines))
        return label

    def contours(
        self, site: str, rois: Mapping[int, tuple[str, tuple[int, int] | None]], **cells: str
    ) -> None:
        """A subject drawn as RTSTRUCT; a structure without a corner has no contour."""
        drawn = {n: (name, squares(at) if at else []) for n, (name, at) in rois.items()}
        rtstruct(Frame(), self.add(site, ".dcm", **cells), drawn)  # type: ignore[arg-type]

    def segments(self, site: str, label: np.ndarray, names: Mapping[int, str]) -> None:
        """A subject drawn in 3D Slicer, or saved as plain NRRD without names."""
        header: dict[str, Any] = {
            "space": "right-anterior-superior",
            "space directions": AFFINE[:3, :3],
            "space origin": AFFINE[:3, 3],
        }
        for k, (value, name) in enumerate(names.items()):
            header |= {f"Segment{k}_LabelValue": str(value), f"Segment{k}_Name": name}
        nrrd.write(str(self.add(site, ".seg.nrrd")), label, header)

    def values(self, site: str, label: np.ndarray, **cells: str) -> None:
        """A subject whose label is NIfTI, which brings no names."""
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), self.add(site, ".nii.gz", **cells))

    def load(self, **settings: Any) -> tuple[Federation, DataSettings]:
        config = {"manifest": str(self.table), "size": SIZE, "cache": str(self.folder / "cache")}
        data = DataSettings.from_config({**config, **settings})
        return load_federation({"kind": "manifest"}, data, 0), data

    def open(self, site: str, **settings: Any) -> SiteData:
        federation, data = self.load(**settings)
        return open_site(federation.site(site), federation.parts, data, 0)

    def check(self, **settings: Any) -> list[Finding]:
        federation, data = self.load(**settings)
        return check(federation, data, 0)

    def told(self, **settings: Any) -> list[tuple[str, ...] | None]:
        """By image, the structures that its label tells of."""
        federation, _ = self.load(**settings)
        return [image.annotates for site in federation.sites for image in site.images]


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    return Hospital(tmp_path)


def references(data: SiteData) -> list[np.ndarray]:
    """Every label by class, back in the order of the files' axes."""
    cases = [case for split in data.splits.values() for case in split]
    return [native_mask(case).transpose(2, 1, 0)[::-1, ::-1] for case in cases if case.labels]


def codes(findings: Sequence[Finding]) -> list[str]:
    return [finding.code for finding in findings]


NAMED = {"liver": ["Liver", "LIVER_L"], "heart": "Herz"}


def test_numbers_that_differ_by_patient_come_to_the_class_of_their_name(hospital: Hospital) -> None:
    numbered = ((3, 7), (7, 3), (1, 2), (12, 5), (3, 9), (2, 1))
    for number, (liver, heart) in enumerate(numbered):
        names = ("Liver", "liver ", "LIVER_L")[number % 3], ("Herz", "HERZ")[number % 2]
        rois = {liver: (names[0], LIVER), heart: (names[1], HEART)}
        hospital.contours("AB"[number % 2], dict(sorted(rois.items())))
    assert hospital.check(labels=NAMED) == []
    for site in "AB":
        found = references(hospital.open(site, labels=NAMED))
        assert len(found) == 3
        assert all(np.array_equal(one, ORGANS) for one in found)
    # The same numbers without names would teach the heart as the liver.
    assert "names-differ" in codes(hospital.check(labels={"liver": 3, "heart": 7}))


def test_without_data_labels_names_that_differ_in_case_and_spaces_are_one(
    hospital: Hospital,
) -> None:
    for number in range(4):
        swapped = number % 2
        rois = {
            1 + swapped: ("Liver", LIVER),
            2 - swapped: ("Heart" if swapped else "heart ", HEART),
        }
        hospital.contours("A", dict(sorted(rois.items())))
    assert hospital.check() == []
    federation, _ = hospital.load()
    assert [name.lower() for name in federation.parts] == ["liver", "heart"]
    assert all(np.array_equal(one, ORGANS) for one in references(hospital.open("A")))


def test_names_and_values_side_by_side(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.contours("A", {4: ("Liver", LIVER), 9: ("Milz", HEART)})
        hospital.values("B", truth((LIVER, 3), (HEART, 8)))
        hospital.values("C", truth((LIVER, 3)))
    labels: dict[str, Any] = {"liver": ["Liver", 3], "spleen": ["Milz", 8]}
    assert codes(hospital.check(labels=labels)) == ["structure-unsaid"]  # C, by values alone
    for site in "AB":
        found = references(hospital.open(site, labels=labels))
        assert found and all(np.array_equal(one, ORGANS) for one in found)
    # A structure without a value cannot be told from a file that has nothing else.
    by_name = {"liver": ["Liver", 3], "spleen": "Milz", "background": 8}
    assert hospital.told(labels=by_name) == [None] * 3 + [("liver",)] * 6
    assert hospital.check(labels=by_name) == []


def test_a_value_without_a_name_and_names_without_values_are_asked_about(
    hospital: Hospital,
) -> None:
    hospital.contours("A", {4: ("Liver", LIVER)})
    hospital.values("A", truth((LIVER, 4)))
    with pytest.raises(UserError, match=r"l0\.dcm names its structures and .*l1\.nii\.gz does not"):
        hospital.load()


def test_a_number_whose_names_differ_is_refused_with_both_files(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.contours("A", {1: ("Liver", LIVER), 2: ("Heart", HEART)})
    hospital.contours("A", {1: ("Heart", HEART), 2: ("LIVER", LIVER)})
    found = hospital.check(labels={"organ": 1, "other": 2})
    first, second = [finding for finding in found if finding.code == "names-differ"]
    assert first.severity == "error" and first.file.endswith("l3.dcm") and first.row == 5
    for word in ("the value 1 'Heart'", "l0.dcm calls it 'Liver'", "both would be 'organ'"):
        assert word in first.problem
    assert "data.labels={organ: [Liver, ...], ...}" in first.way_out
    assert "the value 2 'LIVER'" in second.problem
    # Names give the way out, and one name for both is no difference.
    assert hospital.check(labels={"organ": "liver", "other": "heart"}) == []


def test_one_file_is_enough_where_its_names_speak_against_the_values(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.contours("A", {3: ("Heart", HEART), 5: ("Liver", LIVER)})
    crossed = hospital.check(labels={"liver": 3, "heart": 5})
    assert codes(crossed) == ["names-differ"] * 6
    assert "calls the value 3 'Heart', and would be 'liver' by its value" in crossed[0].problem
    # A value that is for files without names must not catch another organ here.
    mixed: dict[str, Any] = {"liver": ["Liver", 3]}
    assert codes(hospital.check(labels=mixed)) == ["names-differ"] * 3
    settled = {**mixed, "background": "Heart"}
    assert hospital.check(labels=settled) == []
    found = references(hospital.open("A", labels=settled))
    assert all(np.array_equal(one, truth((LIVER, 1))) for one in found)


def test_names_against_label_values(hospital: Hospital) -> None:
    for name in ("Liver", "Liver", "Heart"):
        hospital.contours("A", {1: (name, LIVER)}, label_values="1=organ")
    (finding,) = hospital.check()
    assert finding.code == "names-differ" and "l2.dcm" in finding.file
    assert "'Heart'" in finding.problem and "'Liver'" in finding.problem
    # Rows may give one structure other values; its name in the files is still one.
    hospital.contours("A", {6: ("Spleen", LIVER)}, label_values="6=organ")
    found = [finding for finding in hospital.check() if finding.code == "names-differ"]
    assert len(found) == 2 and "calls the value 6 'Spleen'" in found[1].problem


def test_the_values_of_one_structure_have_names_of_their_own(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.contours("A", {1: ("left", LIVER), 2: ("right", HEART)})
    assert hospital.check(labels={"lung": [1, 2]}) == []
    hospital.contours("A", {1: ("right", LIVER), 2: ("left", HEART)})
    assert codes(hospital.check(labels={"lung": [1, 2]})) == ["names-differ"] * 2
    assert hospital.check(labels={"lung": ["left", "right"]}) == []


def test_what_is_listed_without_voxels_may_have_any_number(hospital: Hospital) -> None:
    for empty in (70000, -1, 0):
        hospital.contours("A", {2: ("liver", LIVER), empty: ("heart", None)})
    labels = {"liver": "liver", "heart": "heart"}
    found = references(hospital.open("A", labels=labels))
    assert len(found) == 3 and all(np.array_equal(one, truth((LIVER, 1))) for one in found)


def test_a_segment_without_frames_is_listed(tmp_path: Path) -> None:
    scan = Scan(tmp_path / "ct", np.eye(3))
    frames = [(1, upright(k), np.ones((4, 5), bool)) for k in range(3)]
    path = hand_made_seg(scan, tmp_path / "s.dcm", frames, ["liver", "spleen"])
    rows = f"path\tlabel_path\tsite\tsubject\nct\t{path.name}\tA\t1\n"
    (tmp_path / "table.tsv").write_text(rows)
    config = {"manifest": str(tmp_path / "table.tsv"), "cache": str(tmp_path / "cache")}
    for labels, told in (
        ({"a": "liver", "b": "Spleen"}, None),
        ({"a": 1, "b": 2}, None),
        ({"a": "liver", "b": "spleen", "c": "kidney"}, ("a", "b")),
        ({"a": 1, "b": 2, "c": 3}, ("a", "b")),
    ):
        data = DataSettings.from_config({**config, "labels": labels})
        federation = load_federation({"kind": "manifest"}, data, 0)
        assert federation.sites[0].images[0].annotates == told


def test_a_file_tells_of_what_it_lists_and_no_more(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.contours("A", {4: ("liver", LIVER)})
        hospital.contours("B", {4: ("heart", HEART)})
        hospital.segments("C", ORGANS, {1: "Liver", 2: "heart"})
        hospital.segments("D", truth((HEART, 5)), {5: "heart"})
    expected = [("liver",)] * 3 + [("heart",)] * 3 + [None] * 3 + [("heart",)] * 3
    by_name = {"liver": "liver", "heart": "Heart"}
    for settings in ({}, {"labels": by_name}):
        assert hospital.told(**settings) == expected
        assert hospital.check(**settings) == []
    site = hospital.open("A", labels=by_name)
    assert {case.annotates for split in site.splits.values() for case in split} == {(1,)}
    (note,) = site.notes
    assert "annotates liver only, in 3 of 3 images" in note
    # By value: 4 stands in A's files alone, and B's call the same value otherwise.
    assert hospital.told(labels={"liver": [1, 4], "heart": [2, 5]})[:3] == [("liver",)] * 3


def test_settings_and_columns_win_over_the_files_own_names(hospital: Hospital) -> None:
    hospital.contours("A", {4: ("liver", LIVER)}, annotates="liver; heart")
    hospital.contours("A", {4: ("liver", LIVER)}, annotates="")
    hospital.contours("B", {4: ("liver", LIVER), 5: ("heart", HEART)}, annotates="heart")
    labels = {"liver": "liver", "heart": "heart"}
    assert hospital.told(labels=labels) == [None, ("liver",), ("heart",)]
    whole = {"A": ["liver", "heart"], "B": ["liver"]}
    assert hospital.told(labels=labels, annotates=whole) == [None, None, ("liver",)]


def test_what_is_listed_and_not_drawn_was_looked_at_and_is_told(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.contours("A", {4: ("liver", LIVER), 5: ("heart", HEART)})
    hospital.contours("A", {4: ("liver", LIVER), 5: ("heart", None)})
    hospital.segments("A", truth((LIVER, 1)), {1: "liver", 2: "heart"})
    labels = {"liver": "liver", "heart": "heart"}
    for settings in ({}, {"labels": labels}):
        assert hospital.told(**settings) == [None] * 5
        empty = [f for f in hospital.check(**settings) if f.code == "structure-empty"]
        assert [Path(finding.file).name for finding in empty] == ["l3.dcm", "l4.seg.nrrd"]
        assert all("lists 'heart' and draws nothing of it" in finding.problem for finding in empty)
    found = references(hospital.open("A", labels=labels))
    assert sorted(int((one == 2).sum()) for one in found) == [0, 0, 72, 72, 72]
    # Whoever says what was drawn is not asked.
    assert not {"structure-empty"} & {*codes(hospital.check(annotates={"A": ["liver"]}))}


def test_a_label_that_tells_of_no_structure_is_an_error_and_left_out(hospital: Hospital) -> None:
    for _ in range(4):
        hospital.contours("A", {4: ("liver", LIVER)})
    hospital.contours("A", {4: ("kidney", HEART)})
    hospital.values("A", truth((LIVER, 4)))
    found = hospital.check(labels={"liver": "liver"})
    named, valued = [finding for finding in found if finding.code == "no-structure"]
    assert named.severity == valued.severity == "error"
    assert "names 'kidney', and no structure of the federation" in named.problem
    assert "does not name its values" in valued.problem
    site = hospital.open("A", labels={"liver": "liver"})
    assert sum(len(cases) for cases in site.splits.values()) == 4
    assert "left out: 2 of 6 images (row 6: no-structure and row 7: no-structure)" in site.notes
    # Said to be looked at, it is an empty mask like any other.
    said = {"labels": {"liver": "liver"}, "annotates": {"A": ["liver"]}}
    assert "no-structure" not in codes(hospital.check(**said))


def test_near_misses_are_told(hospital: Hospital) -> None:
    for name in ("Liver", "Liver", "Lliver"):
        hospital.contours("A", {4: (name, LIVER), 5: ("PTV1", HEART)})
    hospital.contours("A", {4: ("Kidney_R", LIVER), 6: ("Kidney_L", HEART)})
    hospital.contours("A", {4: ("Kidney_R", LIVER), 5: ("PTV2", HEART)})
    (finding,) = [one for one in hospital.check() if one.code == "names-alike"]
    assert finding.severity == "warning" and finding.file.endswith("l2.dcm")
    assert "names 'Lliver' and" in finding.problem and "l0.dcm names 'Liver'" in finding.problem
    labels: dict[str, Any] = {"hepar": "Liver", "target": ["PTV1", "PTV2"]}
    (finding,) = [one for one in hospital.check(labels=labels) if one.code == "names-alike"]
    assert "names 'Lliver', which data.labels does not, though it names 'Liver'" in finding.problem
    labels["hepar"] = ["Liver", "Lliver"]
    assert "names-alike" not in codes(hospital.check(labels=labels))


def test_near_misses_in_label_values_are_told(hospital: Hospital) -> None:
    for name in ("liver", "liver", "livver"):
        hospital.values("A", truth((LIVER, 1)), label_values=f"1={name}")
    (finding,) = [one for one in hospital.check() if one.code == "names-alike"]
    assert "'livver'" in finding.problem and "label_values" in finding.way_out


def test_one_name_given_twice_in_a_file_is_told(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.contours("A", {4: ("liver", LIVER), 6: ("Liver", HEART)})
    found = hospital.check(labels={"liver": "liver"})
    assert codes(found) == ["name-twice"] * 3
    assert "4 ('liver') and 6 ('Liver')" in found[0].problem


def test_a_value_outside_the_map_is_told_with_its_name(hospital: Hospital) -> None:
    for _ in range(3):
        hospital.segments("A", truth((LIVER, 2), (HEART, 7)), {2: "Liver", 7: "Heart"})
    found = hospital.check(labels={"liver": "liver"})
    assert codes(found) == ["value-outside"] * 3 and "7 ('Heart')" in found[0].problem
    with pytest.raises(UserError, match=r"7 \('Heart'\), which is in no structure"):
        hospital.open("A", labels={"liver": "liver"})
    site = hospital.open("A", labels={"liver": "liver", "background": "Heart"})
    assert all(np.array_equal(one, truth((LIVER, 1))) for one in references(site))


def test_names_in_the_setting() -> None:
    labels = DataSettings.from_config({"labels": {"liver": ["Liver ", "1-3"], "x": "B  c"}}).labels
    assert labels == {"liver": ("Liver", 1, 2, 3), "x": ("B c",)}
    with pytest.raises(UserError, match=r"gives the name liver to both a and b"):
        DataSettings.from_config({"labels": {"a": "Liver", "b": ["liver"]}})
    for bad in ("", None, True, ["a", 1.5]):
        with pytest.raises(UserError, match="whole numbers from 1 to 65535, or the names that"):
            DataSettings.from_config({"labels": {"a": bad}})


@pytest.mark.parametrize("text", ["3", "3-2", "1-70000"])
def test_a_number_in_quotation_marks_is_no_value_of_a_mask(hospital: Hospital, text: str) -> None:
    for _ in range(3):
        hospital.segments("A", truth((LIVER, 2)), {2: "Liver"})
    with pytest.raises(UserError, match=rf"data.labels.a is the text '{text}', and a mask has who"):
        hospital.check(labels={"a": text})


def test_every_code_is_known() -> None:
    told = ("names-differ", "names-alike", "name-twice", "structure-empty", "no-structure")
    assert {*told, "label-cropped"} <= {*CODES}


def test_a_run_learns_each_structure_by_its_name(hospital: Hospital, tmp_path: Path) -> None:

    from fedshift.protocol.lock import alone_in
    from fedshift.runs.config import load
    from fedshift.runs.simulate import run

    numbers = ((3, 7), (7, 3), (1, 2), (12, 5))
    for site in "ABC":
        for liver, heart in numbers:
            drawn = {liver: ("Liver", LIVER), heart: ("Heart", HEART)}
            if site != "C":  # Each of the sites that train names one organ alone.
                del drawn[heart if site == "A" else liver]
            hospital.contours(site, dict(sorted(drawn.items())))
    out = tmp_path / "out"
    overrides = [
        "federation=manifest",
        f"data.manifest={hospital.table}",
        "data.labels={liver: Liver, heart: Heart}",
        "data.size=24",
        "data.unseen_sites=[C]",
        "method.depth=2",
        "method.width=8",
        "method.batch=8",
        "rounds=8",
        "local_steps=12",
        "validate_every=0",
        "baselines=[]",
        "engine.devices=cpu",
        "engine.workers=1",
    ]
    with alone_in(out):
        run(out, load(overrides), drawn=False)
    dice = {
        row["part"]: float(row["mean"])
        for row in read_cross_site(out / "cross_site.csv", SEGMENTATION)
        if (row["model"], row["site"], row["metric"]) == ("global", "C", "dice")
    }
    assert dice["liver"] > 0.8 and dice["heart"] > 0.8
