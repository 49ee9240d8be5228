"""Landmarks and points from a table of their own to the pages of a run."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.points import Tables, bright


@pytest.fixture
def dots(tmp_path: Path) -> Tables:
    """Two sites of six subjects: a dot in each image, and a second one in every other."""
    from PIL import Image

    tables = Tables(tmp_path)
    rng = np.random.default_rng(0)
    wide, rows = [], []
    for site in "AB":
        for k in range(6):
            name = f"{site}{k}.png"
            places = rng.uniform(10, 38, (2, 2)).round(2)
            plane = bright(np.zeros((48, 48), np.float32), places[0][::-1], 2)
            if k % 2:
                plane += bright(np.zeros((48, 48), np.float32), places[1][::-1], 2)
            noise = rng.normal(0, 0.02, plane.shape)
            shown = (200 * (plane + noise).clip(0, 1)).astype(np.uint8)
            Image.fromarray(shown).save(tmp_path / name)
            tables.row(name, site=site, spacing_mm="0.5x0.5")
            x, y = places[0]
            wide.append(f"{name} {x} {y}")
            rows += [f"{name} dot {x} {y}" for x, y in places[: 1 + k % 2]]
    tables.write("L.tsv", "path tip_x tip_y", *wide)
    tables.write("P.tsv", "path class x y", *rows)
    return tables


def overrides(tables: Tables, task: str, table: str) -> list[str]:
    tables.settings("none")  # which writes the manifest
    return [
        "federation=manifest",
        f"task={task}",
        f"data.manifest={tables.folder / 'M.tsv'}",
        f"data.label_table={tables.folder / table}",
        "data.size=48",
        "data.spacing_mm=null",
        "baselines=[]",
        "engine.devices=cpu",
    ]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("task", "table", "part", "headline", "name"),
    [
        ("landmarks", "L.tsv", "landmark", "radial_error_mm", "tip"),
        ("points", "P.tsv", "class", "f1", "dot"),
    ],
)
def test_a_table_of_points_goes_to_the_page(
    dots: Tables,
    command: Callable[..., Any],
    task: str,
    table: str,
    part: str,
    headline: str,
    name: str,
) -> None:
    run = dots.folder / "run"
    given = overrides(dots, task, table)
    assert command("simulate", *given, "rounds=2", "local_steps=3", f"out={run}").code == 0
    cases = read(run / "cases.csv")
    assert {row[part] for row in cases} == {name} and all(row[headline] for row in cases)
    summed = read(run / "cross_site.csv")
    assert {row["site"] for row in summed} == {"A", "B"}
    page = (run / "report.html").read_text()
    assert name in page and "structure" not in page.split("<style")[0]


def test_a_run_stops_at_a_bad_table_before_anything_is_written(
    dots: Tables, command: Callable[..., Any]
) -> None:
    dots.write("L.tsv", "path tip_x tip_y", "A0.png 90 3", "A1.png 4 4", "B1.png 5 5")
    run = dots.folder / "run"
    told = command("simulate", *overrides(dots, "landmarks", "L.tsv"), f"out={run}")
    assert told.code == 2
    assert re.search("L.tsv: has a point at 90, 3 on line 2, outside", told.err)
    assert not any(run.iterdir())


def test_a_radius_that_any_point_is_within_stops_the_run(
    dots: Tables, command: Callable[..., Any]
) -> None:
    """The images are 24 mm wide."""
    given = overrides(dots, "points", "P.tsv")
    told = command("simulate", *given, "task.radius_mm=17", f"out={dots.folder / 'run'}")
    assert told.code == 2
    assert "site A: task.radius_mm=17 is in mm and reaches from the centre" in told.err


def test_a_radius_wider_than_neighbours_is_told_on_terminal_and_page(
    dots: Tables, command: Callable[..., Any]
) -> None:
    run = dots.folder / "run"
    given = (*overrides(dots, "points", "P.tsv"), "task.radius_mm=14", "rounds=1", "local_steps=1")
    told = command("simulate", *given, f"out={run}")
    said = "task.radius_mm=14 is more than half the median distance between neighbouring points"
    assert told.code == 0 and said in " ".join((told.out + told.err).split())
    assert said in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("key", "wrong", "right", "said"),
    [
        ("augmentation.flip", "0.5", "false", "augmentation.flip must be of type bool, not 0.5"),
        ("augmentation.hu_at_1", "-1000", "100", "augmentation.hu_at_1=-1000 must be above"),
        ("method.width", "8.5", "4", "method.width must be of type int, not 8.5"),
        ("augmentation.flip", "true", "false", "augmentation mirrors images: say with task.mirror"),
    ],
)
def test_wrong_settings_are_told_before_an_image_is_looked_at(
    dots: Tables, command: Callable[..., Any], key: str, wrong: str, right: str, said: str
) -> None:
    dots.write("L.tsv", "path a_x a_y b_x b_y", "A0.png 90 3 1 1", "A1.png 4 4 1 1")
    given = [text for text in overrides(dots, "landmarks", "L.tsv") if text != "baselines=[]"]
    out = f"out={dots.folder / 'out'}"
    commands = {"simulate": [out], "explain": [], "compare": [out]}
    if wrong == "true":
        del commands["compare"]  # whose cells share what was looked at
    for name, more in commands.items():
        told = command(name, *given, f"{key}={wrong}", *more)
        assert told.code == 2 and told.err.startswith(f"fedshift: {said}"), told.err
    assert command("explain", *given, f"{key}={right}").code == 0
