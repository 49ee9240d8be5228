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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedshift.sites import geometry, prepare, readers
from fedshift.sites.cache import Cache, code_hash, digest
from fedshift.sites.findings import FileFault, Severity
from fedshift.sites.labels import drawn_legend
from fedshift.sites.legend import Legend
from fedshift.sites.likeness import perceptual_hash
from fedshift.sites.manifest import read_manifest
from fedshift.sites.orientation import BandSums, band_sums
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource, SiteSpec

MOST_VALUES = 4096
"""As many of a label file's values are kept: a value may be an object."""
MOST_BANDS = 32
"""Label files with more values are not measured against turned copies of their images."""
_THREADS = 2
HOUNSFIELD = np.arange(-1100, 3101, 4)
"""Edges of the bins in which CT values under a label are counted."""
MODALITIES = {
    **{code: code for code in ("CT", "MR", "US", "PT", "NM", "CR", "DX", "MG", "XA", "OP", "OPT")},
    **{"MRI": "MR", "ULTRASOUND": "US", "PET": "PT", "FMRI": "MR"},
}
"""DICOM's codes of modalities, and what people write for them."""
OTHER = "other"
HOUNSFIELD_LOW = -200
"""Air and lung lie below this; only CT counts below water by so much."""


@dataclass(frozen=True)
class Trouble:
    """Something found while one image and its label were read; ``on`` says in which file."""

    severity: Severity
    code: str
    on: Literal["image", "label"]
    problem: str
    way_out: str


@dataclass(frozen=True)
class Reach:
    """How far from the image's centre the labelled pixels lie, in the plane across one axis.

    The centres of ``counts[k]`` pixels lie ``k`` times ``step`` away along whichever of the two
    in-plane axes is further, to the nearest ``step``, which is half of the finer axis' pixel.
    ``furthest`` is how far away the outermost edge of a labelled pixel is. Both are in mm where the
    spacing is known, else in pixels.
    """

    step: float
    counts: tuple[int, ...]
    furthest: float

    def outside(self, half: float) -> float:
        """The share of the labelled pixels whose centres lie ``half`` or further away."""
        total = sum(self.counts)
        inside = sum(self.counts[: max(0, math.ceil(half / self.step - 1e-6))])
        return 1 - inside / total if total else 0.0


@dataclass(frozen=True)
class Facts:
    """What one image and its label are like.

    Three numbers in a row are along the canonical axes right, front, up (columns, rows, slices of
    an image without orientation). ``axis`` is the one that slices would run along if the image
    stood alone, ``clear`` says whether another axis was out of the question. ``spacing_mm`` is the
    header's or else the table's, None where neither says; ``oriented`` that there is a place in
    space. ``pixels`` hashes the decoded numbers, ``picture`` is a perceptual hash, ``low`` is the
    lowest value; ``modality`` is a code (:func:`modality_code`). Of a label: ``values`` counts
    voxels by value (the first :data:`MOST_VALUES` only, ``n_values`` is how many there are),
    ``names`` are the file's own, ``labelled`` says by axis which slices hold a value above 0 (a
    text of 0 and 1), and ``hounsfield`` counts the image's values under it in the bins of
    :data:`HOUNSFIELD`.
    """

    shape: tuple[int, int, int]
    axis: int
    clear: bool
    oriented: bool
    spacing_mm: tuple[float, float, float] | None
    modality: str
    pixels: str
    picture: str
    low: float
    values: Mapping[int, int] | None = None
    n_values: int = 0
    names: Mapping[int, str] = field(default_factory=dict)
    labelled: tuple[str, str, str] = ("", "", "")
    reach: tuple[Reach, ...] = ()
    hounsfield: tuple[int, ...] = ()
    bands: Mapping[int, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def band_sums(self, groups: Sequence[Iterable[int]]) -> BandSums:
        """The sums of :mod:`.orientation`, one row for each group of label values."""
        placements = {key for found in self.bands.values() for key in found}
        return BandSums(
            {
                (key[0] == "1", key[1] == "1", key[2] == "1"): np.array(
                    [
                        np.sum(
                            [np.zeros(6)] + [self.bands[v][key] for v in group if v in self.bands],
                            axis=0,
                        )
                        for group in groups
                    ]
                )
                for key in placements
            }
        )

    @property
    def has_labels(self) -> bool:
        """Whether the label holds a value above 0."""
        return bool(self.values) and any(value > 0 for value in self.values or ())

    def flags(self, axis: int) -> np.ndarray:
        """Which slices (S,) across ``axis`` hold a label; all False without one."""
        text = self.labelled[axis]
        return np.array([mark == "1" for mark in text or "0" * self.shape[axis]])


@dataclass(frozen=True)
class Surveyed:
    """One row of the table: ``facts`` is None where the image cannot be read. An image whose label
    cannot be used is ``left_out`` of a run all the same; its facts are then of the image alone."""

    facts: Facts | None
    troubles: tuple[Trouble, ...]
    left_out: bool = False


def survey(site: SiteSpec, data: DataSettings) -> tuple[Surveyed, ...]:
    """Survey ``site``'s images in the order of its list, each file read once and never again
    until it changes; phantoms, which are right by construction, have no facts.

    Of ``data`` it matters where the cache is, and which of a drawing's structures are meant: only
    those may not overlap."""
    files = [image for image in site.images if image.phantom is None]
    if not files:
        return tuple(Surveyed(None, ()) for _ in site.images)
    table = read_manifest(data).label_values if data.manifest is not None else {}
    meant = [
        drawn_legend(data, table.get(image.label_path, ""), image.path)
        if image.label_path and readers.is_dicom(Path(image.label_path))
        else None
        for image in files
    ]
    recipe = json.dumps(
        ["survey", code_hash(), [legend and asdict(legend) for legend in meant]]
        + [[image.path, image.label_path, image.spacing_mm, image.modality] for image in files]
    )
    key = digest(recipe, *(readers.state(image.path, image.label_path) for image in files))
    entries = Cache(data.cache).remember(key, lambda: _look_at_all(files, meant))
    found = iter([_from_json(entry) for entry in entries])
    return tuple(
        next(found) if image.phantom is None else Surveyed(None, ()) for image in site.images
    )


def _look_at_all(
    files: Sequence[ImageSource], meant: Sequence[Legend | None]
) -> list[dict[str, Any]]:
    """Two at a time: decompressing leaves Python's lock free."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return [asdict(one) for one in pool.map(_look, files, meant)]


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


def _look(source: ImageSource, meant: Legend | None) -> Surveyed:
    """Read one image and its label."""
    try:
        contents = readers.read(Path(source.path))
        decoded = prepare.decode_image(source, contents, None)
    except FileFault as fault:
        trouble = Trouble("warning", fault.code, "image", fault.problem, fault.way_out)
        return Surveyed(None, (trouble,), left_out=True)
    faults = []
    if source.label_path:
        try:
            drawn = readers.read(Path(source.label_path))
            decoded = prepare.with_label(decoded, source, drawn, meant)
        except FileFault as fault:
            faults = [Trouble("error", fault.code, "label", fault.problem, fault.way_out)]
    axis, clear = geometry.preferred_axis(decoded.volume.array.shape, decoded.volume.affine)
    troubles = [*_remarks(decoded), *_header_troubles(source, decoded)]
    if decoded.image.min() == decoded.image.max():
        troubles.append(Trouble("warning", "constant", "image", "is constant", "export it again"))
    spacing = decoded.spacing_mm
    fields: dict[str, Any] = {
        "shape": _canonical(decoded.image.shape, axis),
        "axis": axis,
        "clear": clear and decoded.volume.affine is not None,
        "oriented": decoded.volume.affine is not None,
        "spacing_mm": _canonical(spacing, axis) if spacing else None,
        "modality": modality_code(decoded.volume.modality or source.modality),
        "pixels": digest(str(decoded.image.shape), np.ascontiguousarray(decoded.image).tobytes()),
        "picture": perceptual_hash(decoded.image[len(decoded.image) // 2]),
        "low": float(decoded.image.min()),
    }
    if decoded.values is not None:
        fields |= _label_facts(decoded, axis)
        if fields["modality"] == "CT" or fields["low"] < HOUNSFIELD_LOW:
            inside = decoded.image[decoded.values > 0].clip(HOUNSFIELD[0], HOUNSFIELD[-1])
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


def _label_facts(decoded: prepare.Decoded, axis: int) -> dict[str, Any]:
    values = decoded.values
    assert values is not None
    counts = np.bincount(values.ravel())
    present = np.flatnonzero(counts)
    kept = [int(value) for value in present[:MOST_VALUES]]
    used = values > 0
    # Axes of the laid-out array for the canonical axes x, y, z.
    place = _canonical((0, 1, 2), axis)
    spacing = _canonical(decoded.spacing_mm or (1.0, 1.0, 1.0), axis)
    where = np.nonzero(used)
    # Rows and columns are laid out against their axes (:func:`.geometry.orient`).
    along = [
        np.asarray(used.any(axis=tuple(d for d in range(3) if d != place[k])))[
            :: 1 if k == axis else -1
        ]
        for k in range(3)
    ]
    shape = values.shape
    away = [np.abs(where[place[k]] - (shape[place[k]] - 1) / 2) * spacing[k] for k in range(3)]
    fields = {
        "values": {value: int(counts[value]) for value in kept},
        "n_values": len(present),
        "names": dict(decoded.label_volume.names) if decoded.label_volume else {},
        "labelled": tuple(
            "".join("1" if mark else "0" for mark in along[k].tolist()) for k in range(3)
        ),
        "reach": tuple(_reach(away, spacing, k) for k in range(3)),
    }
    structures = [value for value in kept if value > 0]
    if structures and len(present) <= MOST_BANDS:
        compact = np.zeros(65536, np.uint8)
        compact[structures] = np.arange(1, len(structures) + 1)
        flags = used.any(axis=(1, 2))
        sums = band_sums(decoded.image[flags], compact[values[flags]], len(structures))
        fields["bands"] = {
            value: {
                "".join("1" if turn else "0" for turn in placement): found[k].tolist()
                for placement, found in sums.sums.items()
            }
            for k, value in enumerate(structures)
        }
    return fields


def _reach(away: Sequence[np.ndarray], spacing: Sequence[float], axis: int) -> Reach:
    first, second = [k for k in range(3) if k != axis]
    step = min(spacing[first], spacing[second]) / 2
    if not len(away[0]):
        return Reach(step, (), 0.0)
    furthest = np.maximum(away[first], away[second])
    edge = max(float(away[k].max()) + spacing[k] / 2 for k in (first, second))
    return Reach(step, tuple(np.bincount(np.rint(furthest / step).astype(int)).tolist()), edge)


def _remarks(decoded: prepare.Decoded) -> Iterable[Trouble]:
    for remark in decoded.volume.remarks:
        yield Trouble("warning", remark.code, "image", remark.problem, remark.way_out)
    if decoded.label_volume is not None:
        for remark in decoded.label_volume.remarks:
            yield Trouble("warning", remark.code, "label", remark.problem, remark.way_out)


def _header_troubles(source: ImageSource, decoded: prepare.Decoded) -> Iterable[Trouble]:
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
