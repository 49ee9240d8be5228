"""A task whose headline is better when lower: what sites answer, the tables, page and terminal."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.measured import write_method
from kit.pages import Page
from rich.console import Console

from fedshift import UserError
from fedshift.protocol.answers import Unfit, read_scores
from fedshift.protocol.flower import Message
from fedshift.protocol.measures import Measure, TaskCard
from fedshift.protocol.messages import EXAMPLES, METRICS, answer, details
from fedshift.server.cross_site import ModelRef, _rows
from fedshift.server.report import build, summary
from fedshift.server.report.answer import answer as told_of
from fedshift.server.report.figures import curves, heat_map, is_dark, shade
from fedshift.server.report.run import read_run
from fedshift.server.tables.files import write_cross_site, write_shift

ERROR = Measure("error_mm", "radial error", "lower", "mm", low=0)
RATE = Measure("rate", "success rate", "higher", low=0, high=1)
BIAS = Measure("bias_mm", "bias to the right", unit="mm")
HARD = Measure("hard", "rate of hard cases", "higher", low=0, high=1, sparse=True, note="if any.")
AUC = Measure("auc", "area under the curve", "higher", low=0, high=1, whole=True)
CARD = TaskCard(
    "landmarks",
    "landmark detection",
    "landmark",
    ("left", "right"),
    (ERROR, RATE, BIAS, HARD, AUC),
    "the landmark is missing",
)
SITES = ("a", "b", "c")
REACHED = {
    ("local", "a"): (2.0, 4.0, 9.0),
    ("local", "b"): (5.0, 1.5, 6.0),
    ("global", "all"): (2.5, 2.0, 3.0),
    ("pooled", "all"): (1.0, 1.25, 3.5),
}


def rows(task: TaskCard) -> list[dict[str, Any]]:
    found = []
    for (model, trained_on), errors in REACHED.items():
        for site, error in zip(SITES, errors, strict=True):
            values = {"error_mm": error, "rate": 1 - error / 10, "bias_mm": error - 4}
            values |= {"auc": 0.5 + error / 100} | ({"hard": 0.25} if site == "b" else {})
            for measure in task.measures:
                if measure.name not in values:
                    continue
                parts = ("",) if measure.whole or not task.part else task.parts
                for place, part in enumerate(parts):
                    found.append(
                        {
                            "model": model,
                            "trained_on": trained_on,
                            "site": site,
                            "vendor": site.upper(),
                            "part": part,
                            "metric": measure.name,
                            "n": 8 if measure.sparse else 12,
                            "n_failed": 0 if measure.whole else place,
                            "mean": values[measure.name],
                            "std": 0.1,
                            "median": values[measure.name],
                            "ci_low": values[measure.name] - 0.125,
                            "ci_high": values[measure.name] + 0.125,
                        }
                    )
    return found


def write_run(folder: Path, task: TaskCard) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "federation: {name: x}\nmethod: {name: m}\nstrategy: {name: fedavg}\nrounds: 2\nseed: 0\n"
    )
    write_method(folder, task)
    split = {"subjects": 4, "cases": 12, "slices": 12, "labelled": 12}
    cards = [
        {
            "name": site,
            "role": "unseen" if site == "c" else "train",
            "vendors": [site.upper()],
            "parts": list(task.parts),
            "splits": dict.fromkeys(("train", "val", "test"), split),
            "spacing_mm": [[1.0, 1.0, 1.0]],
            "notes": [],
        }
        for site in SITES
    ]
    (folder / "checkpoints" / "sites.json").write_text(json.dumps(cards))
    write_cross_site(folder / "cross_site.csv", rows(task), task)
    pairs = (("a", "b", 0.3), ("a", "c", 0.9), ("b", "c", 0.8))
    write_shift(
        folder / "shift.csv",
        [{"site_a": a, "site_b": b, "metric": "mmd", "value": value} for a, b, value in pairs],
    )
    lines = []
    for number in (1, 2):
        sites = {site: {"loss": 1 / number, "val_error_mm": 6.0 / number} for site in ("a", "b")}
        line = {"round": number, "seconds": 1.0, "bytes_down": 1, "bytes_up": 1, "sites": sites}
        lines.append(line | {"failed": {}, "rejected": {}, "skipped": None, "baselines": {}})
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("built") / "run", CARD)
    build(folder)
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(run / "report.html")


def test_the_result_is_told_in_the_tasks_own_words(run: Path, page: Page) -> None:
    text = " ".join(page.text.split())
    for sentence in (
        "The federated model reaches 2.25 mm mean radial error over 2 training sites "
        "(worst: a, 2.50 mm).",
        "Models trained at a single site reach 1.75 mm at home and 4.50 mm at the other sites.",
        "reaches 1.12 mm.",
        "At unseen c: federated 3.00, single-site models 7.50, pooled 3.50.",
        "A score counts as failed, and is the worst there is, when the landmark is missing.",
        "the rise in radial error of a site's own model at the other site",
    ):
        assert sentence in text
    assert "Dice" not in text.split("What to try next")[0]
    console = Console(width=100, file=io.StringIO(), color_system=None)
    console.print(summary(run))
    printed = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "Radial error (mm) on the test split" in printed
    assert "Shift against rise in radial error, over pairs of sites" in printed


def test_the_matrix_compares_models_over_the_parts_that_count(tmp_path: Path) -> None:
    """The model of b was never taught the second landmark."""
    first, second, *_ = CARD.parts
    folder = write_run(tmp_path / "run", CARD)
    kept = [
        row
        for row in rows(CARD)
        if (row["model"], row["trained_on"], row["part"]) != ("local", "b", second)
    ]
    write_cross_site(folder / "cross_site.csv", kept, CARD)
    found = read_run(folder)
    matrix = found.matrix(ERROR)
    told = {
        (row["model"], row["trained_on"], row["site"], row["part"]): row["mean"]
        for row in kept
        if row["metric"] == ERROR.name
    }
    for row, (model, trained_on) in enumerate(matrix.models):
        for column, site in enumerate(matrix.sites):
            count = [first] if site == "b" else CARD.parts
            values = [told.get((model, trained_on, site, part), np.nan) for part in count]
            np.testing.assert_allclose(matrix.mean[row, column], np.mean(values))
    assert np.isnan(matrix.mean[matrix.models.index(("local", "b")), 0])
    build(folder)
    text = " ".join(Page(folder / "report.html").text.split())
    said = f"At b means are over {first} alone: not every model that is compared there is scored on"
    assert f"{said} {second}." in text
    assert "mean of all" not in text
    # From a to b the first landmark 2 mm, from b to a 3.5 mm.
    assert "reach 1.75 mm at home; at another training site they are 2.75 mm worse" in text
    assert "single-site models at other sites" not in text
    figure = heat_map(found, ERROR)
    assert f"mean of those of {', '.join(CARD.parts)} that count" in figure.get_suptitle()


def test_single_site_models_that_share_no_part_are_not_set_against_the_shared_one(
    tmp_path: Path,
) -> None:
    """At the unseen site both landmarks count, and each site's model was taught another."""
    taught = dict(zip("ab", CARD.parts, strict=True))
    folder = write_run(tmp_path / "run", CARD)
    kept = [row for row in rows(CARD) if taught.get(row["trained_on"], row["part"]) == row["part"]]
    write_cross_site(folder / "cross_site.csv", kept, CARD)
    found = read_run(folder)

    assert "At unseen c: federated 3.00, pooled 3.50." in told_of(found).sentences()


def test_the_lowest_is_the_best_and_the_drop_a_rise(run: Path) -> None:
    found = read_run(run)
    matrix = found.matrix(ERROR)
    best = {
        site: [matrix.models[row][0] for row in np.flatnonzero(matrix.best[:, column])]
        for column, site in enumerate(matrix.sites)
    }
    # Of a the local model, of b its own, of c the federated one; pooled does not compete.
    assert best == {"a": ["local"], "b": ["local"], "c": ["global"]}
    assert not found.matrix(BIAS).best.any()
    assert found.drops == {("a", "b"): 2.0, ("a", "c"): 7.0, ("b", "a"): 3.5, ("b", "c"): 4.5}
    (told,) = found.correlations
    assert told.rho > 0.7  # More shift goes with more loss.


def test_parts_are_chosen_by_their_own_name_and_whole_splits_stand_apart(page: Page) -> None:
    html = page.text
    assert "landmark mean of all" in " ".join(html.split())
    # Of every case: error, rate and bias, each as the mean, left and right.
    assert {f"{i}|{j}" for i in range(3) for j in range(3)} <= set(page.cells)
    assert page.cells["0|0"][1][0] == "local, a"
    head = page.cells["some cases"][0]
    assert head == ["model", "site", "landmark", "Rate of hard cases"]
    assert page.cells["some cases"][1] == ["local, a", "b", "left", "0.2508 cases"]
    assert "Rate of hard cases: if any." in html
    assert html.index("Of whole test splits") < html.index("Of some cases only")
    assert "Area under the curve" in html


def test_a_task_without_parts_has_no_list_of_them(tmp_path: Path) -> None:
    task = replace(CARD, part="", parts=())
    run = write_run(tmp_path / "run", task)
    page = Page(build(run))
    assert "landmark" not in (run / "cross_site.csv").read_text()
    assert page.cells["some cases"][0] == ["model", "site", "Rate of hard cases"]
    # Errors, rates and bias of every case, then the whole split's measure in lists of its own.
    assert set(page.cells) >= {"0|0", "1|0", "2|0"}
    assert "mean of all" not in page.text
    assert read_run(run).matrix(ERROR).failed.sum() == 0


def test_a_lower_value_is_darker_and_axes_end_at_the_bounds(run: Path) -> None:
    colors = shade(np.array([1.0, 9.0, np.nan]), ERROR)
    assert is_dark(colors[0]) and not is_dark(colors[1])
    axes = curves(read_run(run)).axes[0]
    assert axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > 6
    assert axes.get_ylabel() == "mm"
    assert "validation radial error" in axes.get_title()


def test_a_curve_of_one_round_has_room_above_it(run: Path) -> None:
    found = read_run(run)
    axes = curves(replace(found, rounds=found.rounds[:1])).axes[0]
    ((value,), *_) = [line.get_ydata() for line in axes.lines]
    assert 0 < value < axes.get_ylim()[1]


def reply(site: str, **changes: Any) -> Message:
    """What a site answers that scored two cases and the whole split."""
    metrics = {"failed": [0, 1], "error_mm": [1.0, 9.0], "rate": [1.0, 0.0], "bias_mm": [0.5, 2.0]}
    metrics |= {"hard": [math.nan, 0.5]}
    keys = [["test", "V", "s1", "c1", "left"], ["test", "V", "s1", "c1", "right"]]
    wholes = [["test", "V", "", "auc", 2, 0.75, 0.5, 0.875]]
    told = {"metrics": {EXAMPLES: 2, **metrics}, "details": {"rows": keys, "wholes": wholes}}
    told |= changes
    request = Message(content=answer("x"), dst_node_id=1, message_type="evaluate")
    return Message(content=answer(site, **told), reply_to=request)


def test_scores_are_read_by_the_tasks_measures() -> None:
    ref = ModelRef("local", "a", dict, parts=frozenset({"right"}))
    measured = read_scores(reply("b").content, CARD, ["test"], None)
    cases, wholes = _rows(ref, "b", measured)
    # The model was not taught the left one; a whole split is of no part.
    assert [(row["case"], row["part"], row["error_mm"], row["failed"]) for row in cases] == [
        ("c1", "right", 9.0, 1)
    ]
    assert [(row["metric"], row["value"], row["high"]) for row in wholes] == [("auc", 0.75, 0.875)]


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {EXAMPLES: 2, "failed": [0, 0]}},
        {"metrics": {EXAMPLES: 2, "failed": 0, "error_mm": 1.0}},
        {"details": {"rows": []}},
        {"details": {"rows": [], "wholes": []}},
        {"details": {"rows": [["test"], ["test"]], "wholes": []}},
        {"details": {"rows": 5, "wholes": []}},
    ],
)
def test_scores_that_cannot_be_read_are_a_sentence(changes: dict[str, Any]) -> None:
    with pytest.raises(Unfit, match=r"^sent scores (that cannot be read|without)"):
        read_scores(reply("b", **changes).content, CARD, ["test"], None)


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        (["val", "V", "s1", "c1", "left"], 1.0, "the split 'val', which was not asked for"),
        (["test", "V", "s1", "c1", "middle"], 1.0, "'middle', which is not among"),
        (["test", "V", "s1", "c1", "right"], 1.0, "two scores of c1"),
        (["test", "V", "s1", "c1", "left"], -1.0, "error_mm of -1, which is not between"),
        (["test", "V", "s1", "c1", "left"], math.inf, "error_mm of inf, which is not between"),
        (["test", "V", "s1", "c1", "left"], math.nan, "error_mm of nan, which is not between"),
    ],
)
def test_scores_of_what_was_not_asked_or_cannot_be_are_refused(
    row: list[str], error: float, words: str
) -> None:
    content = reply("b").content
    told = details(content)
    told["rows"][0] = row
    metrics = dict(content[METRICS])
    metrics["error_mm"] = [error, 9.0]
    with pytest.raises(Unfit, match=words):
        read_scores(answer("b", metrics=metrics, details=told), CARD, ["test"], None)


def test_scores_without_a_card_are_a_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "cross_site.csv").write_text((run / "cross_site.csv").read_text())
    with pytest.raises(UserError, match=r"method\.json, which says what was measured"):
        read_run(tmp_path)
