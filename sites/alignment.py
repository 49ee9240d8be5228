"""Laying a label on its image, voxel on voxel, by what both files say of their place in space.

A label is not turned by its own header alone: what counts is inv(A_image) A_label, which takes the
label's voxels to the image's. Where it is a signed permutation of the axes onto the image's grid,
the label's array is permuted so; nothing is resampled, because a label interpolated in silence is
no longer the one that was drawn. Both are then laid out by the image's affine.

A label may cover a part of that grid only: 3D Slicer cuts segmentations to what is drawn when it
saves them. Where its own affine puts every voxel on one of the image's, the rest is filled with 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.geometry import TOLERANCE, corners
from fedshift.sites.readers import Volume
from fedshift.sites.readers.nifti import NO_ORIENTATION
from fedshift.sites.types import ImageSource


@dataclass(frozen=True)
class _Way:
    """One way to lay the label on the image: image axis k is label axis ``order[k]``, turned round
    where ``signs[k]`` is negative; how far it misses at the worst corner, in voxels and in mm."""

    order: tuple[int, ...]
    signs: tuple[int, ...]
    voxels: float
    mm: float


def lay_on(image: Volume, label: Volume, source: ImageSource) -> Volume:
    """Return ``label`` as if it had been stored as the image is: array (i, j, k) and place.

    Every affine of the label is tried against every affine of the image, the preferred ones first;
    the first pair that brings all corners of the label within ``TOLERANCE`` voxels of the image's
    is used. Where one of the two says nothing of its place, the label lies as it is stored. A
    smaller label is put where its corners lie, on the image's grid and inside it.

    Raises:
        FileFault: the label has another shape, and is no part of the image's grid, or lies
            elsewhere.
    """
    shape, own = image.array.shape, label.array.shape
    free = not image.places or not label.places
    if not free and sorted(own) != sorted(shape):
        return _part(image, label, source)
    if free:
        if own != shape:
            raise _misshapen(image, label, source)
        return _as_stored(image, label)
    missed: list[float] = []
    for (name, affine), (label_name, label_affine) in itertools.product(
        image.places.items(), label.places.items()
    ):
        ways = list(_ways(affine, label_affine, shape, own))
        best = min(ways, key=lambda way: way.voxels)
        if best.voxels <= TOLERANCE:
            array = label.array.transpose(best.order)
            array = array[tuple(slice(None, None, sign) for sign in best.signs)]
            remarks = label.remarks
            if missed:
                remarks += (_other_code(name, label_name, missed[0], source),)
            return _as_image(image, label, array, remarks)
        missed.append(min(way.mm for way in ways))
    raise _misplaced(image, label, missed[0], source)


def _part(image: Volume, label: Volume, source: ImageSource) -> Volume:
    """A label of another shape, filled up with 0 where it covers a part of the image's grid."""
    shape, own = image.array.shape, label.array.shape
    ends = corners(own)
    found: dict[bytes, np.ndarray] = {}
    for affine, label_affine in itertools.product(image.places.values(), label.places.values()):
        to_image = np.linalg.solve(affine, label_affine)
        if not label.names and np.abs(to_image - np.eye(4)).max() <= TOLERANCE:
            # The image's own header, saved with an array that was cut somewhere: it says nothing.
            continue
        steps, offset = np.rint(to_image[:3, :3]), np.rint(to_image[:3, 3])
        if not ((np.abs(steps).sum(0) == 1) & (np.abs(steps).sum(1) == 1)).all():
            continue
        exact, whole = (ends @ to_image.T)[:, :3], ends[:, :3] @ steps.T + offset
        # Of a single slice the corners do not show how thick it is.
        off = max(np.abs(exact - whole).max(), np.abs(to_image[:3, :3] - steps).max())
        first, last = whole.min(axis=0).astype(int), whole.max(axis=0).astype(int)
        if off > TOLERANCE or (first < 0).any() or (last >= shape).any():
            continue
        turned = label.array.transpose([int(np.flatnonzero(row)[0]) for row in steps])
        turned = turned[tuple(slice(None, None, int(row.sum())) for row in steps)]
        array = np.zeros(shape, label.array.dtype)
        array[tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))] = turned
        found[np.column_stack([steps, offset]).tobytes()] = array
    if not found:
        raise _misshapen(image, label, source)
    if len(found) > 1:
        raise FileFault(
            "label-misplaced",
            source.label_path,
            f"covers a part of its image {source.path}, another one by sform than by qform",
            "mend the header that is wrong",
        )
    remark = Remark(
        "label-cropped",
        f"covers {_by(own)} voxels of its image's {_by(shape)}, and the rest counts as 0",
        "nothing is needed if it was cut to what is drawn, as 3D Slicer does",
    )
    (array,) = found.values()
    return _as_image(image, label, array, (*label.remarks, remark))


def _as_image(
    image: Volume, label: Volume, array: np.ndarray, remarks: tuple[Remark, ...]
) -> Volume:
    return replace(
        label,
        array=array,
        affine=image.affine,
        codes=image.codes,
        spacing_mm=image.spacing_mm,
        remarks=remarks,
    )


def _misshapen(image: Volume, label: Volume, source: ImageSource) -> FileFault:
    return FileFault(
        "label-shape",
        source.label_path,
        f"has the shape {_by(label.array.shape)}, its image {source.path} has "
        f"{_by(image.array.shape)}",
        "export both on one grid, or resample the label onto the image",
    )


def _ways(
    affine: np.ndarray, label_affine: np.ndarray, shape: tuple[int, ...], own: tuple[int, ...]
) -> Iterator[_Way]:
    """All signed permutations that take a label of shape ``own`` onto the image's ``shape``."""
    ends = corners(own)
    found = (ends @ np.linalg.solve(affine, label_affine).T)[:, :3]
    for order in itertools.permutations(range(3)):
        if tuple(own[k] for k in order) != shape:
            continue
        for signs in itertools.product((1, -1), repeat=3):
            due = ends[:, list(order)]
            due = np.where(np.array(signs) > 0, due, np.array(shape) - 1 - due)
            off = found - due
            mm = float(np.linalg.norm(off @ affine[:3, :3].T, axis=1).max())
            yield _Way(order, signs, float(np.abs(off).max()), mm)


def _as_stored(image: Volume, label: Volume) -> Volume:
    if not label.assumed:
        return label
    remarks = tuple(remark for remark in label.remarks if remark != NO_ORIENTATION)
    if image.places:
        remarks += (
            Remark(
                "label-without-place",
                "says nothing of its place in space and is taken to lie as its image is stored",
                "look at both on top of each other, or copy the image's header to it",
            ),
        )
    return replace(label, remarks=remarks)


def _other_code(name: str, label_name: str, missed: float, source: ImageSource) -> Remark:
    return Remark(
        "label-by-other-code",
        f"lies on its image {source.path} only by its {label_name} and the image's {name}, and up "
        f"to {missed:.3g} mm away by the others",
        "these two are used, so mend the header that is wrong",
    )


def _misplaced(image: Volume, label: Volume, mm: float, source: ImageSource) -> FileFault:
    affine, own = next(iter(image.places.values())), next(iter(label.places.values()))
    sizes, label_sizes = (np.linalg.norm(a[:3, :3], axis=0) for a in (affine, own))
    why = ""
    if np.array_equal(own, np.eye(4)):
        why = " (its affine is the identity, as of an array saved without its image's header)"
    elif not np.allclose(np.sort(sizes), np.sort(label_sizes), rtol=0.01):
        why = f" (its spacing is {_by(label_sizes)} mm, the image's {_by(sizes)} mm)"
    return FileFault(
        "label-misplaced",
        source.label_path,
        f"lies up to {mm:.3g} mm away from its image {source.path} by its header{why}",
        "copy the image's header to it if both were drawn on one grid, else resample it onto the "
        "image",
    )


def _by(numbers: np.ndarray | tuple[int, ...]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)
