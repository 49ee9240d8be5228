"""What a survey says of files, against the same computed from the arrays that they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedshift.sites import DataSettings, load_federation, open_site, readers, survey
from fedshift.sites.facts import HOUNSFIELD, Facts, Surveyed
from fedshift.sites.survey import modality_code

MANIFEST = {"name": "m", "kind": "manifest"}
Files = Sequence[tuple[str, str, str]]


def looked_at(folder: Path, rows: Files, **data: object) -> list[Surveyed]:
    """Survey rows of (path, label_path, spacing_mm), all of one site."""
    lines = ["path\tlabel_path\tsite\tsubject\tspacing_mm"]
    lines += [f"{path}\t{label}\tA\ts{k}\t{mm}" for k, (path, label, mm) in enumerate(rows)]
    table = folder / "table.tsv"
    table.write_text("\n".join(lines) + "\n")
    settings = DataSettings.from_config({"manifest": str(table), "labels": {"x": 1}, **data})
    (site,) = load_federation(MANIFEST, settings, 0).sites
    return list(survey(site, settings))


def facts_of(folder: Path, name: str, label: str, spacing: str = "") -> Facts:
    (found,) = looked_at(folder, [(name, label, spacing)])
    assert found.facts is not None and not found.left_out
    return found.facts


def save(folder: Path, name: str, array: np.ndarray, affine: np.ndarray) -> str:
    nibabel.save(nibabel.Nifti1Image(array, affine), folder / name)
    return name


@pytest.mark.parametrize(
    ("shape", "spacing"), [((17, 24, 5), (0.5, 0.5, 3.0)), ((20, 33, 4), (0.7, 1.9, 5.0))]
)
def test_reach_is_the_distance_of_labelled_pixels_by_brute_force(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    label = (rng.random(shape) < 0.05).astype(np.uint8)
    affine = np.diag([*spacing, 1.0])
    image = rng.normal(size=shape).astype(np.float32)
    facts = facts_of(
        tmp_path, save(tmp_path, "i.nii", image, affine), save(tmp_path, "l.nii", label, affine)
    )
    assert facts.shape == shape and facts.axis == 2 and facts.clear
    assert facts.spacing_mm == pytest.approx(spacing)
    for axis in range(3):
        planes = [k for k in range(3) if k != axis]
        centres, edges = [], []
        for voxel in np.argwhere(label):
            away = [abs(voxel[k] - (shape[k] - 1) / 2) * spacing[k] for k in planes]
            centres.append(max(away))
            edges.append(max(d + spacing[k] / 2 for d, k in zip(away, planes, strict=True)))
        reach = facts.reach[axis]
        assert reach.furthest == pytest.approx(max(edges), rel=1e-5)
        assert sum(reach.counts) == len(centres)
        step = min(spacing[k] for k in planes) / 2
        assert reach.step == pytest.approx(step, rel=1e-5)
        for half in (0.0, 0.4 * max(centres), max(centres) - step, max(centres) + step):
            # Distances are kept to the nearest half of the finer pixel.
            low, high = (np.mean(np.array(centres) >= half + d) for d in (step, -step))
            assert low - 1e-9 <= reach.outside(half) <= high + 1e-9


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("flip", [False, True])
def test_labelled_slices_of_every_axis_are_those_that_a_run_sees(
    axis: int, flip: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    shape = (7, 9, 11)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    if flip:
        affine = np.array([[0, 0, -1.0, 9], [1, 0, 0, 0], [0, -1, 0, 4], [0, 0, 0, 1]])
    label = np.zeros(shape, np.uint8)
    label[2, 3, 6:8] = label[4:6, 1, 0] = 1
    image = rng.normal(size=shape).astype(np.float32)
    rows = [
        (save(tmp_path, f"i{k}.nii", image + k, affine), save(tmp_path, "l.nii", label, affine), "")
        for k in range(3)
    ]
    found = looked_at(tmp_path, rows, slice_axis=axis, size=16)
    settings = DataSettings.from_config(
        {
            "manifest": str(tmp_path / "table.tsv"),
            "labels": {"x": 1},
            "slice_axis": axis,
            "size": 16,
        }
    )
    federation = load_federation(MANIFEST, settings, 0)
    opened = open_site(federation.sites[0], federation.parts, settings, 0)
    (case, *_) = opened.splits["train"]
    assert found[0].facts is not None
    assert found[0].facts.flags(axis).tolist() == case.labelled.tolist()
    assert case.labelled.any() and not case.labelled.all()


def test_hounsfield_counts_the_values_under_the_label(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(-1000, 1500, (16, 16, 6)).astype(np.int16)
    image[0, 0, 0] = 5000
    label = (rng.random(image.shape) < 0.3).astype(np.uint8)
    label[0, 0, 0] = 1
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    facts = facts_of(
        tmp_path, save(tmp_path, "i.nii", image, affine), save(tmp_path, "l.nii", label, affine)
    )
    counts = np.zeros(len(HOUNSFIELD) - 1, int)
    for value in image[label > 0]:
        counts[min(int(value - HOUNSFIELD[0]) // 4, len(counts) - 1)] += 1
    assert list(facts.hounsfield) == counts.tolist()
    assert facts.low == image.min()
    # Values that no CT has below water: magnetic resonance is not counted.
    low = save(tmp_path, "mr.nii", np.abs(image), affine)
    assert facts_of(tmp_path, low, "l.nii").hounsfield == ()


def test_values_names_and_counts_are_those_of_the_file(tmp_path: Path) -> None:
    label = np.zeros((12, 10), np.uint8)
    label[2:5, 3:7], label[8, 8] = 3, 7
    Image.fromarray(label).save(tmp_path / "l.png")
    picture = np.random.default_rng(3).integers(0, 255, label.shape).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "i.png")
    facts = facts_of(tmp_path, "i.png", "l.png", "0.5x0.25")
    assert facts.values == {0: 107, 3: 12, 7: 1} and facts.n_values == 3
    assert facts.shape == (10, 12, 1) and not facts.oriented
    # Rows are 0.5 mm, along the second axis of a picture; columns 0.25 mm.
    assert facts.spacing_mm == (0.25, 0.5, 1.0)
    assert facts.reach[2].furthest == pytest.approx(2.0)  # the top of row 2 of 12
    assert facts_of(tmp_path, "i.png", "l.png").spacing_mm is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("CT", "CT"),
        ("ct (HU), same grid as the MR of the pair", "CT"),
        ("MR T1w, resampled to the CT grid", "MR"),
        ("MRI cine SSFP", "MR"),
        ("FDG-PET, SUV x 100", "PT"),
        ("Ultrasound fetal head 2D", "US"),
        ("light microscopy, ACTIN", "other"),
        ("", ""),
    ],
)
def test_a_modality_is_a_code_whatever_the_table_writes(text: str, code: str) -> None:
    assert modality_code(text) == code


def test_the_survey_reads_each_file_once_until_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(2):
        picture = np.random.default_rng(k).integers(0, 255, (16, 16)).astype(np.uint8)
        Image.fromarray(picture).save(tmp_path / f"i{k}.png")
        Image.fromarray((picture > 99).astype(np.uint8)).save(tmp_path / f"l{k}.png")
    rows = [("i0.png", "l0.png", ""), ("i1.png", "l1.png", "")]
    read: list[str] = []
    real = readers.read

    def counted(path: Path) -> readers.Contents:
        read.append(path.name)
        return real(path)

    monkeypatch.setattr(readers, "read", counted)
    first = looked_at(tmp_path, rows, cache=str(tmp_path / "cache"))
    assert sorted(read) == ["i0.png", "i1.png", "l0.png", "l1.png"]
    # Other grids, planes and label maps are no reason to read again.
    for other in ({"size": 64}, {"spacing_mm": 0.5}, {"labels": {"y": 1, "z": 2}}):
        assert looked_at(tmp_path, rows, cache=str(tmp_path / "cache"), **other) == first
    assert len(read) == 4
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "l1.png")
    again = looked_at(tmp_path, rows, cache=str(tmp_path / "cache"))
    assert again[0] == first[0] and again[1].facts is not None and not again[1].facts.has_labels


def test_an_unusable_label_leaves_the_facts_of_its_image(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    image = np.random.default_rng(4).normal(size=(9, 9, 3)).astype(np.float32)
    save(tmp_path, "i.nii", image, affine)
    (tmp_path / "l.nii").write_bytes(b"no label")
    (found,) = looked_at(tmp_path, [("i.nii", "l.nii", "")])
    assert found.left_out and found.facts is not None and found.facts.values is None
    assert [(t.severity, t.code, t.on) for t in found.troubles] == [("error", "damaged", "label")]
    (tmp_path / "i.nii").unlink()
    (found,) = looked_at(tmp_path, [("i.nii", "l.nii", "")])
    assert found.facts is None
    assert [(t.severity, t.code, t.on) for t in found.troubles] == [
        ("warning", "missing-file", "image")
    ]


def test_what_is_remembered_equals_what_was_seen(tmp_path: Path) -> None:
    """Through JSON and back, of a label whose values have names of their own."""
    affine = np.diag([1.0, 1.0, 5.0, 1.0])
    rng = np.random.default_rng(5)
    label = rng.integers(0, 3, (16, 16, 3)).astype(np.uint8)
    image = (rng.normal(size=label.shape) * 300 - 500 + label).astype(np.float32)
    rows = [
        (save(tmp_path, "i.nii", image, affine), save(tmp_path, "l.nii", label, affine), "1x1x5")
    ]
    first = looked_at(tmp_path, rows, cache=str(tmp_path / "cache"))
    again = looked_at(tmp_path, rows, cache=str(tmp_path / "cache"))
    assert first == again
    facts = again[0].facts
    assert facts is not None and facts.bands and facts.hounsfield and facts.reach
    assert replace(facts, names={1: "x"}) != facts
