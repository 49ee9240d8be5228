"""How a federation's images are brought onto one grid, decided once for all of its sites.

Each site sends a summary of its survey (:func:`summarise`): counts, spacings, how far labels reach,
never an image. From these :func:`plan` sets what the config leaves ``auto``, as nnU-Net does from
one place's images (Isensee et al., Nature Methods 2021, "rule-based parameters"):

- ``slice_axis``: the axis that the clear sites agree on. A nearly isotropic image has no axis of
  its own and follows. Sites that are clear and disagree are asked about, not outvoted.
- ``spacing_mm``: the median over the sites of their median in-plane spacing, each site once;
  coarser where the labels would not fit the largest grid.
- ``size``: the smallest multiple of 16 that covers every label with a quarter to spare about the
  image's centre, but no more than the image, and the whole image where no label is known; at least
  64, at most 384.
- ``normalise``: ``ct`` where every site says CT, else ``percentile``.
- ``window``: for ``ct``, the percentiles 0.5 and 99.5 of the values under the labels of all sites.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np

from fedshift import UserError
from fedshift.sites.facts import HOUNSFIELD, Facts, Surveyed
from fedshift.sites.findings import listed
from fedshift.sites.settings import DataSettings

MARGIN = 1.25
"""How much larger than the furthest label the grid is."""
STEP, LEAST, MOST = 16, 64, 384
"""Grids are multiples of STEP pixels a side, from LEAST to MOST."""
SIGNIFICANT = 2
"""Digits of a planned spacing: 0.4983 mm is 0.5 mm."""
FOREGROUND = (0.5, 99.5)
"""nnU-Net's percentiles of CT values under labels."""
PLANES = ("sagittal", "coronal", "axial")
"""What slices across each canonical axis are called."""


_BY_HAND = {
    "normalise": "percentile",
    "size": 128,
    "slice_axis": 2,
    "spacing_mm": None,
    "window": (-160.0, 240.0),
}
"""What a user may begin with where nothing can be planned."""

T = TypeVar("T")


@dataclass(frozen=True)
class Summary:
    """What leaves a site so that settings can be chosen; three numbers are along right, front, up.

    ``axes`` counts the images whose slices clearly run along each axis. ``spacing_mm`` is the
    median over the images that know theirs (None: none does), ``unknown`` how many do not.
    ``shape`` is the median matrix. For slices across each axis (an image without orientation is
    sliced along its last whatever is asked for), ``in_plane_mm`` is the median in-plane spacing,
    and ``reach_mm``, ``reach_px`` and ``reach_own`` are how far labels lie from the image's centre
    in images of known spacing (mm), of unknown spacing (pixels), and in all (their own finer
    pixels), rounded up (mm to tenths, of finer pixels to less than one); 0 without labels.
    ``modalities`` counts images by modality. ``hounsfield`` counts the values under labels of CT
    images (:data:`.survey.HOUNSFIELD`), none of them fewer than ``min_count``.
    """

    images: int
    axes: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    in_plane_mm: tuple[float, float, float] | None
    unknown: int
    shape: tuple[int, int, int]
    reach_mm: tuple[float, float, float]
    reach_px: tuple[float, float, float]
    reach_own: tuple[float, float, float]
    modalities: Mapping[str, int]
    hounsfield: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, node: Mapping[str, Any]) -> Summary:
        """Undo :meth:`to_json`, of a site that need not be trusted.

        Raises ``ValueError`` for another field, type, length, or a number that none can be."""
        if not isinstance(node, Mapping) or {*node} != {field.name for field in fields(cls)}:
            raise ValueError("sent a data summary of other fields")
        known = node["spacing_mm"] is not None
        if known != (node["in_plane_mm"] is not None):
            raise ValueError("sent a data summary with one of two spacings")
        modalities = node["modalities"]
        if not isinstance(modalities, Mapping) or len(modalities) > len(HOUNSFIELD):
            raise ValueError("sent a data summary of no modalities")
        counts = node["hounsfield"]
        if not isinstance(counts, list) or len(counts) not in (0, len(HOUNSFIELD) - 1):
            raise ValueError("sent a data summary of other bins")
        return cls(
            images=_told_count(node["images"], 1),
            axes=_three(_told_count(one) for one in _listed(node["axes"])),
            spacing_mm=_told_lengths(node["spacing_mm"], 1e-6) if known else None,
            in_plane_mm=_told_lengths(node["in_plane_mm"], 1e-6) if known else None,
            unknown=_told_count(node["unknown"]),
            shape=_three(_told_count(one, 1) for one in _listed(node["shape"])),
            reach_mm=_told_lengths(node["reach_mm"]),
            reach_px=_told_lengths(node["reach_px"]),
            reach_own=_told_lengths(node["reach_own"]),
            modalities={str(name): _told_count(count) for name, count in modalities.items()},
            hounsfield=tuple(_told_count(count) for count in counts),
        )


_MOST_TOLD = 10**9
"""What a site may say it has of anything, and how far that may reach."""


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("sent a data summary with what are no three numbers")
    return value


def _told_count(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MOST_TOLD:
        raise ValueError("sent a data summary with what is no count")
    return value


def _told_lengths(value: Any, least: float = 0.0) -> tuple[float, float, float]:
    numbers = _listed(value)
    if not all(type(one) in (int, float) and least <= one <= _MOST_TOLD for one in numbers):
        raise ValueError("sent a data summary with what is no length")
    return _three(float(one) for one in numbers)


def summarise(surveyed: Sequence[Surveyed], min_count: int) -> Summary | None:
    """Summarise a site's survey; None where it has fewer than ``min_count`` slices to tell of."""
    facts = [one.facts for one in surveyed if one.facts is not None]
    if not facts or sum(one.shape[one.axis] for one in facts) < min_count:
        return None
    known = [one for one in facts if one.spacing_mm is not None]
    unknown = [one for one in facts if one.spacing_mm is None]
    in_plane = _median([[_fine(one, k, np.mean) for k in range(3)] for one in known])
    counts = _without_small(_added([one.hounsfield for one in facts]), min_count)
    return Summary(
        images=len(facts),
        axes=_three(sum(one.clear and one.axis == k for one in facts) for k in range(3)),
        spacing_mm=_median([one.spacing_mm for one in known]),
        in_plane_mm=in_plane,
        unknown=len(unknown),
        shape=_three(np.median([one.shape for one in facts], axis=0).astype(int).tolist()),
        # Rounded up: a maximum is one image's, and need not be told finer than its pixels.
        reach_mm=_furthest(
            [[_reached(one, k) for k in range(3)] for one in known],
            [_parts_of_mm(mm) for mm in in_plane or ()],
        ),
        reach_px=_furthest([[_reached(one, k) for k in range(3)] for one in unknown]),
        reach_own=_furthest(
            [[_reached(one, k) / _fine(one, k, np.min) for k in range(3)] for one in facts]
        ),
        modalities=dict(sorted(Counter(one.modality for one in facts if one.modality).items())),
        hounsfield=tuple(counts.tolist()),
    )


def _cut(one: Facts, axis: int) -> int:
    """The axis that the image's slices run along where the federation's run along ``axis``."""
    return axis if one.oriented else one.axis


def _fine(one: Facts, axis: int, of: Callable[[list[float]], float]) -> float:
    """``of`` the two in-plane spacings, in mm or else pixels."""
    spacing = one.spacing_mm or (1.0, 1.0, 1.0)
    return float(of([spacing[k] for k in range(3) if k != _cut(one, axis)]))


def _reached(one: Facts, axis: int) -> float:
    return one.reach[_cut(one, axis)].furthest if one.reach else 0.0


def _median(rows: Sequence[Sequence[float] | None]) -> tuple[float, float, float] | None:
    return _three(np.median(np.array(rows, float), axis=0).tolist()) if rows else None


def _parts_of_mm(pixel_mm: float) -> int:
    """Into how many parts a mm is cut to tell of what has such pixels: ten, or of finer ones the
    power of ten by which a part is no longer than a pixel."""
    return 10 ** max(1, -math.floor(math.log10(pixel_mm)))


def _furthest(
    rows: Sequence[Sequence[float]], parts: Sequence[int] = ()
) -> tuple[float, float, float]:
    """The largest of each column, rounded up to so many parts of the unit."""
    if not rows:
        return (0.0, 0.0, 0.0)
    cut = np.array(parts or [1])
    return _three((np.ceil(np.max(rows, axis=0) * cut - 1e-6) / cut).tolist())


def _three(values: Iterable[T]) -> tuple[T, T, T]:
    x, y, z = values
    return x, y, z


def _without_small(counts: np.ndarray, least: int) -> np.ndarray:
    """``counts`` without bins of fewer than ``least``: these join their neighbour towards the
    median, because bins that were left out would move the percentiles by their sum."""
    middle = int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))
    kept = np.zeros_like(counts)
    over = 0
    for inwards in (range(middle), range(len(counts) - 1, middle - 1, -1)):
        waiting = 0
        for k in inwards:
            waiting += counts[k]
            if waiting >= least:
                kept[k], waiting = waiting, 0
        over += waiting
    if kept.any():
        kept[np.argmax(kept)] += over
    return kept


def _added(histograms: Iterable[Sequence[int]]) -> np.ndarray:
    """The sum of those that are not empty; zeros where all are."""
    total = np.zeros(len(HOUNSFIELD) - 1, int)
    for histogram in histograms:
        if histogram:
            total += histogram
    return total


@dataclass(frozen=True)
class Decision:
    """A setting that was left open: its key, what it is set to, and why."""

    key: str
    value: Any
    why: str

    def told(self) -> str:
        """``data.size=64: why``."""
        return f"data.{self.key}={written(self.value)}: {self.why}"


def written(value: Any) -> str:
    """A setting as it stands on the command line."""
    if isinstance(value, tuple):
        return f"[{','.join(f'{number:g}' for number in value)}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def plan(
    summaries: Mapping[str, Summary | None], data: DataSettings
) -> tuple[DataSettings, tuple[Decision, ...]]:
    """Settle what ``data`` leaves open; numbers given by hand stay. ``summaries`` are by site, None
    where a site told nothing.

    Raises:
        UserError: a site withholds what a setting is to be chosen from, or sites disagree.
    """
    if not data.auto:
        return data, ()
    silent = [site for site, summary in summaries.items() if summary is None]
    told = {site: summary for site, summary in summaries.items() if summary is not None}
    if silent:
        keys = sorted(data.auto)
        by_hand = " ".join(f"data.{key}={written(_BY_HAND[key])}" for key in keys)
        raise UserError(
            f"nothing is known of the images of {listed(silent)} (the policy withholds the "
            "summary, there are fewer slices than policy.min_count, or none that can be read), so "
            f"{', '.join(keys)} cannot be chosen; set them by hand, such as {by_hand}."
        )
    decisions = []
    settled = data
    for key in ("slice_axis", "normalise", "window", "spacing_mm", "size"):
        if key in data.auto:
            decision = _RULES[key](told, settled)
            decisions.append(decision)
            settled = replace(settled, **{key: decision.value})
            if key == "normalise" and decision.value == "ct" and data.window is None:
                settled = replace(settled, auto=settled.auto | {"window"})
                data = settled
    why = {decision.key: decision.why for decision in decisions}
    return replace(settled, auto=frozenset(), planned={**data.planned, **why}), tuple(decisions)


def _slice_axis(told: Mapping[str, Summary], data: DataSettings) -> Decision:
    choice = {
        site: int(np.argmax(summary.axes)) for site, summary in told.items() if any(summary.axes)
    }
    of_axis = {axis: [site for site in choice if choice[site] == axis] for axis in range(3)}
    chosen = [axis for axis in range(3) if of_axis[axis]]
    if len(chosen) > 1:
        sides = "; ".join(f"{PLANES[axis]} ({axis}) at {listed(of_axis[axis])}" for axis in chosen)
        raise UserError(
            f"the sites' thick slices lie in different planes of the body: {sides}; a network "
            f"would see other planes at other sites, so set data.slice_axis={chosen[-1]} for all."
        )
    if not chosen:
        if all(min(summary.shape) == 1 for summary in told.values()):
            return Decision("slice_axis", 2, "the images are single slices")
        return Decision(
            "slice_axis", 2, "no site says that its slices run along another axis: axial ones"
        )
    followers = [site for site in told if site not in choice]
    more = f"; none are thick at {listed(followers)}, cut alike" if followers else ""
    return Decision(
        "slice_axis",
        chosen[0],
        f"thick slices are {PLANES[chosen[0]]} at {listed(of_axis[chosen[0]])}{more}",
    )


def _normalise(told: Mapping[str, Summary], data: DataSettings) -> Decision:
    if all(summary.modalities == {"CT": summary.images} for summary in told.values()):
        return Decision("normalise", "ct", "every image is CT, whose values mean the same anywhere")
    ct = [site for site, summary in told.items() if "CT" in summary.modalities]
    if ct:
        others = [s for s, summary in told.items() if summary.modalities != {"CT": summary.images}]
        why = (
            f"there is CT at {listed(ct)}, and at {listed(others)} images that are not known to be "
            "CT: each image by itself"
        )
    else:
        why = "no image is known to be CT: each image by itself"
    return Decision("normalise", "percentile", why)


def _window(told: Mapping[str, Summary], data: DataSettings) -> Decision:
    counts = _added([summary.hounsfield for summary in told.values()])
    if not counts.sum():
        raise UserError(
            "data.normalise=ct clips to the values under the labels, and no site tells of any; set "
            "data.window=[LOW, HIGH] in Hounsfield units."
        )
    reached = np.cumsum(counts) / counts.sum() * 100
    low, high = FOREGROUND
    window = (
        float(HOUNSFIELD[int(np.searchsorted(reached, low, side="right"))]),
        float(HOUNSFIELD[int(np.searchsorted(reached, high)) + 1]),
    )
    return Decision(
        "window",
        window,
        f"{low:g} % of the values under labels lie below, {100 - high:g} % above",
    )


def _in_plane(summary: Summary, data: DataSettings) -> float | None:
    """The site's median in-plane spacing in mm; None where it knows none."""
    if summary.in_plane_mm is None:
        return data.default_spacing_mm
    return summary.in_plane_mm[_axis(data)]


def _spacing_mm(told: Mapping[str, Summary], data: DataSettings) -> Decision:
    found = {site: _in_plane(summary, data) for site, summary in told.items()}
    known = sorted(mm for mm in found.values() if mm is not None)
    if len(known) < len(found):
        some = [site for site, mm in found.items() if mm is None]
        return Decision(
            "spacing_mm", None, f"the pixels' size is unknown at {listed(some)}: not resampled"
        )
    median = _rounded(float(np.median(known)))
    largest = MOST if "size" in data.auto else data.size
    needed = 2 * _half(told, replace(data, spacing_mm=median))
    if needed / median <= largest:
        span = " to ".join(dict.fromkeys(f"{mm:.3g}" for mm in (known[0], known[-1]))) + " mm"
        return Decision("spacing_mm", median, f"the median of the sites' pixels, {span}")
    coarse = _rounded(needed / largest, up=True)
    return Decision(
        "spacing_mm",
        coarse,
        f"the sites' pixels measure {median:g} mm, of which the {needed:.3g} mm to be seen would "
        f"need {math.ceil(needed / median)}; the grid has at most {largest}",
    )


def _rounded(value: float, *, up: bool = False) -> float:
    digits = SIGNIFICANT - 1 - math.floor(math.log10(value))
    if up:
        return round(math.ceil(value * 10**digits - 1e-9) / 10**digits, digits)
    return round(value, digits)


def _half(told: Mapping[str, Summary], data: DataSettings) -> float:
    """How far from the centre the grid is to reach: over the labels with some to spare, but not
    past the images, or else over the whole image; mm where images are resampled, else own pixels.
    """
    reach, edge = _reach(told, data), _edge(told, data)
    return max(reach, min(reach * MARGIN, edge)) if reach else edge


def _reach(told: Mapping[str, Summary], data: DataSettings) -> float:
    """How far from the centre labels reach, in the units of :func:`_half`; 0 without any."""
    axis = _axis(data)
    # What nobody knows the size of is not resampled: a pixel stays one.
    scale = data.default_spacing_mm or data.spacing_mm or 1.0
    if data.spacing_mm is None:
        return max(s.reach_own[axis] for s in told.values())
    return max(max(s.reach_mm[axis], s.reach_px[axis] * scale) for s in told.values())


def _edge(told: Mapping[str, Summary], data: DataSettings) -> float:
    """How far from the centre the sites' median images reach, in the units of :func:`_half`."""
    scale = data.default_spacing_mm or data.spacing_mm or 1.0
    halves = []
    for summary in told.values():
        spacing = (1.0,) * 3 if data.spacing_mm is None else summary.spacing_mm or (scale,) * 3
        halves += [summary.shape[k] * spacing[k] / 2 for k in range(3) if k != _axis(data)]
    return max(halves)


def _axis(data: DataSettings) -> int:
    return 2 if data.slice_axis is None else data.slice_axis


def _size(told: Mapping[str, Summary], data: DataSettings) -> Decision:
    # Without a spacing every image keeps its own pixels.
    reach, half = _reach(told, data), _half(told, data)
    size = max(LEAST, STEP * math.ceil(2 * half / (data.spacing_mm or 1.0) / STEP - 1e-9))
    spare = "with a quarter to spare" if half >= reach * MARGIN else "up to the images' edge"
    what = f"every label {spare}" if reach else "the whole image"
    if size <= MOST:
        return Decision("size", size, f"covers {what}")
    return Decision(
        "size",
        MOST,
        f"the largest; {what} would need {size} pixels: set data.spacing_mm (and the column "
        "spacing_mm or data.default_spacing_mm) to see more",
    )


_RULES = {
    "slice_axis": _slice_axis,
    "normalise": _normalise,
    "window": _window,
    "spacing_mm": _spacing_mm,
    "size": _size,
}
