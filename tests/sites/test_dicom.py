"""DICOM images: where their frames lie and what their pixels mean, against computations by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.dicom import UPRIGHT, Dicom, along, decimals, enhanced, made, placed, stored, tagged
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    MPEG2MPML,
    BasicTextSRStorage,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    SegmentationStorage,
    generate_uid,
)

from fedshift import UserError
from fedshift.sites.geometry import orient
from fedshift.sites.readers import Volume, decode, dicom_domain, read
from fedshift.sites.readers.dicom_frames import frames

# An oblique plane: along a row, along a column, and their normal.
TURN = np.linalg.qr(np.array([[9.0, 2, 1], [-2, 8, 3], [1, -3, 7]]))[0]
OBLIQUE = TURN * np.sign(np.diag(TURN))


def load(path: Path, label: bool = False) -> Volume:
    return decode(path, read(path), label)


def codes(volume: Volume) -> list[str]:
    return [remark.code for remark in volume.remarks]


def alone(folder: Path, data: Dicom) -> Path:
    data.save_as(folder / "x.dcm")
    return folder / "x.dcm"


def drawn(number: int = 4, shape: tuple[int, int] = (3, 5), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4000, (number, *shape)).astype(np.uint16)


def assert_in_place(
    volume: Volume, planes: np.ndarray, positions: np.ndarray, turn: np.ndarray
) -> None:
    """Each pixel's value must lie where the header of its own frame puts it, left-back-up."""
    assert volume.affine is not None
    home = np.linalg.inv(volume.affine)
    for plane, position in zip(planes, positions, strict=True):
        for row, column in np.ndindex(plane.shape):
            point = position + turn[:, 0] * 0.75 * column + turn[:, 1] * 0.5 * row
            voxel = home @ [-point[0], -point[1], point[2], 1]
            assert np.allclose(voxel, np.rint(voxel), atol=1e-3)
            i, j, k = np.rint(voxel[:3]).astype(int)
            assert volume.array[i, j, k] == plane[row, column]
    assert volume.array.size == planes.size


@pytest.mark.parametrize("heights", [(9, 6, 3, 0), (0, 6, 3, 9), (0, 3, 6, 9)])
def test_frames_lie_where_their_functional_groups_say(
    tmp_path: Path, heights: tuple[float, ...]
) -> None:
    pixels, positions = drawn(), along(OBLIQUE, heights)
    volume = load(alone(tmp_path, enhanced(pixels, positions, OBLIQUE)))
    values = pixels * np.arange(1, 5)[:, None, None] - 3.0
    assert_in_place(volume, values, positions, OBLIQUE)
    assert volume.spacing_mm is not None
    assert np.allclose(volume.spacing_mm, (0.75, 0.5, 3))
    assert (volume.modality, volume.frame, volume.remarks) == ("MR", "1.2.3", ())


def test_classic_slices_scale_each_by_its_own_slope(tmp_path: Path) -> None:
    pixels, positions = drawn(), along(OBLIQUE, (2, 0, 6, 4))
    files = [
        placed(plane, position, OBLIQUE, RescaleSlope=k + 0.5, RescaleIntercept=-7 * k)
        for k, (plane, position) in enumerate(zip(pixels, positions, strict=True))
    ]
    volume = load(stored(tmp_path / "s", *files))
    values = np.array([plane * (k + 0.5) - 7 * k for k, plane in enumerate(pixels)])
    assert_in_place(volume, values, positions, OBLIQUE)


def test_a_series_may_lie_in_several_multi_frame_files(tmp_path: Path) -> None:
    pixels, positions = drawn(), along(OBLIQUE, (3, 9, 0, 6))
    halves = [enhanced(pixels[k : k + 2], positions[k : k + 2], OBLIQUE) for k in (0, 2)]
    volume = load(stored(tmp_path / "s", *halves))
    values = pixels * np.array([1, 2, 1, 2])[:, None, None] - 3.0
    assert_in_place(volume, values, positions, OBLIQUE)


def test_a_frame_of_reference_that_some_slices_leave_out_is_no_other(tmp_path: Path) -> None:
    files = slices((0, 3, 6), FrameOfReferenceUID="1.4")
    del files[1].FrameOfReferenceUID
    assert load(stored(tmp_path / "s", *files)).remarks == ()


@pytest.mark.parametrize("step", [2.5, -2.5])
def test_nuclear_slices_lie_behind_or_before_the_first(tmp_path: Path, step: float) -> None:
    pixels = drawn()
    detector = tagged(
        {
            "ImagePositionPatient": decimals((-11, 7, 4)),
            "ImageOrientationPatient": decimals(OBLIQUE[:, :2].T.ravel()),
        }
    )
    data = made(
        pixels,
        Modality="NM",
        DetectorInformationSequence=[detector],
        SliceVector=[2, 1, 3, 4],
        SpacingBetweenSlices=step,
        PixelSpacing=[0.5, 0.75],
    )
    positions = along(OBLIQUE, np.array([1, 0, 2, 3]) * step)
    assert_in_place(load(alone(tmp_path, data)), pixels, positions, OBLIQUE)


def test_frames_tell_what_label_readers_need() -> None:
    positions = along(OBLIQUE, (3, 0))
    found = frames(Path("x.dcm"), enhanced(drawn(2), positions, OBLIQUE))
    assert [frame.index for frame in found] == [0, 1]
    for frame, position in zip(found, positions, strict=True):
        assert frame.position is not None and np.allclose(frame.position, position)
        assert frame.orientation is not None and np.allclose(frame.orientation, OBLIQUE[:, :2].T)
        assert (frame.spacing, frame.between, frame.thickness) == ((0.5, 0.75), None, 9)


def refused(path: Path, code: str, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        load(path)
    assert getattr(caught.value, "code", "") == code
    assert "; " in str(caught.value)


def test_frames_interleaved_in_time_are_refused(tmp_path: Path) -> None:
    positions = along(UPRIGHT, (0, 0, 3, 3))
    data = enhanced(drawn(), positions, UPRIGHT, times=[1, 2, 1, 2])
    refused(alone(tmp_path, data), "several-at-one-position", r"up to 2 \(time point 1 and 2\)")
    still = enhanced(drawn(), along(UPRIGHT, (0, 0, 0, 0)), UPRIGHT)
    refused(alone(tmp_path, still), "several-at-one-position", "up to 4")


def slices(heights: Any, turn: np.ndarray = UPRIGHT, **tags: Any) -> list[Dicom]:
    heights = list(heights)
    planes, positions = drawn(len(heights)), along(turn, heights)
    return [placed(*pair, turn, **tags) for pair in zip(planes, positions, strict=True)]


def change(**tags: Any) -> Callable[[list[Dicom]], None]:
    """Change the last slice of a series."""
    return lambda files: files[-1].update(tagged(tags))


def forget(*keywords: str) -> Callable[[list[Dicom]], None]:
    def act(files: list[Dicom]) -> None:
        for keyword in keywords:
            del files[-1][keyword]

    return act


def again(**tags: Any) -> Callable[[list[Dicom]], None]:
    def act(files: list[Dicom]) -> None:
        copy = dcmread(io.BytesIO(dumped(files[0])))
        copy.update(tagged(tags))
        files.append(copy)

    return act


def dumped(data: Dicom) -> bytes:
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("spoil", "code", "match"),
    [
        (change(PixelSpacing=[0.5, 0.7]), "mixed-slices", "pixel spacings, 0.5 x 0.75 mm and"),
        (change(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), "mixed-slices", "orientations"),
        (change(FrameOfReferenceUID="1.5"), "mixed-slices", "frames of reference"),
        (change(EchoTime=80), "mixed-slices", "echo times, 20 and 80 ms"),
        (change(Rows=2, Columns=4), "mixed-slices", "different shapes"),
        (change(SeriesInstanceUID="1.7"), "several-series", "2 DICOM series"),
        (forget("ImagePositionPatient"), "mixed-slices", "3 images that say where .* with 1"),
        (again(), "duplicate-slices", "one image twice, 000.dcm and 004.dcm"),
        (
            again(SOPInstanceUID="1.8", EchoTime=80),
            "several-at-one-position",
            "echo time 20.* and 80",
        ),
        (
            again(SOPInstanceUID="1.8", AcquisitionNumber=2),
            "several-at-one-position",
            "acquisition 1 and 2",
        ),
        (change(RescaleSlope=0), "rescale", "003.dcm has the rescale slope 0"),
        (change(ImagePositionPatient=["0", "0", "30"]), "missing-slices", "24 mm apart, others 3"),
        (change(ImagePositionPatient=["0", "0", "7"]), "mixed-slices", "1 mm apart, others 3"),
    ],
)
def test_what_is_no_single_stack_is_refused_in_a_sentence(
    tmp_path: Path, spoil: Callable[[list[Dicom]], None], code: str, match: str
) -> None:
    files = slices((0, 3, 6, 9), EchoTime=20, AcquisitionNumber=1, FrameOfReferenceUID="1.4")
    for data, z in zip(files, (0, 3, 6, 9), strict=True):
        data.ImagePositionPatient = [0, 0, z]
    spoil(files)
    refused(stored(tmp_path / "s", *files), code, match)


def test_mildly_uneven_slices_are_told_and_even_ones_are_not(tmp_path: Path) -> None:
    even = load(stored(tmp_path / "even", *slices((0, 3.01, 6, 8.99))))
    assert even.remarks == ()
    volume = load(stored(tmp_path / "uneven", *slices((0, 3, 7, 10, 13))))
    assert codes(volume) == ["uneven-slices"]
    assert "3 to 4 mm apart" in volume.remarks[0].problem
    assert volume.spacing_mm is not None and volume.spacing_mm[2] == pytest.approx(13 / 4)
    # Slices at 0, 3, 7, 10, 13 against 0, 3.25, 6.5, 9.75, 13: half a millimetre at most.
    assert "misplaces one by 0.5 mm" in volume.remarks[0].problem
    drifting = np.cumsum([0, *np.linspace(3, 4.4, 12)])
    refused(stored(tmp_path / "drift", *slices(drifting)), "mixed-slices", "too uneven")


@pytest.mark.parametrize("degrees", [-22, 5, 15])
def test_a_tilted_gantry_is_refused(tmp_path: Path, degrees: float) -> None:
    angle = np.deg2rad(degrees)
    plane = np.array([[1, 0], [0, np.cos(angle)], [0, np.sin(angle)]])
    turn = np.column_stack([plane, np.cross(plane[:, 0], plane[:, 1])])
    # The table moves along z, not along the normal of the tilted plane.
    files = [placed(p, (0, 0, 5 * k), turn) for k, p in enumerate(drawn(6))]
    shift = 25 * abs(np.sin(angle))
    refused(stored(tmp_path / "s", *files), "sheared", f"sideways by up to {shift:.3g} mm.*gantry")
    straight = [placed(p, 5 * k * turn[:, 2], turn) for k, p in enumerate(drawn(6))]
    assert load(stored(tmp_path / "t", *straight)).remarks == ()


def test_a_drift_that_rounding_makes_stays_in_the_affine(tmp_path: Path) -> None:
    positions = np.array([(0.02 * k, 0, 3.0 * k) for k in range(5)])
    planes = drawn(5)
    files = [placed(*pair) for pair in zip(planes, positions, strict=True)]
    assert_in_place(load(stored(tmp_path / "s", *files)), planes, positions, UPRIGHT)


def test_the_slice_distance_comes_from_positions_then_tags_and_is_told_otherwise(
    tmp_path: Path,
) -> None:
    wrong: dict[str, Any] = {"SpacingBetweenSlices": 1, "SliceThickness": 7}
    volume = load(stored(tmp_path / "s", *slices((0, 3, 6), **wrong)))
    assert volume.spacing_mm == (0.75, 0.5, 3) and volume.remarks == ()
    for tags, distance, expected in (
        ({"SpacingBetweenSlices": 4, "SliceThickness": 7}, 4, []),
        ({"SliceThickness": 7}, 7, ["thickness-as-distance"]),
        ({}, 1, ["unknown-slice-distance"]),
        ({"SpacingBetweenSlices": 0}, 1, ["unknown-slice-distance"]),
    ):
        path = alone(tmp_path, made(drawn(), PixelSpacing=[0.5, 0.75], **tags))
        volume = load(path)
        assert volume.spacing_mm == (0.75, 0.5, distance) and volume.affine is None
        assert codes(volume) == ["no-positions", *expected]
    single = load(alone(tmp_path, made(drawn()[0], PixelSpacing=[0.5, 0.75])))
    assert single.spacing_mm == (0.75, 0.5, 1) and single.remarks == ()


def test_without_positions_files_lie_as_they_are_numbered(tmp_path: Path) -> None:
    planes = drawn(3)
    zeros = {"ImageOrientationPatient": [0] * 6, "ImagePositionPatient": [0, 0, 0]}
    files = [made(p, InstanceNumber=n, **zeros) for p, n in zip(planes, (12, 3, 7), strict=True)]
    volume = load(stored(tmp_path / "s", *files))
    assert np.array_equal(orient(volume.array, None, None)[0], planes[[1, 2, 0]])
    assert volume.spacing_mm is None
    files[0].InstanceNumber = 3
    refused(stored(tmp_path / "s", *files), "no-order", "their order is unknown")
    files[0].InstanceNumber, files[0].GantryDetectorTilt = 1, 12
    for data in files:
        data.GantryDetectorTilt = 12
    refused(stored(tmp_path / "s", *files), "sheared", "tilted gantry")


def test_one_position_says_nothing_about_further_frames(tmp_path: Path) -> None:
    data = placed(drawn()[0], (0, 0, 0), SpacingBetweenSlices=2)
    data.NumberOfFrames, data.PixelData = 4, drawn().tobytes()
    volume = load(alone(tmp_path, data))
    assert volume.affine is None and volume.spacing_mm == (0.75, 0.5, 2)
    assert codes(volume) == ["no-positions"]


def test_the_tiles_of_a_whole_slide_are_no_slices(tmp_path: Path) -> None:
    data = made(drawn(), Modality="SM", TotalPixelMatrixColumns=10, TotalPixelMatrixRows=6)
    refused(alone(tmp_path, data), "tiled", "x.dcm is a whole-slide image")


def test_a_film_of_frames_is_told(tmp_path: Path) -> None:
    data = made(drawn(), Modality="US", FrameTime=33, FrameIncrementPointer=0x00181063)
    volume = load(alone(tmp_path, data))
    assert codes(volume) == ["frames-in-time"]
    assert volume.array.shape == (5, 3, 4)


def test_positions_order_slices_of_unknown_pixel_size(tmp_path: Path) -> None:
    planes = drawn(3)
    files = [placed(p, (0, 0, z)) for p, z in zip(planes, (6, 0, 3), strict=True)]
    for data in files:
        del data.PixelSpacing
    volume = load(stored(tmp_path / "s", *files))
    assert volume.affine is None and volume.spacing_mm is None
    assert np.array_equal(orient(volume.array, None, None)[0], planes[[1, 2, 0]])


def region(scale: float, unit: int = 3) -> Dataset:
    return tagged(
        {
            "PhysicalUnitsXDirection": unit,
            "PhysicalUnitsYDirection": unit,
            "PhysicalDeltaX": scale,
            "PhysicalDeltaY": -2 * scale,
        }
    )


@pytest.mark.parametrize(
    ("tags", "spacing", "expected"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (0.1, 0.2, 1), []),
        (
            {"PixelSpacing": [0.2, 0.1], "SliceThickness": 4, "SpacingBetweenSlices": 650},
            (0.1, 0.2, 4),
            [],
        ),
        ({"Modality": "DX", "ImagerPixelSpacing": [0.2, 0.1]}, (0.1, 0.2, 1), ["detector-spacing"]),
        (
            {"Modality": "CR", "ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.2, 0.1]},
            (0.1, 0.2, 1),
            ["detector-spacing"],
        ),
        (
            {"Modality": "DX", "ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.16, 0.08]},
            (0.08, 0.16, 1),
            [],
        ),
        (
            {
                "Modality": "DX",
                "ImagerPixelSpacing": [0.2, 0.1],
                "PixelSpacing": [0.2, 0.1],
                "PixelSpacingCalibrationType": "FIDUCIAL",
            },
            (0.1, 0.2, 1),
            [],
        ),
        ({"Modality": "CR", "PixelSpacing": [0.2, 0.1]}, (0.1, 0.2, 1), ["detector-spacing"]),
        (
            {
                "Modality": "CR",
                "PixelSpacing": [0.2, 0.1],
                "PixelSpacingCalibrationType": "GEOMETRY",
            },
            (0.1, 0.2, 1),
            [],
        ),
        ({"NominalScannedPixelSpacing": [0.2, 0.1]}, (0.1, 0.2, 1), ["scanned-spacing"]),
        ({"PixelSpacing": [0, 0]}, None, []),
        ({"SequenceOfUltrasoundRegions": [region(0.01)]}, (0.1, 0.2, 1), []),
        (
            {"SequenceOfUltrasoundRegions": [region(5, 4), region(0.01), region(0.01)]},
            (0.1, 0.2, 1),
            [],
        ),
        (
            {"SequenceOfUltrasoundRegions": [region(0.01), region(0.02)]},
            None,
            ["several-scales"],
        ),
        ({"PixelAspectRatio": [6, 5]}, None, ["pixel-aspect"]),
        ({"PixelAspectRatio": [5, 5]}, None, []),
    ],
)
def test_where_the_pixel_spacing_comes_from(
    tmp_path: Path, tags: dict[str, Any], spacing: tuple[float, ...] | None, expected: list[str]
) -> None:
    volume = load(alone(tmp_path, made(drawn()[0], **tags)))
    assert volume.spacing_mm == (None if spacing is None else pytest.approx(spacing))
    assert codes(volume) == expected


def shown(path: Path, label: bool = False) -> np.ndarray:
    """The first slice (R, C)."""
    return orient(load(path, label).array, None, None)[0][0]


def test_monochrome1_is_the_same_picture_in_every_slice(tmp_path: Path) -> None:
    # One ramp, every second slice stored the other way round in 12 bits, each with a window of
    # its own: as one picture, all slices are alike, and dark stays dark.
    ramp = np.arange(15, dtype=np.uint16).reshape(3, 5) * 200
    files = []
    for k in range(4):
        data = placed(4095 - ramp if k % 2 else ramp, (0, 0, 3 * k), BitsStored=12)
        data.PhotometricInterpretation = "MONOCHROME1" if k % 2 else "MONOCHROME2"
        data.RescaleSlope, data.RescaleIntercept = 2, 10
        data.WindowCenter, data.WindowWidth = 100 * k, 50
        files.append(data)
    volume = load(stored(tmp_path / "s", *files))
    assert np.array_equal(volume.array, np.repeat((2.0 * ramp + 10).T[..., None], 4, axis=2))
    every = [placed(4095 - ramp, (0, 0, 3 * k), BitsStored=12) for k in range(3)]
    for k, data in enumerate(every):
        data.PhotometricInterpretation = "MONOCHROME1"
        data.RescaleSlope, data.RescaleIntercept = 1, -k
    array = load(stored(tmp_path / "t", *every)).array
    # Turned over about one constant: the differences are those of the measured values.
    measured = np.stack([4095.0 - ramp - k for k in range(3)])
    assert np.ptp(array + measured.transpose(2, 1, 0)) == 0


@pytest.mark.parametrize(
    ("tags", "turned", "expected"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, True, []),
        ({"PresentationLUTShape": "IDENTITY"}, False, []),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
            True,
            [],
        ),
        ({"PresentationLUTShape": "INVERSE"}, True, ["polarity"]),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
            False,
            ["polarity"],
        ),
        ({"PhotometricInterpretation": "MONOCHROME1", "Modality": "CT"}, False, []),
        ({"PhotometricInterpretation": "MONOCHROME1", "RescaleType": "HU"}, False, []),
        ({"PresentationLUTShape": "INVERSE", "RescaleType": "HU"}, False, []),
    ],
)
def test_polarity_follows_the_presentation_but_not_for_measured_units(
    tmp_path: Path, tags: dict[str, Any], turned: bool, expected: list[str]
) -> None:
    ramp = np.arange(15, dtype=np.uint8).reshape(3, 5)
    path = alone(tmp_path, made(ramp, **tags))
    assert np.array_equal(shown(path), 255.0 - ramp if turned else ramp)
    assert codes(load(path)) == expected
    assert np.array_equal(shown(path, label=True), ramp)


def test_signed_monochrome1_is_turned_over_within_its_bits(tmp_path: Path) -> None:
    ramp = np.arange(-7, 8, dtype=np.int16).reshape(3, 5) * 290
    data = made(-1 - ramp, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(shown(alone(tmp_path, data)), ramp)


def test_signed_pixels_in_some_of_the_bits(tmp_path: Path) -> None:
    values = np.arange(-7, 8, dtype=np.int16).reshape(3, 5) * 290
    # 12 bits in 16, the upper four being rubbish, as old scanners write overlays there.
    rubbish = ((values & 0x0FFF) | 0x5000).astype(np.int16)
    data = made(rubbish, BitsStored=12, RescaleSlope=0.5, RescaleIntercept=-1024)
    assert np.array_equal(shown(alone(tmp_path, data)), values / 2 - 1024)


def test_floating_pixels(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 15, dtype=np.float32).reshape(3, 5)
    data = made(drawn()[0])
    del data.PixelData, data.BitsStored, data.HighBit, data.PixelRepresentation
    data.BitsAllocated, data.FloatPixelData = 32, values.tobytes()
    assert np.array_equal(shown(alone(tmp_path, data)), values)


@pytest.mark.parametrize("kind", ["US", "OW"])
def test_a_modality_table_is_looked_up(tmp_path: Path, kind: str) -> None:
    entries = [7, 900, 3, 4000]
    table = tagged({"LUTDescriptor": [4, -2, 16], "ModalityLUTType": "US"})
    table["LUTDescriptor"].VR = "SS"
    packed: Any = entries if kind == "US" else np.array(entries, "<u2").tobytes()
    table.add_new("LUTData", kind, packed)
    pixels = np.array([[-32768, -3, -2, -1], [0, 1, 2, 32767]], np.int16)
    data = made(pixels, ModalityLUTSequence=[table])
    # Below the first and above the last value the ends go on.
    expected = [[7, 7, 7, 900], [3, 4000, 4000, 4000]]
    assert np.array_equal(shown(alone(tmp_path, data)), expected)


def luma(red: Any, green: Any, blue: Any) -> np.ndarray:
    return 0.299 * np.asarray(red) + 0.587 * np.asarray(green) + 0.114 * np.asarray(blue)


@pytest.mark.parametrize(
    ("bits", "first", "number"), [(8, 0, 256), (16, 0, 256), (16, 10, 40), (8, 0, 1000), (8, 0, 7)]
)
def test_a_palette_becomes_brightness(tmp_path: Path, bits: int, first: int, number: int) -> None:
    rng = np.random.default_rng(1)
    table = rng.integers(0, 2**bits, (3, number))
    pixels = rng.integers(0, 1100, (6, 7)).astype(np.uint16)
    data = made(pixels, PhotometricInterpretation="PALETTE COLOR")
    for name, entries in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [number, first, bits])
        packed = entries.astype(f"<u{bits // 8}").tobytes()
        setattr(data, f"{name}PaletteColorLookupTableData", packed + b"\0" * (len(packed) % 2))
    expected = np.empty((6, 7))
    for place in np.ndindex(6, 7):
        entry = table[:, min(max(int(pixels[place]) - first, 0), number - 1)]
        expected[place] = luma(*entry) * 255 / (2**bits - 1)
    path = alone(tmp_path, data)
    assert np.allclose(shown(path), expected, atol=1e-3)
    assert np.array_equal(shown(path, label=True), pixels)


def test_colours_become_brightness(tmp_path: Path) -> None:
    colours = np.random.default_rng(2).integers(0, 256, (2, 4, 6, 3)).astype(np.uint8)
    expected = luma(*np.moveaxis(colours.astype(float), -1, 0))
    volume = load(alone(tmp_path, made(colours)))
    assert np.allclose(orient(volume.array, None, None)[0], expected, atol=1e-3)
    planar = made(colours[0], PlanarConfiguration=1)
    planar.PixelData = np.ascontiguousarray(colours[0].transpose(2, 0, 1)).tobytes()
    assert np.allclose(shown(alone(tmp_path, planar)), expected[0], atol=1e-3)
    deep = made(colours[0].astype(np.uint16) * 257)
    assert np.allclose(shown(alone(tmp_path, deep)), expected[0], atol=1e-3)
    # The first component of YBR is the brightness; moderate colours survive the way over RGB.
    ybr = np.random.default_rng(3).integers(100, 150, (4, 6, 3)).astype(np.uint8)
    full = made(ybr, PhotometricInterpretation="YBR_FULL")
    assert np.allclose(shown(alone(tmp_path, full)), ybr[..., 0], atol=1)
    halved = made(ybr, PhotometricInterpretation="YBR_FULL_422")
    ybr[:, 1::2, 1:] = ybr[:, ::2, 1:]
    pairs = np.stack([ybr[:, ::2, 0], ybr[:, 1::2, 0], ybr[:, ::2, 1], ybr[:, ::2, 2]], axis=-1)
    halved.PixelData = pairs.tobytes()
    assert np.allclose(shown(alone(tmp_path, halved)), ybr[..., 0], atol=1)


@pytest.mark.parametrize("kind", ["HSV", "CMYK", "YBR_PARTIAL_420", "YBR_ICT", ""])
def test_other_colours_are_refused(tmp_path: Path, kind: str) -> None:
    colours = np.zeros((4, 6, 3), np.uint8)
    data = made(colours, PhotometricInterpretation=kind)
    refused(alone(tmp_path, data), "colours", kind or "nothing that it names")
    data.PhotometricInterpretation = "MONOCHROME2"
    refused(alone(tmp_path, data), "colours", "says MONOCHROME2 and holds 3 samples")


def test_a_label_in_colours_is_refused_and_grey_ones_are_numbers(tmp_path: Path) -> None:
    grey = np.repeat(np.arange(24, dtype=np.uint8).reshape(4, 6, 1), 3, axis=2)
    path = alone(tmp_path, made(grey))
    assert np.array_equal(shown(path, label=True), grey[..., 0])
    grey[0, 0] = 3, 0, 0
    with pytest.raises(UserError, match="label in colours"):
        load(alone(tmp_path, made(grey)), label=True)


def bare(modality: str, storage: str) -> Dicom:
    """An object without pixels."""
    data = made(np.zeros((2, 2), np.uint8), SOPClassUID=storage, Modality=modality)
    data.SeriesInstanceUID = generate_uid()
    for keyword in ("PixelData", "Rows", "Columns"):
        del data[keyword]
    return data


def test_other_objects_beside_a_series_are_left_out(tmp_path: Path) -> None:
    report = bare("SR", BasicTextSRStorage)
    report.Manufacturer = "Paper Inc"
    drawing = made(np.ones((4, 3, 5), np.uint8), SOPClassUID=SegmentationStorage, Modality="SEG")
    drawing.SeriesInstanceUID = generate_uid()
    images = slices((0, 3, 6), Manufacturer=" Siemens Healthineers", ManufacturerModelName="Skyra")
    folder = stored(tmp_path / "s", report, drawing, *images)
    volume = load(folder)
    assert volume.array.shape == (5, 3, 3)
    assert codes(volume) == ["other-objects"]
    assert "1 x Basic Text SR Storage, left out" in volume.remarks[0].problem
    assert dicom_domain(folder) == ("Siemens Healthineers", "Skyra")
    assert codes(load(stored(tmp_path / "t", drawing, *images))) == []
    refused(stored(tmp_path / "u", report), "no-image", "only 1 x Basic Text SR")
    assert dicom_domain(tmp_path / "u") == ("", "")


def test_localizers_beside_a_series_are_left_out_and_told(tmp_path: Path) -> None:
    scout = placed(drawn(1)[0], (0, 0, 0), OBLIQUE, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    axial = slices((0, 3, 6), ImageType=["ORIGINAL", "PRIMARY", "AXIAL"])
    volume = load(stored(tmp_path / "s", scout, *axial))
    assert volume.array.shape == (5, 3, 3)
    assert codes(volume) == ["localizers"]
    assert load(stored(tmp_path / "t", scout)).array.shape == (5, 3, 1)


def test_damaged_headers_and_missing_pixels_are_named(tmp_path: Path) -> None:
    empty = made(drawn()[0])
    del empty.PixelData
    refused(alone(tmp_path, empty), "damaged", "x.dcm has no readable pixels")
    short = made(drawn()[0])
    short.PixelData = short.PixelData[:-4]
    refused(alone(tmp_path, short), "damaged", "x.dcm has no readable pixels")
    many = enhanced(drawn(), along(UPRIGHT, range(4)), UPRIGHT)
    many.NumberOfFrames = 3
    refused(alone(tmp_path, many), "damaged", "holds 3 frames and describes 4")
    huge = made(drawn(), NumberOfFrames=2_000_000_000)
    refused(alone(tmp_path, huge), "damaged", "holds 2000000000 frames")
    text = made(drawn()[0], PixelSpacing=[0.5, 0.75])
    path = alone(tmp_path, text)
    content = path.read_bytes()
    assert content.count(b"0.5\\0.75") == 1
    path.write_bytes(content.replace(b"0.5\\0.75", b"half\\0.7"))
    refused(path, "damaged", "x.dcm has a header that cannot be read")


def lossless_jpeg(path: Path) -> None:
    """Compress a file in place by GDCM; pydicom has no encoder for it."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "colour", "12"])
def test_lossless_compression_gives_the_pixels_back(tmp_path: Path, syntax: Any, kind: str) -> None:
    rng = np.random.default_rng(4)
    shape = (2, 64, 70, 3) if kind == "colour" else (2, 64, 70)
    dtype = {"colour": "u1", "12": "u2"}.get(kind, kind)
    # A stored range that uses the top bit, and half the values below 0 where signed.
    pixels = rng.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), shape).astype(dtype)
    tags: dict[str, Any] = {}
    if kind == "12":
        pixels &= 0x0FFF
        tags = {"BitsStored": 12}
    plain = alone(tmp_path, made(pixels, **tags))
    expected = load(plain).array
    if syntax == JPEGLosslessSV1:
        lossless_jpeg(plain)
    else:
        data = dcmread(plain)
        if syntax == JPEG2000Lossless and kind == "colour":
            data.PhotometricInterpretation = "YBR_RCT"  # the codec's own step, as scanners use it
        data.compress(syntax)
        data.save_as(plain)
    assert dcmread(plain).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(load(plain).array, expected)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_baseline_jpeg_is_decoded_as_the_encoder_meant(tmp_path: Path, mode: str) -> None:
    rows, columns = np.mgrid[:32, :48]
    colours = np.stack([rows * 7, columns * 5, rows + columns], axis=-1).astype(np.uint8)
    picture = Image.fromarray(colours).convert(mode)
    data = made(np.asarray(picture))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0)
    data.PixelData = encapsulate([buffer.getvalue()])
    data["PixelData"].VR = "OB"
    if mode == "RGB":
        data.PhotometricInterpretation = "YBR_FULL_422"
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    expected = np.asarray(picture.convert("L"), float)
    assert np.abs(shown(alone(tmp_path, data)) - expected).mean() < 2


def test_a_missing_decoder_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(np.zeros((64, 64), np.uint8))
    data.compress(JPEGLSLossless)
    path = alone(tmp_path, data)
    monkeypatch.setattr(get_decoder(JPEGLSLossless), "_available", {})
    refused(path, "compressed", r"JPEG-LS.*pip install 'fedshift\[dicom\]'")
    monkeypatch.undo()
    deep = made(drawn()[0], BitsStored=12)
    deep.PixelData = encapsulate([b"\0\0"])
    deep["PixelData"].VR = "OB"
    deep.file_meta.TransferSyntaxUID = JPEGExtended12Bit
    refused(alone(tmp_path, deep), "compressed", "JPEG Extended.* at 12 bits; save the series")
    film = made(drawn()[0])
    film.PixelData = encapsulate([b"\0\0"])
    film["PixelData"].VR = "OB"
    film.file_meta.TransferSyntaxUID = MPEG2MPML
    refused(alone(tmp_path, film), "compressed", "MPEG2.*which is not read; save the series")
