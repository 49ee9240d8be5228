"""From frames to a stack: their order, the grid that they lie on, and what is odd about it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.readers.dicom_frames import Frame

# What may tell images at one position apart: functional group, tag, word.
APART = (
    ("MREchoSequence", "EffectiveEchoTime", "echo time"),
    ("", "EchoTime", "echo time"),
    ("", "EchoNumbers", "echo"),
    ("FrameContentSequence", "TemporalPositionIndex", "time point"),
    ("", "TemporalPositionIdentifier", "time point"),
    ("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", "trigger time"),
    ("", "TriggerTime", "trigger time"),
    ("MRDiffusionSequence", "DiffusionBValue", "b-value"),
    ("MRImageFrameTypeSequence", "FrameType", "image type"),
    ("CTImageFrameTypeSequence", "FrameType", "image type"),
    ("FrameContentSequence", "StackID", "stack"),
    ("FrameContentSequence", "FrameAcquisitionNumber", "acquisition"),
    ("", "AcquisitionNumber", "acquisition"),
    ("", "AcquisitionTime", "acquisition time"),
    ("", "ImageType", "image type"),
)


AGAIN = "export the series again with positions"


@dataclass(frozen=True)
class Stack:
    """Frames as a stack: ``frames`` by position, else by instance number.

    ``affine`` takes (column, row, slice) to mm (x right, y front, z up); None without positions
    or pixel spacing. ``spacing_mm`` is along column index, row index and slices; None without
    pixel spacing. A slice distance that nothing tells counts as 1 mm, and a remark says so.
    """

    frames: list[Frame]
    affine: np.ndarray | None
    spacing_mm: tuple[float, float, float] | None
    remarks: tuple[Remark, ...]


def stack(path: Path, frames: list[Frame]) -> Stack:
    """Order ``frames``, at least one, and say on which grid they lie.

    Raises:
        FileFault: they differ in orientation, pixel spacing or echo, lie several at one position,
            lack slices, or lie on a sheared grid (a tilted gantry).
    """
    first = frames[0]
    for frame in frames:
        if not _alike(frame.spacing, first.spacing, rtol=1e-3):
            raise _mixed(
                path,
                f"mixes pixel spacings, {_mm(first.spacing)} and {_mm(frame.spacing)}",
            )
    remarks = [first.caveat] if first.caveat else []
    placed = [frame.position is not None and frame.orientation is not None for frame in frames]
    if any(placed) and not all(placed):
        raise _mixed(
            path,
            f"mixes {placed.count(True)} images that say where they lie with "
            f"{placed.count(False)} that do not",
        )
    _one_echo(path, frames)
    if all(placed):
        ordered, matrix, more = _by_position(path, frames)
    else:
        ordered, matrix, more = _by_number(path, frames)
    affine = spacing = None
    if first.spacing is not None:
        spacing = (first.spacing[1], first.spacing[0], float(np.linalg.norm(matrix[:3, 2])))
        if all(placed):
            affine = matrix.copy()
            affine[:3, 0] *= spacing[0]
            affine[:3, 1] *= spacing[1]
            affine[:2] *= -1  # from left and back to right and front
    return Stack(ordered, affine, spacing, (*remarks, *more))


def _by_position(path: Path, frames: list[Frame]) -> tuple[list[Frame], np.ndarray, list[Remark]]:
    """Order along the normal; the matrix has unit directions in the plane and mm across."""
    positions = np.array([frame.position for frame in frames])
    directions = frames[0].orientation
    assert directions is not None
    for frame in frames:
        if not _alike(frame.orientation, directions, atol=2e-3):
            raise _mixed(path, "mixes slices of different orientations")
    references = {str(frame.dataset.get("FrameOfReferenceUID") or "") for frame in frames} - {""}
    if len(references) > 1:
        raise _mixed(path, f"mixes {len(references)} frames of reference: the patient was moved")
    normal = np.cross(*directions)
    order = np.argsort(positions @ normal, kind="stable")
    ordered = [frames[k] for k in order]
    positions = positions[order]
    matrix = np.eye(4)
    matrix[:3, :2] = directions.T
    matrix[:3, 3] = positions[0]
    if len(frames) == 1:
        matrix[:3, 2] = normal * _alone(frames[0])
        return ordered, matrix, []
    along = (positions - positions[0]) @ normal
    steps = np.diff(along)
    same = steps < max(1e-3, 0.01 * float(steps.max()))
    if same.any():
        raise _several(path, ordered, same)
    median = float(np.median(steps))
    _whole(path, steps, median)
    matrix[:3, 2] = (positions[-1] - positions[0]) / (len(frames) - 1)
    sideways = positions - positions[0] - along[:, None] * normal
    shift = float(np.linalg.norm(sideways, axis=1).max())
    if shift > 0.5 * min(frames[0].spacing or (1.0,)):
        raise FileFault(
            "sheared",
            path,
            f"is a sheared stack: its slices shift sideways by up to {shift:.3g} mm, as under a "
            "tilted gantry",
            "straighten the series and its label together, with a converter that resamples tilted "
            "CT",
        )
    # The unevenness that counts is how far a slice lies from where an even stack has it.
    even = np.linspace(0, along[-1], len(along))
    worst = float(np.abs(along - even).max())
    if worst > 0.5 * median:
        raise _mixed(
            path,
            f"has slices {steps.min():.3g} to {steps.max():.3g} mm apart, too uneven for one grid",
        )
    if worst > 0.1 * median or np.ptp(steps) > 0.1 * median:
        remark = Remark(
            "uneven-slices",
            f"has slices {steps.min():.3g} to {steps.max():.3g} mm apart; they count as even, "
            f"{np.mean(steps):.3g} mm, which misplaces one by {worst:.2g} mm",
            "resample the series to even slices where that matters",
        )
        return ordered, matrix, [remark]
    return ordered, matrix, []


def _whole(path: Path, steps: np.ndarray, median: float) -> None:
    if steps.max() > 1.5 * median:
        raise FileFault(
            "missing-slices",
            path,
            f"lacks slices, or changes their distance: two neighbours are {steps.max():.3g} mm "
            f"apart, others {median:.3g} mm",
            "export the whole series, one distance a folder",
        )
    if steps.min() < median / 1.5:
        raise _mixed(
            path,
            f"mixes slice distances: two neighbours are {steps.min():.3g} mm apart, others "
            f"{median:.3g} mm",
        )


def _by_number(path: Path, frames: list[Frame]) -> tuple[list[Frame], np.ndarray, list[Remark]]:
    """Order files by instance number, and frames within a file as they are stored."""
    files = {id(frame.dataset): frame.dataset for frame in frames}
    numbers = [dataset.get("InstanceNumber") for dataset in files.values()]
    if len(files) > 1 and (None in numbers or len(set(numbers)) < len(numbers)):
        raise FileFault(
            "no-order",
            path,
            "holds images with neither positions nor instance numbers of their own, so their "
            "order is unknown",
            "export the series again, or give each image a row",
        )
    ordered = sorted(
        frames, key=lambda frame: (int(frame.dataset.get("InstanceNumber") or 0), frame.index)
    )
    matrix = np.eye(4)
    if len(frames) == 1:
        matrix[2, 2] = _alone(frames[0])
        return ordered, matrix, []
    if _is_cine(frames[0].dataset):
        remark = Remark(
            "frames-in-time",
            "holds frames that follow each other in time, not in space; each is taken as a slice, "
            "1 mm apart",
            "measures in three dimensions mean nothing for it",
        )
        return ordered, matrix, [remark]
    if abs(float(frames[0].dataset.get("GantryDetectorTilt") or 0)) > 0.1:
        raise FileFault(
            "sheared",
            path,
            "was scanned under a tilted gantry and does not say where its slices lie",
            AGAIN,
        )
    step, told, source = _tagged(frames[0])
    matrix[2, 2] = step
    order = "stored" if len(files) == 1 else "numbered"
    distance = f", {step:g} mm apart as {source} says" if source else ""
    remark = Remark(
        "no-positions",
        f"does not say where its slices lie; they are stacked as they are {order}{distance}",
        AGAIN,
    )
    return ordered, matrix, [remark, *told]


def _tagged(frame: Frame) -> tuple[float, list[Remark], str]:
    """The slice distance in mm by the tags, what should be known of it, and the tag."""
    if frame.between is not None:
        return frame.between, [], "SpacingBetweenSlices"
    if frame.thickness is not None:
        remark = Remark(
            "thickness-as-distance",
            f"does not say how far apart its slices are; their thickness, {frame.thickness:g} mm, "
            "is taken for it, as if there were neither gap nor overlap",
            AGAIN,
        )
        return frame.thickness, [remark], "SliceThickness"
    remark = Remark(
        "unknown-slice-distance",
        "does not say how far apart its slices are; they count as 1 mm apart",
        AGAIN,
    )
    return 1.0, [remark], ""


def _alone(frame: Frame) -> float:
    """What a single slice stands for across its plane, in mm."""
    return frame.thickness or frame.between or 1.0


def _is_cine(dataset: Any) -> bool:
    """Whether FrameTime or FrameTimeVector tells the frames apart."""
    pointers = dataset.get("FrameIncrementPointer")
    pointers = pointers if hasattr(pointers, "__iter__") else [pointers]
    return any(pointer in (0x00181063, 0x00181065) for pointer in pointers)


def _one_echo(path: Path, frames: list[Frame]) -> None:
    """Refuse two contrasts in one stack also where their slices lie at different positions."""
    for group, keyword, _ in APART[:2]:
        times = [frame.get(group, keyword) for frame in frames]
        known = sorted({float(time) for time in times if time is not None})
        if known and known[-1] > 1.05 * known[0] and len({_key(f) for f in frames}) == len(frames):
            raise _mixed(path, f"mixes echo times, {known[0]:g} and {known[-1]:g} ms")


def _key(frame: Frame) -> tuple[float, ...] | int:
    return id(frame) if frame.position is None else tuple(np.round(frame.position, 2))


def _several(path: Path, ordered: list[Frame], same: np.ndarray) -> FileFault:
    """Why several frames lie at one position, as far as the tags tell."""
    k = int(np.flatnonzero(same)[0])
    pair = ordered[k], ordered[k + 1]
    identifiers = [str(frame.dataset.get("SOPInstanceUID") or id(frame)) for frame in pair]
    if pair[0].dataset is not pair[1].dataset and identifiers[0] == identifiers[1]:
        return FileFault(
            "duplicate-slices",
            path,
            f"holds one image twice, {pair[0].file.name} and {pair[1].file.name}",
            "remove the copies",
        )
    reasons: list[str] = []
    for group, keyword, word in APART:
        values = [str(frame.get(group, keyword)) for frame in pair]
        if values[0] != values[1] and word not in " ".join(reasons):
            reasons.append(f"{word} {values[0]} and {values[1]}")
    differ = f" ({'; '.join(reasons[:2])})" if reasons else ""
    most = max(Counter(np.concatenate([[0], np.cumsum(~same)]).tolist()).values())
    return FileFault(
        "several-at-one-position",
        path,
        f"holds several images at one position, up to {most}{differ}",
        "export one time point, echo or acquisition as a series of its own",
    )


def _alike(one: Any, other: Any, rtol: float = 0.0, atol: float = 0.0) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, rtol=rtol, atol=atol))


def _mm(spacing: tuple[float, float] | None) -> str:
    return "none" if spacing is None else f"{spacing[0]:g} x {spacing[1]:g} mm"


def _mixed(path: Path, problem: str) -> FileFault:
    return FileFault("mixed-slices", path, problem, "export each as a series of its own")
