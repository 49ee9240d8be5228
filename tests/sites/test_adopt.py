"""A table from a folder: small trees of every layout, drawn here."""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import os
import re
import shlex
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from kit.cases import mask as grid_mask
from kit.cases import native_mask
from kit.repository import ROOT
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
    generate_uid,
)

from fedshift import UserError
from fedshift.sites import DataSettings, adopt, load_federation, open_site
from fedshift.sites.labels.meaning import parse_label_values

MANIFEST = {"name": "m", "kind": "manifest"}


def volume(path: Path, seed: int = 0, shape: tuple[int, ...] = (12, 14, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).normal(10, 1, shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 4.0, 1.0])), path)


def mask(path: Path, values: int = 1, shape: tuple[int, ...] = (12, 14, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros(shape, np.uint8)
    for value in range(1, values + 1):
        array[2 * value : 2 * value + 2, 3:9] = value
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 4.0, 1.0])), path)


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8)
    Image.fromarray(pixels).save(path)


def touch(*paths: Path) -> None:
    """Empty files: what is done by names alone needs no more."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def text(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


class Adopter:
    """Adopts a folder and reads the table back, as anybody would."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "set"
        self.root.mkdir()
        self.out = folder / "MANIFEST.tsv"
        self.links: Path | None = None
        self.found = adopt.Adopted("none")

    def __call__(self, layout: str = "auto", **said: str | None) -> list[dict[str, str]]:
        _, key = adopt.key_for(self.out)
        options = adopt.Options.of(**said, key=key, links=self.links)
        self.found = adopt.adopt(self.root, layout, options)
        adopt.write(self.found, self.out, options, force=True)
        with self.out.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    def refused(self, *, layout: str = "auto", **said: str | None) -> str:
        with pytest.raises(UserError) as caught:
            self(layout, **said)
        return str(caught.value)

    def left_out(self) -> dict[str, list[str]]:
        return {reason: names for reason, names in self.found.left_out.items() if names}

    def opened(self, **config: Any) -> dict[str, Mapping[str, Any]]:
        """The sites of the table, loaded and opened: their names and labelled slices."""
        given = {"manifest": str(self.out), "size": 16, "cache": str(self.out.parent / "cache")}
        data = DataSettings.from_config(given | config)
        federation = load_federation(MANIFEST, data, 0)
        opened: dict[str, Mapping[str, Any]] = {}
        for site in federation.sites:
            cases = [
                case
                for split in open_site(site, federation.parts, data, 0).splits.values()
                for case in split
            ]
            opened[site.name] = {
                "structures": federation.parts,
                "subjects": {case.subject for case in cases},
                "drawn": {int((native_mask(c) > 0).sum()) for c in cases if c.labels},
                "values": {int(v) for c in cases if c.labels for v in np.unique(grid_mask(c))},
            }
        return opened


@pytest.fixture
def adopter(tmp_path: Path) -> Adopter:
    return Adopter(tmp_path)


def bids(root: Path) -> None:
    """Two hospitals, a T1w and a T2w image a subject, masks of the T2w in derivatives."""
    text(
        root / "participants.tsv", "participant_id\tage\tsite\nsub-01\t30\tUlm\nsub-02\t31\tGraz\n"
    )
    text(root / "T2w.json", {"Manufacturer": "Siemens", "MagneticFieldStrength": 3})
    for k, person in enumerate(("sub-01", "sub-02")):
        for session in ("a", "b"):
            where, name = root / person / f"ses-{session}" / "anat", f"{person}_ses-{session}"
            volume(where / f"{name}_T1w.nii.gz", k)
            volume(where / f"{name}_T2w.nii.gz", k + 5)
            drawn = root / "derivatives/manual" / person / f"ses-{session}" / "anat"
            mask(drawn / f"{name}_space-T2w_desc-expert_dseg.nii.gz", 2)
    side = {
        "Manufacturer": "Philips",
        "ManufacturersModelName": "Ingenia",
        "ConvolutionKernel": "k",
    }
    text(root / "sub-02/sub-02_T2w.json", side)
    table = "index\tname\n0\tBackground\n1\tgrey matter (left, right)\n2\twhite matter\n"
    text(root / "derivatives/manual/desc-expert_dseg.tsv", table)


def test_bids_gives_sites_sessions_inherited_sidecars_and_masks_of_one_sequence(
    adopter: Adopter,
) -> None:
    bids(adopter.root)
    assert "T1w (4), T2w (4)" in adopter.refused()
    rows = adopter(sequence="T2w")
    assert [row["subject"] for row in rows] == ["sub-01", "sub-01", "sub-02", "sub-02"]
    assert [row["site"] for row in rows] == ["Ulm", "Ulm", "Graz", "Graz"]
    assert [row["session"] for row in rows] == ["a", "b", "a", "b"]
    assert [row["vendor"] for row in rows] == ["Siemens", "Siemens", "Philips", "Philips"]
    assert [row["field_T"] for row in rows] == ["3"] * 4  # from the root, where not said nearer
    assert [row["kernel"] for row in rows] == ["", "", "k", "k"]
    for row in rows:
        name = f"{row['subject']}_ses-{row['session']}"
        assert row["path"].endswith(f"anat/{name}_T2w.nii.gz")
        assert row["label_path"].endswith(f"anat/{name}_space-T2w_desc-expert_dseg.nii.gz")
        meanings = parse_label_values(row["label_values"], "here")
        assert meanings == {1: "grey matter left right", 2: "white matter"}
    assert len(adopter.left_out()["images of other sequences"]) == 4
    opened = adopter.opened()
    assert set(opened) == {"Graz", "Ulm"}
    assert opened["Ulm"]["subjects"] == {"sub-01"}
    assert opened["Ulm"]["values"] == {0, 1, 2}
    assert set(adopter.opened(site_column="vendor")) == {"Philips", "Siemens"}


def test_bids_masks_in_another_space_are_left_out_and_several_kinds_are_asked_for(
    adopter: Adopter,
) -> None:
    for person in ("sub-1", "sub-2"):
        touch(adopter.root / person / f"{person}_T1w.nii.gz")
        drawn = adopter.root / "derivatives/drawn" / person
        for kind in ("label-GM_mask", "label-WM_mask", "space-MNI152_label-GM_mask"):
            touch(drawn / f"{person}_{kind}.nii.gz")
    asked = adopter.refused(site="x")
    assert "drawn/label-GM_mask (2)" in asked and "--label" in asked
    rows = adopter(site="x", label="label-WM")
    assert [row["label_values"] for row in rows] == ["0=background,1=WM"] * 2
    assert all(row["label_path"].endswith("label-WM_mask.nii.gz") for row in rows)
    assert len(adopter.left_out()["masks in another space than their image's"]) == 2


def test_a_bids_mask_that_names_no_sequence_is_a_printed_guess_and_runs_are_kept_apart(
    adopter: Adopter,
) -> None:
    for run in ("1", "2"):
        touch(adopter.root / f"sub-1/anat/sub-1_run-{run}_T1w.nii.gz")
        touch(adopter.root / f"sub-1/anat/sub-1_run-{run}_dseg.nii.gz")
    touch(adopter.root / "sub-1/anat/sub-1_run-1_T2w.nii.gz")
    touch(adopter.root / "sub-1/anat/sub-1_T2w_seg-manual.nii.gz")
    rows = adopter(sequence="T1w", site="x")
    assert [re.findall(r"run-\d", row["path"] + row["label_path"]) for row in rows] == [
        ["run-1", "run-1"],
        ["run-2", "run-2"],
    ]
    (guessed,) = adopter.found.guesses.values()
    # Run 2 has one image that its mask can be of; run 1 has two.
    assert [Path(name).name for name in guessed] == ["sub-1_run-1_dseg.nii.gz"]
    rows = adopter(sequence="T2w", site="x", label="seg-manual")
    assert rows[0]["label_path"].endswith("sub-1_T2w_seg-manual.nii.gz")


def test_a_bids_mask_goes_to_the_image_that_it_names_and_no_other(adopter: Adopter) -> None:
    where = adopter.root / "sub-1"
    touch(*(where / f"sub-1_{end}.nii.gz" for end in ("T2w", "acq-fat_T2w", "T1w")))
    touch(*(where / f"sub-1_{end}.nii.gz" for end in ("T2w_seg", "acq-fat_T2w_seg", "T1w_seg")))
    pairs = {row["path"]: row["label_path"] for row in adopter(sequence="T2w", site="x")}
    assert {Path(a).name: Path(b).name for a, b in pairs.items()} == {
        "sub-1_T2w.nii.gz": "sub-1_T2w_seg.nii.gz",
        "sub-1_acq-fat_T2w.nii.gz": "sub-1_acq-fat_T2w_seg.nii.gz",
    }
    (row,) = adopter(sequence="acq-fat_T2w", site="x")
    assert row["label_path"].endswith("acq-fat_T2w_seg.nii.gz")
    assert adopter.left_out()["masks of images that were not taken"] == [
        "sub-1/sub-1_T1w_seg.nii.gz",
        "sub-1/sub-1_T2w_seg.nii.gz",
    ]
    (where / "sub-1_acq-fat_T2w_seg.nii.gz").unlink()
    (row,) = adopter(sequence="acq-fat_T2w", site="x")
    assert row["label_path"] == ""  # the mask of the plain T2w is not its own


def nnunet(root: Path, said: Mapping[str, Any]) -> None:
    text(root / "dataset.json", said)
    for k, case in enumerate(("ulm_1", "ulm_2", "graz_1", "graz_2")):
        volume(root / f"imagesTr/{case}_0000.nii.gz", k)
        volume(root / f"imagesTr/{case}_0001.nii.gz", k + 9)
        mask(root / f"labelsTr/{case}.nii.gz")


@pytest.mark.parametrize(
    "said",
    [
        {"modality": {"0": "T1", "1": "T2"}, "labels": {"0": "background", "1": "node"}},
        {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "node": 1}},
    ],
    ids=["version 1", "version 2"],
)
def test_nnunet_gives_one_channel_with_its_labels_and_asks_who(
    adopter: Adopter, said: Mapping[str, Any]
) -> None:
    nnunet(adopter.root, said)
    touch(adopter.root / "imagesTs/bonn_1_0001.nii.gz", adopter.root / "labelsTr/lost.nii.gz")
    assert "T1 (4), T2 (5)" in adopter.refused()
    asked = adopter.refused(sequence="T2")
    assert "the subject and the site of 5 of 5 images" in asked and "--subject REGEX" in asked
    pattern = r"/(?P<site>[a-z]+)_(?P<subject>\d)_0001"
    by_name, by_number = (
        adopter(sequence="t2", pattern=pattern),
        adopter(sequence="1", pattern=pattern),
    )
    assert by_name == by_number
    assert {row["sequence"] for row in by_name} == {"T2"}
    assert [(row["site"], row["subject"]) for row in by_name] == [
        ("graz", "1"),
        ("graz", "2"),
        ("ulm", "1"),
        ("ulm", "2"),
        ("bonn", "1"),
    ]
    assert [row["part"] for row in by_name] == ["training"] * 4 + ["testing"]
    assert by_name[0]["label_path"].endswith("labelsTr/graz_1.nii.gz")
    assert by_name[4]["label_path"] == "" and by_name[4]["label_values"] == ""
    assert adopter.left_out()["labels without an image"] == ["labelsTr/lost.nii.gz"]
    assert "3 subjects" not in " ".join(adopter.found.notes)
    assert "2 subjects stand at several sites" in " ".join(adopter.found.notes)
    opened = adopter.opened(sites=["graz", "ulm"])
    assert opened["graz"]["structures"] == ("node",)
    assert opened["graz"]["values"] == {0, 1}


def test_nnunet_keeps_its_ignored_value_and_sets_beside_each_other_their_own_names(
    adopter: Adopter,
) -> None:
    for name, labels in (
        ("Dataset001_a", {"background": 0, "node": 1, "ignore": 2}),
        ("Dataset002_b", {"background": 0, "other": 1, "node": 3}),
    ):
        text(adopter.root / name / "dataset.json", {"channel_names": {"0": "CT"}, "labels": labels})
        touch(adopter.root / name / "imagesTr/p_0000.nrrd", adopter.root / name / "labelsTr/p.nrrd")
    rows = adopter(pattern=r"Dataset\d+_(?P<site>\w)/.*/(?P<subject>p)_")
    assert [(row["site"], row["label_values"]) for row in rows] == [
        ("a", "0=background,1=node,2=ignore"),
        ("b", "0=background,1=other,3=node"),
    ]


def test_nnunet_may_list_its_files_and_what_is_not_there_is_told(adopter: Adopter) -> None:
    case = {"images": ["../pool/a.png", "../pool/b.png"], "label": "../pool/a_l.png"}
    lost = {"images": ["../pool/c.png"], "label": "../pool/c_l.png"}
    said = {"channel_names": {"0": "red", "1": "blue"}, "labels": {"background": 0, "node": 1}}
    listed = {**said, "dataset": {"a": case, "c": lost, "d": {**case, "label": "../pool/d_l.png"}}}
    text(adopter.root / "S/dataset.json", listed)
    touch(*(adopter.root / "pool" / name for name in ("a.png", "b.png", "a_l.png")))
    (row,) = adopter(sequence="blue", site="x", subject=r"\w(?=\.png)")
    assert row["path"].endswith("pool/b.png") and row["label_path"].endswith("pool/a_l.png")
    left = adopter.left_out()
    assert len(left["images that dataset.json lists and that are not here"]) == 1
    assert left["images that are named twice"] == ["pool/b.png"]
    assert set(left["images of other channels"]) == {"pool/a.png"}
    assert "image files that the layout has no place for" not in left


def test_nnunet_regions_are_told_and_given_no_single_value(adopter: Adopter) -> None:
    said = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "whole": [1, 2], "core": [2]}}
    text(adopter.root / "dataset.json", said)
    touch(adopter.root / "imagesTr/a_0000.nii.gz", adopter.root / "labelsTr/a.nii.gz")
    rows = adopter(site="x", subject=r"/(a)_")
    assert "label_values" not in rows[0]
    assert "regions" in adopter.found.notes[0] and "data.labels" in adopter.found.notes[0]


def test_a_label_that_a_list_gives_two_names_is_refused(adopter: Adopter) -> None:
    touch(adopter.root / "imagesTr/a_0000.nii.gz", adopter.root / "labelsTr/a.nii.gz")
    (adopter.root / "dataset.json").write_text(
        '{"channel_names": {"0": "CT"}, "labels": {"1": "liver", "1": "spleen"}}'
    )
    with pytest.raises(UserError, match=r"\(an object has the key '1' twice\); mend it"):
        adopter(site="x", subject=r"/(a)_")


def test_the_decathlon_is_read_by_its_list_and_4d_files_are_left_out(adopter: Adopter) -> None:
    entries = [
        {"image": f"./imagesTr/la_{k}.nii.gz", "label": f"./labelsTr/la_{k}.nii.gz"}
        for k in range(4)
    ]
    said = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "left atrium"}}
    text(
        adopter.root / "dataset.json",
        {**said, "training": entries, "test": ["imagesTs/la_9.nii.gz"]},
    )
    volume(adopter.root / "imagesTr/la_0.nii.gz")
    volume(adopter.root / "imagesTr/la_1.nii.gz", shape=(6, 6, 4, 2))
    volume(adopter.root / "imagesTr/la_2.nii.gz", shape=(6, 6, 4, 1))
    mask(adopter.root / "labelsTr/la_0.nii.gz")
    rows = adopter(site="x", subject=r"la_\d+")
    assert [(row["subject"], bool(row["label_path"])) for row in rows] == [
        ("la_0", True),
        ("la_2", False),
    ]
    assert rows[0]["label_values"] == "0=background,1=left atrium" and rows[0]["sequence"] == "MRI"
    left = adopter.left_out()
    assert left["images that dataset.json lists and that are not here"] == [
        "imagesTr/la_3.nii.gz",
        "imagesTs/la_9.nii.gz",
    ]
    assert left["4-D files (one volume a file is read; split them)"] == ["imagesTr/la_1.nii.gz"]


def test_a_monai_datalist_is_a_folders_or_named_itself(adopter: Adopter) -> None:
    entry = {"image": ["i/1.nii.gz", "i/2.nii.gz"], "label": "l/1.nii.gz", "subject_id": "s1"}
    lost = {"image": ["i/3.nii.gz", "i/4.nii.gz"], "label": "l/3.nii.gz"}
    entry["label"] = "l\\1.nii.gz"  # a list made on Windows
    text(adopter.root / "split.json", {"training": [{**entry, "fold": 2}], "validation": [lost]})
    touch(*(adopter.root / name for name in ("i/1.nii.gz", "i/2.nii.gz", "l/1.nii.gz")))
    assert "--sequence" in adopter.refused(site="x")
    (row,) = adopter(site="x", sequence="1")
    assert row["path"].endswith("i/2.nii.gz") and row["label_path"].endswith("l/1.nii.gz")
    assert (row["subject"], row["part"], row["fold"]) == ("s1", "training", "2")
    assert len(adopter.left_out()["images that the list names and that are not here"]) == 1
    text(adopter.root / "other.json", {"testing": [entry]})
    assert "name the file" in adopter.refused(site="x", sequence="1")
    adopter.root /= "other.json"
    (row,) = adopter(site="x", sequence="0")
    assert row["part"] == "test" and row["path"].endswith("i/1.nii.gz")


def dicom(path: Path, uid: str, **tags: Any) -> FileDataset:
    """A DICOM file with a header and no pixels: an adopter that read pixels would fail."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = tags.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID = meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID = uid
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)
    return data


def item(**tags: Any) -> Dataset:
    data = Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def hospital(root: Path) -> dict[str, str]:
    """Doe in two studies (the later one listed first), Roe in one; a SEG and an RTSTRUCT."""
    studies = {
        "x2": ("Doe 7", "20200301", "B30f"),
        "x1": ("Doe 7", "20190101", "B60f"),
        "y": ("Roe 8", "20180505", "B30f"),
    }
    uids = {name: str(generate_uid()) for name in studies}
    for name, (patient, date, kernel) in studies.items():
        common = {
            "PatientID": patient,
            "StudyInstanceUID": f"1.2.{len(name)}.{ord(name[0])}{ord(name[-1])}",
            "StudyDate": date,
            "InstitutionName": "Ulm",
        }
        for k in range(2):
            dicom(
                root / name / "ct" / f"{k}",
                uids[name],
                **common,
                Modality="CT",
                Rows=4,
                Columns=4,
                Manufacturer="ACME",
                ManufacturerModelName="Scan 3",
                ConvolutionKernel=kernel,
                SeriesDescription="Thorax",
            )
    seg = item(SegmentNumber=1, SegmentLabel="Lung, left")
    dicom(
        root / "labels/seg.dcm",
        generate_uid(),
        SOPClassUID=SegmentationStorage,
        Modality="SEG",
        Rows=4,
        PatientID="Doe 7",
        ReferencedSeriesSequence=[item(SeriesInstanceUID=uids["x1"])],
        SegmentSequence=[seg],
    )
    series = item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=uids["y"])])
    dicom(
        root / "labels/rt.dcm",
        generate_uid(),
        SOPClassUID=RTStructureSetStorage,
        Modality="RTSTRUCT",
        ReferencedFrameOfReferenceSequence=[item(RTReferencedStudySequence=[series])],
        StructureSetROISequence=[item(ROINumber=1, ROIName="Lung, left")],
    )
    dicom(root / "labels/report.dcm", generate_uid(), Modality="SR")
    return uids


def test_dicom_series_are_joined_to_their_labels_and_patients_become_pseudonyms(
    adopter: Adopter,
) -> None:
    hospital(adopter.root)
    rows = {Path(row["path"]).parent.name: row for row in adopter()}
    assert set(rows) == {"x1", "x2", "y"}
    assert all(Path(row["path"]).name == "ct" for row in rows.values())
    assert rows["x1"]["label_path"].endswith("labels/seg.dcm")
    assert rows["y"]["label_path"].endswith("labels/rt.dcm")
    assert rows["x2"]["label_path"] == ""
    assert rows["x1"]["label_values"] == rows["y"]["label_values"] == "0=background,1=Lung left"
    assert (rows["x1"]["session"], rows["x2"]["session"], rows["y"]["session"]) == ("1", "2", "1")
    assert [rows[n]["kernel"] for n in ("x1", "x2", "y")] == ["B60f", "B30f", "B30f"]
    assert {row["vendor"] for row in rows.values()} == {"ACME"}
    assert {row["site"] for row in rows.values()} == {"Ulm"}
    key_file = adopter.out.with_suffix(".key")
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    key = bytes.fromhex(key_file.read_text())
    right = "p-" + hmac.new(key, b"Doe 7", hashlib.sha256).hexdigest()[:16]
    assert rows["x1"]["subject"] == rows["x2"]["subject"] == right != rows["y"]["subject"]
    table = adopter.out.read_text()
    assert not any(word in table for word in ("Doe", "Roe", "2019", "2020"))
    assert len(adopter.left_out()["DICOM files that are no images (reports, plans, doses)"]) == 1
    again = {Path(row["path"]).parent.name: row["subject"] for row in adopter()}
    assert again["x1"] == right  # the key that is kept gives the same pseudonyms
    key_file.write_text("lost")
    assert "holds no key" in adopter.refused()


def test_several_series_a_study_or_labels_a_series_are_asked_for(adopter: Adopter) -> None:
    uids = hospital(adopter.root)
    dicom(
        adopter.root / "x1/scout.dcm",
        generate_uid(),
        Modality="CT",
        Rows=4,
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    thin = generate_uid()
    study = pydicom.dcmread(adopter.root / "x1/ct/0").StudyInstanceUID
    common = {"Modality": "CT", "Rows": 4, "StudyInstanceUID": study, "InstitutionName": "Ulm"}
    dicom(adopter.root / "x1/b.dcm", thin, **common, SeriesDescription="Thin", PatientID="Doe 7")
    asked = adopter.refused()
    assert "Thorax (3, 2 with a label), Thin (1, 0 with a label)" in asked
    assert len(adopter(sequence="thorax")) == 3
    assert len(adopter.left_out()["localizers"]) == 1
    dicom(
        adopter.root / "labels/second.dcm",
        generate_uid(),
        Modality="SEG",
        SeriesDescription="Reader 2",
        ReferencedSeriesSequence=[item(SeriesInstanceUID=uids["x1"])],
    )
    assert "SEG Reader 2 (1)" in adopter.refused(sequence="Thorax")
    rows = adopter(sequence="Thorax", label="SEG Reader 2")
    assert [row["label_path"][-10:] for row in rows if row["label_path"]] == ["second.dcm"]


def test_dicom_without_patients_asks_and_mixed_folders_are_left_out(adopter: Adopter) -> None:
    tags = {"Modality": "CT", "Rows": 4, "InstitutionName": "Ulm"}
    for k in range(2):
        dicom(adopter.root / f"a/{k}.dcm", "1.2.3", **tags)
        dicom(adopter.root / f"mixed/{k}.dcm", "1.2.4", **tags)
    dicom(adopter.root / "mixed/other.dcm", "1.2.5", **tags)
    assert "the subject of 2 of 2 images" in adopter.refused()
    dicom(adopter.root / "a/0.dcm", "1.2.3", **tags, PatientID="ANONYMOUS")
    assert "the subject of 2 of 2 images" in adopter.refused()  # nobody in particular
    rows = adopter(subject="^[^/]+")
    assert not adopter.out.with_suffix(".key").exists()
    assert sorted(row["subject"] for row in rows) == ["a", "mixed"]
    (left,) = adopter.left_out().values()
    assert left == ["no description in mixed (2 files)"]
    series = [item(SeriesInstanceUID="1.2.3")]
    dicom(adopter.root / "a/SEG1", "1.2.6", Modality="SEG", ReferencedSeriesSequence=series)
    touch(adopter.root / "0_seg.nii.gz")
    rows = adopter(subject="^[^/]+")  # a label beside its series is not in its way
    assert [Path(row["label_path"]).name for row in rows if row["label_path"]] == ["SEG1"]
    assert ["0_seg.nii.gz"] in adopter.left_out().values()


def mnms(root: Path) -> None:
    head = ",External code,VendorName,Vendor,Centre,ED,ES,Age\n"
    text(root / "info.csv", head + "0,A0S9V9,Siemens,A,1,0,2,50\n1,B1,Philips,B,3,1,0,60\n")
    for k, code in enumerate(("A0S9V9", "B1")):
        folder = root / ("Labeled", "Unlabeled")[k] / code
        volume(folder / f"{code}_sa.nii.gz", k, (6, 6, 4, 3))
        if k == 0:
            mask(folder / f"{code}_sa_gt.nii.gz", 1, (6, 6, 4, 3))


def test_mnms_as_published_is_refused_with_lines_that_make_it_readable(adopter: Adopter) -> None:
    mnms(adopter.root)
    refused = adopter.refused()
    assert "4-D" in refused and "docs/sites.md" in refused
    docs = (ROOT / "docs/sites.md").read_text()
    lines = next(
        block for block in re.findall(r"```python\n(.*?)```", docs, re.S) if "_sa" in block
    )
    exec(lines.replace('"MnM"', repr(str(adopter.root))), {})
    rows = adopter()
    assert [(row["subject"], row["phase"]) for row in rows] == [
        ("A0S9V9", "ED"),
        ("A0S9V9", "ES"),
        ("B1", "ED"),
        ("B1", "ES"),
    ]
    assert [row["site"] for row in rows] == ["centre 1", "centre 1", "centre 3", "centre 3"]
    assert [row["vendor"] for row in rows] == ["Siemens", "Siemens", "Philips", "Philips"]
    assert [bool(row["label_path"]) for row in rows] == [True, True, False, False]
    cine = nibabel.Nifti1Image.from_filename(
        adopter.root / "Labeled/A0S9V9/A0S9V9_sa.nii.gz"
    ).get_fdata()
    frame = nibabel.Nifti1Image.from_filename(adopter.out.parent / rows[1]["path"])
    np.testing.assert_array_equal(frame.get_fdata(), cine[..., 2])
    assert parse_label_values(rows[0]["label_values"], "")[3] == "right ventricle"


def test_mnms2_takes_frames_and_scanners_and_asks_for_the_view(adopter: Adopter) -> None:
    root = adopter.root
    head = "SUBJECT_CODE,DISEASE,VENDOR,SCANNER,FIELD\n"
    text(
        root / "dataset_information.csv",
        head + "1,NOR,SIEMENS,Avanto,1.5\n2,HCM,GE MEDICAL,Signa,3\n",
    )
    for code in ("001", "002"):
        for name in ("SA_ED", "SA_ED_gt", "SA_ES", "SA_ES_gt", "LA_ED", "LA_ED_gt", "SA_CINE"):
            touch(root / f"dataset/{code}/{code}_{name}.nii.gz")
    assert "la (2), sa (4)" in adopter.refused()
    rows = adopter(sequence="sa")
    assert [(row["subject"], row["phase"], row["site"], row["field_T"]) for row in rows] == [
        ("001", "ED", "Avanto", "1.5"),
        ("001", "ES", "Avanto", "1.5"),
        ("002", "ED", "Signa", "3"),
        ("002", "ES", "Signa", "3"),
    ]
    assert all(row["label_path"] == row["path"].replace(".nii", "_gt.nii") for row in rows)
    assert len(adopter.left_out()["cine files (4-D)"]) == 2
    assert any("no hospital" in reason for reason in adopter.found.guesses)


def test_fets_takes_institutions_from_the_first_partition(adopter: Adopter) -> None:
    root = adopter.root
    people = [f"FeTS2022_0000{k}" for k in range(3)]
    text(root / "partitioning_1.csv", "Partition_ID,Subject_ID\n1," + "\n2,".join(people) + "\n")
    text(root / "partitioning_2.csv", "Partition_ID,Subject_ID\n9," + "\n9,".join(people) + "\n")
    for person in people:
        for name in ("flair", "t1", "t1ce", "t2", "seg"):
            touch(root / person / f"{person}_{name}.nii.gz")
    assert "t1ce (3)" in adopter.refused()
    rows = adopter(sequence="t1")  # not t1ce as well
    assert [row["site"] for row in rows] == ["institution 1", "institution 2", "institution 2"]
    assert [row["path"].rsplit("_", 1)[1] for row in rows] == ["t1.nii.gz"] * 3
    assert all(row["label_path"].endswith("_seg.nii.gz") for row in rows)
    assert set(parse_label_values(rows[0]["label_values"], "")) == {1, 2, 4}


def test_the_prostate_set_keeps_equal_case_numbers_apart(adopter: Adopter) -> None:
    for site in ("BIDMC", "ISBI_1.5"):
        for end in ("", "_segmentation"):
            touch(adopter.root / site / f"Case00{end}.nii.gz")
    rows = adopter()
    assert [(row["site"], row["subject"], row["vendor"], row["field_T"]) for row in rows] == [
        ("BIDMC", "BIDMC Case00", "GE", "3"),
        ("ISBI_1.5", "ISBI_1.5 Case00", "Philips", "1.5"),
    ]
    assert all(row["label_path"].endswith("Case00_segmentation.nii.gz") for row in rows)


def test_hc18_outlines_are_refused_and_filled_masks_taken(adopter: Adopter) -> None:
    root = adopter.root
    head = "filename,pixel size(mm),head circumference (mm)\n"
    text(
        root / "training_set_pixel_size_and_HC.csv",
        head + "010_HC.png,0.07,44\n010_2HC.png,0.08,45\n",
    )
    for name in ("010_HC", "010_2HC"):
        touch(root / f"training_set/{name}.png", root / f"training_set/{name}_Annotation.png")
    assert "outlines" in adopter.refused() and "binary_fill_holes" in adopter.refused()
    rows = adopter(label="annotation")
    assert all(row["label_path"].endswith("_Annotation.png") for row in rows)
    assert "outlines" in adopter.found.notes[0]
    touch(root / "training_set/010_HC_Mask.png")
    rows = adopter()
    assert [Path(row["label_path"]).name for row in rows] == ["", "010_HC_Mask.png"]
    assert [(row["subject"], row["spacing_mm"]) for row in rows] == [
        ("010", "0.08"),
        ("010", "0.07"),
    ]


def test_the_spinal_cord_challenge_asks_for_the_rater(adopter: Adopter) -> None:
    for scan in ("site1-sc01", "site3-sc01"):
        touch(*(adopter.root / f"{scan}-{end}.nii.gz" for end in ("image", "mask-r1", "mask-r2")))
    assert "r1 (2), r2 (2)" in adopter.refused()
    assert "there are 2 raters" in adopter.refused(label="r.")
    rows = adopter(label="r2")
    assert [(row["site"], row["vendor"], row["subject"]) for row in rows] == [
        ("UCL", "Philips", "site1-sc01"),
        ("Zurich", "Siemens", "site3-sc01"),
    ]
    assert all(row["label_path"].endswith("mask-r2.nii.gz") for row in rows)
    assert len(adopter.left_out()["masks of other raters"]) == 2


def test_plain_pairs_are_joined_by_name_and_open(adopter: Adopter) -> None:
    for site in ("ulm", "graz"):
        for k in range(3):
            volume(adopter.root / site / f"images/p{k}.nii.gz", k)
            mask(adopter.root / site / f"masks/p{k}_mask.nii.gz")
    touch(adopter.root / "ulm/images/p9.png", adopter.root / "ulm/masks/p8.png")
    touch(adopter.root / "ulm/notes/p1.png", adopter.root / "ulm/masks/p9.jpg")
    touch(adopter.root / "ulm/masks/p9.npy", adopter.root / "README.md")
    rows = adopter(pattern=r"(?P<site>\w+)/images/(?P<subject>p\d)")
    assert len(rows) == 7
    for row in rows[:3]:
        assert row["label_path"] == row["path"].replace("images", "masks").replace(
            ".nii", "_mask.nii"
        )
    assert [row["subject"] for row in rows if not row["label_path"]] == ["p9"]
    left = adopter.left_out()
    assert left["labels without an image"] == ["ulm/masks/p8.png"]
    assert left["labels as JPEG, which changes their values"] == ["ulm/masks/p9.jpg"]
    assert left["images in neither a folder of images nor one of labels"] == ["ulm/notes/p1.png"]
    assert left["files that are no images, or of other formats"] == ["ulm/masks/p9.npy"]
    assert sum(map(len, left.values())) == 4
    (guessed,) = adopter.found.guesses.values()
    assert len(guessed) == 6
    opened = adopter.opened(labels={"box": 1}, sites=["graz"])
    assert opened["graz"]["subjects"] == {"p0", "p1", "p2"}
    assert opened["graz"]["values"] == {0, 1}


def test_pairs_beside_each_other_and_by_the_beginning_of_a_name(adopter: Adopter) -> None:
    touch(
        *(adopter.root / name for name in ("a1.png", "a1_mask.png", "a1_seg.png", "a2_image.png"))
    )
    touch(adopter.root / "a2_mask.png")
    who = {"site": "x", "subject": r"a\d"}
    assert "mask (2), seg (1)" in adopter.refused(**who)
    rows = adopter(label="mask", **who)
    assert [(row["path"][-12:], row["label_path"][-11:]) for row in rows] == [
        ("set/a1.png", "a1_mask.png"),
        ("a2_image.png", "a2_mask.png"),
    ]
    for file in adopter.root.iterdir():
        file.unlink()
    for end in ("images/p1_CT", "images/p1_MR", "labels/p1_gtv"):
        touch(adopter.root / f"{end}.nii.gz")
    assert "CT (1), MR (1)" in adopter.refused(**who)
    (row,) = adopter(sequence="MR", site="x", subject=r"p\d")
    assert row["path"].endswith("p1_MR.nii.gz") and row["label_path"].endswith("p1_gtv.nii.gz")
    assert row["sequence"] == "MR"
    touch(adopter.root / "labels/p1_gtv_CT.nii.gz")
    drawn_on = {
        sequence: adopter(sequence=sequence, site="x", subject=r"p\d")[0]["label_path"][-12:]
        for sequence in ("CT", "MR")
    }
    assert drawn_on == {"CT": "gtv_CT.nii.gz"[-12:], "MR": "1_gtv.nii.gz"[-12:]}
    assert adopter.left_out()["labels of other sequences"] == ["labels/p1_gtv_CT.nii.gz"]


def test_two_layouts_in_one_folder_are_named_and_asked_for(adopter: Adopter) -> None:
    touch(adopter.root / "sub-1/sub-1_T1w.nii.gz", adopter.root / "site1-sc01-image.nii.gz")
    asked = adopter.refused(site="x")
    assert "BIDS (bids)" in asked and "(spinal_cord)" in asked and "--layout" in asked
    assert len(adopter("bids", site="x")) == 1
    assert "does not look like the layout fets" in adopter.refused(layout="fets")
    assert "--layout must be auto or one of" in adopter.refused(layout="bidz")


def test_subjects_are_never_guessed_and_a_pattern_must_fit_every_path(adopter: Adopter) -> None:
    for name in ("p1", "q2"):
        touch(adopter.root / f"images/{name}.png", adopter.root / f"labels/{name}.png")
    assert "the subject of 2 of 2 images" in adopter.refused(site="x")
    assert "matches nothing in 1 of 2 paths: images/q2.png" in adopter.refused(
        site="x", subject=r"p\d"
    )
    assert "is not a regular expression" in adopter.refused(subject="(")
    assert "must hold named groups" in adopter.refused(pattern="(?P<who>.)")
    assert "give it once" in adopter.refused(subject=".", pattern="(?P<subject>.)")
    assert len(adopter(site="x", subject="images")) == 2
    assert "all 2 images are of one subject" in adopter.found.notes[0]
    optional = r"(?P<subject>[pq]\d)|(?P<site>zz)"
    assert "the site of 2 of 2 images" in adopter.refused(pattern=optional)


def test_links_that_run_in_circles_are_walked_once_and_hidden_files_not(adopter: Adopter) -> None:
    root = adopter.root
    touch(root / "images/p1.png", root / "labels/p1.png", root / ".trash/images/p2.png")
    (root / "images/round").symlink_to(root, target_is_directory=True)
    (root / "a_link").symlink_to(root / "images", target_is_directory=True)
    (root / "images/gone.png").symlink_to(root / ".git-annex-object")
    (root / "images/self.png").symlink_to(root / "images/self.png")
    touch(root / "images/p\n3.png", Path(os.fsdecode(os.fsencode(root) + b"/images/p\xff.png")))
    assert len(adopter(site="x", subject="p.")) == 1
    left = adopter.left_out()
    # A folder goes by its own name, also where a link to it comes first.
    assert set(left["links to a folder that is in here already"]) == {"a_link", "images/round"}
    assert left["links to files that are not here (git-annex, DataLad: get them)"] == [
        "images/gone.png",
        "images/self.png",
    ]
    (names,) = (names for reason, names in left.items() if "UTF-8" in reason)
    assert adopt.three(names) == "images/p\\n3.png, images/p\\udcff.png"


def test_names_of_values_survive_the_table(adopter: Adopter) -> None:
    said = adopt.values_text({0: "air", 1: "a (b, c)", 2: "a b;c", 3: "", 4: "x=y"})
    assert parse_label_values(said, "") == {1: "a b c", 2: "a b c 2", 3: "label 3", 4: "x y"}


def test_the_command_prints_what_it_took_and_never_replaces_a_table(
    adopter: Adopter, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedshift.cli.sites import adopt_folder

    for k in range(5):
        touch(adopter.root / f"images/p{k}.png", adopter.root / f"labels/p{k}.png")
    touch(adopter.root / "images/[/odd]9.png")
    said = {"site": "Ulm [/old]", "subject": r"(?:p|\])\d"}
    adopt_folder(adopter.root, adopter.out, "auto", said, force=False)
    printed = capsys.readouterr().out
    assert "6 images, 5 with a label (pairs by name)" in printed
    assert "without a label: 1 (" in printed and "[/odd]9.png" in printed
    assert "labels/p0.png, labels/p1.png, labels/p2.png and 2 more" in printed
    assert f"fedshift sites check federation=manifest data.manifest={adopter.out}" in printed
    assert "fedshift simulate federation=manifest" in printed
    assert not adopter.out.with_suffix(".key").exists()  # no pseudonyms, no key
    before = adopter.out.read_bytes()
    with pytest.raises(UserError, match="is there already"):
        adopt_folder(adopter.root, adopter.out, "auto", said, force=False)
    assert adopter.out.read_bytes() == before
    adopt_folder(adopter.root, adopter.out, "auto", {**said, "site": "new"}, force=True)
    assert b"new" in adopter.out.read_bytes()
    with pytest.raises(UserError, match=r"must be a \.tsv"):
        adopt_folder(adopter.root, adopter.out.with_suffix(".txt"), "auto", said, force=False)


def test_the_printed_commands_work_for_odd_names_of_tables(
    adopter: Adopter, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from fedshift.cli.sites import adopt_folder
    from fedshift.runs.config import load

    touch(adopter.root / "images/p1.png", adopter.root / "labels/p1.png")
    for folder in ("two words", "a,b", "it's [3]", "plain"):
        out = tmp_path / folder / "T.tsv"
        out.parent.mkdir()
        adopt_folder(adopter.root, out, "auto", {"site": "x", "subject": "p1"}, force=False)
        (line,) = (one for one in capsys.readouterr().out.splitlines() if "sites check" in one)
        assert load(shlex.split(line)[3:])["data"]["manifest"] == str(out)


def test_hc18_counts_its_two_parts_apart(adopter: Adopter) -> None:
    for part in ("training", "test"):
        text(adopter.root / f"{part}_set_pixel_size.csv", "filename,pixel size(mm)\n")
        touch(adopter.root / f"{part}_set/000_HC.png")
    assert [row["subject"] for row in adopter()] == ["test_set 000", "training_set 000"]


def test_paths_are_relative_to_the_table_wherever_it_lies(adopter: Adopter, tmp_path: Path) -> None:
    touch(adopter.root / "images/p1.png", adopter.root / "labels/p1.png")
    adopter.out = tmp_path / "deep/er/T.tsv"
    adopter.out.parent.mkdir(parents=True)
    (row,) = adopter(site="x", subject="p1")
    assert not Path(row["path"]).is_absolute()
    assert (adopter.out.parent / row["path"]).samefile(adopter.root / "images/p1.png")


def scanned(folder: Path, patient: str, kernel: str) -> tuple[str, str, list[FileDataset]]:
    """A CT series of four slices with pixels; its study, its frame of reference, its slices."""
    series, study, frame = (str(generate_uid()) for _ in range(3))
    pixels = np.random.default_rng(len(patient)).integers(0, 99, (4, 12, 12))
    slices = [
        dicom(
            folder / f"{k}.dcm",
            series,
            StudyInstanceUID=study,
            FrameOfReferenceUID=frame,
            PatientID=patient,
            PatientName=patient,
            PatientBirthDate="",
            PatientSex="",
            AccessionNumber="",
            StudyID="",
            StudyDate="",
            StudyTime="",
            ReferringPhysicianName="",
            InstitutionName="Ulm",
            Manufacturer="ACME",
            ConvolutionKernel=kernel,
            Modality="CT",
            InstanceNumber=k + 1,
            Rows=12,
            Columns=12,
            PixelSpacing=[1, 1],
            SliceThickness=3,
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            ImagePositionPatient=[0, 0, 3 * k],
            SamplesPerPixel=1,
            PhotometricInterpretation="MONOCHROME2",
            BitsAllocated=16,
            BitsStored=16,
            HighBit=15,
            PixelRepresentation=0,
            PixelData=pixels[k].astype("<u2").tobytes(),
        )
        for k in range(4)
    ]
    return series, frame, slices


def outlined(path: Path, series: str, frame: str) -> None:
    """An RTSTRUCT with one ROI, 7 Lung: rows 3 to 8, columns 2 to 5 of two slices."""
    contours = [
        item(
            ContourGeometricType="CLOSED_PLANAR",
            NumberOfContourPoints=4,
            ContourData=[1.5, 2.5, z, 5.5, 2.5, z, 5.5, 8.5, z, 1.5, 8.5, z],
        )
        for z in (3, 6)
    ]
    named = [item(RTReferencedSeriesSequence=[item(SeriesInstanceUID=series)])]
    dicom(
        path,
        str(generate_uid()),
        SOPClassUID=RTStructureSetStorage,
        Modality="RTSTRUCT",
        FrameOfReferenceUID=frame,
        ReferencedFrameOfReferenceSequence=[
            item(FrameOfReferenceUID=frame, RTReferencedStudySequence=named)
        ],
        StructureSetROISequence=[
            item(ROINumber=7, ROIName="Lung", ReferencedFrameOfReferenceUID=frame)
        ],
        ROIContourSequence=[item(ReferencedROINumber=7, ContourSequence=contours)],
    )


def test_participants_are_found_without_their_prefix_and_missing_ones_are_told(
    adopter: Adopter,
) -> None:
    """A site of participants.tsv must not give way to another source in silence."""
    bids(adopter.root)
    text(adopter.root / "T2w.json", {"InstitutionName": "Elsewhere"})
    table = adopter.root / "participants.tsv"
    text(table, table.read_text().replace("sub-", ""))
    rows = adopter(sequence="T2w")
    assert {row["subject"]: row["site"] for row in rows} == {"sub-01": "Ulm", "sub-02": "Graz"}
    assert adopter.found.origin["site"] == "participants.tsv"
    assert not adopter.found.notes
    text(table, "participant_id\tsite\n01\tUlm\n")
    rows = adopter(sequence="T2w")
    assert {row["subject"]: row["site"] for row in rows} == {"sub-01": "Ulm", "sub-02": "Elsewhere"}
    (note,) = adopter.found.notes
    assert "lacks 1 of 2 subjects (sub-02)" in note
    said = adopter.found.origin["site"]
    assert said == "participants.tsv or InstitutionName in the sidecars"


@pytest.mark.parametrize(
    ("image", "label"),
    [
        ("image.nii.gz", "mask.nii.gz"),
        ("img.nii.gz", "segmentation.nii.gz"),
        ("images/image.nii.gz", "labels/image.nii.gz"),
        ("images/image.nii.gz", "masks/mask.nii.gz"),
    ],
)
def test_a_folder_may_be_all_that_an_image_and_its_label_share(
    adopter: Adopter, image: str, label: str
) -> None:
    for person in ("p1", "p2"):
        touch(adopter.root / person / image, adopter.root / person / label)
    rows = adopter(site="x", subject="p.")
    assert [(row["subject"], row["path"][4:], row["label_path"][4:]) for row in rows] == [
        (person, f"{person}/{image}", f"{person}/{label}") for person in ("p1", "p2")
    ]


def test_series_that_share_a_folder_are_adopted_by_links(adopter: Adopter) -> None:
    """All of an archive in the folder that was named: each series has its own slices and label."""
    pixels = {}
    for k in range(3):
        series, frame, slices = scanned(adopter.root / "aside", "x" * (k + 1), "B30f")
        for z, slice_ in enumerate(slices):
            # The archive numbers its files across the series.
            (adopter.root / f"aside/{z}.dcm").rename(adopter.root / f"IM{3 * z + k:04d}")
            pixels[k, z] = slice_.PixelData
        outlined(adopter.root / f"RS{k}.dcm", series, frame)
    (adopter.root / "aside").rmdir()
    assert "--links" in adopter.refused()
    # A label goes unused with its series, and not unsaid.
    scanned(adopter.root / "other", "x", "B30f")
    for file in (adopter.root / "other").iterdir():
        data = pydicom.dcmread(file)
        data.SeriesDescription = "Other"
        data.save_as(file)
    adopter.links = adopter.root.parent / "links"
    adopter(sequence="Other")
    left = adopter.left_out()["labels of series that are not here or not taken"]
    assert left == ["RS0.dcm", "RS1.dcm", "RS2.dcm"]
    shutil.rmtree(adopter.root / "other")
    adopter.links = links = adopter.root / "MANIFEST_series"  # in the folder itself, as the table
    adopter.out = adopter.root / "MANIFEST.tsv"
    for _ in range(2):  # a second call passes over the links of the first
        rows = adopter(pattern="(?P<session>IM000[0-2])")
        assert [row["session"] for row in rows] == ["IM0000", "IM0001", "IM0002"]
        assert len(list(links.iterdir())) == 3
        assert set().union(*adopter.left_out().values()) <= {"MANIFEST.key"}
    for k, row in enumerate(rows):
        files = sorted((adopter.out.parent / row["path"]).iterdir())
        assert [pydicom.dcmread(f).PixelData for f in files] == [pixels[k, z] for z in range(4)]
        assert all(file.is_symlink() and not file.readlink().is_absolute() for file in files)
    (site,) = adopter.opened().values()
    assert len(site["subjects"]) == 3 and site["drawn"] == {6 * 4 * 2}


def test_links_are_for_dicom_and_are_refused_where_none_can_be_made(adopter: Adopter) -> None:
    for name in ("1.2.3", "1.2.4"):
        for k in range(2):
            dicom(adopter.root / f"{name} {k}", name, Modality="CT", Rows=4, InstitutionName="Ulm")
    touch(adopter.root.parent / "file")
    adopter.links = adopter.root.parent / "file/links"
    assert "no links can be made" in adopter.refused(subject="^[^ ]+")
    for file in adopter.root.iterdir():
        file.unlink()
    touch(adopter.root / "images/p1.png", adopter.root / "labels/p1.png")
    said = adopter.refused(site="x", subject="p1")
    assert said.startswith("--links is for DICOM series")


def test_an_adopted_tree_of_dicom_opens_with_its_structures_and_segmentations(
    adopter: Adopter,
) -> None:
    highdicom = pytest.importorskip("highdicom")
    from pydicom.sr.codedict import codes

    for k in range(3):
        series, frame, _ = scanned(adopter.root / f"rt{k}/ct", f"rt {k}", "B30f")
        outlined(adopter.root / f"rt{k}/drawn.dcm", series, frame)
    for k in range(3):
        _, _, slices = scanned(adopter.root / f"seg{k}/ct", f"segmented {k}", "B60f")
        drawn = np.zeros((4, 12, 12), np.uint8)
        drawn[1:3, 3:9, 2:6] = 1
        segment = highdicom.seg.SegmentDescription(
            segment_number=1,
            segment_label="Lung",
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Lung,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
        )
        highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=drawn,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=[segment],
            series_instance_uid=generate_uid(),
            series_number=2,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="us",
            manufacturer_model_name="us",
            software_versions="1",
            device_serial_number="1",
        ).save_as(adopter.root / f"seg{k}/ct/drawn.dcm")
    rows = adopter()
    assert len(rows) == 6 and all(row["label_path"] for row in rows)
    assert {row["label_values"] for row in rows} == {"0=background,1=Lung", "0=background,7=Lung"}
    opened = adopter.opened(site_column="kernel")
    assert set(opened) == {"B30f", "B60f"}
    for site in opened.values():
        assert site["structures"] == ("Lung",)
        assert site["values"] == {0, 1}
        # Both ways of drawing mean the same pixels: rows 3 to 8, columns 2 to 5, two slices.
        assert site["drawn"] == {6 * 4 * 2}
