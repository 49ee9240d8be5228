"""DICOM SEG and RTSTRUCT laid on their image's grid, with files written here."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
from kit.cases import native_mask
from kit.dicom_labels import (
    COLUMNS,
    ROWS,
    SLICES,
    Frame,
    Scan,
    box,
    hand_made_seg,
    item,
    on,
    rtstruct,
    upright,
)
from kit.files import decode_pair
from pydicom.sr.codedict import codes
from pydicom.uid import (
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from fedshift.sites.federation import load_federation
from fedshift.sites.findings import FileFault
from fedshift.sites.legend import Legend
from fedshift.sites.opening import open_site
from fedshift.sites.readers import Volume, decode, read
from fedshift.sites.readers.rtstruct import fill
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import Domain, ImageSource

OBLIQUE = nibabel.eulerangles.euler2mat(0.4, -0.3, 0.25)
"""Columns: along a row, along a column, along the slices; in DICOM's axes."""


@pytest.fixture(params=["straight", "oblique"])
def scan(request: pytest.FixtureRequest, tmp_path: Path) -> Scan:
    return Scan(tmp_path / "ct", np.eye(3) if request.param == "straight" else OBLIQUE)


@pytest.fixture
def straight(tmp_path: Path) -> Scan:
    return Scan(tmp_path / "ct", np.eye(3))


def load(path: Path, image: Volume, meant: Mapping[int, int] | None = None) -> Volume:
    return decode(
        path, read(path), label=True, image=image, legend=None if meant is None else Legend(meant)
    )


def fault(path: Path, image: Volume, meant: Mapping[int, int] | None = None) -> FileFault:
    with pytest.raises(FileFault) as caught:
        load(path, image, meant)
    return caught.value


def codes_of(volume: Volume) -> set[str]:
    return {remark.code for remark in volume.remarks}


def blobs(count: int = 2) -> np.ndarray:
    """Structures 1 to ``count`` as (i, j, k), apart, on few slices, none on the first and last."""
    label = np.zeros((COLUMNS, ROWS, SLICES), np.uint16)
    draw = np.random.default_rng(2)
    for number in range(1, count + 1):
        start = 1 + 5 * (number - 1)
        label[start : start + 4, 2:9, 1 + number : 4 + number] = number * (
            draw.random((4, 7, 3)) < 0.7
        )
    return label


# Segmentations


def highdicom_seg(
    scan: Scan,
    path: Path,
    masks: np.ndarray,
    kind: str = "BINARY",
    names: Sequence[str] = ("liver", "spleen"),
    **more: Any,
) -> Path:
    """Write ``masks`` (k, j, i) of numbers, or (k, j, i, segment), by highdicom."""
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=codes.SCT.Organ,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number, name in enumerate(names, 1)
    ]
    seg = highdicom.seg.Segmentation(
        source_images=scan.slices,
        pixel_array=masks,
        segmentation_type=kind,
        segment_descriptions=descriptions,
        series_instance_uid=generate_uid(),
        series_number=1,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="A",
        manufacturer_model_name="B",
        software_versions="1",
        device_serial_number="1",
        **more,
    )
    seg.save_as(path)
    return path


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("BINARY", ExplicitVRLittleEndian),
        ("LABELMAP", ExplicitVRLittleEndian),
        ("LABELMAP", RLELossless),
    ],
)
def test_a_segmentation_lies_on_the_grid_of_its_image(
    scan: Scan, tmp_path: Path, kind: str, syntax: str
) -> None:
    truth = blobs()
    path = highdicom_seg(
        scan, tmp_path / "seg.dcm", truth.T.astype(np.uint8), kind, transfer_syntax_uid=syntax
    )
    image = scan.image()
    volume = load(path, image)
    assert pydicom.dcmread(path).NumberOfFrames < 2 * SLICES  # empty slices are left out
    assert np.array_equal(volume.array, truth)
    assert volume.affine is image.affine and volume.spacing_mm == image.spacing_mm
    assert volume.names == {1: "liver", 2: "spleen"} and not volume.remarks


def test_hand_made_frames_in_any_order_and_direction_lie_where_they_say(
    scan: Scan, tmp_path: Path
) -> None:
    truth = blobs()
    frames: list[Frame] = [
        # As the image's slices, a part of one, mirrored, and with rows and columns exchanged.
        (number, upright(k), (truth[:, :, k] == number).T)
        for number, k in itertools.product((2, 1), (5, 2, 4, 3))
    ]
    order = np.random.default_rng(3).permutation(len(frames))
    path = hand_made_seg(scan, tmp_path / "s.dcm", [frames[k] for k in order], ["a", "b"])
    expected = np.where(np.isin(np.arange(SLICES), (2, 3, 4, 5)), truth, 0)
    assert np.array_equal(load(path, scan.image()).array, expected)
    mirrored = [
        (1, np.array([[COLUMNS - 1, 0, k], [COLUMNS - 2, 0, k], [COLUMNS - 1, 1, k]], float), m)
        for k in range(SLICES)
        if (m := (truth[::-1, :, k] == 1).T).any()
    ]
    path = hand_made_seg(scan, tmp_path / "s.dcm", mirrored, ["a"])
    assert np.array_equal(load(path, scan.image()).array, truth == 1)
    # Coronal frames: rows run along the image's slices.
    coronal = [
        (1, np.array([[0, j, 0], [1, j, 0], [0, j, 1]], float), (truth[:, j] == 1).T)
        for j in range(ROWS)
    ]
    path = hand_made_seg(scan, tmp_path / "s.dcm", coronal, ["a"])
    assert np.array_equal(load(path, scan.image()).array, truth == 1)
    part = [(2, upright(4, (3, 2)), (truth[3:13, 2:10, 4] == 2).T)]
    path = hand_made_seg(scan, tmp_path / "s.dcm", part, ["a", "b"])
    expected = np.zeros_like(truth)
    expected[3:13, 2:10, 4] = 2 * (truth[3:13, 2:10, 4] == 2)
    volume = load(path, scan.image())
    assert np.array_equal(volume.array, expected) and expected.any()
    assert volume.names == {1: "a", 2: "b"}


def test_a_nifti_image_and_a_head_to_foot_segmentation(straight: Scan, tmp_path: Path) -> None:
    image = straight.image()
    truth = blobs()
    # Converters may store the image mirrored, or its axes in another order.
    assert image.affine is not None
    turn = np.array([[0, 0, 1, 0], [-1, 0, 0, COLUMNS - 1], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    inverse = np.linalg.inv(turn)  # new (a, b, c) = (k, 15 - i, j)
    turned = image.array.transpose(2, 0, 1)[:, ::-1]
    nibabel.save(nibabel.Nifti1Image(turned, image.affine @ inverse), tmp_path / "x.nii")
    nifti = decode(tmp_path / "x.nii", read(tmp_path / "x.nii"))
    path = highdicom_seg(straight, tmp_path / "s.dcm", truth.T.astype(np.uint8))
    assert np.array_equal(load(path, nifti).array, truth.transpose(2, 0, 1)[:, ::-1])
    stars = [np.insert(star(np.random.default_rng(k)), 2, k, axis=1) for k in (2, 3, 4)]
    contours = rtstruct(straight, tmp_path / "rt.dcm", {7: ("liver", stars)})
    filled = load(contours, image).array
    assert filled.any()
    assert np.array_equal(load(contours, nifti).array, filled.transpose(2, 0, 1)[:, ::-1])
    straight.slices.reverse()
    path = highdicom_seg(straight, tmp_path / "s.dcm", truth.T[::-1].astype(np.uint8))
    assert np.array_equal(load(path, image).array, truth)


def test_overlapping_segments_are_refused_unless_only_one_is_meant(
    straight: Scan, tmp_path: Path
) -> None:
    masks = np.zeros((SLICES, ROWS, COLUMNS, 3), np.uint8)
    masks[3:5, 2:8, 2:8, 0] = 1
    masks[4:6, 5:10, 5:10, 1] = 1
    masks[4, 0, 0, 2] = 1
    path = highdicom_seg(straight, tmp_path / "s.dcm", masks, names=("liver", "lesion", "dot"))
    image = straight.image()
    found = fault(path, image)
    assert found.code == "overlap" and "data.labels" in found.way_out
    assert "'liver' (1) and 'lesion' (2) share at least 9 voxels" in found.problem
    liver, lesion, dot = (masks[..., n].T.astype(bool) for n in range(3))
    alone = load(path, image, {0: 0, 1: 1})
    assert np.array_equal(alone.array, liver) and alone.names == {1: "liver", 2: "lesion", 3: "dot"}
    assert codes_of(alone) == {"structures-left-out"}
    assert "'lesion' (2), 'dot' (3)" in alone.remarks[0].problem
    # What is background gives way, and is drawn where nothing else is.
    assert np.array_equal(
        load(path, image, {0: 0, 2: 1, 1: 0, 3: 2}).array,
        np.where(lesion, 2, liver + 3 * dot),
    )
    joined = load(path, image, {0: 0, 1: 1, 2: 1, 3: 2})  # both are one structure
    assert np.array_equal(joined.array > 0, liver | lesion | dot)
    assert set(np.unique(joined.array[liver & lesion])) <= {1, 2}
    assert fault(path, image, {0: 0, 1: 1, 2: 2}).code == "overlap"


@pytest.mark.parametrize("most", [255, 100])
def test_a_fractional_segmentation_is_inside_above_half_and_says_so(
    straight: Scan, tmp_path: Path, most: int
) -> None:
    shares = np.random.default_rng(4).integers(0, most + 1, (SLICES, ROWS, COLUMNS)) / most
    shares[0, 0, :2] = 0.5, 0
    path = highdicom_seg(
        straight,
        tmp_path / "s.dcm",
        shares,
        "FRACTIONAL",
        names=("liver",),
        max_fractional_value=most,
    )
    volume = load(path, straight.image())
    stored = np.rint(shares * most)
    assert np.array_equal(volume.array.T, stored / most > 0.5)
    assert codes_of(volume) == {"fractional-label"}


def test_frames_off_the_grid_are_refused_and_outside_it_told(
    straight: Scan, tmp_path: Path
) -> None:
    image, full = straight.image(), np.ones((ROWS, COLUMNS))
    path = tmp_path / "s.dcm"

    def seg(place: np.ndarray, pixels: np.ndarray = full) -> Path:
        return hand_made_seg(straight, path, [(1, place, pixels)], ["a"])

    assert load(seg(upright(3.08)), image).array[:, :, 3].all()
    assert fault(seg(upright(3.2)), image).code == "label-grid"
    assert fault(seg(upright(3, (0.3, 0))), image).code == "label-grid"
    larger = upright(3) * [1.02, 1, 1]  # off by 15 x 0.02 at the right edge
    assert fault(seg(larger), image).code == "label-grid"
    volume = load(seg(upright(3, (4, 0))), image)
    assert volume.array.sum() == ROWS * (COLUMNS - 4)
    assert codes_of(volume) == {"label-outside"}
    assert "25.0% of its voxels, up to 3 mm away" in volume.remarks[0].problem
    found = fault(seg(upright(SLICES + 1)), image)
    assert (
        found.code == "label-mostly-outside"
        and "100.0%" in found.problem
        and "6 mm" in found.problem
    )


def test_the_uids_of_image_and_label_are_compared(straight: Scan, tmp_path: Path) -> None:
    image = straight.image()
    path = highdicom_seg(straight, tmp_path / "s.dcm", blobs().T.astype(np.uint8))
    data = pydicom.dcmread(path)
    own = data.FrameOfReferenceUID
    data.FrameOfReferenceUID = generate_uid()
    data.save_as(path)
    found = fault(path, image)
    assert found.code == "other-frame" and straight.frame in found.problem
    data.FrameOfReferenceUID = own
    data.ReferencedSeriesSequence[0].SeriesInstanceUID = generate_uid()
    data.save_as(path)
    assert codes_of(load(path, image)) == {"drawn-on-other-series"}  # one frame of reference: told
    data.FrameOfReferenceUID = ""
    data.save_as(path)
    assert fault(path, image).code == "other-series"


def test_unusable_segmentations_are_refused_in_a_sentence(straight: Scan, tmp_path: Path) -> None:
    image, path = straight.image(), tmp_path / "s.dcm"
    frame: Frame = (1, upright(3), np.ones((ROWS, COLUMNS)))
    hand_made_seg(straight, path, [frame, frame], ["a"])
    assert fault(path, image).code == "several-frames"
    hand_made_seg(straight, path, [frame, (7, *frame[1:])], ["a"])
    assert "segment number 7, which it does not describe" in fault(path, image).problem
    data = pydicom.dcmread(hand_made_seg(straight, path, [frame], ["a"]))
    del data.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence
    data.save_as(path)
    assert fault(path, image).code == "drawing-without-place"
    data = pydicom.dcmread(hand_made_seg(straight, path, [frame], ["a"]))
    data.PixelData = data.PixelData[:4]
    data.save_as(path)
    assert fault(path, image).code == "damaged"
    data = pydicom.dcmread(hand_made_seg(straight, path, [frame], ["a"]))
    del data.SegmentSequence
    data.save_as(path)
    assert fault(path, image).code == "damaged"
    hand_made_seg(straight, path, [frame], ["a"])
    for lost in (replace(image, affine=None), replace(image, assumed=True)):
        assert fault(path, lost).code == "image-without-place"
    with pytest.raises(FileFault, match="no DICOM image"):
        decode(path, read(path))


def test_without_highdicom_the_way_to_install_it_is_named(
    straight: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = highdicom_seg(straight, tmp_path / "s.dcm", blobs().T.astype(np.uint8))
    monkeypatch.setitem(sys.modules, "highdicom.seg", None)
    found = fault(path, straight.image())
    assert found.code == "needs-highdicom" and found.way_out == "pip install 'fedshift[dicom]'"


# Structure sets


def winding(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """How often ``polygon`` (N, 2) runs around each of ``points``, by the angles it is seen in."""
    rays = polygon[None] - points[:, None]
    angles = np.arctan2(rays[..., 1], rays[..., 0])
    turns = np.diff(np.concatenate([angles, angles[:, :1]], axis=1), axis=1)
    return np.rint(((turns + np.pi) % (2 * np.pi) - np.pi).sum(axis=1) / (2 * np.pi)).astype(int)


def star(draw: np.random.Generator, points: int = 9) -> np.ndarray:
    """A simple polygon about (7.5, 6) that no whole-number point lies on."""
    angles = np.sort(draw.uniform(0, 2 * np.pi, points))
    radii = draw.uniform(1.5, 5.5, points)
    return np.array([7.5, 6]) + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def test_contours_are_filled_where_a_voxels_centre_lies_inside(scan: Scan, tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    stars = {k: star(draw) for k in (1, 2, 3, 6)}
    contours = [np.insert(polygon, 2, k, axis=1) for k, polygon in stars.items()]
    path = rtstruct(scan, tmp_path / "rt.dcm", {4: ("liver", contours[::-1])})
    image = scan.image()
    volume = load(path, image)
    grid = np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS), indexing="ij"), axis=-1)
    expected = np.zeros((COLUMNS, ROWS, SLICES))
    for k, polygon in stars.items():
        inside = winding(np.round(polygon, 3), grid.reshape(-1, 2)) != 0
        expected[:, :, k] = 4 * inside.reshape(COLUMNS, ROWS)
    assert np.array_equal(volume.array, expected) and (expected > 0).sum() > 50
    assert volume.names == {4: "liver"} and not volume.remarks
    assert volume.affine is image.affine


def test_a_rectangle_a_diamond_and_shared_edges_by_hand() -> None:
    def pixels(points: Sequence[tuple[float, float]]) -> set[tuple[int, int]]:
        return {(int(x), int(y)) for x, y in fill(np.array(points, float))}

    between = pixels([(1.5, 0.5), (4.5, 0.5), (4.5, 2.5), (1.5, 2.5)])
    assert between == {(x, y) for x in (2, 3, 4) for y in (1, 2)}
    # Through centres: the lower edges count, so that the area does: 3 x 2.
    assert pixels([(2, 1), (5, 1), (5, 3), (2, 3)]) == between
    assert pixels([(2, 3), (5, 3), (5, 1), (2, 1)]) == between
    diamond = pixels([(0, 2.2), (2.2, 0), (0, -2.2), (-2.2, 0)])
    assert diamond == {(x, y) for x in range(-3, 4) for y in range(-3, 4) if abs(x) + abs(y) < 2.2}
    left, right = [(0, 0), (3, 0), (6, 7), (0, 7)], [(3, 0), (9, 0), (9, 7), (6, 7)]
    assert not pixels(left) & pixels(right)
    assert len(pixels(left) | pixels(right)) == 9 * 7
    assert not pixels([(0, 0), (1, 1), (2, 2)]) and not pixels([(0.2, 0.2), (0.4, 0.2), (0.3, 0.4)])


def test_filled_areas_are_those_of_the_polygons() -> None:
    draw = np.random.default_rng(6)
    for _ in range(20):
        polygon = 40 * star(draw, 12)
        x, y = polygon.T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        length = np.linalg.norm(polygon - np.roll(polygon, 1, axis=0), axis=1).sum()
        # The error of a boundary pixel is a half at most and random.
        assert abs(len(fill(polygon)) - area) < np.sqrt(length)


def test_holes_by_a_second_contour_and_by_a_keyhole(scan: Scan, tmp_path: Path) -> None:
    outer, inner, island = ((1.5, 1.5), (12.5, 9.5)), ((3.5, 3.5), (9.5, 7.5)), ((5, 5), (7, 6))
    keyhole = on(
        5,
        # Around, then by one straight way to the hole, around it the other way, and back.
        [
            *[(1.5, 1.5), (1.5, 9.5), (12.5, 9.5), (12.5, 1.5), (5, 1.5), (5, 3.5)],
            *[(9.5, 3.5), (9.5, 7.5), (3.5, 7.5), (3.5, 3.5), (5, 3.5), (5, 1.5)],
        ],
    )
    contours = [box(4, *outer), box(4, *inner), keyhole, box(6, *outer), box(6, *inner)]
    contours.append(box(6, *island))
    volume = load(rtstruct(scan, tmp_path / "rt.dcm", {1: ("ring", contours)}), scan.image())
    expected = np.zeros((COLUMNS, ROWS, SLICES))
    expected[2:13, 2:10, 4:7] = 1
    expected[4:10, 4:8, 4:7] = 0
    expected[5:7, 5:6, 6] = 1
    assert np.array_equal(volume.array, expected) and not volume.remarks


def test_contours_beside_the_slices_go_to_the_nearest(straight: Scan, tmp_path: Path) -> None:
    image, path = straight.image(), tmp_path / "rt.dcm"
    square = ((1.5, 1.5), (5.5, 5.5))

    def levels(*ks: float) -> Path:
        return rtstruct(straight, path, {1: ("a", [box(k, *square) for k in ks])})

    volume = load(levels(2.3, 3.3, 3.7), image)
    assert [k for k in range(SLICES) if volume.array[:, :, k].any()] == [2, 3, 4]
    assert codes_of(volume) == {"contours-off-slices"}
    assert "3 planes" in volume.remarks[0].problem and "0.9 mm" in volume.remarks[0].problem
    assert not load(levels(2.02, 3, 3.98), image).remarks
    found = fault(levels(2.5, 3.5), image)
    assert found.code == "contours-midway"
    # Drawn on a finer grid: a slice takes its own plane, and planes of one ROI are not combined.
    fine = [round(2 + k / 3, 4) for k in range(7)]
    volume = load(levels(*fine), image)
    assert volume.array.sum() == 3 * 16 and codes_of(volume) == {"contours-between"}
    sparse = load(levels(1, 3, 5), image)
    assert sparse.array.sum() == 3 * 16 and codes_of(sparse) == {"slices-skipped"}
    tilted = box(3, *square)
    tilted[1:3, 2] += 1
    rtstruct(straight, path, {1: ("a", [box(2, *square), tilted])})
    assert fault(path, image).code == "contours-oblique"


def test_contours_may_stand_on_another_axis_of_the_image(straight: Scan, tmp_path: Path) -> None:
    sagittal = box(4, (1.5, 2.5), (6.5, 5.5))[:, [2, 0, 1]]
    volume = load(rtstruct(straight, tmp_path / "rt.dcm", {1: ("a", [sagittal])}), straight.image())
    expected = np.zeros((COLUMNS, ROWS, SLICES))
    expected[4, 2:7, 3:6] = 1
    assert np.array_equal(volume.array, expected)


def test_overlapping_rois_are_refused_and_neighbours_are_not(
    straight: Scan, tmp_path: Path
) -> None:
    image, path = straight.image(), tmp_path / "rt.dcm"
    one, two = [box(3, (1, 1), (6, 6))], [box(3, (6, 1), (9, 6))]
    three = [box(3, (4, 4), (8, 9))]
    beside = load(rtstruct(straight, path, {3: ("GTV", one), 9: ("CTV", two)}), image)
    assert (beside.array == 3).sum() == 25 and (beside.array == 9).sum() == 15
    rtstruct(straight, path, {3: ("GTV", one), 5: ("PTV", three)})
    found = fault(path, image)
    assert found.code == "overlap" and "'GTV' (3) and 'PTV' (5) share at least 4" in found.problem
    assert (load(path, image, {0: 0, 5: 1}).array == 5).sum() == 20


def test_what_is_not_drawn_as_it_stands_is_told(straight: Scan, tmp_path: Path) -> None:
    image, path = straight.image(), tmp_path / "rt.dcm"
    square = box(3, (1.5, 1.5), (5.5, 5.5))
    data = pydicom.dcmread(rtstruct(straight, path, {1: ("a", [square]), 2: ("iso", [square[:1]])}))
    data.ROIContourSequence[1].ContourSequence[0].ContourGeometricType = "POINT"
    data.StructureSetROISequence.append(item(ROINumber=3, ROIName="later"))
    data.save_as(path)
    volume = load(path, image)
    assert volume.array.sum() == 16 and volume.names == {1: "a", 3: "later"}
    assert codes_of(volume) == {"open-contours"}
    assert volume.remarks[0].problem.endswith("closed contour: 'iso' (POINT, 1 points)")
    assert fault(rtstruct(straight, path, {1: ("a", [square])}, "OPEN_PLANAR"), image).code == (
        "no-contours"
    )
    crossing = [square, box(3, (3.5, 3.5), (8.5, 8.5))]
    volume = load(rtstruct(straight, path, {1: ("a", crossing)}), image)
    assert volume.array.sum() == 16 + 25 - 2 * 4 and codes_of(volume) == {"contours-cross"}
    volume = load(rtstruct(straight, path, {1: ("a", [square, square[::-1]])}), image)
    assert volume.array.sum() == 16 and codes_of(volume) == {"contours-twice"}
    tiny = box(3, (7.2, 7.2), (7.6, 7.6))
    volume = load(rtstruct(straight, path, {1: ("a", [square]), 2: ("dot", [tiny])}), image)
    assert codes_of(volume) == {"contours-small"} and "dot" in volume.remarks[0].problem


def test_contours_outside_the_image_are_told_or_refused(straight: Scan, tmp_path: Path) -> None:
    image, path = straight.image(), tmp_path / "rt.dcm"
    rtstruct(straight, path, {1: ("a", [box(3, (-1.5, 1.5), (4.5, 5.5))])})
    volume = load(path, image)
    assert volume.array.sum() == 5 * 4 and codes_of(volume) == {"label-outside"}
    assert "16.7% of its voxels, up to 0.75 mm" in volume.remarks[0].problem
    rtstruct(straight, path, {1: ("a", [box(20, (1.5, 1.5), (4.5, 5.5))])})
    found = fault(path, image)
    assert found.code == "label-mostly-outside" and "36 mm" in found.problem
    rtstruct(straight, path, {1: ("a", [box(3, (0, 0), (1e6, 1e6))])})
    assert fault(path, image).code == "label-mostly-outside"


def test_unusable_structure_sets_are_refused_in_a_sentence(straight: Scan, tmp_path: Path) -> None:
    image, path = straight.image(), tmp_path / "rt.dcm"
    square = box(3, (1.5, 1.5), (5.5, 5.5))

    def damaged(**values: object) -> FileFault:
        data = pydicom.dcmread(rtstruct(straight, path, {1: ("a", [square])}))
        for key, value in values.items():
            setattr(data.ROIContourSequence[0].ContourSequence[0], key, value)
        data.save_as(path)
        return fault(path, image)

    assert damaged(ContourData=["1", "2"]).code == "damaged"
    assert "not finite" in damaged(ContourData=[1, 2, float("inf")] * 3).problem
    data = pydicom.dcmread(rtstruct(straight, path, {1: ("a", [square])}))
    data.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = generate_uid()
    data.save_as(path)
    assert fault(path, image).code == "other-frame"
    data = pydicom.dcmread(rtstruct(straight, path, {1: ("a", [square]), 2: ("b", [])}))
    data.StructureSetROISequence[1].ROINumber = 1
    data.save_as(path)
    assert "two ROIs have one number" in fault(path, image).problem
    rtstruct(straight, path, {0: ("a", [square])})
    assert fault(path, image).code == "label-number"
    (tmp_path / "both").mkdir()
    for name in ("a.dcm", "b.dcm"):
        rtstruct(straight, tmp_path / "both" / name, {1: ("a", [square])})
    assert fault(tmp_path / "both", image).code == "several-labels"
    (tmp_path / "both" / "a.dcm").unlink()
    assert load(tmp_path / "both", image).array.sum() == 16
    shutil.copy(tmp_path / "both" / "b.dcm", straight.folder)  # beside the series it belongs to
    assert load(straight.folder, straight.image()).array.sum() == 16


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of damaged values
def test_damaged_bytes_raise_a_fault_or_nothing(straight: Scan, tmp_path: Path) -> None:
    image, draw = straight.image(), np.random.default_rng(7)
    square = [box(k, (1.5, 1.5), (5.5, 5.5)) for k in (2, 3)]
    files = [
        highdicom_seg(straight, tmp_path / "s.dcm", blobs().T.astype(np.uint8)),
        rtstruct(straight, tmp_path / "rt.dcm", {1: ("a", square)}),
    ]
    faults = 0
    for number in range(120):
        path = files[number % 2]
        data = bytearray(path.read_bytes())
        if number % 3 == 0:
            del data[draw.integers(140, len(data)) :]
        else:
            data[draw.integers(140, len(data))] = draw.integers(256)
        try:
            decode(path, [(path, bytes(data))], label=True, image=image)
        except FileFault:
            faults += 1
    assert faults > 40


# Together


def test_a_site_labelled_with_hospitals_tools_is_opened(straight: Scan, tmp_path: Path) -> None:
    truth = blobs()
    squares = [box(k, (1.5, 1.5), (5.5, 5.5)) for k in (2, 3, 4)]
    highdicom_seg(straight, tmp_path / "s.dcm", truth.T.astype(np.uint8))
    overlapping = {1: ("liver", squares), 2: ("body", [square - [1, 1, 0] for square in squares])}
    rtstruct(straight, tmp_path / "rt.dcm", overlapping)
    shutil.copytree(tmp_path / "ct", tmp_path / "ct2")
    table = tmp_path / "m.tsv"
    table.write_text("path\tlabel_path\tsite\tsubject\nct\ts.dcm\tA\t1\nct2\trt.dcm\tB\t2\n")
    config = {
        "manifest": str(table),
        "size": 16,
        "split_gap": 0,
        "cache": str(tmp_path / "cache"),
    }
    data = DataSettings.from_config({**config, "labels": {"liver": 1}})
    federation = load_federation({"kind": "manifest"}, data, 0)
    for site, expected in zip(federation.sites, ((truth == 1).sum(), 3 * 16), strict=True):
        opened = open_site(site, federation.parts, data, 0)
        cases = [case for split in opened.splits.values() for case in split]
        references = [native_mask(case) for case in cases if case.labels]
        assert sum(int(reference.sum()) for reference in references) == expected
    table.write_text("path\tlabel_path\tsite\tsubject\nct\ts.dcm\tA\t1\n")
    data = DataSettings.from_config(config)
    assert load_federation({"kind": "manifest"}, data, 0).parts == ("liver", "spleen")
    source = ImageSource(str(straight.folder), "1", Domain(""), str(tmp_path / "s.dcm"))
    decoded = decode_pair(source, read(straight.folder), read(tmp_path / "s.dcm"))
    assert np.array_equal(decoded.values, truth.T)
