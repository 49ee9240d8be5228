"""What holds for every task: which methods serve it, and images of several channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.cases import mask, mask_case, segmentation
from PIL import Image

from fedshift import UserError
from fedshift.client.contract.method import Budget, Method, Scene
from fedshift.client.contract.task import DenseTask, Task
from fedshift.client.methods import METHODS
from fedshift.client.model import Model
from fedshift.client.slices import LabelledSlices
from fedshift.client.summaries import summarise
from fedshift.client.tasks import TASKS
from fedshift.client.tasks.landmarks import Landmarks
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.protocol import statistics as names
from fedshift.sites.types import Case, SiteData

CPU = torch.device("cpu")
COLOURED = {"name": "segmentation", "parts": ["disc"], "in_channels": 3, "size": [32, 32]}
SUPERVISED = {"name": "supervised", "width": 6, "depth": 3, "batch": 8}


# Which methods serve which tasks


class Anything(Method):
    tasks = frozenset({Task})


class Dense(Method):
    tasks = frozenset({DenseTask})


class Masks(Method):
    tasks = frozenset({Segmentation})


@pytest.mark.parametrize("method", [Anything, Dense, Masks])
def test_a_method_serves_the_tasks_that_it_lists_and_their_kinds(method: type[Method]) -> None:
    method.check_serves(Segmentation)
    assert method.serves(Landmarks) == (method is not Masks)


def test_a_method_for_another_task_is_refused_in_one_sentence() -> None:
    marks = {"name": "landmarks", "parts": ["left", "right"]}
    with pytest.raises(UserError) as told:
        Model({"name": "unet_gan"}, marks, CPU, seed=0)
    said = str(told.value)
    assert "UnetGAN is for segmentation, and the task is landmark" in said
    assert "choose a method that serves it" in said and "\n" not in said


def test_a_method_for_no_task_is_refused_in_one_sentence() -> None:
    nothing = type("Nothing", (Method,), {"tasks": frozenset()})
    assert not nothing.serves(Segmentation)
    with pytest.raises(
        UserError, match=r"^the method Nothing serves no task; name one in its tasks"
    ):
        nothing.check_serves(Segmentation)


@pytest.mark.parametrize("name", TASKS.names())
def test_a_task_says_what_it_measures_by_names_that_differ(name: str) -> None:
    kind = TASKS.named(name)
    task = kind(parts=("one", "two"))
    card = task.card(name)
    assert card.name == name and card.title and card.failure
    assert len({measure.name for measure in card.measures}) == len(card.measures)
    assert card.headline.better and not card.headline.whole
    assert type(card).from_json(card.to_json()) == card
    noise = task.noise(3, np.random.default_rng(0))
    assert noise[kind.form].grid.shape[0] == noise[kind.form].native.shape[0] == 3


# Channels


def coloured_case(index: int) -> Case:
    """Discs that have the ground's brightness and another hue: a channel alone tells them, the
    mean of the three does not."""
    rng = np.random.default_rng(index)
    rows, columns = np.mgrid[:32, :32]
    label = np.empty((4, 32, 32), np.uint8)
    for plane in label:
        row, column = rng.uniform(10, 22, 2)
        plane[:] = np.hypot(rows - row, columns - column) < rng.uniform(4, 8)
    hue = np.array([0.2, -0.1, -0.1], np.float32)[:, None, None]
    image = 0.5 + hue * label[:, None] + rng.normal(0, 0.02, (4, 3, 32, 32))
    return mask_case(image, label, id=f"case{index}", subject=f"subject{index}")


@pytest.fixture(scope="module")
def coloured() -> SiteData:
    train = tuple(coloured_case(index) for index in range(6))
    test = tuple(coloured_case(100 + index) for index in range(2))
    return SiteData("hues", "train", ("disc",), {"train": train, "val": (), "test": test})


def test_batches_have_the_channels_of_the_images(coloured: SiteData) -> None:
    slices = LabelledSlices(coloured.splits["train"], segmentation("disc", in_channels=3))
    (batch,) = slices.batches(5, 1, 0, CPU)
    assert batch.images.shape == (5, 3, 32, 32) and batch.labels.shape == (5, 32, 32)


def test_discs_of_another_hue_are_found_and_drawn(coloured: SiteData, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = Model(SUPERVISED, COLOURED, CPU, seed=0)
    scene = Scene(model.task, "hues", CPU)

    def predict(images: np.ndarray) -> np.ndarray:
        return model.method.predict(model.nets, images, scene)

    cases = coloured.splits["test"]
    before = [model.task.validate(case, predict) for case in cases]
    model.method.fit(coloured, model.nets, {}, Budget(model.task, 60, 0, CPU))
    after = [model.task.validate(case, predict) for case in cases]
    assert max(before) < 0.5 and min(after) > 0.8
    scored = [row.values["dice"] for row in model.task.score(cases, predict, ("disc",))]
    # Here the network's grid is the image's own, and Dice is of the whole case.
    assert scored == pytest.approx(after, abs=1e-6)
    found = {"federated": predict(cases[0].image)}
    path = model.task.draw(cases[0], found, tmp_path / "case.png", site="hues")
    picture = np.asarray(Image.open(path).convert("L"))
    assert picture.std() > 10


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_predicts_images_of_several_channels(name: str, coloured: SiteData) -> None:
    model = Model({"name": name}, {**COLOURED, "unlabelled": ["far"]}, CPU, seed=0)
    images = coloured.splits["test"][0].image[:2]
    for stage in model.method.stages or ("",):
        scene = Scene(model.task, "hues", CPU, stage=stage)
        found = model.method.predict(model.nets, images, scene)
        assert found.shape == (2, 2, 32, 32)
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_every_channel_counts_in_what_a_site_tells_of_its_images(coloured: SiteData) -> None:
    model = Model(SUPERVISED, COLOURED, CPU, seed=0)

    def told(site: SiteData) -> dict[str, np.ndarray]:
        def features(images: torch.Tensor) -> torch.Tensor:
            return model.method.features(model.nets, images)

        common: dict[str, Any] = {"seed": 0, "device": CPU, "min_count": 1}
        return summarise(site, features, model.nets, model.task, **common)

    def changed(change: Callable[[np.ndarray], np.ndarray]) -> SiteData:
        cases = tuple(
            mask_case(change(case.image), mask(case), id=case.id, subject=case.subject)
            for case in coloured.splits["train"]
        )
        return SiteData("hues", "train", ("disc",), {**coloured.splits, "train": cases})

    whole, turned = told(coloured), told(changed(lambda image: image[:, ::-1].copy()))
    pixels = sum(case.image.size for case in coloured.splits["train"])
    assert whole[names.INTENSITY_HISTOGRAM].sum() == pixels
    # The order of the channels is the network's affair alone.
    np.testing.assert_array_equal(
        whole[names.INTENSITY_HISTOGRAM], turned[names.INTENSITY_HISTOGRAM]
    )
    np.testing.assert_allclose(whole[names.LOG_SPECTRUM], turned[names.LOG_SPECTRUM])
    assert np.abs(whole[names.FEATURE_MEAN] - turned[names.FEATURE_MEAN]).max() > 1e-3
    # Three equal channels have the spectrum and the histogram (times three) of one.
    grey = told(changed(lambda image: image[:, :1].repeat(3, axis=1)))
    one = Model(SUPERVISED, {**COLOURED, "in_channels": 1}, CPU, seed=0)
    alone = summarise(
        changed(lambda image: image[:, :1]),
        lambda images: one.method.features(one.nets, images),
        one.nets,
        one.task,
        seed=0,
        device=CPU,
        min_count=1,
    )
    np.testing.assert_allclose(grey[names.LOG_SPECTRUM], alone[names.LOG_SPECTRUM])
    np.testing.assert_array_equal(
        grey[names.INTENSITY_HISTOGRAM], 3 * alone[names.INTENSITY_HISTOGRAM]
    )
