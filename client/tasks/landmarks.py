"""Landmarks: points with a name, of which an image holds one each, found by heatmap regression.

Payer et al., "Regressing Heatmaps for Multiple Landmark Localization Using CNNs", MICCAI 2016
(:mod:`fedshift.client.heatmaps`); measures as in :mod:`fedshift.client.metrics.points`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshift import UserError
from fedshift.client.contract.task import Predict, told_parts
from fedshift.client.tasks._heatmaps import HeatmapTask, check_radius, size_mm
from fedshift.protocol.measures import Measure, Row
from fedshift.protocol.settings import setting
from fedshift.sites.types import Case, Label

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Landmarks(HeatmapTask):
    """The task of finding each of the landmarks ``parts``.

    Labels are (S, P, 3) float32: x, y and the landmark's number, on the slice where it lies; x and
    y are nan on others. A prediction is a heatmap for each landmark, (S, P, H, W), whose maximum is
    the landmark's place.

    ``sigma`` is the heatmaps' standard deviation in pixels of the grid. ``radii_mm`` are the radii
    of the success rates. A landmark whose heatmap stays below ``presence`` is not found; at 0 each
    one has a place. ``mirror_pairs`` are the landmarks that change names in a mirrored image,
    ``LEFT:RIGHT`` each; null where nobody has said so.
    """

    title = "landmark localisation"
    form = "landmarks"
    part = "landmark"
    failure = "the landmark is in exactly one of label and prediction"

    sigma: float = setting(4.0, at_least=0.5)
    radii_mm: tuple[float, ...] = (2.0, 4.0, 8.0)
    presence: float = setting(0.0, at_least=0, at_most=1)
    mirror_pairs: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raise :class:`fedshift.UserError` for radii or pairs that mean nothing."""
        if not all(0 < radius < np.inf for radius in self.radii_mm):
            raise UserError(f"task.radii_mm must be positive, not {list(self.radii_mm)}")
        if len({_named(radius) for radius in self.radii_mm}) < len(self.radii_mm):
            raise UserError(
                f"task.radii_mm names a radius twice: {list(self.radii_mm)}; a column's name tells "
                "them by six digits"
            )
        paired: set[str] = set()
        for pair in self.mirror_pairs or ():
            names = pair.split(":")
            if len(names) != 2 or not set(names) <= set(self.parts):
                raise UserError(
                    f"task.mirror_pairs holds {pair!r}; write LEFT:RIGHT, two of the landmarks "
                    f"{', '.join(self.parts)}"
                )
            for name in names:
                if name in paired:
                    raise UserError(
                        f"task.mirror_pairs={list(self.mirror_pairs or ())} names {name!r} twice; "
                        "a landmark changes names with one other, and one that keeps its name is "
                        "in no pair"
                    )
                paired.add(name)

    @property
    def measures(self) -> tuple[Measure, ...]:
        rates = [
            Measure(
                f"success_{_named(radius)}mm".replace(".", "_"),
                f"success rate within {_named(radius)} mm",
                "higher",
                low=0,
                high=1,
            )
            for radius in self.radii_mm
        ]
        return (Measure("radial_error_mm", "radial error", "lower", "mm", low=0), *rates)

    def unmirrored(self) -> str:
        if self.mirror_pairs is not None or len(self.parts) < 2:
            return ""
        return (
            "augmentation mirrors images: say with task.mirror_pairs=[LEFT:RIGHT,...] which "
            "landmarks change names then ([] for none), or set augmentation.flip=false"
        )

    def warp(self, labels: torch.Tensor, theta: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Raises :class:`fedshift.UserError` for a mirrored image where that has several landmarks
        and ``mirror_pairs`` is null."""
        moved = super().warp(labels, theta, size)
        mirrored = theta[:, :, :2].det() < 0
        if not mirrored.any():
            return moved
        if why := self.unmirrored():
            raise UserError(why)
        order = moved.new_tensor(self._mirrored).long()
        renamed = moved[:, order]
        renamed[..., 2] = moved[..., 2]
        return moved.where(~mirrored[:, None, None], renamed)

    @cached_property
    def _mirrored(self) -> list[int]:
        """Of each landmark, which one's place it has in a mirrored image."""
        order = list(range(len(self.parts)))
        for pair in self.mirror_pairs or ():
            left, right = (self.parts.index(name) for name in pair.split(":"))
            order[left], order[right] = right, left
        return order

    def remarks(self, cases: Sequence[Case]) -> list[str]:
        """Radii of more than half the shorter side of an image, which most places would satisfy.

        Raises :class:`fedshift.UserError` for one that any place would."""
        sizes = [size_mm(case) for case in cases]
        for radius in self.radii_mm:
            check_radius("radii_mm", radius, sizes)
        side = min((float(size[1:].min()) for size in sizes), default=np.inf)
        return [
            f"task.radii_mm={radius:g} is more than half the shorter side of an image ({side:.3g} "
            "mm): a guess at its centre would be a success for most places"
            for radius in self.radii_mm
            if radius > side / 2
        ]

    def validate(self, case: Case, predict: Predict) -> float:
        """The mean radial error in mm over the landmarks that ``case`` tells of."""
        heat = predict(case.image[case.labelled])
        places = _Places(case, np.asarray(case.labels[self.form].grid), case.spacing_mm)
        told = case.annotates or range(1, self.outputs + 1)
        return float(np.mean([self._errors(places, k, heat[:, k - 1])[0].mean() for k in told]))

    def score(self, cases: Sequence[Case], predict: Predict, parts: Sequence[str]) -> Iterator[Row]:
        """In the images' own geometry. A landmark in exactly one of label and prediction has the
        diagonal of its image as error, one in neither has none. One that several slices show is
        looked for in each of them, and its error is their mean."""
        for case in cases:
            heat = predict(case.image[case.labelled])
            native = np.asarray(case.labels[self.form].native)
            places = _Places(case, native, case.native_spacing_mm, native=True)
            for name, number, own in told_parts(case, self.parts, parts):
                errors, failed = self._errors(places, number, heat[:, own - 1])
                values = {"radial_error_mm": float(errors.mean())}
                for radius, measure in zip(self.radii_mm, self.measures[1:], strict=True):
                    values[measure.name] = float((errors <= radius).mean())
                yield Row(case.id, case.subject, case.domain.vendor, name, values, failed)

    def _errors(self, places: _Places, number: int, heat: np.ndarray) -> tuple[np.ndarray, bool]:
        """The radial errors (n,) in mm of one landmark whose heatmaps (S, H, W) are those of the
        labelled slices, and whether it is in exactly one of label and prediction."""
        slices = np.flatnonzero(places.case.labelled)
        true: list[np.ndarray | None] = [*_where(places.label, number)] or [None]
        errors, failed = [], False
        for place in true:
            # A volume holds the landmark once, and any of its slices may.
            searched = slices == place[0] if place is not None and len(true) > 1 else slices >= 0
            found = self._found(heat[searched])
            if found is not None:
                found[0] = slices[searched][int(found[0])]
            errors.append(places.error_mm(place, found))
            failed = failed or (place is None) != (found is None)
        return np.array(errors), failed

    def _found(self, heat: np.ndarray) -> np.ndarray | None:
        """Where (slice, x, y) a landmark's heatmaps (S, H, W) put it; None where nowhere."""
        from fedshift.client.heatmaps import highest

        place, height = highest(heat, self.sigma)
        return place if height >= self.presence or self.presence == 0 else None

    def draw(
        self, case: Case, predictions: Mapping[str, np.ndarray], path: Path, *, site: str
    ) -> Path:
        from fedshift.client.markers import draw_points

        several = {
            k: len(_where(np.asarray(case.labels[self.form].grid), k)) > 1
            for k in range(1, self.outputs + 1)
        }
        found = {}
        for name, heat in predictions.items():
            rows = []
            for number, each in several.items():
                stacks = [(s, heat[s : s + 1]) for s in range(len(heat))] if each else [(0, heat)]
                for start, maps in stacks:
                    place = self._found(maps[:, number - 1])
                    if place is not None:
                        rows.append([start + place[0], *place[1:], number])
            found[name] = np.array(rows, float).reshape(-1, 4)
        native = np.asarray(case.labels[self.form].native)
        return draw_points(case, native, found, self.parts, path, site=site, note=self._mean_error)

    def _mean_error(self, true: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> str:
        """The mean distance of the landmarks that a slice has in label and prediction."""
        both = [
            float(np.linalg.norm(a[0] - b[0]))
            for a, b in zip(true, found, strict=True)
            if len(a) and len(b)
        ]
        return self.measures[0].said(float(np.mean(both))) if both else "no common landmark"

    def noise(self, slices: int, rng: np.random.Generator) -> Mapping[str, Label]:
        places = rng.uniform(0, min(self.size), (slices, self.outputs, 2))
        numbers = np.broadcast_to(np.arange(1, self.outputs + 1), places.shape[:2])
        label = np.concatenate([places, numbers[..., None]], axis=-1).astype(np.float32)
        return {self.form: Label(label, label)}


@dataclass(frozen=True)
class _Places:
    """The places (slice, x, y) of a case: its ``label`` (S, N, 3) and ``spacing_mm`` (slice, row,
    column), on the network's grid or in the image's ``native`` geometry."""

    case: Case
    label: np.ndarray
    spacing_mm: Sequence[float]
    native: bool = False

    def error_mm(self, place: np.ndarray | None, found: np.ndarray | None) -> float:
        """How far ``found``, on the network's grid, is from the true ``place``; the diagonal where
        there is only one of them."""
        spacing = np.array(self.spacing_mm)
        if place is None or found is None:
            size = self.case.grid.shape if self.native else self.case.image.shape[2:]
            # A single slice is measured in its plane.
            extent = np.array([len(self.label) if len(self.label) > 1 else 0, *size])
            return 0.0 if place is found else float(np.linalg.norm(extent * spacing))
        at = self.case.grid.points_to_native(found[1:]) if self.native else found[1:]
        return float(np.linalg.norm(([found[0], *at] - place) * spacing[[0, 2, 1]]))


def _named(radius: float) -> str:
    """``radius`` as a column's name may hold it: six digits, without an exponent."""
    return np.format_float_positional(radius, precision=6, fractional=False, trim="-")


def _where(label: np.ndarray, number: int) -> list[np.ndarray]:
    """The places (slice, x, y) that a label (S, N, 3) gives the part of that number."""
    there = (label[..., 2] == number) & np.isfinite(label[..., :2]).all(axis=-1)
    return [np.array([s, *label[s, n, :2]], float) for s, n in zip(*np.nonzero(there), strict=True)]
