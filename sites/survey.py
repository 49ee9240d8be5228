"""What a site's files are like, image by image, before anything is decided about them.

A survey reads every image and label once and keeps numbers only: what a federation's settings are
chosen from (:mod:`.plan`) and what the doctor judges (:mod:`.doctor`). It depends on the files and
their rows alone, not on grid, plane or label map, and is remembered by the state of the files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedshift.sites import geometry, readers
from fedshift.sites.cache import Cache, code_hash, digest
from fedshift.sites.facts import HOUNSFIELD, MOST_VALUES, Facts, Reach, Surveyed, Trouble
from fedshift.sites.findings import FileFault, Remark
from fedshift.sites.image import Decoded, decode_image
from fedshift.sites.labels import Form, form_of
from fedshift.sites.labels.base import Drawing
from fedshift.sites.labels.meaning import drawn_legend
from fedshift.sites.legend import Legend
from fedshift.sites.likeness import perceptual_hash
from fedshift.sites.manifest import read_manifest
from fedshift.sites.orientation import band_sums
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource, SiteSpec

MOST_BANDS = 32
"""Label files with more values are not measured against turned copies of their images."""
_THREADS = 2
MODALITIES = {
    **{code: code for code in ("CT", "MR", "US", "PT", "NM", "CR", "DX", "MG", "XA", "OP", "OPT")},
    **{"MRI": "MR", "ULTRASOUND": "US", "PET": "PT", "FMRI": "MR"},
}
"""DICOM's codes of modalities, and what people write for them."""
OTHER = "other"
HOUNSFIELD_LOW = -200
"""Air and lung lie below this; only CT counts below water by so much."""


def survey(site: SiteSpec, data: DataSettings) -> tuple[Surveyed, ...]:
    """Survey ``site``'s images in the order of its list, each file read once and never again
    until it changes; phantoms, which are right by construction, have no facts.

    Of ``data`` it matters where the cache is, which form of label is read and what its coordinates
    are, which of a drawing's structures are meant (only those may not overlap), and of a form that
    lies within slices ``slice_axis``."""
    files = [image for image in site.images if image.phantom is None]
    if not files:
        return tuple(Surveyed(None, ()) for _ in site.images)
    form = form_of(data)
    table = read_manifest(data).label_values if data.manifest is not None else {}
    meant = [
        drawn_legend(data, table.get(image.label_path, ""), image.path)
        if image.label_path and form.drawn(image)
        else None
        for image in files
    ]
    recipe = json.dumps(
        ["survey", code_hash(), form.name, data.points_in, form.sliced and data.slice_axis]
        + [legend and asdict(legend) for legend in meant]
        + [
            [image.path, image.label_path, image.category, image.spacing_mm, image.modality]
            for image in files
        ]
    )
    key = digest(recipe, *(readers.state(image.path, image.label_path) for image in files))
    entries = Cache(data.cache).remember(key, lambda: _look_at_all(files, meant, data))
    found = iter([_from_json(entry) for entry in entries])
    return tuple(
        replace(next(found), subject=image.subject) if image.phantom is None else Surveyed(None, ())
        for image in site.images
    )


def _look_at_all(
    files: Sequence[ImageSource], meant: Sequence[Legend | None], data: DataSettings
) -> list[dict[str, Any]]:
    """Two at a time: decompressing leaves Python's lock free."""
    with ThreadPoolExecutor(_THREADS) as pool:
        every = pool.map(lambda source, legend: _look(source, legend, data), files, meant)
        return [asdict(one) for one in every]


def _from_json(entry: Mapping[str, Any]) -> Surveyed:
    fields = entry["facts"]
    facts = None
    if fields is not None:
        facts = Facts(
            **{
                **fields,
                "shape": tuple(fields["shape"]),
                "spacing_mm": fields["spacing_mm"] and tuple(fields["spacing_mm"]),
                "values": None if fields["values"] is None else _by_value(fields["values"]),
                "names": _by_value(fields["names"]),
                "labelled": tuple(fields["labelled"]),
                "reach": tuple(
                    Reach(**{**r, "counts": tuple(r["counts"])}) for r in fields["reach"]
                ),
                "hounsfield": tuple(fields["hounsfield"]),
                "bands": _by_value(fields["bands"]),
            }
        )
    troubles = tuple(Trouble(**trouble) for trouble in entry["troubles"])
    return Surveyed(facts, troubles, entry["left_out"])


def _by_value(mapping: Mapping[str, Any]) -> dict[int, Any]:
    """JSON's keys are texts."""
    return {int(value): found for value, found in mapping.items()}


def _look(source: ImageSource, meant: Legend | None, data: DataSettings) -> Surveyed:
    """Read one image and its label."""
    form = form_of(data)
    try:
        contents = readers.read(Path(source.path))
        decoded = decode_image(source, contents, data.slice_axis if form.sliced else None)
    except FileFault as fault:
        trouble = Trouble("warning", fault.code, "image", fault.problem, fault.way_out)
        return Surveyed(None, (trouble,), left_out=True)
    faults = []
    drawing: Drawing | None = None
    if source.labelled:
        try:
            drawing = form.decode(source, form.read(source), decoded, data, meant)
        except FileFault as fault:
            faults = [Trouble("error", fault.code, "label", fault.problem, fault.way_out)]
    axis, clear = geometry.preferred_axis(decoded.volume.array.shape, decoded.volume.affine)
    troubles = [
        *_remarks("image", decoded.volume.remarks),
        *_remarks("label", drawing.remarks if drawing is not None else ()),
        *_header_troubles(source, decoded),
    ]
    if decoded.image.min() == decoded.image.max():
        troubles.append(Trouble("warning", "constant", "image", "is constant", "export it again"))
    spacing = decoded.spacing_mm
    fields: dict[str, Any] = {
        "shape": _canonical(decoded.image.shape, decoded.axis),
        "axis": axis,
        "clear": clear and decoded.volume.affine is not None,
        "oriented": decoded.volume.affine is not None,
        "spacing_mm": _canonical(spacing, decoded.axis) if spacing else None,
        "modality": modality_code(decoded.volume.modality or source.modality),
        "pixels": digest(str(decoded.image.shape), np.ascontiguousarray(decoded.image).tobytes()),
        # The matrices of two people's graphs look alike.
        "picture": ""
        if readers.is_matrix(source.path)
        else perceptual_hash(decoded.image[len(decoded.image) // 2]),
        "low": float(decoded.image.min()),
    }
    if drawing is not None:
        fields |= _label_facts(form, drawing, decoded)
        if fields["modality"] == "CT" or fields["low"] < HOUNSFIELD_LOW:
            pixels = form.pixels(drawing)
            inside = decoded.image if pixels is None else decoded.image[pixels > 0]
            inside = inside.clip(HOUNSFIELD[0], HOUNSFIELD[-1])
            fields["hounsfield"] = tuple(np.histogram(inside, HOUNSFIELD)[0].tolist())
    return Surveyed(Facts(**fields), (*faults, *troubles), left_out=bool(faults))


def modality_code(text: str) -> str:
    """The first modality that a free text names, as DICOM's code: ``CT (HU), grid of the MR`` is
    CT; ``other`` where it names none that is known, empty where there is no text."""
    words = re.findall(r"[A-Z]+", text.upper())
    return next((MODALITIES[word] for word in words if word in MODALITIES), OTHER if words else "")


def _canonical(laid_out: Sequence[Any], axis: int) -> tuple[Any, Any, Any]:
    """(slice, row, column) of what :func:`.geometry.orient` lays out, along (x, y, z)."""
    across, down = [k for k in range(3) if k != axis]
    found: list[Any] = [None, None, None]
    found[axis], found[down], found[across] = laid_out
    return found[0], found[1], found[2]


def _label_facts(form: Form, drawing: Drawing, decoded: Decoded) -> dict[str, Any]:
    axis = decoded.axis
    counts = form.counts(drawing)
    kept = dict(sorted(counts.items())[:MOST_VALUES])
    fields: dict[str, Any] = {
        "values": kept,
        "n_values": len(counts),
        "names": dict(drawing.names),
    }
    # Axes of the laid-out array for the canonical axes x, y, z.
    place = _canonical((0, 1, 2), axis)
    spacing = _canonical(decoded.spacing_mm or (1.0, 1.0, 1.0), axis)
    shape = decoded.image.shape
    where = form.places(drawing)
    along = [np.ones(shape[place[k]], bool) for k in range(3)]
    if where is not None:
        away = [np.abs(where[place[k]] - (shape[place[k]] - 1) / 2) * spacing[k] for k in range(3)]
        fields["reach"] = tuple(_reach(away, spacing, k) for k in range(3))
        if not form.one_each or not len(where[0]):
            along = [_hit(where[place[k]], shape[place[k]]) for k in range(3)]
    # Rows and columns are laid out against their axes (:func:`.geometry.orient`).
    fields["labelled"] = tuple(
        "".join("1" if mark else "0" for mark in along[k][:: 1 if k == axis else -1])
        for k in range(3)
    )
    pixels = form.pixels(drawing)
    structures = [value for value in kept if value > 0]
    if pixels is not None and structures and len(counts) <= MOST_BANDS:
        compact = np.zeros(65536, np.uint8)
        compact[structures] = np.arange(1, len(structures) + 1)
        flags = (pixels > 0).any(axis=(1, 2))
        sums = band_sums(decoded.image[flags], compact[pixels[flags]], len(structures))
        fields["bands"] = {
            value: {
                "".join("1" if turn else "0" for turn in placement): found[k].tolist()
                for placement, found in sums.sums.items()
            }
            for k, value in enumerate(structures)
        }
    return fields


def _hit(places: np.ndarray, length: int) -> np.ndarray:
    """Which of ``length`` places in a row are among ``places``."""
    flags = np.zeros(length, bool)
    flags[np.rint(places).astype(int).clip(0, length - 1)] = True
    return flags


def _reach(away: Sequence[np.ndarray], spacing: Sequence[float], axis: int) -> Reach:
    first, second = [k for k in range(3) if k != axis]
    step = min(spacing[first], spacing[second]) / 2
    if not len(away[0]):
        return Reach(step, (), 0.0)
    furthest = np.maximum(away[first], away[second])
    edge = max(float(away[k].max()) + spacing[k] / 2 for k in (first, second))
    return Reach(step, tuple(np.bincount(np.rint(furthest / step).astype(int)).tolist()), edge)


def _remarks(on: Literal["image", "label"], remarks: Iterable[Remark]) -> Iterable[Trouble]:
    for remark in remarks:
        yield Trouble("warning", remark.code, on, remark.problem, remark.way_out)


def _header_troubles(source: ImageSource, decoded: Decoded) -> Iterable[Trouble]:
    """Spacing of header against affine and table."""
    header, affine, table = decoded.volume.spacing_mm, decoded.volume.affine, source.spacing_mm
    if header is not None and not all(math.isfinite(mm) and mm > 0 for mm in header):
        yield Trouble(
            "error",
            "spacing-invalid",
            "image",
            f"has a header whose spacing is {in_mm(header)} mm",
            "mend the header, or set data.default_spacing_mm",
        )
    elif header is not None and affine is not None:
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        if _differ(sizes, header):
            yield Trouble(
                "warning",
                "spacing-header",
                "image",
                f"has the spacing {in_mm(header)} mm in its header, {in_mm(sizes)} mm in its "
                "affine",
                "export it again; the affine is used",
            )
        # A table's order of axes is its author's: sorted, the two must agree.
        if table is not None and len(table) == 3 and _differ(sorted(table), sorted(sizes)):
            yield _table_differs(table, sizes)
    elif header is not None and table is not None and _differ(table[:2], header[:2][: len(table)]):
        yield _table_differs(table, header)


def _table_differs(table: Iterable[float], header: Iterable[float]) -> Trouble:
    return Trouble(
        "warning",
        "spacing-table",
        "image",
        f"has the spacing {in_mm(table)} mm in the table, {in_mm(header)} mm in its header",
        "mend the wrong one; the header is used",
    )


def _differ(one: Sequence[float], other: Sequence[float]) -> bool:
    return not np.allclose(one, other, rtol=0.05)


def in_mm(values: Iterable[float]) -> str:
    """Lengths for a sentence, such as ``0.5 x 0.5 x 3``."""
    return " x ".join(f"{value:.4g}" for value in values)
