"""Categories of images, one number a slice, from the manifest to the page; and pictures that cannot
be drawn."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.points import Tables
from PIL import Image
from torch import nn
from torch.nn import functional as F

import fedshift
from fedshift.client.contract.method import (
    AVERAGED,
    Budget,
    FitReport,
    Method,
    Networks,
    Scene,
    Sharing,
    StatisticsBank,
)
from fedshift.client.contract.task import Predict, Task
from fedshift.client.panels import draw_panels
from fedshift.client.slices import LabelledSlices
from fedshift.protocol.measures import Measure, Row
from fedshift.runs import plugins
from fedshift.sites.types import Case, Label, SiteData

Command = Callable[..., Any]


@dataclass(frozen=True)
class Sorting(Task):
    """Which category is an image of? Labels are (S,) uint8, from 1; a prediction is the categories'
    probabilities, (S, parts)."""

    title = "image classification"
    form = "category"
    failure = "the category is wrong"

    undrawable: bool = False

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure("brier", "Brier score", "lower", low=0, high=2),
            Measure("accuracy", "accuracy", "higher", low=0, high=1),
        )

    @property
    def outputs(self) -> int:
        return len(self.parts)

    def loss(
        self, raw: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        return F.cross_entropy(raw, labels.long() - 1)

    def risk(
        self, predicted: torch.Tensor, labels: torch.Tensor, told: torch.Tensor | None = None
    ) -> torch.Tensor:
        return F.nll_loss(predicted.log(), labels.long() - 1)

    def predictions(self, raw: torch.Tensor) -> torch.Tensor:
        return raw.float().softmax(dim=1)

    def warp(self, labels: torch.Tensor, theta: torch.Tensor, size: torch.Size) -> torch.Tensor:
        return labels

    def validate(self, case: Case, predict: Predict) -> float:
        return self._measured(case, predict)["brier"]

    def score(self, cases: Sequence[Case], predict: Predict, parts: Sequence[str]) -> Iterator[Row]:
        for case in cases:
            values = self._measured(case, predict)
            failed = values["accuracy"] < 1
            yield Row(case.id, case.subject, case.domain.vendor, "", values, failed)

    def _measured(self, case: Case, predict: Predict) -> dict[str, float]:
        found = predict(case.image[case.labelled])
        true = np.eye(self.outputs)[case.labels["category"].grid[case.labelled] - 1]
        right = found.argmax(axis=1) == true.argmax(axis=1)
        brier = ((found - true) ** 2).sum(axis=1).mean()
        return {"brier": float(brier), "accuracy": float(right.mean())}

    def shown(self, case: Case) -> set[int]:
        return set(case.labels["category"].grid[case.labelled].tolist())

    def distribution(self, cases: Sequence[Case], min_count: int) -> np.ndarray:
        every = np.concatenate([case.labels["category"].grid[case.labelled] for case in cases])
        counts = np.bincount(every, minlength=self.outputs + 1)[1:].astype(float)
        return np.array([np.nan, *counts])  # every image is of some category

    def draw(
        self, case: Case, predictions: Mapping[str, np.ndarray], path: Path, *, site: str
    ) -> Path:
        if self.undrawable:
            raise ZeroDivisionError("no pencil")
        names = {name: self.parts[int(found[0].argmax())] for name, found in predictions.items()}
        panels = [lambda _, __, said=f"{name}: {of}": said for name, of in names.items()]
        view = (slice(0, case.grid.shape[0]), slice(0, case.grid.shape[1]))
        return draw_panels(case, [0], view, panels, (), path, site=site)

    def noise(self, slices: int, rng: np.random.Generator) -> Mapping[str, Label]:
        label = rng.integers(1, self.outputs + 1, slices, dtype=np.uint8)
        return {"category": Label(label, label)}


@dataclass(frozen=True)
class Pooling(Method):
    """A linear classifier of an image's mean over 4 x 4 cells."""

    tasks = frozenset({Sorting})

    lr: float = 0.5

    def networks(self, task: Task) -> Networks:
        cells = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten())
        linear = nn.Linear(16 * task.in_channels, task.outputs)
        return {"classifier": nn.Sequential(cells, linear)}

    def sharing(self, task: Task) -> dict[str, Sharing]:
        return {"classifier": AVERAGED}

    def fit(
        self, site: SiteData, nets: Networks, bank: StatisticsBank, budget: Budget
    ) -> FitReport:
        slices = LabelledSlices(site.splits["train"], budget.task)
        optimiser = torch.optim.SGD(nets["classifier"].parameters(), self.lr)
        for batch in slices.batches(4, budget.steps, budget.seed, budget.device):
            assert batch.labels.shape == batch.images.shape[:1]
            loss = budget.task.loss(nets["classifier"](batch.images), batch.labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return FitReport({"classifier": len(slices)}, {"loss": float(loss.detach())})

    def predict(
        self, nets: Networks, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
    ) -> np.ndarray:
        with torch.inference_mode():
            raw = nets["classifier"](torch.from_numpy(np.array(images)))
            found: np.ndarray = scene.task.predictions(raw).numpy()
        return found

    def features(self, nets: Networks, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = nets["classifier"][0](images)  # type: ignore[index]
        return found


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    fedshift.register(Sorting)
    fedshift.register(Pooling)
    yield
    for kind in plugins.KINDS.values():
        kind.registered.clear()


@pytest.fixture
def overrides(tmp_path: Path) -> list[str]:
    """Two sites of ten images each: brighter on the left or on the right."""
    tables = Tables(tmp_path)
    rng = np.random.default_rng(0)
    for site in "AB":
        for k in range(10):
            plane = rng.normal(80, 10, (32, 32))
            side = k % 2
            plane[:, 16 * side : 16 * side + 16] += 80
            name = f"{site}{k}.png"
            Image.fromarray(plane.clip(0, 255).astype(np.uint8)).save(tmp_path / name)
            tables.row(name, site=site, category=("left", "right")[side], spacing_mm="0.5x0.5")
    tables.settings("none")  # which writes the manifest
    return [
        "federation=manifest",
        "task=sorting",
        "method=pooling",
        f"data.manifest={tmp_path / 'M.tsv'}",
        "data.size=32",
        "data.spacing_mm=null",
        "rounds=2",
        "local_steps=20",
        "engine.devices=cpu",
        "engine.workers=1",
        f"out={tmp_path / 'run'}",
    ]


def test_images_are_sorted_by_category(
    overrides: list[str], command: Command, tmp_path: Path
) -> None:
    told = command("simulate", *overrides)
    assert told.code == 0, told.err
    run = tmp_path / "run"
    with (run / "cases.csv").open(newline="") as file:
        cases = list(csv.DictReader(file))
    tests = [row for row in cases if row["split"] == "test"]
    assert {row["site"] for row in tests} == {"A", "B"} and "category" not in tests[0]
    assert {row["model"] for row in tests} == {"local", "global", "pooled"}
    assert all(float(row["accuracy"]) == 1 and float(row["brier"]) < 0.3 for row in tests)
    with (run / "cross_site.csv").open(newline="") as file:
        matrix = {(row["model"], row["trained_on"], row["site"]) for row in csv.DictReader(file)}
    assert {("local", "A", "B"), ("global", "all", "A"), ("pooled", "all", "B")} <= matrix
    page = (run / "report.html").read_text()
    assert "Brier score" in page and "could not be drawn" not in page.lower()
    assert (run / "figures" / "examples_A.png").is_file()


def test_a_picture_that_cannot_be_drawn_is_a_note(
    overrides: list[str], command: Command, tmp_path: Path
) -> None:
    told = command("simulate", *overrides, "task.undrawable=true", "baselines=[]")
    assert told.code == 0, told.err
    said = "examples at A: ZeroDivisionError: no pencil"
    assert f"not drawn: {said}" in told.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert said in page and "Brier score" in page
    again = command("simulate", *overrides, "task.undrawable=true", "baselines=[]", "resume=true")
    assert again.code == 0 and f"not drawn: {said}" in again.out
