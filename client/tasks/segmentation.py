"""Segmentation: every pixel belongs to the background or to one structure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshift.client.contract.task import DenseTask, Predict, common_parts, told_parts
from fedshift.protocol.measures import Measure, Row
from fedshift.protocol.settings import setting
from fedshift.sites.types import IGNORED, Case, Label

if TYPE_CHECKING:
    import torch


MEASURES = (
    Measure("dice", "Dice", "higher", low=0, high=1),
    Measure(
        "hd95_mm",
        "HD95",
        "lower",
        "mm",
        low=0,
        note="the 95th percentile of the distances between the two surfaces, both ways",
    ),
    Measure(
        "assd_mm",
        "ASSD",
        "lower",
        "mm",
        low=0,
        note="the mean distance between the two surfaces, both ways",
    ),
    Measure(
        "nsd",
        "NSD",
        "higher",
        low=0,
        high=1,
        note="the part of the two surfaces that lies within a tolerance of the other",
    ),
    Measure("volume_ml", "predicted volume", unit="mL", low=0),
    Measure("reference_volume_ml", "volume", unit="mL", low=0, summarised=False),
    Measure("false_positive_ml", "false-positive volume", "lower", "mL", low=0),
    Measure("false_positive_components", "false-positive components", "lower", low=0),
    Measure("jaccard", "Jaccard index", "higher", low=0, high=1, listed=False),
    Measure("precision", "precision", "higher", low=0, high=1, listed=False),
    Measure("recall", "recall", "higher", low=0, high=1, listed=False),
    Measure("volume_error_ml", "volume error", unit="mL", listed=False),
    Measure(
        "specificity",
        "specificity",
        "higher",
        low=0,
        high=1,
        listed=False,
        sparse=True,
        note="of the cases whose reference has none of a structure, the share in which the model "
        "finds none either.",
    ),
    Measure(
        "dice_positives",
        "Dice of positive cases",
        "higher",
        low=0,
        high=1,
        listed=False,
        sparse=True,
        note="where a site has cases without a structure, the mean over the others. The Dice above "
        "counts a case without as 1, or as 0 where the model finds something.",
    ),
)


@dataclass(frozen=True)
class Segmentation(DenseTask):
    """The task of labelling each pixel with one of the structures ``parts`` or the background.

    Labels are (S, H, W) uint8 class indices, 0 for the background and ``k + 1`` for ``parts[k]``; a
    prediction is class probabilities (S, 1 + parts, H, W). ``tolerance_mm`` is the tolerance of the
    normalised surface Dice.
    """

    title = "segmentation"
    form = "mask"
    part = "structure"
    failure = "exactly one of the two masks is empty"
    offers = frozenset({"pixel classes"})

    tolerance_mm: float = setting(2.0, at_least=0)

    @property
    def measures(self) -> tuple[Measure, ...]:
        return MEASURES

    @property
    def outputs(self) -> int:
        """The number of classes, background included."""
        return len(self.parts) + 1

    def loss(
        self, raw: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        from fedshift.client.losses import dice_ce

        return dice_ce(raw, labels, told)

    def risk(
        self, predicted: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        import torch

        # Logits up to a constant; a probability may have come out as 0.
        tiny = torch.finfo(predicted.dtype).tiny
        return self.loss(predicted.clamp(min=tiny).log(), labels, told)

    def predictions(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.float().softmax(dim=1)

    def warp(self, labels: torch.Tensor, theta: torch.Tensor, size: torch.Size) -> torch.Tensor:
        from fedshift.client.augmentation import warp_mask

        return warp_mask(labels, theta, size)

    def validate(self, case: Case, predict: Predict) -> float:
        """Mean Dice over the structures that ``case`` annotates."""
        from fedshift.client.metrics import dice

        label = case.labels["mask"].grid[case.labelled]
        probabilities = predict(case.image[case.labelled])
        predicted = np.where(label == IGNORED, 0, probabilities.argmax(axis=1))
        classes = case.annotates or range(1, self.outputs)
        return float(np.mean([dice(label == index, predicted == index) for index in classes]))

    def score(self, cases: Sequence[Case], predict: Predict, parts: Sequence[str]) -> Iterator[Row]:
        """On each image's own grid; pixels to be ignored count as background in both masks.

        Where some cases of a structure are negative, their reference being empty, these have a
        ``specificity``, 1 where nothing is found, and the others their Dice once more as
        ``dice_positives``."""
        rows = [row for case in cases for row in self._score_case(case, predict, parts)]
        negative: dict[str, bool] = defaultdict(bool)
        for row in rows:
            negative[row.part] |= row.values["reference_volume_ml"] == 0
        for row in rows:
            empty, values = row.values["reference_volume_ml"] == 0, row.values
            values["specificity"] = 1.0 - row.failed if empty else np.nan
            positive = negative[row.part] and not empty
            values["dice_positives"] = values["dice"] if positive else np.nan
            yield row

    def _score_case(self, case: Case, predict: Predict, parts: Sequence[str]) -> Iterator[Row]:
        from fedshift.client.metrics import score_case

        classes = np.zeros(256, np.uint8)
        for name in common_parts(self.parts, parts):
            classes[parts.index(name) + 1] = self.parts.index(name) + 1
        # Between labelled slices others may lie: they stay, empty, so that distances are right.
        labelled = np.flatnonzero(case.labelled)
        span = slice(labelled[0], labelled[-1] + 1)
        inside = case.labelled[span]
        native = case.labels["mask"].native[span]
        reference = np.where(inside[:, None, None], classes[native], 0)
        predicted = np.zeros_like(reference)
        predicted[inside] = case.grid.to_native(predict(case.image[case.labelled]))
        predicted[native == IGNORED] = 0
        told = {name for name, _, _ in told_parts(case, self.parts, parts)}
        for values in score_case(
            reference, predicted, case.native_spacing_mm, self.parts, self.tolerance_mm
        ):
            part, failed = values.pop("structure"), bool(values.pop("failed"))
            if part in told:
                yield Row(case.id, case.subject, case.domain.vendor, part, values, failed)

    def shown(self, case: Case) -> set[int]:
        counts = np.bincount(case.labels["mask"].grid.ravel())
        return set(np.flatnonzero(counts).tolist()) - {0, IGNORED}

    def distribution(self, cases: Sequence[Case], min_count: int) -> np.ndarray:
        """The volume of each class, background first, in mL."""
        classes = self.outputs
        volumes, told = np.zeros(classes), np.zeros(classes, np.int64)
        seen, complete = np.zeros(classes), True
        for case in cases:
            label = case.labels["mask"].grid[case.labelled]
            pixels = np.bincount(label.ravel(), minlength=classes)[:classes]
            millilitres = pixels * (float(np.prod(case.spacing_mm)) / 1000.0)
            volumes += millilitres
            complete = complete and case.annotates is None
            annotated = [0, *(case.annotates or range(1, classes))]
            seen[annotated] += millilitres.sum()
            told[annotated] += int(case.labelled.sum())
        if complete:
            return volumes
        # Each structure's share of what annotates it, of the volume of all labelled slices.
        whole = volumes.sum()
        known = told >= max(min_count, 1)
        volumes = np.where(known, volumes / np.where(seen > 0, seen, 1.0) * whole, np.nan)
        volumes[0] = max(whole - np.nansum(volumes[1:]), 0.0)
        return volumes

    def draw(
        self, case: Case, predictions: Mapping[str, np.ndarray], path: Path, *, site: str
    ) -> Path:
        from fedshift.client.contours import draw_masks

        native = {name: case.grid.to_native(found) for name, found in predictions.items()}
        return draw_masks(case, native, self.parts, path, site=site, note=dice_words)

    def noise(self, slices: int, rng: np.random.Generator) -> Mapping[str, Label]:
        mask = rng.integers(0, self.outputs, (slices, *self.size), dtype=np.uint8)
        return {"mask": Label(mask, mask)}


def dice_words(truth: np.ndarray, found: np.ndarray, told: Iterable[int]) -> str:
    """``Dice 0.91, 0.80``: that of each structure, by number, of which the label (H, W) tells; one
    that is absent from both scores 1."""
    from fedshift.client.metrics import dice

    values = [dice(truth == number, found == number) for number in told]
    return "Dice " + ", ".join(f"{value:.2f}" for value in values)
