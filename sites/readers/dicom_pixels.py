"""What the stored pixels of a DICOM file mean: one number a pixel, comparable within a series.

Applied are what turns stored values into measured ones (the modality table, or slope and
intercept, each frame's own) and what turns colours into brightness. The window (VOI table) is not:
it is one viewer's choice for one look, often differs from slice to slice, and cuts off what lies
outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.readers.dicom_frames import Frame, readable

# ITU-R BT.601; an ultrasound frame saved in colour is mostly grey already.
LUMA = np.array([0.299, 0.587, 0.114])
# YBR_ICT and YBR_RCT are steps within JPEG 2000, whose decoders give red, green and blue.
KINDS = (
    "MONOCHROME1",
    "MONOCHROME2",
    "PALETTE COLOR",
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
)


@dataclass(frozen=True)
class Plane:
    """One frame's values (R, C) float32, and the least and greatest that its bits can mean.

    ``inverted`` says that small values are to be shown bright.
    """

    values: np.ndarray
    low: float
    high: float
    inverted: bool


def planes(frames: list[Frame], label: bool) -> list[Plane]:
    """The planes of one file's ``frames``, all of them, in their order.

    A label's values are numbers, not brightness: its palette and its polarity are left alone.

    Raises:
        FileFault: the pixels are damaged or compressed in a way that cannot be decoded here, in
            colours that are not known, or (label) in colours at all.
    """
    with readable(frames[0].file):
        return _planes(frames[0].file, frames[0].dataset, frames, label)


def _planes(file: Path, dataset: Any, frames: list[Frame], label: bool) -> list[Plane]:
    kind = str(dataset.get("PhotometricInterpretation") or "").strip()
    if kind not in KINDS or (kind in ("YBR_ICT", "YBR_RCT") and not _is_jpeg2000(dataset)):
        raise _colours(file, f"holds its pixels as {kind or 'nothing that it names'}")
    stored = _stored(file, dataset, len(frames))
    coloured = kind.startswith(("RGB", "YBR"))
    if coloured != (stored.ndim == 4):
        raise _colours(file, f"says {kind} and holds {(*stored.shape, 1)[3]} samples a pixel")
    if coloured:
        if label and (stored != stored[..., :1]).any():
            raise _colours(file, "is a label in colours")
        if label:
            return [Plane(plane[..., 0].astype(np.float32), 0, 255, False) for plane in stored]
        unit = 255 / (2 ** int(dataset.BitsStored) - 1)
        return [Plane((plane @ LUMA * unit).astype(np.float32), 0, 255, False) for plane in stored]
    if kind == "PALETTE COLOR" and not label:
        return [Plane(_palette(file, dataset, plane), 0, 255, False) for plane in stored]
    return [_measured(frame, plane, label) for frame, plane in zip(frames, stored, strict=True)]


def stack_values(planes: list[Plane]) -> np.ndarray:
    """The values (S, R, C) of a series; bright is bright in all of them.

    What is to be shown inverted is turned over within what the bits of the whole series can mean:
    one constant for all slices, so that they stay comparable among themselves and with those of
    a series that stores the same picture the usual way round.
    """
    turn = np.float32(min(plane.low for plane in planes) + max(plane.high for plane in planes))
    return np.stack([turn - plane.values if plane.inverted else plane.values for plane in planes])


def polarity(frame: Frame) -> tuple[bool, Remark | None]:
    """Whether small values are to be shown bright, and what contradicts it.

    The shape of the presentation table goes before the photometric interpretation, as a viewer
    takes them (PS3.3, C.8.11.3); it repeats it, and does not turn the picture a second time. In
    CT, PET and wherever values are Hounsfield units, a value means the same however it is shown.
    """
    kind = frame.dataset.get("PhotometricInterpretation")
    shape = str(frame.dataset.get("PresentationLUTShape") or "")
    units = str(frame.get("PixelValueTransformationSequence", "RescaleType") or "")
    if frame.dataset.get("Modality") in ("CT", "PT") or units in ("HU", "HU_MOD"):
        return False, None
    reverse = kind == "MONOCHROME1"
    grey = kind in ("MONOCHROME1", "MONOCHROME2")
    if grey and shape in ("INVERSE", "IDENTITY") and (shape == "INVERSE") != reverse:
        return shape == "INVERSE", Remark(
            "polarity",
            f"is {kind} with the presentation {shape}, which contradict each other; the "
            "presentation is followed",
            "look whether bright tissue is bright, and mend the tag",
        )
    return reverse, None


def _stored(file: Path, dataset: Any, number: int) -> np.ndarray:
    """The file's stored values (F, R, C), or (F, R, C, 3) in red, green and blue."""
    from pydicom.pixels.utils import pixel_array

    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    try:
        with readable(file, "has no readable pixels"):
            pixels = pixel_array(dataset)
    except FileFault as fault:
        if syntax is not None and syntax.is_compressed:
            raise _compressed(file, syntax, fault) from None
        raise
    colours = int(dataset.get("SamplesPerPixel") or 1) > 1
    pixels = pixels if number > 1 else pixels[None]
    if pixels.ndim != (4 if colours else 3) or len(pixels) != number:
        raise FileFault(
            "damaged",
            file,
            f"says it holds {number} frames, but its pixels have the shape {pixels.shape}",
            "export it again",
        )
    return pixels


def _compressed(file: Path, syntax: Any, fault: FileFault) -> FileFault:
    """Why a compressed file gave ``fault``."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    problem = f"is compressed as {syntax.name}, which"
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return FileFault(
            "compressed", file, f"{problem} is not read", "save the series uncompressed"
        )
    if not decoder.is_available:
        return FileFault(
            "compressed",
            file,
            f"{problem} cannot be decoded here",
            "install the decoders, pip install 'fedshift[dicom]', or save the series uncompressed",
        )
    if syntax == JPEGExtended12Bit:
        return FileFault(
            "compressed",
            file,
            f"{problem} none of the decoders here reads at 12 bits",
            "save the series uncompressed, or install pylibjpeg-libjpeg, whose licence is the GPL",
        )
    problem = f"is compressed as {syntax.name} and {fault.problem}"
    return FileFault(fault.code, file, problem, fault.way_out)


def _is_jpeg2000(dataset: Any) -> bool:
    syntax = getattr(getattr(dataset, "file_meta", None), "TransferSyntaxUID", None)
    return syntax is not None and "2000" in syntax.name


def _measured(frame: Frame, stored: np.ndarray, label: bool) -> Plane:
    """Stored values through the modality table or the slope and intercept of their frame."""
    dataset, group = frame.dataset, "PixelValueTransformationSequence"
    inverted = not label and polarity(frame)[0]
    bits = int(dataset.get("BitsStored") or 0)
    signed = bool(dataset.get("PixelRepresentation"))
    ends = [-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed and bits else [0, 2**bits - 1]
    tables = dataset.get("ModalityLUTSequence")
    if tables:
        entries, first = _table(frame.file, dataset, tables[0], "LUTDescriptor", "LUTData")
        index = (stored.astype(np.int64) - first).clip(0, len(entries) - 1)
        values = entries[index].astype(np.float32)
        return Plane(values, float(entries.min()), float(entries.max()), inverted)
    slope, intercept = frame.get(group, "RescaleSlope"), frame.get(group, "RescaleIntercept")
    slope, intercept = float(1 if slope is None else slope), float(intercept or 0)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise FileFault(
            "rescale",
            frame.file,
            f"has the rescale slope {slope:g} and intercept {intercept:g}, which leave no image",
            "export it again",
        )
    values = (stored * slope + intercept).astype(np.float32)
    low, high = sorted(end * slope + intercept for end in ends)
    return Plane(values, low, high, inverted)


def _palette(file: Path, dataset: Any, stored: np.ndarray) -> np.ndarray:
    """Brightness, 0 to 255, of the palette's colours."""
    colours = []
    for name in ("Red", "Green", "Blue"):
        keyword = f"{name}PaletteColorLookupTable"
        if f"{keyword}Data" not in dataset:
            raise _colours(file, f"has no plain {name.lower()} palette")
        entries, first = _table(file, dataset, dataset, f"{keyword}Descriptor", f"{keyword}Data")
        index = (stored.astype(np.int64) - first).clip(0, len(entries) - 1)
        deep = int(dataset[f"{keyword}Descriptor"].value[2]) > 8 or entries.max() > 255
        colours.append((entries / 257 if deep else entries)[index])
    return (np.stack(colours, axis=-1) @ LUMA).astype(np.float32)


def _table(
    file: Path, dataset: Any, holder: Any, descriptor: str, data: str
) -> tuple[np.ndarray, int]:
    """A table's entries, and the stored value that the first of them is for (PS3.3, C.11.1.1)."""
    number, first = int(holder[descriptor].value[0]) & 0xFFFF or 2**16, holder[descriptor].value[1]
    held = holder[data].value
    if isinstance(held, bytes):
        little = getattr(dataset, "original_encoding", (None, True))[1] is not False
        wide = len(held) >= 2 * number
        held = np.frombuffer(held, ("<u2" if little else ">u2") if wide else "u1")
    entries = np.atleast_1d(np.asarray(held, np.int64))[:number]
    if len(entries) < number:
        raise FileFault(
            "damaged", file, f"has {len(entries)} of {number} entries of {data}", "export it again"
        )
    return entries, int(first)


def _colours(file: Path, problem: str) -> FileFault:
    return FileFault(
        "colours",
        file,
        problem,
        "export it as MONOCHROME2, or an image as RGB, YBR_FULL or with a plain palette",
    )
