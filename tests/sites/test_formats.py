"""What annotation tools write: NRRD, MetaImage, TIFF, BMP, JPEG and every kind of PNG.

SimpleITK and nibabel read or write the same volumes as independent implementations; Pillow's own
transposition stands for a viewer's.
"""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK
import tifffile
from kit.files import Pair, decode_pair
from PIL import Image, ImageOps

from fedshift import UserError
from fedshift.sites.geometry import orient
from fedshift.sites.readers import Volume, decode, dicom_domain, file_list, read, stem
from fedshift.sites.types import Domain, ImageSource

SHAPE, SPACING, ORIGIN = (3, 4, 5), (0.5, 0.75, 3.0), (-10.0, 20.0, 7.0)


def load(path: Path, label: bool = False) -> Volume:
    return decode(path, read(path), label)


def directions() -> Iterator[np.ndarray]:
    """All 48 signed permutations of the axes, and each turned a little."""
    angles = (0.3, -0.2, 0.4)
    oblique = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = (k for k in range(3) if k != axis)
        turn = np.eye(3)
        turn[[a, a, b, b], [a, b, a, b]] = [
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        ]
        oblique = oblique @ turn
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = np.eye(3)[:, order] * signs
            yield matrix
            yield oblique @ matrix


def itk_image(direction: np.ndarray) -> tuple[SimpleITK.Image, np.ndarray]:
    array = np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16)
    image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(direction.ravel())
    return image, array


def ras(image: SimpleITK.Image) -> np.ndarray:
    """ITK's place of each voxel, its left and back turned to our right and front."""
    affine = np.eye(4)
    for axis in range(3):
        step = np.eye(3, dtype=int)[axis].tolist()
        here = np.array(image.TransformIndexToPhysicalPoint(step))
        affine[:3, axis] = here - image.GetOrigin()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_every_orientation_is_itks_and_that_of_the_same_volume_as_nifti(
    tmp_path: Path, suffix: str
) -> None:
    seen = 0
    for direction in directions():
        image, array = itk_image(direction)
        path, twin = tmp_path / f"x{suffix}", tmp_path / "x.nii"
        SimpleITK.WriteImage(image, str(path), useCompression=bool(seen % 2))
        SimpleITK.WriteImage(image, str(twin))
        volume, nifti = load(path), nibabel.Nifti1Image.from_filename(twin)
        assert np.array_equal(volume.array, array)
        assert volume.affine is not None
        assert np.allclose(volume.affine, nifti.affine, atol=1e-4)
        assert np.allclose(volume.affine, ras(image), atol=1e-4)
        assert volume.spacing_mm == pytest.approx(SPACING)
        laid, axis = orient(volume.array, volume.affine, 2)
        assert np.array_equal(laid, orient(array, load(twin).affine, 2)[0]) and axis == 2
        seen += 1
    assert seen == 96


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (1, 1, 1)),
        ("LPS", (1, 1, 1)),
        ("right-anterior-superior", (-1, -1, 1)),
        ("RAS", (-1, -1, 1)),
        ("left-anterior-superior", (1, -1, 1)),
        ("LAS", (1, -1, 1)),
    ],
)
def test_each_named_space_of_nrrd_is_one_place(
    tmp_path: Path, space: str, signs: tuple[int, ...]
) -> None:
    for direction in directions():
        image, array = itk_image(direction)
        steps = (direction * SPACING).T * signs
        header: dict[str, Any] = {
            "space": space,
            "space directions": steps,
            "space origin": np.array(ORIGIN) * signs,
            "encoding": "gzip",
        }
        nrrd.write(str(tmp_path / "x.nrrd"), array, header)
        volume = load(tmp_path / "x.nrrd")
        assert volume.affine is not None and np.allclose(volume.affine, ras(image))
        if len(space) > 3:
            theirs = SimpleITK.ReadImage(str(tmp_path / "x.nrrd"))
            assert np.allclose(ras(theirs), volume.affine, atol=1e-5)


def test_a_space_without_a_name_leaves_the_orientation_unknown(tmp_path: Path) -> None:
    array = itk_image(np.eye(3))[1]
    named = {"space dimension": 3, "space directions": np.diag(SPACING)}
    other = {"space": "scanner-xyz", "space directions": np.diag(SPACING)}
    for header in (named, {"spacings": list(SPACING)}, other):
        nrrd.write(str(tmp_path / "x.nrrd"), array, header)
        volume = load(tmp_path / "x.nrrd")
        assert volume.affine is None and volume.spacing_mm == pytest.approx(SPACING)
        assert [remark.code for remark in volume.remarks] == ["space-unknown"]
        assert np.array_equal(volume.array, array)
    nrrd.write(str(tmp_path / "x.nrrd"), array, {})
    assert load(tmp_path / "x.nrrd").spacing_mm is None


def test_units_of_an_nrrd_header_are_kept(tmp_path: Path) -> None:
    array = itk_image(np.eye(3))[1]
    header: dict[str, Any] = {
        "space": "RAS",
        "space directions": np.diag([500.0, 750.0, 3000.0]),
        "space origin": [1000.0, 0, 0],
        "space units": ["um"] * 3,
    }
    nrrd.write(str(tmp_path / "x.nrrd"), array, header)
    volume = load(tmp_path / "x.nrrd")
    assert volume.affine is not None
    assert np.allclose(volume.affine, np.diag([0.5, 0.75, 3, 1]) + np.eye(4, k=3))
    header["space units"] = ["parsec"] * 3
    nrrd.write(str(tmp_path / "x.nrrd"), array, header)
    with pytest.raises(UserError, match="measures in 'parsec'"):
        load(tmp_path / "x.nrrd")


def test_flat_and_layered_nrrd(tmp_path: Path) -> None:
    flat = np.arange(12, dtype=np.uint8).reshape(3, 4)
    nrrd.write(str(tmp_path / "flat.nrrd"), flat, {"spacings": [0.5, 0.75]})
    volume = load(tmp_path / "flat.nrrd", label=True)
    assert np.array_equal(volume.array[..., 0], flat) and volume.spacing_mm == (0.5, 0.75, 1.0)
    assert volume.affine is None and volume.remarks == ()
    plane: dict[str, Any] = {
        "space": "LPS",
        "space directions": np.array([[0.5, 0, 0], [0, 0, -0.75]]),
        "space origin": [1.0, 2, 3],
    }
    nrrd.write(str(tmp_path / "plane.nrrd"), flat, plane)
    affine = load(tmp_path / "plane.nrrd").affine
    # Left and down in the plane, so its normal points to the front, here by hand.
    assert affine is not None
    assert np.allclose(affine, [[-0.5, 0, 0, -1], [0, 0, -1, -2], [0, -0.75, 0, 3], [0, 0, 0, 1]])
    layers = np.zeros((2, *SHAPE), np.uint8)
    directions_of = np.vstack([[np.nan] * 3, np.diag(SPACING)])
    header: dict[str, Any] = {
        "space": "LPS",
        "kinds": ["list", "domain", "domain", "domain"],
        "space directions": directions_of,
    }
    nrrd.write(str(tmp_path / "x.nrrd"), layers, header)
    with pytest.raises(UserError, match=r"x\.nrrd holds 2 values a point \(list\)"):
        load(tmp_path / "x.nrrd")
    nrrd.write(str(tmp_path / "x.seg.nrrd"), layers, {**header, "Segment0_ID": "a"})
    with pytest.raises(UserError, match="2 layers, which may overlap; in 3D Slicer"):
        load(tmp_path / "x.seg.nrrd", label=True)
    nrrd.write(str(tmp_path / "one.nrrd"), layers[:1], header)
    assert load(tmp_path / "one.nrrd").array.shape == SHAPE
    nrrd.write(str(tmp_path / "kinds.nrrd"), layers[:, 0], {"kinds": ["vector", "space", "space"]})
    with pytest.raises(UserError, match="2 values a point"):
        load(tmp_path / "kinds.nrrd")


def test_a_slicer_segmentation_brings_its_names(tmp_path: Path) -> None:
    array = (itk_image(np.eye(3))[1] % 3).astype(np.uint8)
    fields: dict[str, Any] = {
        "space": "left-posterior-superior",
        "space directions": np.diag(SPACING),
        "Segment0_LabelValue": "2",
        "Segment0_Name": "Niere",
        "Segment1_LabelValue": "1",
        "Segment1_Name": "PLACE",
    }
    path = tmp_path / "x.seg.nrrd"
    nrrd.write(str(path), array, fields)
    # pynrrd writes ASCII, 3D Slicer UTF-8.
    path.write_bytes(path.read_bytes().replace(b"PLACE", "Gallenblase, größer".encode()))
    volume = load(path, label=True)
    assert volume.names == {2: "Niere", 1: "Gallenblase, größer"}
    assert np.array_equal(volume.array, array)


def meta(path: Path, body: bytes, **fields: str) -> Path:
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "DimSize": "3 4 5",
        "ElementSpacing": "0.5 0.75 3",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": "-10 20 7",
        "ElementType": "MET_SHORT",
        **fields,
    }
    lines["ElementDataFile"] = lines.pop("ElementDataFile", "LOCAL")
    text = "".join(f"{name} = {value}\n" for name, value in lines.items() if value)
    path.write_bytes(text.encode() + body)
    return path


def test_metaimage_bytes_types_and_encodings(tmp_path: Path) -> None:
    image, array = itk_image(np.eye(3))
    plain = array.tobytes("F")
    cases = {
        "little": (plain, {}),
        "big": (array.astype(">i2").tobytes("F"), {"ElementByteOrderMSB": "True"}),
        "Big": (array.astype(">i2").tobytes("F"), {"BinaryDataByteOrderMSB": "True"}),
        "zlib": (zlib.compress(plain), {"CompressedData": "True"}),
        "gzip": (gzip.compress(plain), {"CompressedData": "True"}),
        "skip": (b"1234" + plain, {"HeaderSize": "4"}),
        "end": (b"12345" + plain, {"HeaderSize": "-1"}),
        "text": (" ".join(map(str, array.ravel("F"))).encode(), {"BinaryData": "False"}),
        "names": (plain, {"Offset": "", "Position": "-10 20 7"}),
        "units": (
            plain,
            {"ElementSpacing": "500 750 3000", "Offset": "-1e4 2e4 7e3", "DistanceUnits": "um"},
        ),
    }
    for kind, number in {
        "UCHAR": "u1",
        "USHORT": "u2",
        "INT": "i4",
        "UINT": "u4",
        "LONG": "i4",
    }.items():
        data = (array % 200).astype(number).tobytes("F")
        cases[kind] = (data, {"ElementType": f"MET_{kind}"})
    for kind, number in {"FLOAT": "f4", "DOUBLE": "f8", "LONG_LONG": "i8"}.items():
        cases[kind] = (array.astype(number).tobytes("F"), {"ElementType": f"MET_{kind}"})
    for name, (body, fields) in cases.items():
        volume = load(meta(tmp_path / f"{name}.mha", body, **fields))
        expected = (
            array % 200
            if len(body) and name in ("UCHAR", "USHORT", "INT", "UINT", "LONG")
            else array
        )
        assert np.array_equal(volume.array, expected), name
        assert volume.affine is not None and np.allclose(volume.affine, ras(image)), name


def test_a_detached_data_file_is_listed_and_missed(tmp_path: Path) -> None:
    image, array = itk_image(np.eye(3))
    for name, data in (("x.mhd", "x.raw"), ("y.nhdr", "y.raw"), ("z.mhd", "z.zraw")):
        SimpleITK.WriteImage(image, str(tmp_path / name), useCompression=data.endswith("zraw"))
        assert file_list(tmp_path / name) == [tmp_path / name, tmp_path / data]
        assert np.array_equal(load(tmp_path / name).array, array)
        (tmp_path / data).unlink()
        with pytest.raises(UserError, match=rf"{name} names \S+{data}, which does not exist"):
            read(tmp_path / name)
    for name in ("x.mha", "x.nrrd"):
        assert file_list(tmp_path / name) == [tmp_path / name]


@pytest.mark.parametrize("named", ["LIST\nx1.raw\nx2.raw", "LIST 2\nx1.raw", "x%03d.raw 1 2 1"])
def test_a_volume_in_several_files_is_said_to_be_one(tmp_path: Path, named: str) -> None:
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 4 2\nencoding: raw\nendian: little\n"
    (tmp_path / "x.nhdr").write_text(f"{head}data file: {named}\n")
    with pytest.raises(UserError, match=r"x\.nhdr keeps its data in several files"):
        load(tmp_path / "x.nhdr")


def test_an_orientation_that_metaimage_does_not_give_is_unknown(tmp_path: Path) -> None:
    array = itk_image(np.eye(3))[1]
    path = meta(tmp_path / "x.mha", array.tobytes("F"), TransformMatrix="")
    volume = load(path)
    assert volume.affine is None and volume.spacing_mm == pytest.approx(SPACING)
    assert [remark.code for remark in volume.remarks] == ["space-unknown"]
    meta(path, array.tobytes("F"), TransformMatrix="", AnatomicalOrientation="RAI")
    assert load(path).affine is not None
    meta(path, array.tobytes("F"), ElementSpacing="")
    assert load(path).spacing_mm is None and load(path).affine is None
    flat = SimpleITK.GetImageFromArray(array[..., 0].T)
    flat.SetSpacing((0.5, 0.75))
    SimpleITK.WriteImage(flat, str(tmp_path / "flat.mha"))
    volume = load(tmp_path / "flat.mha")
    assert volume.spacing_mm == (0.5, 0.75, 1.0) and volume.affine is None and not volume.remarks
    assert np.array_equal(volume.array[..., 0], array[..., 0])


def test_damaged_headers_of_volumes_are_refused_by_name(tmp_path: Path) -> None:
    body = itk_image(np.eye(3))[1].tobytes("F")
    bad: dict[str, dict[str, str]] = {
        "short": {"DimSize": "3 4 6"},
        "sizes": {"DimSize": "3 4 -5"},
        "dims": {"NDims": "2"},
        "words": {"DimSize": "a b c"},
        "type": {"ElementType": "MET_OTHER"},
        "matrix": {"TransformMatrix": "1 0 0 0 1"},
        "colour": {"ElementNumberOfChannels": "3"},
        "list": {"ElementDataFile": "LIST"},
        "many": {"ElementDataFile": "x%03d.raw 1 5 1"},
        "zlib": {"CompressedData": "True"},
    }
    for name, fields in bad.items():
        path = meta(tmp_path / f"{name}.mha", body, **fields)
        with pytest.raises(UserError, match=rf"{name}\.mha "):
            load(path)
    nrrd.write(str(tmp_path / "good.nrrd"), itk_image(np.eye(3))[1], {"space": "LPS"})
    good = (tmp_path / "good.nrrd").read_bytes()
    for name, data in {
        "cut": good[:-30],
        "magic": b"NRRX" + good[4:],
        "sizes": good.replace(b"sizes: 3 4 5", b"sizes: 3 4 0"),
        "less": good.replace(b"sizes: 3 4 5", b"sizes: 3 x"),
        "type": good.replace(b"type: int16", b"type: block"),
        "empty": b"",
        "noise": bytes(range(256)),
        "list": good.replace(b"\n\n", b"\ndata file: LIST\nx.raw\n\n", 1),
        "space": good.replace(b"\n\n", b"\nspace directions: (1,0) (0,1) (0,0)\n\n", 1),
    }.items():
        (tmp_path / f"{name}.nrrd").write_bytes(data)
        with pytest.raises(UserError, match=rf"{name}\.nrrd "):
            load(tmp_path / f"{name}.nrrd")
    for name in ("empty.mha", "noise.mhd"):
        (tmp_path / name).write_bytes(bytes(range(256)) if "noise" in name else b"")
        with pytest.raises(UserError, match=name):
            load(tmp_path / name)


GREY: dict[str, Any] = {"photometric": "minisblack"}


def seen(volume: Volume) -> np.ndarray:
    """As (S, R, C)."""
    return orient(volume.array, volume.affine, None)[0]


SWAPPED = (">i2", ">f4")


@pytest.mark.parametrize("kind", ["u1", "i1", "u2", ">u2", "i2", "u4", "i4", "f4", *SWAPPED])
def test_tiff_stacks_of_every_depth(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(1).integers(0, 100, (3, 4, 5)) - (40 if "u" not in kind else 0)
    if "f" in kind:
        values = values * np.float32(0.5)
    for compression in ("zlib", None):
        tifffile.imwrite(tmp_path / "x.tif", values.astype(kind), compression=compression, **GREY)
        if compression and kind in SWAPPED:
            # Pillow does not put these bytes in order.
            with pytest.raises(UserError, match="big-endian and compressed"):
                load(tmp_path / "x.tif")
            continue
        assert np.array_equal(seen(load(tmp_path / "x.tif")), values)
    tifffile.imwrite(tmp_path / "one.TIFF", values[0].astype(kind))
    assert np.array_equal(seen(load(tmp_path / "one.TIFF"))[0], values[0])
    if "i" not in kind and "f" not in kind:
        assert np.array_equal(seen(load(tmp_path / "x.tif", label=True)), values)


def test_tiffs_compressed_as_lzw_and_jpeg(tmp_path: Path) -> None:
    values = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    assert np.array_equal(seen(load(tmp_path / "lzw.tif", label=True))[0], values)
    Image.fromarray(values).save(tmp_path / "jpeg.tif", compression="jpeg")
    with pytest.raises(UserError, match=r"jpeg\.tif is compressed as JPEG"):
        load(tmp_path / "jpeg.tif", label=True)
    assert load(tmp_path / "jpeg.tif").array.shape == (8, 6, 1)


def test_spacings_that_imagej_and_ome_write(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    path = tmp_path / "x.tif"
    tifffile.imwrite(
        path,
        values,
        imagej=True,
        resolution=(2.0, 4.0),
        metadata={"axes": "ZYX", "spacing": 3.0, "unit": "mm"},
    )
    assert load(path).spacing_mm == pytest.approx((0.5, 0.25, 3.0))
    tifffile.imwrite(
        path, values, imagej=True, resolution=(2.0, 4.0), metadata={"axes": "ZYX", "unit": "um"}
    )
    assert load(path).spacing_mm == pytest.approx((0.5e-3, 0.25e-3, 1e-3))
    tifffile.imwrite(path, values, resolution=(72, 72), **GREY)
    assert load(path).spacing_mm is None, "dots per inch of a screen are no pixel spacing"
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.25, "PhysicalSizeZ": 3.0}
    tifffile.imwrite(tmp_path / "x.ome.tif", values, ome=True, metadata={"axes": "ZYX", **sizes})
    assert load(tmp_path / "x.ome.tif").spacing_mm == pytest.approx((0.5e-3, 0.25e-3, 3e-3))
    units = {f"PhysicalSize{axis}Unit": "mm" for axis in "XYZ"}
    tifffile.imwrite(
        tmp_path / "x.ome.tif", values, ome=True, metadata={"axes": "ZYX", **sizes, **units}
    )
    assert load(tmp_path / "x.ome.tif").spacing_mm == pytest.approx((0.5, 0.25, 3.0))
    assert np.array_equal(seen(load(tmp_path / "x.ome.tif")), values)


def test_tiffs_that_are_no_one_stack_are_refused(tmp_path: Path) -> None:
    values = np.arange(60, dtype=np.uint16).reshape(3, 4, 5)
    path = tmp_path / "x.tif"
    for axes, match in (("TYX", "3 frames"), ("CYX", "3 channels")):
        tifffile.imwrite(path, values, imagej=True, metadata={"axes": axes})
        with pytest.raises(UserError, match=match):
            load(path)
    tifffile.imwrite(tmp_path / "x.ome.tif", values, ome=True, metadata={"axes": "CYX"})
    with pytest.raises(UserError, match="3 channels"):
        load(tmp_path / "x.ome.tif")
    # ImageJ writes stacks above 4 GB as one page with the rest behind it.
    tifffile.imwrite(
        path, values[0], description="ImageJ=1.53\nimages=3\nslices=3\n", metadata=None
    )
    with pytest.raises(UserError, match="holds 3 images and shows 1"):
        load(path)
    with tifffile.TiffWriter(path) as writer:
        writer.write(values[0], metadata=None)
        writer.write(values[0, :2, :2], metadata=None)
    with pytest.raises(UserError, match="pages of different shapes"):
        load(path)
    tifffile.imwrite(path, values[0].astype(np.uint8), photometric="miniswhite")
    with pytest.raises(UserError, match="white as 0"):
        load(path, label=True)
    assert seen(load(path))[0, 0, 0] == 255
    tifffile.imwrite(path, values[0], photometric="miniswhite")
    with pytest.raises(UserError, match="white as 0"):
        load(path)
    tifffile.imwrite(path, values[0].astype(np.float64))
    with pytest.raises(UserError, match="a kind of TIFF that is not read"):
        load(path)
    tifffile.imwrite(path, np.full((4, 5), 2**31 + 5, np.uint32))
    with pytest.raises(UserError, match="above 2147483647"):
        load(path)
    tifffile.imwrite(path, np.ones((4, 5, 3), np.uint16), photometric="rgb")
    with pytest.raises(UserError, match=r"x\.tif "):
        load(path)
    tifffile.imwrite(path, values, **GREY)
    (tmp_path / "cut.tif").write_bytes(path.read_bytes()[:150])
    with pytest.raises(UserError, match=r"cut\.tif"):
        load(tmp_path / "cut.tif")


def png(path: Path, values: np.ndarray, depth: int, colour: int = 0, palette: bytes = b"") -> Path:
    """Write a PNG by hand, so that what is read is not what Pillow would have written."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    rows = []
    for row in values:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        bits += "0" * (-len(bits) % 8)
        rows.append(b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big"))
    height, width = values.shape
    width //= 2 if colour == 4 else 1
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
        + (chunk(b"PLTE", palette) if palette else b"")
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_and_palette_labels_of_every_depth_keep_their_values(
    tmp_path: Path, depth: int
) -> None:
    values = np.arange(35).reshape(5, 7) % min(2**depth, 300)
    grey = load(png(tmp_path / "grey.png", values, depth), label=True)
    assert np.array_equal(seen(grey)[0], values)
    if depth <= 8:
        colours = np.random.default_rng(0).integers(0, 256, 3 * 2**depth).astype(np.uint8)
        path = png(tmp_path / "palette.png", values, depth, 3, colours.tobytes())
        assert np.array_equal(seen(load(path, label=True))[0], values)


def test_colours_and_transparency_are_no_labels(tmp_path: Path) -> None:
    clear = np.zeros((4, 5, 4), np.uint8)
    clear[1, 1] = 255
    Image.fromarray(clear, "RGBA").save(tmp_path / "clear.png")
    with pytest.raises(UserError, match="transparent"):
        load(tmp_path / "clear.png", label=True)
    clear[..., 3] = 255
    Image.fromarray(clear, "RGBA").save(tmp_path / "grey.png")
    assert np.array_equal(seen(load(tmp_path / "grey.png", label=True))[0], clear[..., 0])
    # Grey and alpha, 16 bits each: a row of six samples is three pixels.
    deep = png(tmp_path / "deep.png", np.arange(24).reshape(4, 6), 16, 4)
    with pytest.raises(UserError, match="16 bits in several channels"):
        load(deep)


def test_bmp_and_jpeg(tmp_path: Path) -> None:
    values = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)
    indexed = Image.fromarray(values, "P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "x.bmp")
    assert np.array_equal(seen(load(tmp_path / "x.bmp", label=True))[0], values)
    Image.fromarray(values * 80).save(tmp_path / "x.jpg", quality=95)
    expected = np.asarray(Image.open(tmp_path / "x.jpg"))
    assert np.array_equal(seen(load(tmp_path / "x.jpg"))[0], expected)
    with pytest.raises(UserError, match=r"x\.jpg is a JPEG, which keeps values only nearly"):
        load(tmp_path / "x.jpg", label=True)
    (tmp_path / "x.jpg").rename(tmp_path / "x.png")
    with pytest.raises(UserError, match=r"x\.png is no PNG file but JPEG"):
        load(tmp_path / "x.png")


Photograph = Callable[[int, tuple[int, int]], np.ndarray]


@pytest.fixture
def photograph(tmp_path: Path) -> Photograph:
    """Writes photograph.jpg of a shape with an orientation tag; returns what a viewer shows."""

    def call(orientation: int, shape: tuple[int, int]) -> np.ndarray:
        values = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "photograph.jpg"
        Image.fromarray(values).save(path, exif=exif, quality=100)
        return np.asarray(ImageOps.exif_transpose(Image.open(path)))

    return call


def together(folder: Path, label: np.ndarray) -> Pair:
    Image.fromarray(label).save(folder / "label.png")
    paths = folder / "photograph.jpg", folder / "label.png"
    source = ImageSource("c", "s", Domain("v"), path=str(paths[0]), label_path=str(paths[1]))
    return decode_pair(source, read(paths[0]), read(paths[1]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_upright_and_its_label_on_it(
    tmp_path: Path, photograph: Photograph, orientation: int
) -> None:
    shown = photograph(orientation, (6, 9))
    volume = load(tmp_path / "photograph.jpg")
    assert np.array_equal(seen(volume)[0], shown)
    assert len(volume.remarks) == (orientation != 1)
    upright = (np.arange(shown.size).reshape(shown.shape) % 200).astype(np.uint8)
    if orientation in (2, 3, 4):
        with pytest.raises(UserError, match="does not tell whether it was drawn on the turned"):
            together(tmp_path, upright)
        return
    decoded = together(tmp_path, upright)
    assert decoded.values is not None and np.array_equal(decoded.values[0], upright)
    if orientation == 1:
        return
    # Drawn by a tool that ignores the tag: a viewer that turned the label would show this.
    stored = (np.arange(54).reshape(6, 9) % 200).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(stored).save(buffer, "TIFF", exif=exif)
    turned = np.asarray(Image.open(buffer))
    decoded = together(tmp_path, stored)
    assert decoded.values is not None and np.array_equal(decoded.values[0], turned)


def test_a_square_photograph_does_not_tell_and_neither_does_a_turned_label(
    tmp_path: Path, photograph: Photograph
) -> None:
    photograph(6, (6, 6))
    with pytest.raises(UserError, match=r"label\.png belongs to a photograph that is turned"):
        together(tmp_path, np.ones((6, 6), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.ones((6, 6), np.uint8)).save(tmp_path / "label.png", exif=exif)
    with pytest.raises(UserError, match="to be turned when it is shown"):
        load(tmp_path / "label.png", label=True)


def test_a_turned_tiff_is_turned_once(tmp_path: Path) -> None:
    values = np.arange(54, dtype=np.uint8).reshape(6, 9)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(values).save(tmp_path / "x.tif", exif=exif)
    volume = load(tmp_path / "x.tif")
    assert volume.turned == 6 and np.array_equal(seen(volume)[0], np.rot90(values, -1))


@pytest.mark.parametrize("name", ["x.mgz", "x.img", "x.mat", "x.nii.bz2", "x.heic", "x.json", "x"])
def test_an_unknown_format_says_which_are_known_and_how_to_convert(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"?" * 200)
    with pytest.raises(UserError, match=r"give NIfTI .*NRRD.*MetaImage.*PNG.*TIFF") as caught:
        load(tmp_path / name)
    assert name == "x" or ": " in str(caught.value)


def test_dicom_is_known_without_a_suffix(tmp_path: Path) -> None:
    from kit.dicom_slice import write_dicom

    data = write_dicom(tmp_path / "x.dcm", np.ones((4, 5)), 0, pydicom.uid.generate_uid())
    for name in ("IM000001", "1.2.840.113"):
        data.save_as(tmp_path / name)
        assert load(tmp_path / name).array.shape == (5, 4, 1)
        assert dicom_domain(tmp_path / name) == ("ACME", "Scan 3")


def test_a_case_is_called_after_its_file_without_the_suffix() -> None:
    for suffix in (".nii.gz", ".NRRD", ".nhdr", ".mha", ".mhd", ".tif", ".tiff", ".jpg", ".JPEG"):
        assert stem(Path(f"a.b{suffix}")) == "a.b"
    assert stem(Path("IM0001")) == "IM0001"
