"""Pixels to ignore: neither trained on nor scored; and label files with too many values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from kit.cases import mask, native_mask, segmentation

from fedshift import UserError
from fedshift.client.metrics import score_case
from fedshift.client.worker import describe
from fedshift.sites import DataSettings, load_federation, open_site
from fedshift.sites.fingerprint import fingerprint
from fedshift.sites.labels.mask import to_classes
from fedshift.sites.labels.meaning import legend_of, parse_label_values
from fedshift.sites.types import IGNORED, Domain, ImageSource, SiteData

SIZE = 20
SOURCE = ImageSource("c", "s", Domain("v"), path="c.png", label_path="c_seg.png")


def write(folder: Path, label: np.ndarray, subjects: int = 3, **columns: str) -> Path:
    """A table of one site whose people share one label, (i, j, k)."""
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    lines = ["\t".join(["path", "label_path", "site", "subject", *columns])]
    for number in range(subjects):
        for suffix, array in (("", image), ("_seg", label)):
            affine = np.diag([0.5, 0.5, 4.0, 1.0])
            nibabel.save(nibabel.Nifti1Image(array, affine), folder / f"{number}{suffix}.nii.gz")
        cells = [f"{number}.nii.gz", f"{number}_seg.nii.gz", "a", str(number)]
        lines.append("\t".join([*cells, *columns.values()]))
    path = folder / "table.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def opened(path: Path, **settings: Any) -> SiteData:
    config = {"manifest": str(path), "size": SIZE, "cache": path.parent / "cache", **settings}
    data = DataSettings.from_config(config)
    federation = load_federation({"kind": "manifest"}, data, 0)
    return open_site(federation.site("a"), federation.parts, data, 0)


def drawn() -> np.ndarray:
    """Slice 0: a box whose right half is to be ignored; 1: all to be ignored; 2: nothing."""
    label = np.zeros((SIZE, SIZE, 3), np.uint8)
    label[4:14, 4:14, 0] = 7
    label[9:14, 4:14, 0] = 99
    label[:, :, 1] = 99
    return label


@pytest.mark.parametrize("spacing", [None, 0.7])
def test_ignored_pixels_stay_ignored_on_both_grids(tmp_path: Path, spacing: float | None) -> None:
    data = opened(write(tmp_path, drawn()), labels={"box": 7, "ignore": 99}, spacing_mm=spacing)
    assert data.parts == ("box",)
    for split in data.splits.values():
        (case,) = split
        assert case.ignores
        # A slice of which nothing is to be looked at tells nothing, and neither does an empty one.
        assert case.labelled.tolist() in ([True, False, False], [False, False, True])
        (shown,) = np.flatnonzero(case.labelled)
        for array in (mask(case), native_mask(case)):
            values, counts = np.unique(array[shown], return_counts=True)
            assert values.tolist() == [0, 1, IGNORED]
        assert counts[1:].tolist() == [50, 50]
    assert any("3 images have pixels that are neither trained" in note for note in data.notes)
    card = describe(data, segmentation("box"))
    assert card.labelled == ("box",) and not card.complete and card.teaches == {"box": 1}
    assert fingerprint(data)["parts"]["box"][0] == pytest.approx(50 * 0.5 * 0.5 * 4 / 1000)


def test_a_name_in_label_values_may_be_ignore(tmp_path: Path) -> None:
    path = write(tmp_path, drawn(), label_values="0=bg,7=box,99=Ignore")
    data = opened(path)
    assert data.parts == ("box",)
    case = data.splits["train"][0]
    assert case.ignores and case.annotates is None


def everything(images: np.ndarray) -> np.ndarray:
    """Predict the box in every pixel."""
    found = np.zeros((len(images), 2, *images.shape[2:]), np.float32)
    found[:, 1] = 1
    return found


def test_ignored_pixels_are_out_of_both_masks(tmp_path: Path) -> None:
    data = opened(write(tmp_path, drawn()), labels={"box": 7, "ignore": 99})
    task = segmentation("box", tolerance_mm=2.0)
    case = data.splits["test"][0]
    (row,) = task.score([case], everything, ["box"])
    (shown,) = np.flatnonzero(case.labelled)
    reference = native_mask(case)[shown : shown + 1]
    truth = (reference == 1).astype(np.uint8)
    found = (reference != IGNORED).astype(np.uint8)
    (expected,) = score_case(truth, found, case.native_spacing_mm, ["box"], 2.0)
    del expected["structure"]
    assert row.part == "box" and row.failed == expected.pop("failed")
    assert {name: row.values[name] for name in expected} == expected
    assert row.values["volume_ml"] == pytest.approx(350 * 0.001)
    assert task.validate(case, everything) == pytest.approx(2 * 50 / (350 + 50))


def test_too_many_values_are_told_with_a_way_out(tmp_path: Path) -> None:
    label = np.zeros((SIZE, SIZE, 1), np.uint16)
    label.ravel()[:300] = np.arange(1, 301)
    path = write(tmp_path, label)
    with pytest.raises(
        UserError, match=r"0_seg.*: 300 structures .* at most 254 .*NAME: 1-65535"
    ) as told:
        opened(path)
    assert "\n" not in str(told.value)
    data = opened(path, labels={"nucleus": "1-300"})
    assert data.parts == ("nucleus",)
    case = data.splits["train"][0]
    assert np.count_nonzero(mask(case) == 1) == 300


def test_values_outside_the_map_are_named_whatever_they_are() -> None:
    for value, mapping in ((300, {0: 0, 1: 1}), (65535, {0: 0}), (2, {0: 0, 1: 254})):
        values = np.array([[[0, value]]], np.uint16)
        with pytest.raises(UserError, match=f"c_seg.png holds the value {value}, which"):
            to_classes(values, mapping, SOURCE)
    values = np.array([[[0, 1, 2]]], np.uint16)
    assert to_classes(values, {0: 0, 1: IGNORED, 2: 254}, SOURCE).tolist() == [[[0, 255, 254]]]
    with pytest.raises(UserError, match="values go up to 65535"):
        parse_label_values("1=a,70000=b", "row")


def test_names_of_the_file_itself_are_used_where_nothing_else_says() -> None:
    data = DataSettings()
    legend = legend_of(SOURCE, ("a", "b"), data, "")
    assert legend.classes({5: "b", 6: "A "}) == {0: 0, 5: 2, 6: 1}
    with pytest.raises(UserError, match=r"holds the value 5 \('c'\), which is in no structure"):
        to_classes(np.array([[[5]]], np.uint16), legend.classes({5: "c"}), SOURCE, {5: "c"})
    with pytest.raises(UserError, match="'c' is no structure"):
        legend_of(SOURCE, ("a", "b"), data, "5=c")


def test_more_than_254_named_structures_are_too_many() -> None:
    with pytest.raises(UserError, match="at most 254"):
        DataSettings.from_config({"labels": {f"s{k}": k for k in range(1, 256)}})
    reserved = {"background": 300, "ignore": 255}
    labels = {f"s{k}": k for k in range(1, 255)} | reserved
    assert len(DataSettings.from_config({"labels": labels}).labels or ()) == 256
    for bad in (0, [1, True], " "):
        with pytest.raises(UserError, match="must be whole numbers"):
            DataSettings.from_config({"labels": {"s": bad}})
