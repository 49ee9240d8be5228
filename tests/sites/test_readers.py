"""NIfTI, PNG and DICOM from bytes, with files written here."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from kit.dicom_slice import write_dicom
from PIL import Image
from pydicom.uid import JPEGLSLossless, generate_uid

from fedshift import UserError
from fedshift.sites.geometry import orient, orient_spacing
from fedshift.sites.readers import Volume, decode, dicom_domain, read


def load(path: Path, label: bool = False) -> Volume:
    return decode(path, read(path), label)


@pytest.fixture
def series(tmp_path: Path) -> tuple[Path, np.ndarray]:
    folder = tmp_path / "series"
    folder.mkdir()
    stack = np.random.default_rng(0).integers(0, 500, (4, 6, 8))
    uid = generate_uid()
    for name, k in zip("cadb", range(4), strict=True):  # file names in no order of position
        write_dicom(folder / f"{name}.dcm", stack[k], 3.0 * k, uid)
    return folder, stack


def test_a_dicom_series_is_sorted_scaled_and_laid_out_as_displayed(
    series: tuple[Path, np.ndarray],
) -> None:
    folder, stack = series
    volume = load(folder)
    assert volume.affine is not None
    laid, axis = orient(volume.array, volume.affine, None)
    assert np.array_equal(laid, 2 * stack.astype(np.float32) - 5)
    assert orient_spacing(volume.affine, axis) == (3.0, 0.5, 0.75)
    assert dicom_domain(folder) == ("ACME", "Scan 3")


def test_dicom_and_nifti_of_one_scan_have_one_layout(
    series: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    folder, stack = series
    # The converter's side, by hand: x and y of DICOM (left, back) negated, columns first.
    affine = np.array([[-0.75, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 3, 0], [0, 0, 0, 1]], float)
    nibabel.save(
        nibabel.Nifti1Image(stack.transpose(2, 1, 0).astype(np.int16), affine),
        tmp_path / "x.nii.gz",
    )
    dicom, nifti = load(folder), load(tmp_path / "x.nii.gz", label=True)
    assert dicom.affine is not None and nifti.affine is not None
    assert np.allclose(dicom.affine, nifti.affine)
    assert np.array_equal(orient(nifti.array, nifti.affine, None)[0], stack)


@pytest.mark.parametrize(
    ("z", "uid", "match"),
    [
        (3.0, "same", "one position"),
        (100.0, "same", "lacks slices"),
        (12.0, "new", "2 DICOM series"),
    ],
)
def test_a_broken_series_is_refused(
    series: tuple[Path, np.ndarray], z: float, uid: str, match: str
) -> None:
    folder, stack = series
    known = str(pydicom.dcmread(folder / "a.dcm").SeriesInstanceUID)
    write_dicom(folder / "e.dcm", stack[0], z, known if uid == "same" else generate_uid())
    with pytest.raises(UserError, match=match):
        load(folder)


def test_an_undecodable_compression_is_named(tmp_path: Path) -> None:
    data = write_dicom(tmp_path / "x.dcm", np.zeros((4, 4)), 0, generate_uid())
    data.file_meta.TransferSyntaxUID = JPEGLSLossless
    data.PixelData = pydicom.encaps.encapsulate([b"\0\0"])
    data["PixelData"].VR = "OB"
    data.save_as(tmp_path / "x.dcm")
    with pytest.raises(UserError, match=r"x\.dcm is compressed as JPEG-LS.*has no readable pixels"):
        load(tmp_path / "x.dcm")


def test_a_file_that_is_not_dicom_is_named(series: tuple[Path, np.ndarray]) -> None:
    (series[0] / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes\.txt is not a readable DICOM file \(it lacks"):
        load(series[0])


def test_nifti_scaling_is_applied(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(0.5, 3)
    nibabel.save(image, tmp_path / "x.nii")
    assert np.array_equal(load(tmp_path / "x.nii").array, 0.5 * array.astype(np.float32) + 3)


def test_damaged_or_wrong_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "good.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), good)
    cases = {
        "cut.nii.gz": good.read_bytes()[:-40],
        "short.nii": gzip.decompress(good.read_bytes())[:600],
        "text.nii": b"not an image",
        "text.png": b"not an image",
        "text.dcm": b"not an image",
        "x.npy": b"",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            load(tmp_path / name)
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "absent.nii")


def test_nan_time_series_and_fractional_labels_are_refused(tmp_path: Path) -> None:
    nan = np.ones((3, 3, 3), np.float32)
    nan[1, 1, 1] = np.nan
    for name, array, label, match in (
        ("nan", nan, False, "NaN"),
        ("time", np.ones((3, 3, 3, 2), np.float32), False, "one volume"),
        ("half", np.full((3, 3, 3), 0.5, np.float32), True, "whole numbers"),
        ("minus", np.full((3, 3, 3), -1, np.int16), True, "whole numbers"),
    ):
        path = tmp_path / f"{name}.nii"
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        with pytest.raises(UserError, match=match):
            load(path, label=label)


def test_png_depths_colours_and_palettes(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(values).save(tmp_path / "deep.png")
    laid, _ = orient(load(tmp_path / "deep.png").array, None, None)
    assert np.array_equal(laid[0], values)
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "grey.png")
    assert np.array_equal(orient(load(tmp_path / "grey.png", True).array, None, None)[0][0], grey)
    indexed = Image.fromarray(grey, mode="P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "palette.png")
    label, _ = orient(load(tmp_path / "palette.png", True).array, None, None)
    assert np.array_equal(label[0], grey)
    Image.new("RGB", (4, 3), (255, 0, 0)).save(tmp_path / "red.png")
    with pytest.raises(UserError, match="label in colours"):
        load(tmp_path / "red.png", True)
