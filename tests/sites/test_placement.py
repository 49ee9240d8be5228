"""Where an image lies in space, and its label on it, against resampling in world coordinates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from kit.files import Pair, decode_pair
from PIL import Image
from scipy import ndimage
from scipy.spatial.transform import Rotation

from fedshift.sites import readers
from fedshift.sites.findings import FileFault
from fedshift.sites.geometry import canonical_axes, orient, orient_spacing, preferred_axis
from fedshift.sites.types import Domain, ImageSource

ORIENTATIONS = [
    (order, signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
"""All 48: the 24 that a rotation reaches and their mirror images, as files store them."""


SHAPE = (4, 5, 3)


def nifti(array: np.ndarray, **codes: np.ndarray) -> bytes:
    """A file with the affines given by name; the other code is 0 and its affine misleading."""
    image = nibabel.Nifti1Image(array, None)
    image.header.set_zooms((1, 1, 1))
    for name, where in {"sform": codes.get("sform"), "qform": codes.get("qform")}.items():
        setter = getattr(image, f"set_{name}")
        if where is None:
            setter(np.array([[0, 2, 0, 9], [2, 0, 0, 9], [0, 0, 2, 9], [0, 0, 0, 1.0]]), code=0)
        else:
            setter(where, code=1)
    if codes:
        # Setting a misleading qform has changed the spacing as well.
        sizes = np.linalg.norm(list(codes.values())[-1][:3, :3], axis=0)
        image.header["pixdim"][1:4] = sizes
    return image.to_bytes()


def decode(
    image: bytes, label: bytes, name: str = "image.nii", label_name: str = "label.nii"
) -> Pair:
    source = ImageSource(
        path=name, label_path=label_name, case="c", subject="s", domain=Domain("v")
    )
    return decode_pair(source, [(Path(name), image)], [(Path(label_name), label)])


def numbered(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """An image whose values are the places of its voxels in the file."""
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def drawn(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(3).permutation(int(np.prod(shape))).reshape(shape).astype(np.uint8)


def resampled(
    label: np.ndarray,
    label_affine: np.ndarray,
    affine: np.ndarray,
    shape: tuple[int, ...],
    beyond: str = "nearest",
) -> np.ndarray:
    """The oracle: the label's voxel nearest to every image voxel's place in space; past its edge
    ``beyond`` says what, ``grid-constant`` for 0."""
    index = np.indices(shape).reshape(3, -1)
    world = affine[:3, :3] @ index + affine[:3, 3:]
    inverse = np.linalg.inv(label_affine)
    coordinates = inverse[:3, :3] @ world + inverse[:3, 3:]
    return ndimage.map_coordinates(label, coordinates, order=0, mode=beyond, cval=0).reshape(shape)


def in_place(decoded: Pair, expected: np.ndarray) -> bool:
    """Whether each voxel of the image, known by its value, has the label expected there."""
    return np.array_equal(decoded.values, expected.ravel()[decoded.image.astype(int)])


def codes_of(decoded: Pair) -> list[str]:
    return [r.code for r in (*decoded.decoded.volume.remarks, *decoded.drawing.remarks)]


def affine_of(
    angles: Sequence[float] = (0, 0, 0),
    sizes: Sequence[float] = (0.5, 0.75, 3.0),
    centre: Sequence[float] = (0, 0, 0),
) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(sizes)
    affine[:3, 3] = centre
    return affine


def stored(
    array: np.ndarray, affine: np.ndarray, order: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The same volume with its axes in another order and turned round, written out by hand."""
    turned = np.zeros((4, 4))
    turned[3, 3] = 1
    for new, (old, sign) in enumerate(zip(order, signs, strict=True)):
        turned[old, new] = sign
        turned[old, 3] += 0 if sign > 0 else array.shape[old] - 1
    moved = array.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    return moved, affine @ turned


CODES = (("sform",), ("qform",), ("sform", "qform"))


@pytest.mark.parametrize("degrees", [0, 20, 45, 135])
@pytest.mark.parametrize("codes", CODES)
def test_a_label_lies_on_its_image_in_any_orientation_code_and_tilt(
    degrees: int, codes: tuple[str, ...]
) -> None:
    array, label = numbered(), drawn()
    for k, (order, signs) in enumerate(ORIENTATIONS):
        angles = [0, 0, 0]
        angles[k % 3] = degrees
        # A stack of thick slices at 45 degrees about their own normal is turned in plane; one
        # tilted about another axis keeps its slices, and only their name is between two.
        between = ["between-axes"] if degrees in (45, 135) and k % 3 == 2 else []
        affine = affine_of(angles, centre=(-90, 110, 1200.5))
        # The image is turned too, each time otherwise.
        turned, own = stored(array, affine, *ORIENTATIONS[(11 * k + 5) % 48])
        turned = numbered(turned.shape)
        image = nifti(turned, **dict.fromkeys(codes, own))
        moved, label_affine = stored(label, affine, order, signs)
        expected = resampled(moved, label_affine, own, turned.shape)
        mirrored = np.linalg.det(label_affine[:3, :3]) < 0
        for label_codes in CODES[k % 3 :][:1] if mirrored else CODES:
            decoded = decode(image, nifti(moved, **dict.fromkeys(label_codes, label_affine)))
            assert in_place(decoded, expected), (order, signs, label_codes)
            assert codes_of(decoded) == between
        if k % 6:
            continue
        decoded = decode(image, nifti(expected))
        assert in_place(decoded, expected), "a label without codes lies as its image does"
        assert codes_of(decoded) == [*between, "label-without-place"]


def test_a_cube_of_equal_voxels_is_placed_by_the_headers_alone() -> None:
    array, label = numbered((4, 4, 4)), drawn((4, 4, 4))
    affine = affine_of((45, 0, 135), (1, 1, 1), (1e3, -1e3, 1e3))
    for order, signs in ORIENTATIONS:
        moved, own = stored(label, affine, order, signs)
        expected = resampled(moved, own, affine, array.shape)
        assert np.array_equal(expected, label)
        assert in_place(decode(nifti(array, sform=affine), nifti(moved, qform=own)), label)


@pytest.mark.parametrize("angles", [(45, 0, 0), (0, 135, 0), (45, 45, 135), (0, 0, 45.0001)])
def test_rounded_headers_of_large_images_far_from_the_origin_agree(
    angles: tuple[float, float, float],
) -> None:
    shape = (512, 2, 300)
    array, label = np.zeros(shape, np.int16), np.zeros(shape, np.uint8)
    array[500, 1, 20], label[500, 1, 20] = 7, 1
    affine = affine_of(angles, (0.4, 0.4, 0.6), (-1e3, 2e3, 1e3))
    written = affine.round(5)  # as a text header or a tool in single precision has it
    decoded = decode(nifti(array, sform=affine), nifti(label, qform=written))
    assert decoded.values is not None and np.array_equal(decoded.values == 1, decoded.image == 7)


@pytest.mark.parametrize(
    ("shift", "turn", "fits"),
    [
        ((0.09, 0, 0), 0, True),
        ((0, 0, 0.12), 0, False),
        ((0, 0, 0), 1, True),
        ((0, 0, 0), 3, False),
    ],
)
def test_a_tenth_of_a_voxel_at_a_corner_is_the_limit(
    shift: tuple[float, float, float], turn: float, fits: bool
) -> None:
    # A turn by 1 degree about the first voxel moves the last corner by 4 x 0.0175 = 0.07 voxels.
    affine = affine_of(sizes=(2, 2, 2))
    other = affine_of((0, 0, turn), (2, 2, 2))
    other[:3, 3] += 2 * np.array(shift)
    image, label = nifti(numbered(), sform=affine), nifti(drawn(), sform=other)
    if fits:
        assert in_place(decode(image, label), drawn())
        return
    with pytest.raises(FileFault, match=r"label\.nii lies up to .* mm away") as caught:
        decode(image, label)
    assert caught.value.code == "label-misplaced"


def test_the_sentence_says_how_far_and_why() -> None:
    affine = affine_of((0, 30, 0), (1, 1, 3))
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, 2]
    thin = affine.copy()
    thin[:3, 2] /= 2
    image = nifti(numbered(), sform=affine)
    for wrong, match in (
        (shifted, "up to 3 mm away from its image image.nii by its header; copy"),
        (thin, r"up to 3 mm away .* spacing is 1 x 1 x 1\.5 mm, the image's 1 x 1 x 3 mm"),
        (np.eye(4), "its affine is the identity"),
    ):
        with pytest.raises(FileFault, match=match):
            decode(image, nifti(drawn(), sform=wrong))


def test_a_label_of_another_shape_is_refused_with_both() -> None:
    image = nifti(numbered(), sform=affine_of())
    small = drawn()[:, :4]
    for label in (nifti(small, sform=affine_of()), nifti(small)):
        with pytest.raises(FileFault, match=r"has the shape 4 x 4 x 3, its image .* 4 x 5 x 3"):
            decode(image, label)
    # Turned, it would fit; but without codes nothing says how it was turned.
    with pytest.raises(FileFault, match=r"5 x 4 x 3, its image .* 4 x 5 x 3") as caught:
        decode(image, nifti(drawn().transpose(1, 0, 2)))
    assert caught.value.code == "label-shape"


def slicer(label: np.ndarray, affine: np.ndarray, path: Path) -> bytes:
    """A segmentation as 3D Slicer saves it, in left-posterior-superior."""
    lps = np.diag([-1, -1, 1, 1]) @ affine
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "Segment0_LabelValue": "1",
        "Segment0_Name": "Liver",
    }
    nrrd.write(str(path), label, header)
    return path.read_bytes()


def test_a_label_cut_to_what_is_drawn_lies_where_its_header_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    whole, affine = drawn((6, 7, 5)), affine_of((10, -20, 45), centre=(-90, 110, 1200.5))
    for k, (order, signs) in enumerate(ORIENTATIONS):
        turned, own = stored(numbered(whole.shape), affine, *ORIENTATIONS[(11 * k + 5) % 48])
        image = numbered(turned.shape)
        first = np.array([rng.integers(0, n - 1) for n in whole.shape])
        last = np.array([rng.integers(a + 1, n) for a, n in zip(first, whole.shape, strict=True)])
        first[k % 3] = max(first[k % 3], 1)  # always smaller
        last[k % 3] = max(last[k % 3], 1)
        part = whole[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))]
        moved_to = affine.copy()
        moved_to[:3, 3] += affine[:3, :3] @ first
        moved, label_affine = stored(part, moved_to, order, signs)
        expected = resampled(moved, label_affine, own, image.shape, "grid-constant")
        assert np.count_nonzero(expected) == np.count_nonzero(part)
        if k % 2:
            label, name = slicer(moved, label_affine, tmp_path / "l.seg.nrrd"), "l.seg.nrrd"
        else:
            label, name = nifti(moved, sform=label_affine), "label.nii"
        decoded = decode(nifti(image, sform=own), label, label_name=name)
        assert in_place(decoded, expected), (order, signs)
        assert codes_of(decoded)[-1] == "label-cropped"
        assert sorted(decoded.values.shape) == sorted(image.shape)


def test_a_part_that_lies_beside_the_image_or_off_its_grid_is_refused(tmp_path: Path) -> None:
    affine = affine_of((0, 30, 0), (1, 2, 3))
    image = nifti(numbered(), sform=affine)
    part, place = drawn()[1:3, 1:4, 1:2], affine.copy()

    def at(*offset: float, sizes: float = 1.0) -> np.ndarray:
        where = place.copy()
        where[:3, 3] += affine[:3, :3] @ offset
        where[:3, 2] *= sizes
        return where

    assert in_place(
        decode(image, nifti(part, sform=at(1, 1, 1.05))),
        resampled(part, at(1, 1, 1), affine, SHAPE, "grid-constant"),
    )
    for wrong in (
        at(3, 1, 1),  # half of it beside the image
        at(-1, 1, 1),
        at(1, 1, 1.2),  # between two slices
        at(1, 1, 1, sizes=1.3),  # as one slice of another stack
        affine_of((0, 33, 0), (1, 2, 3), centre=at(1, 1, 1)[:3, 3]),
    ):
        with pytest.raises(FileFault, match="has the shape 2 x 3 x 1, its image") as caught:
            decode(image, nifti(part, sform=wrong))
        assert caught.value.code == "label-shape"
    with pytest.raises(FileFault, match="another one by sform than by qform"):
        decode(image, nifti(part, sform=at(1, 1, 1), qform=at(0, 1, 1)))
    # A segmentation may begin where its image does; another file has copied its image's header.
    with pytest.raises(FileFault, match="has the shape"):
        decode(image, nifti(part, sform=affine))
    label = slicer(part, affine, tmp_path / "l.seg.nrrd")
    decoded = decode(image, label, label_name="l.seg.nrrd")
    assert in_place(decoded, resampled(part, affine, affine, SHAPE, "grid-constant"))
    # Without a place of its own it could lie anywhere.
    with pytest.raises(FileFault, match="has the shape"):
        decode(image, nifti(part))


def test_an_image_without_orientation_is_told_and_its_label_lies_as_stored() -> None:
    # A label on it may have any affine: there is nothing to hold it against.
    for label in (nifti(drawn(), qform=affine_of((0, 45, 0))), nifti(drawn())):
        decoded = decode(nifti(numbered()), label)
        assert in_place(decoded, drawn())
        assert codes_of(decoded) == ["no-orientation"]


def test_the_code_that_fits_is_used_and_said() -> None:
    right, wrong = affine_of((20, 0, 0)), affine_of((20, 0, 0), centre=(50, 0, 0))
    flipped, own = stored(drawn(), right, (0, 1, 2), (-1, 1, 1))
    expected = resampled(flipped, own, right, SHAPE)
    decoded = decode(nifti(numbered(), sform=wrong, qform=right), nifti(flipped, qform=own))
    assert in_place(decoded, expected)
    assert codes_of(decoded) == ["codes-disagree", "label-by-other-code"]
    assert "its qform and the image's qform" in decoded.drawing.remarks[0].problem
    assert "50 mm" in decoded.drawing.remarks[0].problem
    assert "50 mm apart" in decoded.decoded.volume.remarks[0].problem
    decoded = decode(nifti(numbered(), sform=right), nifti(flipped, sform=wrong, qform=own))
    assert in_place(decoded, expected)
    assert codes_of(decoded) == ["codes-disagree", "label-by-other-code"]


def test_a_sheared_image_is_refused_unless_its_other_code_is_straight() -> None:
    straight = affine_of((0, 10, 0), (1, 1, 3))
    tilted = straight @ np.array([[1, 0, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(FileFault, match=r"image.nii is sheared: its axes are 5.71 degrees off"):
        decode(nifti(numbered(), sform=tilted), nifti(drawn(), sform=tilted))
    decoded = decode(
        nifti(numbered(), sform=tilted, qform=straight), nifti(drawn(), qform=straight)
    )
    assert in_place(decoded, drawn())
    assert codes_of(decoded) == ["codes-disagree"]
    assert "the qform is used" in decoded.decoded.volume.remarks[0].way_out
    assert decoded.decoded.spacing_mm == (3.0, 1.0, 1.0)
    # One slice cannot be sheared against itself, whatever its normal.
    flat = nifti(numbered((4, 5, 1)), sform=tilted)
    assert in_place(decode(flat, nifti(drawn((4, 5, 1)), sform=tilted)), drawn((4, 5, 1)))


def test_a_slice_and_its_label_may_say_different_thickness() -> None:
    one, other = affine_of(sizes=(1, 1, 5)), affine_of(sizes=(1, 1, 1))
    shape = (4, 5, 1)
    decoded = decode(nifti(numbered(shape), sform=one), nifti(drawn(shape), sform=other))
    assert in_place(decoded, drawn(shape))


def test_a_png_label_lies_as_its_nifti_image_is_stored(tmp_path: Path) -> None:
    label = drawn((4, 5, 1))
    Image.fromarray(label[..., 0].T).save(tmp_path / "label.png")
    image = nifti(numbered((4, 5, 1)), qform=affine_of((0, 0, 180)))
    decoded = decode(image, (tmp_path / "label.png").read_bytes(), label_name="label.png")
    assert in_place(decoded, label)
    assert codes_of(decoded) == []


def test_a_broken_code_gives_way_to_the_other() -> None:
    singular = affine_of()
    singular[:3, 2] = 0
    volume = readers.decode(
        Path("x.nii"), [(Path("x.nii"), nifti(numbered(), sform=singular, qform=affine_of()))]
    )
    assert list(volume.places) == ["qform"]
    volume = readers.decode(Path("x.nii"), [(Path("x.nii"), nifti(numbered(), sform=singular))])
    assert not volume.places and [remark.code for remark in volume.remarks] == ["no-orientation"]


def test_lengths_in_other_units_become_mm() -> None:
    affine = affine_of(sizes=(500, 750, 3000), centre=(1000, 0, 0))
    image = nibabel.Nifti1Image.from_bytes(nifti(numbered(), qform=affine))
    image.header.set_xyzt_units("micron")
    volume = readers.decode(Path("x.nii"), [(Path("x.nii"), image.to_bytes())])
    assert volume.spacing_mm == pytest.approx((0.5, 0.75, 3.0))
    assert volume.affine is not None
    assert np.allclose(volume.affine, affine_of(centre=(1, 0, 0)), atol=1e-5)
    assert [remark.code for remark in volume.remarks] == ["units"]


def test_oblique_stacks_are_cut_along_their_slices_whatever_axis_is_nearest() -> None:
    """Short-axis stacks of the heart: one patient's normal is nearest x, the next one's y or z."""
    array = numbered((6, 5, 4))
    for tilt, turn in itertools.product((30, 40, 50, 58), (0, 45, 130)):
        for order, signs in ORIENTATIONS[::5]:
            moved, own = stored(array, affine_of((tilt, 0, turn), (1, 1, 8)), order, signs)
            laid, axis = orient(moved, own, 2)
            assert axis == 2 and laid.shape[0] == 4
            assert orient_spacing(own, axis) == (8.0, 1.0, 1.0)
            for k in range(4):
                assert set(laid[k].ravel()) in [set(array[..., s].ravel()) for s in range(4)]
    # Sagittal slices are cut across when axial ones are asked for, unless there is only one.
    moved, own = stored(array, affine_of(sizes=(1, 1, 8)), (2, 0, 1), (1, 1, 1))
    sagittal = affine_of(sizes=(8, 1, 1))
    assert orient(moved, sagittal, 2)[0].shape == (5, 6, 4)
    assert orient(moved[:1], sagittal, 2)[0].shape == (1, 5, 6)
    assert orient(moved[:1], sagittal, 2)[1] == 0


@pytest.mark.parametrize(("degrees", "told"), [(38, False), (41, True), (49, True), (52, False)])
def test_an_image_between_two_axes_is_told(degrees: float, told: bool) -> None:
    # About the slices' normal, and about x where nothing says what a slice is.
    for angles, sizes in (((0, 0, degrees), (1, 1, 5)), ((degrees, 0, 0), (1, 1, 1))):
        affine = affine_of(angles, sizes)
        decoded = decode(nifti(numbered(), sform=affine), nifti(drawn(), sform=affine))
        assert codes_of(decoded) == (["between-axes"] if told else [])


def test_a_stack_at_45_degrees_is_laid_out_alike_whatever_its_header_rounds_to() -> None:
    rng = np.random.default_rng(0)
    array = rng.normal(size=(4, 5, 3))
    for angles in itertools.product((0, 45, 135, 225), repeat=3):
        affine = affine_of(angles)
        expected, axis = orient(array, affine, None)
        for order, signs in ORIENTATIONS[::5]:
            moved, own = stored(array, affine, order, signs)
            own[:3, :3] += rng.normal(scale=1e-5, size=(3, 3))
            got, got_axis = orient(moved, own, None)
            assert got_axis == axis and np.array_equal(got, expected), (angles, order, signs)
            assert np.allclose(orient_spacing(own, axis), orient_spacing(affine, axis), atol=1e-4)


def test_tilts_about_one_axis_turn_to_the_nearest_canonical_axes() -> None:
    for axis, degrees in itertools.product(range(3), (-140, -80, -44, -30, 10, 44, 46, 100, 170)):
        angles = [0, 0, 0]
        angles[axis] = degrees
        affine = affine_of(angles)
        order, signs = canonical_axes(affine)
        known = nibabel.io_orientation(affine)
        for k in range(3):
            assert tuple(known[order[k]]) == (k, signs[k])


@pytest.mark.parametrize(
    ("shape", "sizes", "expected"),
    [
        ((8, 8, 8), (1, 1, 3), (2, True)),
        ((8, 8, 8), (3, 1, 1), (0, True)),
        ((8, 8, 8), (1.1000001, 1, 1), (2, False)),
        ((8, 8, 8), (1, 1, 1), (2, False)),
        ((8, 8, 8), (3, 2.8, 1), (1, False)),
        ((8, 1, 8), (1, 1, 4), (1, True)),
        ((1, 1, 8), (1, 4, 1), (1, True)),
    ],
)
def test_an_image_says_which_way_it_is_sliced_and_whether_that_is_clear(
    shape: tuple[int, ...], sizes: tuple[float, ...], expected: tuple[int, bool]
) -> None:
    for order, signs in ORIENTATIONS[::7]:
        moved, own = stored(np.zeros(shape), affine_of(sizes=sizes), order, signs)
        assert preferred_axis(moved.shape, own) == expected
        assert orient(moved, own, None)[1] == expected[0]
