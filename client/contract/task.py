"""What a federation is asked to learn: one frozen dataclass a kind of task, a module each.

A task says which form of label it needs, what its networks predict and lose, what is measured of
them, and how label and prediction are drawn. Its fields travel as JSON. Nothing else between a site
and the page knows what is being learnt: the measures travel with the method's card.

A task's module imports torch where it is used, not at its head: commands that only look at sites
ask a task for its form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np

from fedshift.protocol.measures import Measure, Row, TaskCard
from fedshift.sites.types import Case, Label

if TYPE_CHECKING:
    import torch

Predict = Callable[[np.ndarray], np.ndarray]
"""Images (S, C, H, W) float32 -> what the model predicts of each slice, (S, ...) float32."""


class Warp(Protocol):
    """How a batch of labels follows a geometric change of its images."""

    def __call__(self, labels: torch.Tensor, theta: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Labels (B, ...) after the images (B, C, H, W) of ``size`` were sampled at the affine maps
        ``theta`` (B, 2, 3), output to input, in coordinates from -1 to 1 (``affine_grid`` without
        aligned corners)."""
        ...


@dataclass(frozen=True)
class Task(ABC):
    """One kind of task. ``parts`` are the names of what is to be learnt (structures, landmarks,
    classes), by number from 1; ``in_channels`` are the images', ``size`` is the network grid's rows
    and columns, and ``unlabelled`` are the names of the training sites without labels, sorted.
    """

    parts: tuple[str, ...]
    in_channels: int = 1
    size: tuple[int, int] = (64, 64)
    unlabelled: tuple[str, ...] = ()

    title: ClassVar[str]
    """The task in a sentence."""
    form: ClassVar[str]
    """The form of label it needs (:mod:`fedshift.sites.labels`)."""
    part: ClassVar[str] = ""
    """What a part is called, a column of the tables; empty where a case has one row."""
    failure: ClassVar[str]
    """When a case counts as failed: a fragment of a sentence."""
    offers: ClassVar[frozenset[str]] = frozenset()
    """What its labels and predictions offer a strategy that asks for it, such as
    ``pixel classes``."""

    def card(self, name: str) -> TaskCard:
        """What the coordinator knows of the task, which is registered as ``name``."""
        return TaskCard(name, self.title, self.part, self.parts, self.measures, self.failure)

    @property
    @abstractmethod
    def measures(self) -> tuple[Measure, ...]:
        """What is measured; the first is the headline, the second is shown beside it."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Channels that a network predicts for each pixel (or, without pixels, in all)."""

    @abstractmethod
    def loss(
        self, raw: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The supervised loss, a scalar, of a network's ``raw`` output (B, outputs, ...) for
        ``labels`` (B, ...) on the grid. ``told`` (B, 1 + parts) bool says of which parts each label
        tells (its first column, what is no part, is true); None: of all and of every pixel."""

    @abstractmethod
    def risk(
        self, predicted: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        """:meth:`loss`, or a constant more, of finished :meth:`predictions`."""

    @abstractmethod
    def predictions(self, raw: torch.Tensor) -> torch.Tensor:
        """The predictions that ``raw`` outputs (B, outputs, ...) stand for, such as class
        probabilities; float32."""

    @abstractmethod
    def warp(self, labels: torch.Tensor, theta: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """See :class:`Warp`."""

    def unmirrored(self) -> str:
        """Why nothing says what a label is in a mirrored image, and what to do; empty where it is
        known."""
        return ""

    @abstractmethod
    def validate(self, case: Case, predict: Predict) -> float:
        """The headline of a labelled ``case``, quick and on the network's grid: for curves."""

    @abstractmethod
    def score(self, cases: Sequence[Case], predict: Predict, parts: Sequence[str]) -> Iterator[Row]:
        """Every measure of the labelled ``cases`` of one split of a site whose labels call their
        parts ``parts``: a row a case and part that both know, then those of the whole split.

        Raises :class:`fedshift.UserError` when site and model have no part in common."""

    def remarks(self, cases: Sequence[Case]) -> list[str]:
        """Sentences for the card of a site: what a reader must know of what the settings mean for
        its labelled ``cases``.

        Raises :class:`fedshift.UserError` where they can mean nothing."""
        return []

    @abstractmethod
    def shown(self, case: Case) -> set[int]:
        """The parts, by number, that the label of a labelled ``case`` holds."""

    def described(self, cases: Sequence[Case], min_count: int) -> np.ndarray | None:
        """:meth:`distribution`, which may leave the site; None below ``min_count`` labelled slices,
        and where there is none."""
        if sum(int(case.labelled.sum()) for case in cases) < max(min_count, 1):
            return None
        return self.distribution(cases, min_count)

    @abstractmethod
    def distribution(self, cases: Sequence[Case], min_count: int) -> np.ndarray:
        """How the labels of labelled ``cases`` are distributed, (K,) and never negative: label
        shift is measured in it. The first number is of what belongs to no part, such as the
        background, nan in a task without; the others are nan where fewer than ``min_count`` slices
        tell."""

    @abstractmethod
    def draw(
        self, case: Case, predictions: Mapping[str, np.ndarray], path: Path, *, site: str
    ) -> Path:
        """Draw a labelled ``case`` of ``site`` with what each model (by name) predicts of its
        slices to ``path``, a PNG."""

    @abstractmethod
    def noise(self, slices: int, rng: np.random.Generator) -> Mapping[str, Label]:
        """A label of ``slices`` random slices on the task's grid: training is measured on it."""


@dataclass(frozen=True)
class DenseTask(Task):
    """A task of dense prediction: its networks predict ``outputs`` numbers for each pixel, (B,
    outputs, H, W), so that a method with a network from image to image serves any of this kind."""

    title: ClassVar[str] = "dense prediction"


def common_parts(known: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The names that a model (``known``) and a site's labels (``parts``) share, in this order.

    Raises :class:`fedshift.UserError` when there is none."""
    from fedshift import Tellable

    shared = [name for name in parts if name in known]
    if parts and known and not shared:
        raise Tellable(
            f"the labels name {', '.join(parts)} and the model {', '.join(known)}: none in common; "
            "name them alike with data.labels"
        )
    return shared


def told_parts(
    case: Case, known: Sequence[str], parts: Sequence[str]
) -> Iterator[tuple[str, int, int]]:
    """The parts that the label of ``case`` tells of and a model knows: the name, its number in the
    site's labels, whose parts are ``parts``, and that in the model's ``known``.

    Raises :class:`fedshift.UserError` when site and model have no part in common."""
    shared = common_parts(known, parts)
    for number in case.annotates or range(1, len(parts) + 1):
        name = parts[number - 1]
        if name in shared:
            yield name, number, known.index(name) + 1
