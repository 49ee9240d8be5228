"""Files as hospitals have them that were once answered wrongly, from the table to the arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from kit.cases import mask, native_mask
from kit.dicom import UPRIGHT, along, enhanced, placed, stored
from PIL import Image

from fedshift import UserError
from fedshift.runs.checking import Checked, examine
from fedshift.runs.config import load
from fedshift.sites import open_site
from fedshift.sites.types import SiteData

SHAPE = (32, 28)
SUBJECTS = range(4)


def disc(row: float = 14.0, column: float = 15.0, radius: float = 7.0) -> np.ndarray:
    """A structure (rows, columns)."""
    y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


class Hospital:
    """Files in a folder and a table of them."""

    def __init__(self, folder: Path, columns: str = "path label_path site subject") -> None:
        self.folder = folder
        self.lines = [columns.replace(" ", "\t")]

    def nifti(
        self,
        name: str,
        image: np.ndarray,
        label: np.ndarray,
        affine: np.ndarray,
        label_affine: np.ndarray | None = None,
    ) -> None:
        laid = affine if label_affine is None else label_affine
        for end, array, place in (("", image, affine), ("_seg", label, laid)):
            nibabel.save(nibabel.Nifti1Image(array, place), self.folder / f"{name}{end}.nii.gz")
        self.lines.append(f"{name}.nii.gz\t{name}_seg.nii.gz\t{name[0]}\t{name}")

    def png(self, name: str, image: np.ndarray, label: np.ndarray, spacing: str) -> None:
        for end, array in (("", image), ("_mask", label)):
            clipped = array.clip(0, 255).astype(np.uint8)
            Image.fromarray(clipped).save(self.folder / f"{name}{end}.png")
        self.lines.append(f"{name}.png\t{name}_mask.png\t{name[0]}\t{name}\t{spacing}")

    def checked(self, *overrides: str) -> Checked:
        table = self.folder / "table.tsv"
        table.write_text("\n".join(self.lines) + "\n")
        given = [f"data.manifest={table}", f"data.cache={self.folder / 'cache'}", *overrides]
        return examine(load(["federation=manifest", *given]))


def opened(found: Checked) -> Mapping[str, SiteData]:
    structures = found.federation.parts
    return {
        site.name: open_site(site, structures, found.data, seed=0)
        for site in found.federation.sites
    }


def cases(site: SiteData) -> list[Any]:
    every = [case for found in site.splits.values() for case in found]
    return sorted(every, key=lambda case: case.subject)


def codes(found: Checked) -> list[str]:
    return list(dict.fromkeys(finding.code for finding in found.stopping))


def texture(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 8, shape)


def test_a_nearly_isotropic_site_is_cut_in_the_plane_of_the_others(tmp_path: Path) -> None:
    """At b the coarsest axis is the first, where the others' slices are thick along the third."""
    hospital = Hospital(tmp_path)
    for site, (x, z) in {"a": (1.0, 3.0), "b": (1.1, 1.0), "c": (1.0, 3.0)}.items():
        for k in SUBJECTS:
            # An ellipsoid of 8 x 6 x 9 mm about the centre, sampled by each site in its own way.
            n = (round(32 / x), 28, round(24 / z))
            at = np.meshgrid(*(np.arange(m) - (m - 1) / 2 for m in n), indexing="ij")
            inside = (at[0] * x / 8) ** 2 + (at[1] / 6) ** 2 + (at[2] * z / 9) ** 2 <= 1
            image = texture(10 * ord(site) + k, n) + 60 * inside
            affine = np.diag([x, 1, z, 1])
            hospital.nifti(f"{site}{k}", image.astype(np.float32), inside.astype(np.uint8), affine)
    found = hospital.checked()
    assert not found.findings and found.data.slice_axis == 2
    widths = {}
    for name, site in opened(found).items():
        case = cases(site)[0]
        middle = mask(case)[len(case.image) // 2] == 1
        widths[name] = middle.any(axis=0).sum(), middle.any(axis=1).sum()
        assert case.spacing_mm[0] == pytest.approx(3.0 if name != "b" else 1.0)
    # 16 mm across and 12 mm down, on pixels of 1 mm, wherever it was scanned.
    for across, down in widths.values():
        assert abs(across - 16) <= 1 and abs(down - 12) <= 1


def test_an_enhanced_file_is_its_classic_series(tmp_path: Path) -> None:
    """The same pixels, as slices from foot to head (a) and as frames from head to foot (b)."""
    hospital = Hospital(tmp_path)
    heights = 3.0 * np.arange(6)
    for k in SUBJECTS:
        inside = np.stack([disc(10 + k + z) * (0 < z < 4) for z in range(6)])
        pixels = (texture(k, inside.shape) + 60 * inside).astype(np.uint16)
        positions = along(UPRIGHT, heights)
        head_first = enhanced(pixels[::-1], positions[::-1], UPRIGHT)
        scaled = head_first.PerFrameFunctionalGroupsSequence
        slices = [
            placed(plane, position, RescaleSlope=6 - z, RescaleIntercept=-3)
            for z, (plane, position) in enumerate(zip(pixels, positions, strict=True))
        ]
        assert [item.PixelValueTransformationSequence[0].RescaleSlope for item in scaled] == [
            slice.RescaleSlope for slice in reversed(slices)
        ]
        stored(tmp_path / f"a{k}", *slices)
        head_first.save_as(tmp_path / f"b{k}.dcm")
        # NIfTI's axes run to the right, front and up; DICOM's to the left, back and up.
        affine = np.diag([-0.75, -0.5, 3.0, 1.0])
        affine[:3, 3] = positions[0] * (-1, -1, 1)
        label = nibabel.Nifti1Image(inside.transpose(2, 1, 0).astype(np.uint8), affine)
        nibabel.save(label, tmp_path / f"{k}_seg.nii.gz")
        hospital.lines += [
            f"{name}\t{k}_seg.nii.gz\t{name[0]}\t{name[0]}{k}" for name in (f"a{k}", f"b{k}.dcm")
        ]
    assert codes(hospital.checked("data.size=32")) == ["duplicate"]
    found = hospital.checked("data.size=32", "data.spacing_mm=null", "data.accept=[duplicate]")
    assert not found.stopping
    sites = opened(found)
    for k, (one, other) in enumerate(zip(cases(sites["a"]), cases(sites["b"]), strict=True)):
        assert one.spacing_mm[0] == other.spacing_mm[0] == 3.0
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(native_mask(one), native_mask(other))
        # Upwards, as both were scanned.
        for z, plane in enumerate(native_mask(one)):
            expected = disc(10 + k + z) if 0 < z < 4 else np.zeros(SHAPE, bool)
            np.testing.assert_array_equal(plane == 1, expected)


def masks(folder: Path, spacing: str = "1") -> Hospital:
    """Masks of 0 and 1 at a, of 0 and 255 at b and c."""
    hospital = Hospital(folder, "path label_path site subject spacing_mm")
    for site, value in {"a": 1, "b": 255, "c": 255}.items():
        for k in SUBJECTS:
            mask = disc(column=12 + k)
            image = texture(10 * ord(site) + k, SHAPE) + 60 * mask
            hospital.png(f"{site}{k}", image, value * mask, spacing)
    return hospital


def test_masks_of_1_and_of_255_are_asked_about(tmp_path: Path) -> None:
    hospital = masks(tmp_path)
    found = hospital.checked()
    (finding,) = found.stopping
    assert finding.code == "label-values" and finding.file.endswith("a0_mask.png")
    assert "b and c hold 255" in finding.problem and "a holds 1" in finding.problem
    assert "data.labels={NAME: [1, 255]}" in finding.way_out
    # What it says works: one structure, the same pixels.
    settled = hospital.checked("data.labels={lesion: [1, 255]}")
    assert not settled.findings
    for site in opened(settled).values():
        for k, case in enumerate(cases(site)):
            np.testing.assert_array_equal(native_mask(case)[0] == 1, disc(column=12 + k))


@pytest.mark.parametrize("tones", [(254, 255), (64, 128, 191, 255), (1, 255)])
def test_tones_that_all_sites_share_are_no_structures_in_silence(
    tmp_path: Path, tones: tuple[int, ...]
) -> None:
    """The edges of a mask that was drawn smaller, or a rim to be ignored, at every site alike."""
    hospital = Hospital(tmp_path, "path label_path site subject spacing_mm")
    for name in "abc":
        for k in SUBJECTS:
            mask = np.zeros(SHAPE, np.uint8)
            for inwards, tone in enumerate(tones):
                mask[disc(column=12 + k, radius=8.0 - inwards)] = tone
            image = texture(10 * ord(name) + k, SHAPE) + 60 * (mask > 0)
            hospital.png(f"{name}{k}", image, mask, "1")
    (finding,) = hospital.checked().stopping
    assert finding.code == "label-values" and finding.file.endswith("_mask.png")
    assert f"data.labels={{NAME: [{', '.join(map(str, tones))}]}}" in finding.way_out
    meant = {"lesion": tones[-1], "ignore": list(tones[:-1])}
    settled = hospital.checked(f"data.labels={meant}".replace("'", ""))
    assert not settled.stopping
    for site in opened(settled).values():
        for case, k in zip(cases(site), SUBJECTS, strict=True):
            inner = disc(column=12 + k, radius=8.0 - len(tones) + 1)
            np.testing.assert_array_equal(native_mask(case)[0] == 1, inner)


def test_values_that_number_structures_are_not_asked_about(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, "path label_path site subject spacing_mm")
    for site in "abc":
        for k in SUBJECTS:
            mask = np.zeros(SHAPE, np.uint8)
            for value, radius in ((1, 8.0), (2, 6.0), (4, 4.0)):
                mask[disc(column=12 + k, radius=radius)] = value
            image = texture(10 * ord(site) + k, SHAPE) + 20 * mask
            hospital.png(f"{site}{k}", image, mask, "1")
    found = hospital.checked()
    assert not found.stopping and found.federation.parts == ("label 1", "label 2", "label 4")


@pytest.mark.parametrize(
    ("written", "mm"), [("1,5", 1.5), ("0,75x0,75", 0.75), ("0,5", 0.5), ("1.5", 1.5)]
)
def test_decimal_commas_are_no_list(tmp_path: Path, written: str, mm: float) -> None:
    found = masks(tmp_path, written).checked("data.labels={lesion: [1, 255]}")
    assert not found.findings and found.data.spacing_mm == mm
    for site in opened(found).values():
        assert cases(site)[0].native_spacing_mm[1:] == (mm, mm)


def test_an_organ_that_a_site_did_not_draw_is_neither_taught_nor_scored(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    liver, spleen = disc(11, 9, 5), disc(20, 20, 4)
    for site, drawn in {"a": (1, 0), "b": (0, 2), "c": (1, 2)}.items():
        for k in SUBJECTS:
            image = texture(10 * ord(site) + k, SHAPE) + 50 * liver + 90 * spleen
            label = drawn[0] * liver + drawn[1] * spleen
            stack = [np.stack([array] * 3, -1) for array in (image, label)]
            affine = np.diag([1, 1, 4, 1])
            hospital.nifti(f"{site}{k}", stack[0].astype(np.float32), stack[1].astype("u1"), affine)
    names = "data.labels={liver: 1, spleen: 2}"
    asked = hospital.checked(names)
    assert codes(asked) == ["structure-unsaid"]
    ways = {finding.site: finding.way_out for finding in asked.stopping}
    assert "data.annotates={a: [liver]}" in ways["a"] and "c" not in ways
    found = hospital.checked(names, "data.annotates={a: [liver], b: [spleen]}")
    assert not found.findings
    taught = {name: {case.annotates for case in cases(s)} for name, s in opened(found).items()}
    assert taught == {"a": {(1,)}, "b": {(2,)}, "c": {None}}


def test_the_masks_of_healthy_people_count_where_the_user_says_so(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path, "path label_path site subject spacing_mm")
    for site in "ab":
        for k in range(6):
            ill = site == "a" or k % 2
            mask = disc() * bool(ill)
            image = texture(10 * ord(site) + k, SHAPE) + 60 * disc() + 50 * disc(25, 8, 3)
            hospital.png(f"{site}{k}", image, 255 * mask, "1")
    labels = "data.labels={lesion: 255}"
    unsaid = hospital.checked(labels)
    assert {f.code for f in unsaid.findings} == {"empty-mask"} and not unsaid.stopping
    assert sum(case.labelled.any() for case in cases(opened(unsaid)["b"])) == 3
    said = hospital.checked(labels, "data.empty_masks=negative")
    assert not said.findings
    healthy = [case for case in cases(opened(said)["b"]) if case.labelled.any()]
    assert len(healthy) == 6
    assert sum(not np.any(native_mask(case)) for case in healthy) == 3


def test_labels_saved_without_their_images_header_stop_a_run(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    for site in "abc":
        for k in SUBJECTS:
            mask = np.stack([disc()] * 4, -1)
            image = (texture(10 * ord(site) + k, mask.shape) + 60 * mask).astype(np.float32)
            affine = np.array([[-1, 0, 0, 20], [0, 1, 0, -9], [0, 0, 3, 5], [0, 0, 0, 1]], float)
            bare = np.eye(4) if site == "c" else None
            hospital.nifti(f"{site}{k}", image, mask.astype(np.uint8), affine, bare)
    found = hospital.checked()
    assert codes(found) == ["label-misplaced", "site-empty"]
    assert "its affine is the identity" in found.stopping[0].problem
    # Accepting the labels leaves no image of c: only a federation without it goes on.
    assert codes(hospital.checked("data.accept=[label-misplaced]")) == ["site-empty"]
    assert codes(hospital.checked("data.accept=all")) == ["site-empty"]
    assert not hospital.checked("data.sites=[a,b]").findings


def test_objects_counted_one_by_one_are_one_structure_if_asked(tmp_path: Path) -> None:
    hospital = Hospital(tmp_path)
    objects = np.zeros((*SHAPE, 4), np.uint16)
    objects.reshape(-1)[: 300 * 8 : 8] = np.arange(1, 301)
    for name in ("a0", "a1", "b0", "b1"):
        image = texture(10 * ord(name[0]) + int(name[1]), objects.shape) + 60 * (objects > 0)
        hospital.nifti(name, image.astype(np.float32), objects, np.diag([1, 1, 4, 1]))
    with pytest.raises(UserError, match=r"300 structures .* at most 254 .*NAME: 1-65535") as told:
        hospital.checked()
    assert str(told.value).count(".nii.gz") == 1
    for values in ("1-300", "1-65535"):
        found = hospital.checked(f"data.labels={{nucleus: {values}}}")
        assert not found.stopping
        for site in opened(found).values():
            for case in cases(site):
                assert set(np.unique(native_mask(case))) == {0, 1}
    short = hospital.checked("data.labels={nucleus: 1-20}")
    assert codes(short) == ["too-many-values"]


def test_modalities_are_named_and_not_held_against_each_other(tmp_path: Path) -> None:
    """PET is coarse by nature; words name a modality."""
    hospital = Hospital(tmp_path)
    hospital.lines[0] += "\tmodality"
    words = {"MR": "T2*-weighted MRI", "CT": "CT SOFT (HU)", "PT": "FDG-PET, on the grid of the CT"}
    for site in "ab":
        for k, code in enumerate(words if site == "a" else ["MR"] * 3):
            mask = np.stack([disc()] * 4, -1)
            low = -500 if code == "CT" else 0
            image = (texture(10 * ord(site) + k, mask.shape) + 60 * mask + low).astype(np.float32)
            mm = 6.0 if code == "PT" else 1.0
            affine = np.diag([mm, mm, 9, 1])
            hospital.nifti(f"{site}{k}", image, mask.astype(np.uint8), affine)
            hospital.lines[-1] += f"\t{words[code]}"
    (finding,) = hospital.checked("data.labels={x: 1}").findings
    assert (finding.code, finding.severity, finding.site) == ("modalities-mixed", "warning", "a")
    assert "CT, MR and PT" in finding.problem
