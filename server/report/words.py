"""How a report calls models and shift metrics, and prints numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from fedshift.protocol.words import some

Model = tuple[str, str]
"""(``model``, ``trained_on``), as in ``cross_site.csv``."""

EACH_OWN: Model = ("personal", "all")

MODEL_ORDER = ("local", "", "personal", "global", "pooled")
"""The order of rows; a method's own stages stand at the empty name."""

SHIFT_LABELS = {
    "intensity_wasserstein": "intensity, Wasserstein-1",
    "intensity_js": "intensity, Jensen-Shannon",
    "spectrum_distance": "amplitude spectrum (dB)",
    "feature_frechet": "feature Fréchet distance",
    "norm_kl": "normalisation statistics, KL",
    "label_tv": "label shares, total variation",
    "label_shift": "labelled share that differs",
    "mmd": "MMD in features",
    "mmd_p": "MMD, p",
    "proxy_a_distance": "proxy A-distance",
    "proxy_a_null95": "proxy A-distance by chance",
}


def model_key(model: Model) -> tuple[int, str, str]:
    """Sort key: local, a method's own stages by name, personal, global, pooled."""
    name, trained_on = model
    order = MODEL_ORDER.index(name if name in MODEL_ORDER else "")
    return order, name, trained_on


def model_label(model: Model) -> str:
    """A model's name for readers: the global model is the federated one."""
    name, trained_on = model
    if name == "global":
        return "federated"
    if name == "pooled":
        return "pooled (upper bound)"
    if model == EACH_OWN:
        return "personal (each site's own)"
    return name if trained_on == "all" else f"{name}, {trained_on}"


def counting_words(
    found: Mapping[str, tuple[Collection[str], Collection[str]]], order: Sequence[str]
) -> list[str]:
    """Which parts count in the means at each site and which do not, in the ``order`` of the labels:
    a sentence for the sites that are alike. A part may be in both, where it is one with some seeds
    alone."""
    place = {name: number for number, name in enumerate(order)}
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for site, parts in found.items():
        key = tuple(
            tuple(sorted(of, key=lambda name: (place.get(name, math.inf), name))) for of in parts
        )
        alike.setdefault(key, []).append(site)
    said = []
    for (count, left), sites in alike.items():
        if not left:
            continue
        at = f"At {some(sites)}"
        why = f"not every model that is compared there is scored on {some(left)}"
        if set(left) & set(count):
            said.append(f"{at} {some(left)} does not count with every seed: with some, {why}.")
        elif count:
            said.append(f"{at} means are over {some(count)} alone: {why}.")
        else:
            said.append(f"{at} no part counts, and there is no mean: {why}.")
    return said


def shift_label(metric: str) -> str:
    """A shift metric's name for readers."""
    return SHIFT_LABELS.get(metric, metric.replace("_", " "))


def format_number(value: float) -> str:
    """Three decimals, a dash for nan."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def format_bytes(count: float) -> str:
    """Bytes in decimal units: 999 B, 1.2 kB, 34.5 MB."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 999.95:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def format_time(seconds: float) -> str:
    """Simulated time in the unit that fits: 40 s, 12.5 min, 3.2 h."""
    unit, size = time_unit(seconds)
    return f"{seconds / size:.3g} {unit}"


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit in which to read so many seconds, and its length in seconds."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return unit, size
    return "s", 1.0
