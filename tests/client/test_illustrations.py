"""Drawing what a method shows of its work, and its way into a run's folder and page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from fedshift import derive_seed
from fedshift.client import illustrations
from fedshift.client.contract.illustrations import Curves, ImageGrid, Scatter
from fedshift.client.illustrations import draw
from fedshift.client.methods.supervised import Supervised


def grid(images: list[list[np.ndarray | None]], signed: set[int] | None = None) -> ImageGrid:
    return ImageGrid(
        name="pairs",
        title="Pairs",
        caption="Of the test.",
        images=images,
        columns=[f"column {index}" for index in range(len(images[0]))],
        rows=[f"row {index}" for index in range(len(images))],
        signed=frozenset(signed or set()),
    )


def pixels(illustration: Any, folder: Path) -> np.ndarray:
    """(H, W, 3) uint8 of the picture."""
    path = folder / "picture.png"
    draw(illustration, path)
    return np.asarray(Image.open(path).convert("RGB"))


def centres(picture: np.ndarray, rows: int, columns: int, panel: int = 256) -> np.ndarray:
    """The colours in the middle of each panel, (rows, columns, 3): panels are ``panel`` pixels wide
    with a gap of 8, and the first row's left edge is where black or colour fills a whole column."""
    filled = (picture < 250).any(axis=2)
    top = int(np.flatnonzero(filled.sum(axis=1) > panel // 2)[0])
    left = int(np.flatnonzero(filled.sum(axis=0) > panel // 2)[0])
    steps = np.arange(max(rows, columns)) * (panel + 8) + panel // 2
    return picture[(top + steps[:rows])[:, None], (left + steps[:columns])[None]]


def test_a_pixel_becomes_a_square_of_whole_pixels(tmp_path: Path) -> None:
    image = np.zeros((64, 64), np.float32)
    image[20:40, 10] = 1
    picture = pixels(grid([[image]]), tmp_path)
    # The text is dark grey, so pure black is the panel alone.
    black = np.argwhere((picture == 0).all(axis=2))
    (top, left), (bottom, right) = black.min(axis=0), black.max(axis=0) + 1
    assert (bottom - top, right - left) == (256, 256)
    panel = picture[top:bottom, left:right, 0]
    assert np.array_equal(panel, 255 * np.kron(image, np.ones((4, 4))).astype(np.uint8))


def test_a_row_has_one_grey_scale_and_rows_have_their_own(tmp_path: Path) -> None:
    dark, bright = np.zeros((64, 64), np.float32), np.full((64, 64), 1.0, np.float32)
    picture = pixels(grid([[dark, 0.5 * bright, bright], [dark, 8 * bright, 4 * bright]]), tmp_path)
    found = centres(picture, 2, 3)
    assert (found[..., 0] == found[..., 1]).all()
    assert found[0, :, 0].tolist() == pytest.approx([0, 128, 255], abs=1)
    assert found[1, :, 0].tolist() == pytest.approx([0, 255, 128], abs=1)


def test_differences_share_one_scale_around_white(tmp_path: Path) -> None:
    """Half the difference is half the colour, also in another row; zero is nearly white."""
    one = np.ones((64, 64), np.float32)
    images: list[list[np.ndarray | None]] = [[0 * one, 0.4 * one], [0 * one, -0.2 * one]]
    images += [[one, 0 * one]]
    found = centres(pixels(grid(images, {1}), tmp_path), 3, 2)
    expected = mpl.colormaps["RdBu_r"]([1.0, 0.25, 0.5])[:, :3] * 255
    assert found[:, 1] == pytest.approx(expected, abs=2)


def test_an_empty_place_stays_white(tmp_path: Path) -> None:
    one = np.ones((64, 64), np.float32)
    found = centres(pixels(grid([[0 * one, None, one], [0 * one, one, None]]), tmp_path), 2, 3)
    assert found[0, 1].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("rows", "columns", "size"), [(1, 1, 64), (2, 12, 64), (3, 4, 300)])
def test_any_grid_fits_the_page(rows: int, columns: int, size: int, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((size, size), np.float32)
    picture = pixels(grid([[image] * columns] * rows, {0}), tmp_path)
    assert picture.shape[1] <= illustrations._WIDTH


def test_a_grid_that_does_not_fit_its_names_is_refused(tmp_path: Path) -> None:
    one = np.ones((8, 8), np.float32)
    with pytest.raises(ValueError, match="names for 2 x 2 images"):
        draw(grid([[one, one], [one]]), tmp_path / "x.png")
    with pytest.raises(ValueError, match="of 2 sizes"):
        draw(grid([[one, one[:4]]]), tmp_path / "x.png")
    with pytest.raises(ValueError, match="of 0 sizes"):
        draw(grid([[None, None]]), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_curves_join_the_values_that_there_are(tmp_path: Path) -> None:
    """A line measured at every second place is drawn through, as if the others were on it."""
    x = np.arange(5)

    def line(*values: float) -> int:
        """How many pixels carry the first line's colour."""
        curves = Curves("c", "", "", x, {"$x_{1$": np.array(values)}, ("iteration", "Dice"))
        return int((pixels(curves, tmp_path) == (0x00, 0x72, 0xB2)).all(axis=2).sum())

    nan = float("nan")
    whole, half, two = line(0, 1, 2, 3, 4), line(0, nan, 2, nan, 4), line(0, nan, nan, nan, 4)
    assert whole > half > two > 0.6 * whole


def test_few_points_lie_over_many(tmp_path: Path) -> None:
    many = np.random.default_rng(0).normal(0, 0.02, (4000, 2))
    frame = np.array([[-1.0, -1.0], [1.0, 1.0]])
    groups = {"mean": np.zeros((1, 2)), "samples": many, "frame": frame}
    picture = pixels(Scatter("s", "", "", groups, ("first", "second")), tmp_path)
    alone = pixels(Scatter("s", "", "", {**groups, "samples": frame}), tmp_path)

    def blue(image: np.ndarray) -> int:
        return int((np.abs(image.astype(int) - (0x0D, 0x79, 0xB6)).max(axis=2) < 20).sum())

    assert blue(picture) > 0.8 * blue(alone) > 100


def test_a_picture_is_the_same_each_time_and_leaves_no_trace(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((16, 16), np.float32)
    before = dict(mpl.rcParams)
    torch_state = torch.random.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    shown = [
        grid([[image, image]], {1}),
        Scatter("s", "", "", {"a": image[:, :2]}),
        Curves("c", "", "", np.arange(16), {"a": image[0]}),
    ]
    for number, illustration in enumerate(shown):
        for name in ("one", "two"):
            draw(illustration, tmp_path / name / f"{number}.png")
        drawn = [(tmp_path / name / f"{number}.png").read_bytes() for name in ("one", "two")]
        assert drawn[0] == drawn[1]
    assert dict(mpl.rcParams) == before
    assert torch.equal(torch.random.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["0.png", "1.png", "2.png"]


# In a run


def test_a_run_draws_what_its_method_shows_at_each_site(
    simulate: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the site's own model where the strategy keeps one, and the scene of the scoring."""
    seen = {}

    def illustrate(self: Any, site: Any, nets: Any, scene: Any) -> list[Any]:
        norm = next(m for m in nets["segmenter"].modules() if isinstance(m, torch.nn.BatchNorm2d))
        seen[site.name] = (norm.running_mean.clone(), scene)
        case = site.splits["test"][0]
        picture = grid([[case.image[0, 0], case.image[1, 0]]])
        return [picture] if site.name != "vendor_c" else []

    monkeypatch.setattr(Supervised, "illustrate", illustrate)
    out = simulate(
        tmp_path / "run", "rounds=1", "baselines=[]", "strategy=fedbn", "method.norm=batch"
    )

    shown = json.loads((out / "figures" / "method.json").read_text())
    sites = ["vendor_a", "vendor_b", "vendor_d"]
    assert [item["site"] for item in shown] == sites
    assert [item["file"] for item in shown] == [f"method_{site}-pairs.png" for site in sites]
    assert shown[0] | {"title": "Pairs", "caption": "Of the test."} == shown[0]
    assert all((out / "figures" / item["file"]).is_file() for item in shown)
    assert "The method at work" in (out / "report.html").read_text(encoding="utf-8")
    assert not torch.equal(seen["vendor_a"][0], seen["vendor_b"][0])
    scene = seen["vendor_b"][1]
    assert (scene.site, scene.stage) == ("vendor_b", "")
    assert scene.seed == derive_seed(0, "prediction")


def test_a_method_that_shows_nothing_leaves_no_list(reference: Path) -> None:
    assert not (reference / "figures" / "method.json").exists()
    assert "The method at work" not in (reference / "report.html").read_text(encoding="utf-8")
