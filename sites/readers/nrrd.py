"""NRRD, attached or detached, and 3D Slicer's segmentations in it; by pynrrd."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.readers.volume import Contents, Volume, unit_mm

SUFFIXES = (".nrrd", ".nhdr")
_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1, -1, 1)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (1, 1, 1)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1, 1, 1)),
}
"""Signs that take each named space to ours (right, front, up)."""
_SEVERAL = re.compile(r"LIST(\s+\d+)?|.*%.*(\s+-?\d+){3,4}")
"""Several files for the data: a list that ends the header, or a pattern and its numbers."""
_SPATIAL = ("domain", "space", "none", "???")
NO_SPACE = Remark(
    "space-unknown",
    "does not say which way its axes point (its header names no anatomical space)",
    "export it again with one, or look whether it is turned as the other sites' images are",
)


def data_file(path: Path, start: bytes) -> Path | None:
    """Where a detached header, whose first bytes are ``start``, says that its data lie."""
    name = _data_name(_cut(start)[0])
    return path.parent / name if name and not _SEVERAL.fullmatch(name) else None


def _data_name(head: bytes) -> str:
    """What a header names for its data; empty where they follow it."""
    match = re.search(rb"(?im)^data ?file:[ \t]*(.+?)[ \t\r]*$", head)
    return match[1].decode("utf-8", "replace") if match else ""


def _cut(data: bytes) -> tuple[bytes, int]:
    """The header, and where the data begin: behind the first empty line."""
    end = re.search(rb"\r?\n\r?\n", data)
    return (data[: end.start()], end.end()) if end else (data, len(data))


def read_nrrd(path: Path, contents: Contents) -> Volume:
    import nrrd

    data = contents[0][1]
    head, offset = _cut(data)
    if _SEVERAL.fullmatch(name := _data_name(head)):
        raise FileFault(
            "several-files",
            path,
            f"keeps its data in several files ({name[:40]})",
            "save it as one .nrrd file",
        )
    try:
        header = nrrd.read_header(head.decode("utf-8", "replace").splitlines())
        for key in ("data file", "datafile"):
            header.pop(key, None)
        body = contents[1][1] if name else data[offset:]
        array = nrrd.read_data(header, io.BytesIO(body))
    except (
        nrrd.NRRDError,
        StopIteration,
        ValueError,
        TypeError,
        LookupError,
        OSError,
        EOFError,
        OverflowError,
        MemoryError,
        zlib.error,
    ) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise _damaged(path, reason) from None
    if array.dtype.kind not in "iuf":
        raise FileFault("values", path, "holds no numbers", "export it again as numbers")
    try:
        array, axes = _spatial(path, array, header)
        return _place(path, array, header, axes)
    except (ValueError, TypeError, LookupError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise _damaged(path, reason) from None


def _damaged(path: Path, reason: str) -> FileFault:
    return FileFault(
        "damaged", path, f"is not a readable NRRD file ({reason})", "export or copy it again"
    )


def _spatial(
    path: Path, array: np.ndarray, header: Mapping[str, Any]
) -> tuple[np.ndarray, list[int]]:
    """The array without its axes of one value a point, and which axes are left."""
    kinds = [str(kind).lower() for kind in header.get("kinds", ["domain"] * array.ndim)]
    directions = header.get("space directions")
    axes = list(range(array.ndim))
    for axis in range(array.ndim):
        spatial = kinds[axis] in _SPATIAL if axis < len(kinds) else True
        if directions is not None and np.isnan(np.asarray(directions[axis], float)).any():
            spatial = False
        if spatial:
            continue
        if array.shape[axis] > 1:
            if "Segment0_ID" in header or "Segment0_Name" in header:
                raise FileFault(
                    "overlapping-segments",
                    path,
                    f"holds its segments in {array.shape[axis]} layers, which may overlap",
                    "in 3D Slicer, export the segments that are meant to a labelmap and save that",
                )
            raise FileFault(
                "dimensions",
                path,
                f"holds {array.shape[axis]} values a point ({kinds[axis]})",
                "export one of them: a channel, a time point or a component",
            )
        axes.remove(axis)
    for axis in reversed(range(array.ndim)):
        if axis not in axes:
            array = array.take(0, axis)
    return array, axes


def _directions(path: Path, header: Mapping[str, Any], axes: list[int]) -> np.ndarray | None:
    """The step in mm along each axis, a row an axis, in the header's space; None without one."""
    found = header.get("space directions")
    if found is None:
        return None
    vectors = np.array([found[axis] for axis in axes], float)
    return vectors * np.array(
        [unit_mm(path, unit) for unit in header.get("space units", ["mm"] * vectors.shape[1])]
    )


def _place(path: Path, array: np.ndarray, header: Mapping[str, Any], axes: list[int]) -> Volume:
    names = _segments(header)
    vectors = _directions(path, header, axes)
    # A flat picture lies nowhere in a body, which is no remark.
    remarks = (NO_SPACE,) if array.ndim > 2 else ()
    while array.ndim < 3:
        array = array[..., None]
    if vectors is None:
        # Spacings alone say how large a voxel is, and nothing of where it lies.
        given = header.get("spacings")
        units = header.get("units", [""] * (max(axes) + 1))
        sizes = [] if given is None else [float(given[a]) * unit_mm(path, units[a]) for a in axes]
        known = sizes and np.isfinite(sizes).all()
        spacing = _three(sizes) if known else None
        return Volume(array, None, spacing, names=names, remarks=remarks)
    spacing = _three(np.linalg.norm(vectors, axis=1).tolist())
    signs = _SPACES.get(str(header.get("space", "")).lower())
    if signs is not None and vectors.shape[1] != 3:
        raise ValueError(f"{vectors.shape[1]} numbers a direction in a space of 3")
    if signs is None or len(axes) < 2:
        return Volume(array, None, spacing, names=names, remarks=remarks)
    if len(axes) == 2:
        normal = np.cross(vectors[0], vectors[1])
        vectors = np.vstack([vectors, normal / (np.linalg.norm(normal) or 1)])
    affine = np.eye(4)
    affine[:3, :3] = vectors[:3].T
    affine[:3, 3] = np.asarray(header.get("space origin", (0, 0, 0)), float) * [
        unit_mm(path, unit) for unit in header.get("space units", ["mm"] * 3)
    ]
    affine[:3] *= np.array(signs)[:, None]
    usable = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    return Volume(array, affine if usable else None, spacing, names=names)


def _three(sizes: list[float]) -> tuple[float, float, float]:
    first, second, third = [*sizes, 1.0, 1.0][:3]
    return first, second, third


def _segments(header: Mapping[str, Any]) -> dict[int, str]:
    """What 3D Slicer calls the values of a segmentation."""
    names = {}
    for key, value in header.items():
        match = re.fullmatch(r"Segment(\d+)_LabelValue", key)
        if match and re.fullmatch(r"\d+", str(value).strip()):
            name = str(header.get(f"Segment{match[1]}_Name", "")).strip()
            if name:
                names[int(value)] = name
    return names
