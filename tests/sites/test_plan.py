"""Every rule of a plan, against what the same arrays give when the numbers are set by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedshift import UserError
from fedshift.sites import DataSettings, Summary, load_federation, plan, summarise, survey
from fedshift.sites.facts import HOUNSFIELD, Facts, Surveyed
from fedshift.sites.geometry import Grid
from fedshift.sites.image import normalise
from fedshift.sites.labels.mask import Mask
from fedshift.sites.plan import _without_small
from fedshift.sites.survey import _reach

AUTO = dict.fromkeys(("spacing_mm", "size", "slice_axis", "normalise"), "auto")


def telling(**given: Any) -> Summary:
    """What a site of axial 1 mm images with labels 40 mm from the centre tells."""
    fields: dict[str, Any] = {
        "images": 4,
        "axes": (0, 0, 4),
        "spacing_mm": (1.0, 1.0, 5.0),
        "in_plane_mm": (3.0, 3.0, 1.0),
        "unknown": 0,
        "shape": (256, 256, 20),
        "reach_mm": (40.0, 40.0, 40.0),
        "reach_px": (0.0, 0.0, 0.0),
        "reach_own": (40.0, 40.0, 40.0),
        "modalities": {},
    }
    return Summary(**{**fields, **given})


def settled(told: Mapping[str, Summary | None], **data: Any) -> DataSettings:
    return plan(told, DataSettings.from_config({**AUTO, **data}))[0]


def test_sites_that_agree_decide_the_axis_and_isotropic_ones_follow() -> None:
    sagittal = telling(axes=(5, 0, 0), spacing_mm=(3.0, 0.5, 0.5), in_plane_mm=(0.5, 1.8, 1.8))
    free = telling(axes=(0, 0, 0), in_plane_mm=(1.0, 1.0, 1.0))
    data, decisions = plan({"A": sagittal, "B": free}, DataSettings.from_config(AUTO))
    assert data.slice_axis == 0
    (why,) = [one.why for one in decisions if one.key == "slice_axis"]
    assert why == "thick slices are sagittal at A; none are thick at B, cut alike"
    # The axis is decided first: spacing and size are those of sagittal slices.
    assert data.spacing_mm == 0.75
    assert settled({"A": free}).slice_axis == 2


def test_sites_that_disagree_about_the_axis_are_asked() -> None:
    told = {name: telling() for name in "ABCD"} | {"E": telling(axes=(3, 0, 0))}
    with pytest.raises(UserError) as error:
        settled(told)
    text = str(error.value)
    assert "sagittal (0) at E; axial (2) at A, B, C and 1 more" in text
    assert "set data.slice_axis=" in text
    assert settled(told, slice_axis=0).slice_axis == 0


def test_one_odd_image_of_a_site_does_not_speak_for_it() -> None:
    assert settled({"A": telling(axes=(1, 0, 5)), "B": telling()}).slice_axis == 2


@pytest.mark.parametrize(
    ("in_plane", "expected"), [([0.4983], 0.5), ([0.5, 0.7, 2.0], 0.7), ([0.5, 1.0], 0.75)]
)
def test_the_spacing_is_the_median_of_the_sites(in_plane: list[float], expected: float) -> None:
    told = {f"s{k}": telling(in_plane_mm=(9.0, 9.0, mm)) for k, mm in enumerate(in_plane)}
    assert settled(told).spacing_mm == expected


def test_many_images_of_one_site_do_not_outvote_the_others() -> None:
    told = {
        "A": telling(images=1000, in_plane_mm=(1.0, 1.0, 0.3)),
        "B": telling(in_plane_mm=(1.0, 1.0, 0.8)),
        "C": telling(in_plane_mm=(1.0, 1.0, 0.9)),
    }
    assert settled(told).spacing_mm == 0.8


def test_the_spacing_is_coarser_where_labels_do_not_fit() -> None:
    # 2 x 300 mm x 1.25 = 750 mm on at most 384 pixels: 1.953 mm, rounded up.
    wide = telling(reach_mm=(300.0, 300.0, 300.0), shape=(800, 800, 20))
    data = settled({"A": wide})
    assert (data.spacing_mm, data.size) == (2.0, 384)
    data = settled({"A": wide}, size=128)
    assert (data.spacing_mm, data.size) == (5.9, 128)


@pytest.mark.parametrize("unit", [1.0, 1e-1, 1e-3, 1e-6])
def test_images_of_every_length_are_planned_alike(tmp_path: Path, unit: float) -> None:
    """The retina's are a tenth of a mm wide: what is rounded is rounded to their pixels."""
    lines = ["path\tsite\tsubject\tspacing_mm\tpoints_path"]
    for k in range(3):
        values = np.random.default_rng(k).integers(0, 255, (200, 200)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"i{k}.png")
        lines.append(f"i{k}.png\tA\tp{k}\t{0.5 * unit:.9f}\tP.tsv")
    (tmp_path / "P.tsv").write_text("path\tx\ty\n" + "i0.png\t40\t99.5\ni1.png\t60\t60\n")
    manifest = tmp_path / "M.tsv"
    manifest.write_text("\n".join(lines))
    data = DataSettings.from_config(
        {**AUTO, "manifest": str(manifest), "cache": str(tmp_path / "cache")}, "points"
    )
    (site,) = load_federation({"kind": "manifest"}, data, 0).sites
    summary = summarise(survey(site, data), 1)
    assert summary is not None
    # 60 pixels from the centre, with a quarter to spare.
    assert summary.reach_mm[2] / unit == pytest.approx(30, rel=0.01)
    assert plan({"A": summary}, data)[0].size == 160


def test_the_size_covers_the_labels_in_steps_of_16() -> None:
    assert settled({"A": telling()}).size == 112  # 2 x 40 x 1.25 = 100
    small = telling(reach_mm=(5.0,) * 3, reach_own=(5.0,) * 3)
    assert settled({"A": small}).size == 64
    assert settled({"A": telling()}, spacing_mm=0.5).size == 208  # 200
    none = telling(reach_mm=(0.0,) * 3, reach_own=(0.0,) * 3)
    assert settled({"A": none}).size == 256  # The whole matrix.
    assert settled({"A": replace(none, shape=(300, 100, 20))}).size == 304


def test_the_grid_ends_where_the_images_end() -> None:
    def planned(**given: Any) -> tuple[int, str]:
        data, decisions = plan({"A": telling(**given)}, DataSettings.from_config(AUTO))
        (size,) = [one for one in decisions if one.key == "size"]
        return data.size, size.why

    assert planned() == (112, "covers every label with a quarter to spare")
    # Labels up to 45 mm from the centre of images 96 mm wide: 112.5 mm would show nothing more.
    wide = dict.fromkeys(("reach_mm", "reach_own"), (45.0,) * 3)
    edge = "covers every label up to the images' edge"
    assert planned(shape=(96, 80, 20), **wide) == (96, edge)
    # An image larger than the median has labels further out: they are covered.
    assert planned(shape=(80, 80, 20), **wide) == (96, edge)


def test_a_size_that_would_be_too_large_says_so() -> None:
    data, decisions = plan({"A": telling()}, DataSettings.from_config({**AUTO, "spacing_mm": 0.1}))
    assert data.size == 384
    (size,) = [one for one in decisions if one.key == "size"]
    assert "would need 1008 pixels: set data.spacing_mm" in size.why


def unknown(**given: Any) -> Summary:
    return telling(
        **{
            "spacing_mm": None,
            "in_plane_mm": None,
            "unknown": 4,
            "reach_mm": (0.0,) * 3,
            "reach_px": (80.0,) * 3,
            "reach_own": (80.0,) * 3,
            **given,
        }
    )


def test_unknown_spacing_is_not_resampled_unless_it_is_given() -> None:
    data = settled({"A": unknown()})
    assert (data.spacing_mm, data.size) == (None, 208)  # 2 x 80 x 1.25 = 200
    data = settled({"A": unknown()}, default_spacing_mm=0.5)
    assert (data.spacing_mm, data.size) == (0.5, 208)
    # One site knows, the other does not: every image keeps its own pixels.
    data = settled({"A": unknown(shape=(400, 400, 1)), "B": telling(reach_own=(120.0,) * 3)})
    assert (data.spacing_mm, data.size) == (None, 304)  # 2 x 120 x 1.25 = 300


def test_numbers_by_hand_win_and_are_not_called_planned() -> None:
    data = settled({"A": telling()}, spacing_mm=2.0, size=48, slice_axis=1, normalise="zscore")
    assert (data.spacing_mm, data.size, data.slice_axis, data.normalise) == (2.0, 48, 1, "zscore")
    assert not data.planned and not data.auto
    data = settled({"A": telling()}, spacing_mm=2.0)
    assert set(data.planned) == {"size", "slice_axis", "normalise"}


def test_a_site_that_withholds_is_named_with_the_keys_to_set() -> None:
    told = {"A": telling(), **dict.fromkeys("BCDE")}
    with pytest.raises(UserError) as error:
        settled(told, normalise="percentile")
    text = str(error.value)
    assert "the images of B, C, D and 1 more" in text
    by_hand = ["data.size=128", "data.slice_axis=2", "data.spacing_mm=null"]
    assert f"such as {' '.join(by_hand)}." in text
    # What it says can be done.
    given = {pair.split(".")[1].split("=")[0]: pair.split("=")[1] for pair in by_hand}
    hand = {"size": int(given["size"]), "slice_axis": int(given["slice_axis"]), "spacing_mm": None}
    assert settled(told, normalise="percentile", **hand).size == 128
    assert "data.normalise" not in text
    # With everything by hand nobody is asked.
    assert settled(told, spacing_mm=1.0, size=64, slice_axis=2, normalise="none").size == 64


def test_ct_is_normalised_alike_only_where_every_image_says_so() -> None:
    counts = np.zeros(len(HOUNSFIELD) - 1, int)
    counts[280:300] = 100
    ct = telling(modalities={"CT": 4}, hounsfield=tuple(counts.tolist()))
    data = settled({"A": ct, "B": ct})
    assert data.normalise == "ct" and data.window == (HOUNSFIELD[280], HOUNSFIELD[300])
    assert set(data.planned) >= {"normalise", "window"}
    for other in ({"CT": 3}, {"CT": 3, "MR": 1}, {"MR": 4}, {}):
        data, decisions = plan(
            {"A": ct, "B": telling(modalities=other)}, DataSettings.from_config(AUTO)
        )
        assert data.normalise == "percentile" and data.window is None
        (why,) = [one.why for one in decisions if one.key == "normalise"]
        assert "A" in why and "B" in why
    data = settled({"A": ct}, normalise="ct", window=[-100, 300])
    assert data.window == (-100.0, 300.0) and "window" not in data.planned
    with pytest.raises(UserError, match=r"set data.window=\[LOW, HIGH\]"):
        settled({"A": telling(modalities={"CT": 4})})


MANIFEST = {"name": "m", "kind": "manifest"}


def table(folder: Path, rows: list[str], columns: str) -> DataSettings:
    path = folder / "table.tsv"
    path.write_text("\n".join([columns.replace(" ", "\t"), *rows]) + "\n")
    return DataSettings.from_config({**AUTO, "manifest": str(path), "labels": {"x": 1}})


def test_the_window_is_numpys_percentiles_of_the_pooled_voxels(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pooled, rows = [], []
    for k, (centre, site) in enumerate([(40, "A"), (60, "A"), (-50, "B"), (300, "B")]):
        image = rng.normal(centre, 80, (40, 40, 6)).round().astype(np.int16)
        image[0] = -1000
        label = np.zeros(image.shape, np.uint8)
        label[5:35, 5:35] = 1
        pooled.append(image[label > 0])
        for name, array in (("i", image), ("l", label)):
            nibabel.save(
                nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 5.0, 1.0])),
                tmp_path / f"{name}{k}.nii",
            )
        rows.append(f"i{k}.nii\tl{k}.nii\t{site}\ts{k}\tCT")
    data = table(tmp_path, rows, "path label_path site subject modality")
    federation = load_federation(MANIFEST, data, 0)
    told = {site.name: summarise(survey(site, data), 4) for site in federation.sites}
    assert all(n == 0 or n >= 4 for one in told.values() if one for n in one.hounsfield)
    planned, _ = plan(told, data)
    low, high = np.percentile(np.concatenate(pooled), (0.5, 99.5))
    assert planned.normalise == "ct" and planned.window is not None
    assert abs(planned.window[0] - low) <= 4 and abs(planned.window[1] - high) <= 4
    # And the arrays are clipped and scaled by it.
    image = rng.normal(0, 500, (2, 8, 8)).astype(np.float32)
    grid = Grid((8, 8), (1.0, 1.0), (1.0, 1.0), 8)
    start, end = planned.window
    expected = np.clip((image.astype(float) - start) / (end - start), 0, 1)
    np.testing.assert_allclose(normalise(image, planned, grid), expected, atol=1e-6)


def test_photographs_of_fine_pixels_get_a_grid_that_shows_their_labels(tmp_path: Path) -> None:
    """Fundus photographs of 0.0166 mm pixels, which a grid of 128 such pixels would cut."""
    rng = np.random.default_rng(0)
    rows = []
    for k in range(4):
        shape = (2000 + 40 * k, 2100)
        label = np.zeros(shape, np.uint8)
        rr, cc = np.ogrid[: shape[0], : shape[1]]
        label[(rr - 900) ** 2 + (cc - 500 - 700 * (k % 2)) ** 2 < 180**2] = 1
        picture = (rng.random((20, 21)) * 255).astype(np.uint8).repeat(105, 0).repeat(105, 1)
        Image.fromarray(picture[: shape[0], : shape[1]]).save(tmp_path / f"i{k}.png")
        Image.fromarray(label).save(tmp_path / f"l{k}.png")
        rows.append(f"i{k}.png\tl{k}.png\t{'AB'[k % 2]}\ts{k}\t0.0166")
    data = table(tmp_path, rows, "path label_path site subject spacing_mm")
    federation = load_federation(MANIFEST, data, 0)
    told = {site.name: summarise(survey(site, data), 1) for site in federation.sites}
    planned, _ = plan(told, data)
    assert planned.spacing_mm is not None and 0.0166 < planned.spacing_mm < 0.1
    assert planned.size <= 384
    for image in (image for site in federation.sites for image in site.images):
        label = np.asarray(Image.open(image.label_path))[None]
        mm = (0.0166, 0.0166)
        grid = Grid(label.shape[1:], mm, (planned.spacing_mm,) * 2, planned.size)
        assert Mask().cropped(label, grid) == 0
    by_hand = Grid(label.shape[1:], mm, mm, 128)
    assert Mask().cropped(label, by_hand) > 0.9


def test_a_site_with_too_few_slices_tells_nothing() -> None:
    facts = _facts((32, 32, 3), (1.0, 1.0, 4.0), [(0, 0, 0)])
    assert summarise([Surveyed(facts, ())], 4) is None
    assert summarise([Surveyed(facts, ())], 3) is not None
    assert summarise([Surveyed(None, ())], 1) is None


def _facts(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float] | None,
    voxels: list[tuple[int, ...]],
) -> Facts:
    """Facts of an axial image with these labelled voxels."""
    mm = spacing or (1.0, 1.0, 1.0)
    away = [np.array([abs(v[k] - (shape[k] - 1) / 2) * mm[k] for v in voxels]) for k in range(3)]
    return Facts(
        shape=shape,
        axis=2,
        clear=True,
        oriented=True,
        spacing_mm=spacing,
        modality="",
        pixels="",
        picture="",
        low=0.0,
        values={0: 1, 1: len(voxels)},
        n_values=2,
        reach=tuple(_reach(away, mm, k) for k in range(3)),
    )


def _drawn(rng: np.random.Generator) -> tuple[Facts, list[tuple[int, ...]]]:
    """Facts of a random matrix and spacing (known or not), and one to three labelled voxels."""
    shape = (int(rng.integers(8, 400)), int(rng.integers(8, 400)), int(rng.integers(4, 9)))
    spacing = (*rng.uniform(0.05, 2.0, 2).round(4).tolist(), 6.0) if rng.random() < 0.5 else None
    voxels = [tuple(rng.integers(0, shape).tolist()) for _ in range(rng.integers(1, 4))]
    return _facts(shape, spacing, voxels), voxels


@pytest.mark.parametrize("spacing", ["auto", None, 0.3, 1.0])
@pytest.mark.parametrize("default", [None, 0.5])
@pytest.mark.parametrize("seed", range(25))
def test_a_planned_grid_never_cuts_a_label(
    spacing: float | str | None, default: float | None, seed: int
) -> None:
    """Whatever the spacings, known or not; unless it says that no grid is large enough."""
    rng = np.random.default_rng(seed)
    drawn = [[_drawn(rng) for _ in range(rng.integers(1, 4))] for _ in range(3)]
    federation = [[facts for facts, _ in site] for site in drawn]
    told = {
        f"s{k}": summarise([Surveyed(facts, ()) for facts in site], 1)
        for k, site in enumerate(federation)
    }
    data = DataSettings.from_config({**AUTO, "spacing_mm": spacing, "default_spacing_mm": default})
    planned, _ = plan(told, data)
    if "would need" in planned.planned["size"]:
        assert planned.size == 384
        return
    for facts, voxels in (one for site in drawn for one in site):
        known = facts.spacing_mm is not None or default is not None
        mm = facts.spacing_mm or (default or 1.0,) * 3
        native = (mm[1], mm[0])  # Rows are along the second axis.
        target = (planned.spacing_mm,) * 2 if planned.spacing_mm and known else native
        grid = Grid((facts.shape[1], facts.shape[0]), native, target, planned.size)
        for axis, own in zip(grid.axes, (1, 0), strict=True):
            shown = range(facts.shape[own])[axis.native]
            assert {voxel[own] for voxel in voxels} <= {*shown}, (facts, planned.size)


def test_small_counts_join_their_neighbours_and_none_is_lost() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = np.round(np.exp(rng.normal(0, 2, 60))).astype(int)
        kept = _without_small(counts, 5)
        assert kept.sum() == counts.sum() and not ((kept > 0) & (kept < 5)).any()
        reached, before = np.cumsum(kept) / kept.sum(), np.cumsum(counts) / counts.sum()
        assert np.abs(reached - before).max() <= 5 / counts.sum() + 1e-9
    assert not _without_small(np.array([1, 2, 0, 1]), 5).any()
