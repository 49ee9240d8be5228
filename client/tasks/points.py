"""Points: any number of each class in an image, found by heatmap regression.

The maps are those of :mod:`fedshift.client.heatmaps`, one a class; found points are their local
maxima. They are matched to the true ones within a radius (:mod:`fedshift.client.metrics.points`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedshift import UserError
from fedshift.client.contract.task import Predict, told_parts
from fedshift.client.tasks._heatmaps import HeatmapTask, check_radius, size_mm
from fedshift.protocol.measures import Measure, Row
from fedshift.protocol.settings import setting
from fedshift.sites.types import Case, Label


@dataclass(frozen=True)
class Points(HeatmapTask):
    """The task of finding every point of each of the classes ``parts``.

    Labels are (S, N, 3) float32: x, y and the class's number, rows of nan where a slice has fewer
    points. A prediction is a heatmap for each class, (S, classes, H, W).

    ``sigma`` is the heatmaps' standard deviation in pixels of the grid; a local maximum of at least
    ``threshold`` is a point. ``radius_mm`` is how far a found point may lie from the true one.
    """

    title = "point detection"
    form = "points"
    part = "class"
    failure = "there are points in exactly one of label and prediction"

    threshold: float = setting(0.4, at_least=0.01, at_most=1)
    radius_mm: float = setting(3.0, at_least=0)

    def __post_init__(self) -> None:
        """Raise :class:`fedshift.UserError` for a radius of 0."""
        if not self.radius_mm > 0:
            raise UserError("task.radius_mm must be more than 0: found points are never exact")

    @property
    def measures(self) -> tuple[Measure, ...]:
        within = f"within {self.radius_mm:g} mm"
        return (
            Measure("f1", f"F1 {within}", "higher", low=0, high=1),
            Measure("radial_error_mm", f"radial error {within}", "lower", "mm", 0, sparse=True),
            Measure("precision", f"precision {within}", "higher", low=0, high=1),
            Measure("recall", f"recall {within}", "higher", low=0, high=1),
            Measure("count_error", "found points less true ones"),
            Measure("reference_count", "points", low=0, summarised=False),
        )

    def remarks(self, cases: Sequence[Case]) -> list[str]:
        """A radius of more than half the distance between neighbours, within which a found point
        may lie of two true ones.

        Raises :class:`fedshift.UserError` for one within which any point would match."""
        from fedshift.client.metrics.points import nearest

        check_radius("radius_mm", self.radius_mm, [size_mm(case)[1:] for case in cases])
        between = [
            nearest(_of_class(points, number) * np.array(case.native_spacing_mm[:0:-1]))
            for case in cases
            for points in np.asarray(case.labels[self.form].native)[case.labelled]
            for number in range(1, self.outputs + 1)
        ]
        distances = np.concatenate(between) if between else np.zeros(0)
        if not len(distances) or self.radius_mm <= (median := float(np.median(distances))) / 2:
            return []
        return [
            f"task.radius_mm={self.radius_mm:g} is more than half the median distance between "
            f"neighbouring points ({median:.3g} mm): a found point may count for the neighbour of "
            "the true one, and F1 comes out too high"
        ]

    def validate(self, case: Case, predict: Predict) -> float:
        """The mean F1 over the classes that ``case`` tells of."""
        heat = predict(case.image[case.labelled])
        truth = np.asarray(case.labels[self.form].grid)[case.labelled]
        spacing = np.array(case.spacing_mm[:0:-1])
        scores = [
            self._measured(
                [_of_class(points, k) * spacing for points in truth],
                [self._found(maps, k) * spacing for maps in heat],
            )["f1"]
            for k in case.annotates or range(1, self.outputs + 1)
        ]
        return float(np.mean(scores))

    def score(self, cases: Sequence[Case], predict: Predict, parts: Sequence[str]) -> Iterator[Row]:
        """In the images' own geometry, slice by slice; a case counts the pairs of all its slices
        together. Where there is no point in label and prediction, F1, precision and recall are 1;
        where in exactly one of them, 0."""
        for case in cases:
            heat = predict(case.image[case.labelled])
            truth = np.asarray(case.labels[self.form].native)[case.labelled]
            spacing = np.array(case.native_spacing_mm[:0:-1])
            for name, number, own in told_parts(case, self.parts, parts):
                values = self._measured(
                    [_of_class(points, number) * spacing for points in truth],
                    [case.grid.points_to_native(self._found(maps, own)) * spacing for maps in heat],
                )
                failed = bool(values.pop("failed"))
                yield Row(case.id, case.subject, case.domain.vendor, name, values, failed)

    def _measured(
        self, truth: Sequence[np.ndarray], found: Sequence[np.ndarray]
    ) -> dict[str, float]:
        """The measures of points (N, 2) in mm, slice by slice."""
        from fedshift.client.metrics.points import matched

        pairs = [matched(a, b, self.radius_mm) for a, b in zip(truth, found, strict=True)]
        distances = np.concatenate(pairs) if pairs else np.zeros(0)
        right, true, all_found = len(distances), sum(map(len, truth)), sum(map(len, found))
        alike = float(not true and not all_found)
        return {
            "f1": 2 * right / (true + all_found) if true + all_found else 1.0,
            "radial_error_mm": float(distances.mean()) if right else np.nan,
            "precision": right / all_found if all_found else alike,
            "recall": right / true if true else alike,
            "count_error": float(all_found - true),
            "reference_count": float(true),
            "failed": float((true == 0) != (all_found == 0)),
        }

    def _found(self, maps: np.ndarray, number: int) -> np.ndarray:
        """The points (n, 2), x and y, of a class in the heatmaps (classes, H, W) of a slice."""
        from fedshift.client.heatmaps import peaks

        return peaks(maps[number - 1], self.sigma, self.threshold)

    def draw(
        self, case: Case, predictions: Mapping[str, np.ndarray], path: Path, *, site: str
    ) -> Path:
        from fedshift.client.markers import draw_points

        found = {}
        for name, heat in predictions.items():
            rows = [
                [index, x, y, k]
                for index, maps in enumerate(heat)
                for k in range(1, self.outputs + 1)
                for x, y in self._found(maps, k)
            ]
            found[name] = np.array(rows, float).reshape(-1, 4)
        native = np.asarray(case.labels[self.form].native)
        return draw_points(case, native, found, self.parts, path, site=site, note=self._f1)

    def _f1(self, true: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> str:
        """The F1 of each class in a slice."""
        scores = [self._measured([a], [b])["f1"] for a, b in zip(true, found, strict=True)]
        return "F1 " + ", ".join(f"{score:.2f}" for score in scores)

    def noise(self, slices: int, rng: np.random.Generator) -> Mapping[str, Label]:
        places = rng.uniform(0, min(self.size), (slices, 4, 2))
        numbers = rng.integers(1, self.outputs + 1, (slices, 4, 1))
        label = np.concatenate([places, numbers], axis=-1).astype(np.float32)
        return {self.form: Label(label, label)}


def _of_class(points: np.ndarray, number: int) -> np.ndarray:
    """The points (n, 2) of one class in a slice's label (N, 3)."""
    return points[(points[:, 2] == number) & np.isfinite(points).all(axis=1), :2]
