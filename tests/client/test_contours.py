"""Pictures of masks and what models find of them, as contours over the image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.cases import mask_case, native_mask, segmentation
from PIL import Image

from fedshift.client import contours
from fedshift.client.contours import draw_masks
from fedshift.client.contract.method import Scene
from fedshift.client.examples import Finished, draw_site
from fedshift.client.model import shared_model
from fedshift.client.panels import native_images
from fedshift.client.tasks.segmentation import dice_words
from fedshift.sites.geometry import Grid
from fedshift.sites.types import Case, Domain, SiteData


@pytest.fixture
def case() -> Case:
    """A disc of 2 around a disc of 1 on a grid of 1.2 mm, seen by a network at 1.5 mm."""
    row, column = np.mgrid[:80, :100]
    radius = np.hypot(row - 40, column - 55)
    reference = np.zeros((7, 80, 100), np.uint8)
    for index, outer in enumerate((8, 12, 20, 18, 14, 16, 10)):
        reference[index][radius < outer] = 2
        reference[index][radius < outer - 5] = 1
    image = np.choose(reference, [0.4, 1.0, 0.1]).astype(np.float32)
    grid = Grid((80, 100), (1.2, 1.2), (1.5, 1.5), 64)
    return mask_case(
        grid.image(image),
        grid.label(reference),
        id="c",
        domain=Domain("V"),
        labelled=np.array([True, True, True, True, True, False, True]),
        spacing_mm=(8.0, 1.5, 1.5),
        reference=reference,
        native_spacing_mm=(8.0, 1.2, 1.2),
        grid=grid,
    )


def test_the_image_comes_back_on_its_own_grid(case: Case) -> None:
    images = native_images(case, [2, 3])

    assert images.shape == (2, 80, 100)
    # Inside each region, away from its border, the grey levels keep their order and place.
    inner = native_images(case, [2])[0]
    core, wall = native_mask(case)[2] == 1, native_mask(case)[2] == 2
    outside = native_mask(case)[2] == 0
    assert np.median(inner[core]) == pytest.approx(1.0, abs=0.02)
    assert np.median(inner[wall]) < 0.2
    assert np.median(inner[outside]) == pytest.approx((0.4 - 0.1) / 0.9, abs=0.03)


def test_the_largest_labelled_slices_without_neighbours_are_drawn(case: Case) -> None:
    # By size: 2, then 3 (a neighbour), 5 (unlabelled), 4, 1 (neighbour), 6, 0.
    assert contours._representative(native_mask(case), case.labelled) == [2, 4, 6]


def test_dice_is_of_the_slice_and_each_structure(case: Case) -> None:
    truth = np.array([[1, 1, 2, 0]])
    found = np.array([[1, 0, 2, 2]])
    assert dice_words(truth, found, range(1, 4)) == "Dice 0.67, 0.67, 1.00"


def test_one_deterministic_picture_is_written(case: Case, tmp_path: Path) -> None:
    predictions = {"local": np.roll(native_mask(case), 3, 2), "federated": native_mask(case)}
    pictures = [
        draw_masks(
            case,
            predictions,
            ["core", "wall"],
            tmp_path / name / "x.png",
            site="$a_b$",
            note=dice_words,
        ).read_bytes()
        for name in ("one", "two")
    ]
    assert pictures[0] == pictures[1]
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["x.png"]


def test_a_panel_says_what_the_task_says_of_its_slice(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    titles: list[str] = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda _, text, **__: titles.append(text))

    def note(truth: np.ndarray, found: np.ndarray, told: Iterable[int]) -> str:
        return f"area {int((found > 0).sum())} of {int((truth > 0).sum())}, of {[*told]}"

    path, mask = tmp_path / "x.png", native_mask(case)
    draw_masks(case, {"local": 0 * mask}, ["core", "wall"], path, site="a", note=note)
    assert f"local\narea 0 of {int((mask[2] > 0).sum())}, of [1, 2]" in titles
    assert not any("Dice" in title for title in titles)


def test_contours_have_a_dark_edge_on_bright_tissue(case: Case, tmp_path: Path) -> None:
    white = dataclasses.replace(case, image=np.ones_like(case.image))
    white.image[..., :8, :8] = 0  # Outside the view, where the percentiles find their black.
    path = draw_masks(white, {}, ["core", "wall"], tmp_path / "x.png", site="a", note=dice_words)
    grey = np.asarray(Image.open(path).convert("L"))
    body = grey[grey.shape[0] // 8 : -grey.shape[0] // 8]  # Between title and legend.
    plain, truth = (half < 100 for half in np.array_split(body, 2, axis=1))
    assert truth.sum() > plain.sum() + 500


def test_the_inner_of_two_structures_is_drawn_last(case: Case) -> None:
    core, wall = native_mask(case)[2] == 1, native_mask(case)[2] == 2
    speck = np.zeros_like(core)
    speck[0, 0] = True
    # The wall's outline holds the core, whatever their numbers; an absent one is not drawn.
    assert contours._outer_first([core, wall]) == [1, 0]
    assert contours._outer_first([wall, core]) == [0, 1]
    assert contours._outer_first([speck, core & ~core, wall]) == [2, 0]


def test_the_global_model_is_called_federated(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "supervised", "width": 2, "depth": 2}
    task = {"name": "segmentation", "parts": ["core", "wall"]}
    weights = shared_model(method, task, torch.device("cpu")).read()
    drawn: list[Any] = []
    monkeypatch.setattr(contours, "draw_masks", lambda *given, **_: drawn.append(given))
    data = SiteData("a", "train", ("core", "wall"), {"train": (), "val": (), "test": (case,)})
    scene = Scene(segmentation("core", "wall"), "a", torch.device("cpu"))
    models = dict.fromkeys(("local", "global"), Finished(weights, scene, {}))

    assert draw_site(data, models, method, task, tmp_path / "x.png")
    assert [list(predictions) for _, predictions, *_ in drawn] == [["local", "federated"]]


def test_a_case_without_labels_is_refused(case: Case, tmp_path: Path) -> None:
    bare = dataclasses.replace(case, labelled=np.zeros(7, bool))
    with pytest.raises(ValueError, match="carries no label"):
        draw_masks(bare, {}, ["core"], tmp_path / "x.png", site="a", note=dice_words)
