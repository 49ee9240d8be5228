"""The comparison of runs: its statistics against independent computations, its files and page."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.measured import DICE, SEGMENTATION, measured, write_method
from rich.console import Console
from scipy import stats

from fedshift import UserError
from fedshift.protocol.measures import Measure, TaskCard
from fedshift.server import comparison
from fedshift.server.comparison import statistics, training
from fedshift.server.comparison.cells import Cell
from fedshift.server.comparison.figures import draw_all
from fedshift.server.comparison.figures.curves import trade_off
from fedshift.server.comparison.page import page
from fedshift.server.comparison.ranking import Result, Standing, rank
from fedshift.server.comparison.read import (
    Comparison,
    Entrant,
    compared,
    counting,
    given,
    read,
    run_scores,
)
from fedshift.server.comparison.statistics import Estimate, estimate
from fedshift.server.comparison.words import interval_words, sentences
from fedshift.server.report.run import Row, Run, read_run
from fedshift.server.tables.files import read_cases, write_cases, write_cross_site
from fedshift.server.tables.summary import summarise

SITES = ("north", "south", "west")
UNSEEN = ("outside",)

Truth = Callable[[str, str, int], float]
"""Dice of a model at (site, subject, seed)."""


def case_row(model: str, trained_on: str, site: str, subject: str, dice: float, **more: Any) -> Any:
    row: dict[str, Any] = measured()
    row |= {
        "model": model,
        "trained_on": trained_on,
        "site": site,
        "vendor": f"vendor of {site}",
        "split": "test",
        "subject": subject,
        "case": subject,
        "part": "cavity",
        "dice": dice,
        "hd95_mm": 40 * (1 - dice),
        "failed": 0,
    }
    return row | more


def write_run(
    folder: Path,
    strategy: str,
    seed: int,
    truth: Truth,
    subjects: int = 12,
    clock: float | None = None,
    rounds: int = 3,
    unlabelled: Sequence[str] = (),
) -> Path:
    """Write the parts of a run folder that a comparison reads; ``clock`` is in seconds a round.

    Strategy ``local`` has a model a site, 0.2 worse elsewhere; ``fedbn`` personal ones too."""
    kind = {"local": "local", "fedbn": "personal", "pooled": "pooled"}.get(strategy, "global")
    models = [(kind, site) for site in SITES] if kind in ("local", "personal") else [(kind, "all")]
    if kind == "personal":
        models.append(("global", "all"))
    rows = []
    for model, trained_on in models:
        for site in (*SITES, *UNSEEN):
            away = 0.2 if trained_on not in ("all", site) else 0.0
            for number in range(subjects):
                subject = f"{site}-{number:02d}"
                value = float(np.clip(truth(site, subject, seed) - away, 0, 1))
                rows.append(case_row(model, trained_on, site, subject, value))
    (folder / "checkpoints").mkdir(parents=True)
    write_method(folder)
    write_cases(folder / "cases.csv", rows, SEGMENTATION)
    summary = summarise(rows, SEGMENTATION, seed)
    write_cross_site(folder / "cross_site.csv", summary, SEGMENTATION)
    cards = [
        {
            "name": site,
            "role": "train" if site in SITES else "unseen",
            "parts": ["cavity"],
            "splits": {"train": {"labelled": 0 if site in unlabelled else 9}},
        }
        for site in (*SITES, *UNSEEN)
    ]
    (folder / "checkpoints" / "sites.json").write_text(json.dumps(cards))
    (folder / "config.yaml").write_text(
        f"federation: {{name: phantom}}\nmethod: {{name: supervised}}\n"
        f"strategy: {{name: {strategy}}}\nrounds: {rounds}\nseed: {seed}\n"
    )
    lines = []
    for number in range(1, rounds + 1):
        score = {
            site: {"val_dice": truth(site, f"{site}-00", seed) * number / rounds} for site in SITES
        }
        line: dict[str, Any] = {
            "round": number,
            "seconds": 2.0,
            "bytes_down": 1000 * (strategy != "local"),
            "bytes_up": 500 * (strategy != "local"),
            "sites": score,
            "failed": {},
            "rejected": {},
            "skipped": None,
            "baselines": {},
        }
        if clock is not None:
            line["clock_s"] = clock * number
        lines.append(json.dumps(line))
    (folder / "rounds.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def difficulty(site: str, subject: str) -> float:
    """How well any model does with a subject, 0.6 to 0.8."""
    number = int(subject.rpartition("-")[2])
    return 0.6 + 0.02 * ((7 * number + len(site)) % 10)


def grid(
    folder: Path,
    gains: Mapping[str, float],
    seeds: Sequence[int] = (0, 1, 2),
    noise: float = 0.01,
    **options: Any,
) -> list[Cell]:
    """A cell for each strategy and seed, ``gains`` above the subjects' difficulty."""
    cells = []
    for strategy, seed in itertools.product(gains, seeds):
        rng = np.random.default_rng([seed, *strategy.encode()])

        def truth(site: str, subject: str, seed: int, rng: Any = rng, s: str = strategy) -> float:
            return difficulty(site, subject) + gains[s] + float(rng.normal(0, noise))

        run = write_run(
            folder / f"strategy={strategy},seed={seed}", strategy, seed, truth, **options
        )
        cells.append(Cell({"strategy": strategy, "seed": str(seed)}, run, "done"))
    return cells


def entrant(name: str, dice: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Entrant:
    """An entrant without run folders: ``dice`` by site, subject and seed."""
    scores = {
        site: {
            subject: {seed: np.array([value, 10 * value]) for seed, value in by_seed.items()}
            for subject, by_seed in subjects.items()
        }
        for site, subjects in dice.items()
    }
    seeds = sorted({s for subjects in dice.values() for by in subjects.values() for s in by})
    settings = {"strategy": name}
    cells = tuple(Cell({**settings, "seed": seed}, Path(name), "done") for seed in seeds)
    return Entrant(f"strategy={name}", settings, cells, scores)


def by_name(result: Result) -> dict[str, Standing]:
    return {row.label: row for row in result.standings}


# The statistics


def test_intervals_agree_with_every_possible_resample() -> None:
    values = {"a": np.array([0.1, 0.4, 0.5, 0.9]), "b": np.array([0.2, 0.3, 0.8])}
    every = [
        0.5 * np.mean(a) + 0.5 * np.mean(b)
        for a in itertools.product(values["a"], repeat=4)
        for b in itertools.product(values["b"], repeat=3)
    ]
    found = estimate(values, {"a": 0.5, "b": 0.5})
    assert found.value == pytest.approx((1.9 / 4 + 1.3 / 3) / 2)
    assert (found.low, found.high) == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=0.015)
    assert found == estimate(values, {"b": 0.5, "a": 0.5})


def test_an_interval_takes_two_subjects_at_every_site() -> None:
    one = {"a": np.array([0.5]), "b": np.array([0.1, 0.3])}
    assert estimate(one, {"a": 1.0, "b": -1.0}).value == pytest.approx(0.3)
    assert not estimate(one, {"a": 1.0, "b": -1.0}).has_interval
    assert not estimate(one, {"a": 1.0, "c": 1.0}).known


@pytest.mark.parametrize(
    "differences",
    [
        [0.3, -0.1, 0.2, 0.5, -0.4, 0.6, 0.7, 0.11],
        [0.1, 0.1, -0.1, 0.2, 0.3, 0.3, -0.2, 0.4, 0.0, 0.0],  # Ties and zeros.
    ],
)
def test_signed_ranks_agree_with_every_flip_of_signs(differences: list[float]) -> None:
    moved = np.array([value for value in differences if value])
    ranks = stats.rankdata(np.abs(moved))
    observed = float((np.sign(moved) * ranks).sum())
    flips = [
        abs(np.dot(signs, ranks)) >= abs(observed) - 1e-9
        for signs in itertools.product((-1, 1), repeat=len(moved))
    ]
    p_value, signed_ranks = statistics.signed_rank(np.array(differences))
    assert p_value == pytest.approx(np.mean(flips), abs=1e-12)
    assert signed_ranks == pytest.approx(observed)


def test_signed_ranks_of_too_few_or_equal_subjects() -> None:
    assert math.isnan(statistics.signed_rank(np.full(5, 0.1))[0])
    assert statistics.signed_rank(np.full(6, 0.1))[0] == pytest.approx(2 / 2**6)
    assert statistics.signed_rank(np.full(8, 1e-15)) == (1.0, 0.0)


def test_over_seeds_two_entrants_are_a_paired_t_test() -> None:
    means = np.random.default_rng(0).normal(0.7, 0.02, (4, 2))
    expected = stats.ttest_rel(means[:, 0], means[:, 1]).pvalue
    found = statistics.over_seeds(means, baseline=1)
    assert found[0] == pytest.approx(expected)
    assert math.isnan(found[1])


def test_over_seeds_agrees_with_least_squares() -> None:
    seeds, entrants = 3, 4
    means = np.random.default_rng(1).normal(0.7, 0.02, (seeds, entrants))
    design = np.zeros((seeds * entrants, entrants + seeds - 1))
    for row, (seed, column) in enumerate(itertools.product(range(seeds), range(entrants))):
        design[row, column] = 1
        if seed:
            design[row, entrants + seed - 1] = 1
    fit, squares, rank_of, _ = np.linalg.lstsq(design, means.ravel())
    freedom = len(design) - rank_of
    contrast = np.zeros(design.shape[1])
    contrast[2], contrast[0] = 1, -1
    error = squares[0] / freedom * contrast @ np.linalg.inv(design.T @ design) @ contrast
    expected = 2 * stats.t.sf(abs(contrast @ fit) / math.sqrt(error), freedom)
    assert statistics.over_seeds(means, baseline=0)[2] == pytest.approx(expected)


def test_over_seeds_needs_seeds_and_a_difference() -> None:
    assert np.isnan(statistics.over_seeds(np.array([[0.7, 0.8]]), 0)).all()
    same = np.array([[0.7, 0.7], [0.8, 0.8]])
    assert statistics.over_seeds(same, 0)[1] == 1.0
    assert statistics.over_seeds(same + np.array([0.0, 0.1]), 0)[1] < 1e-6


def test_holm_by_hand() -> None:
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = statistics.holm([math.nan, 0.5, 0.9])
    assert math.isnan(found[0])
    assert found[1:] == [1.0, 1.0]


def test_friedman_agrees_with_scipy_and_with_every_order() -> None:
    scores = np.array([[0.9, 0.7, 0.8], [0.6, 0.5, 0.4], [0.7, 0.2, 0.5], [0.9, 0.5, 0.6]])
    found = statistics.friedman(scores)
    assert found is not None
    assert found.statistic == pytest.approx(stats.friedmanchisquare(*scores.T).statistic)
    ranks = stats.rankdata(-scores, axis=1)
    every = [
        sum((np.sum([r[list(o)] for r, o in zip(ranks, orders, strict=True)], axis=0)) ** 2)
        for orders in itertools.product(itertools.permutations(range(3)), repeat=4)
    ]
    expected = np.mean(np.array(every) >= (ranks.sum(axis=0) ** 2).sum() - 1e-9)
    assert found.p_value == pytest.approx(expected, abs=0.01)
    assert found.ranks.tolist() == [1.0, 2.75, 2.25]


def test_friedman_needs_three_entrants_two_sites_and_a_difference() -> None:
    assert statistics.friedman(np.ones((1, 4))) is None
    assert statistics.friedman(np.ones((4, 2))) is None
    equal = statistics.friedman(np.ones((3, 4)))
    assert equal is not None
    assert (equal.p_value, equal.ranks.tolist()) == (1.0, [2.5] * 4)


def test_critical_difference_is_that_of_demsar() -> None:
    # Demsar 2006, table 5 (a): q at 0.05 for 2 to 10 classifiers.
    table = (1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164)
    for entrants, q in enumerate(table, start=2):
        scale = math.sqrt(entrants * (entrants + 1) / (6 * 14))
        assert statistics.critical_difference(entrants, 14) / scale == pytest.approx(q, abs=1e-3)
    few = statistics.friedman(np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]]))
    assert few is not None
    assert not few.can_differ  # 2.34 on an axis of length 2.


def test_bars_join_largest_groups_only() -> None:
    ranks = np.array([1.0, 4.2, 2.0, 3.5, 8.0])
    assert statistics.alike(ranks, 2.6) == [(1.0, 3.5), (2.0, 4.2)]
    assert statistics.alike(ranks, 0.5) == []
    assert statistics.alike(np.array([1.5, 1.5, 3.0]), 1.0) == [(1.5, 1.5)]
    # Exactly the critical difference apart is different.
    assert statistics.alike(np.array([1.0, 2.0]), 1.0) == []


def test_a_rounded_zero_has_no_sign() -> None:
    found = interval_words(Estimate(0.005, -0.0001, 0.0101), DICE)
    assert found == "95 % interval 0.000 to 0.010"


# Reading the runs


def scores_of(run: Run, task: TaskCard, rows: Sequence[Row]) -> dict[tuple[str, str], np.ndarray]:
    """What the run by itself reaches for each subject of each site."""
    found, measures = given(run, task, rows), compared(task)
    return run_scores(found, measures, counting([found], measures))


def test_what_an_entrant_gives_a_site(tmp_path: Path) -> None:
    def truth(site: str, subject: str, seed: int) -> float:
        return 0.8

    def dice(strategy: str) -> dict[str, float]:
        folder = write_run(tmp_path / strategy, strategy, 0, truth, subjects=2)
        found = scores_of(
            read_run(folder), SEGMENTATION, read_cases(folder / "cases.csv", SEGMENTATION)
        )
        return {site: float(found[site, f"{site}-00"][0]) for site in (*SITES, *UNSEEN)}

    assert dice("fedavg") == pytest.approx(dict.fromkeys((*SITES, *UNSEEN), 0.8))
    # Its own model at a training site; at the unseen one the mean of models that are 0.2 worse.
    assert dice("local") == pytest.approx({**dict.fromkeys(SITES, 0.8), "outside": 0.6})
    # The personal model at home, the shared one at the unseen site.
    assert dice("fedbn") == pytest.approx(dict.fromkeys((*SITES, *UNSEEN), 0.8))
    assert dice("pooled") == pytest.approx(dict.fromkeys((*SITES, *UNSEEN), 0.8))


def test_baselines_of_a_run_are_not_what_it_gives(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "fedavg", 0, lambda *_: 0.5, subjects=1)
    rows = read_cases(folder / "cases.csv", SEGMENTATION)
    rows += [case_row("local", "north", "north", "north-00", 0.9)]
    rows += [case_row("pooled", "all", "north", "north-00", 0.9)]
    assert scores_of(read_run(folder), SEGMENTATION, rows)["north", "north-00"][0] == 0.5


def test_a_missing_personal_model_is_missing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "fedbn", 0, lambda *_: 0.5, subjects=1)
    rows = [
        row
        for row in read_cases(folder / "cases.csv", SEGMENTATION)
        if row["trained_on"] != "north"
    ]
    found = scores_of(read_run(folder), SEGMENTATION, rows)
    assert {site for site, _ in found} == {"south", "west", "outside"}


@pytest.mark.parametrize(("strategy", "expected"), [("fedbn", 0.8), ("local", 0.6)])
def test_a_training_site_without_labels_is_given_what_the_others_have(
    strategy: str, expected: float, tmp_path: Path
) -> None:
    """The shared model or, of local training, the mean of models that are 0.2 worse there."""
    folder = write_run(tmp_path, strategy, 0, lambda *_: 0.8, subjects=1, unlabelled=["north"])
    rows = [
        row
        for row in read_cases(folder / "cases.csv", SEGMENTATION)
        if row["trained_on"] != "north"
    ]
    found = scores_of(read_run(folder), SEGMENTATION, rows)
    assert found["north", "north-00"][0] == pytest.approx(expected)
    assert found["south", "south-00"][0] == pytest.approx(0.8)


def test_left_out_in_turn_every_site_is_given_what_never_saw_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "local", 0, lambda *_: 0.8, subjects=1)
    config = folder / "config.yaml"
    config.write_text(config.read_text() + "protocol: leave_one_site_out\n")
    rows = [
        row
        for row in read_cases(folder / "cases.csv", SEGMENTATION)
        if row["trained_on"] != row["site"] != "outside"
    ]
    found = scores_of(read_run(folder), SEGMENTATION, rows)
    assert found["north", "north-00"][0] == pytest.approx(0.6)


def test_cases_then_structures_make_a_subject(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "fedavg", 0, lambda *_: 0.5, subjects=1)
    rows = [
        case_row("global", "all", "north", "n1", dice, case=case, part=part, hd95_mm=mm)
        for case, part, dice, mm in (
            ("first", "cavity", 0.2, 1.0),
            ("second", "cavity", 0.6, 3.0),
            ("first", "wall", 0.9, 5.0),
        )
    ]
    rows.append(case_row("global", "all", "north", "n2", 0.1, split="val"))
    found = scores_of(read_run(folder), SEGMENTATION, rows)
    assert list(found) == [("north", "n1")]
    assert found["north", "n1"] == pytest.approx([(0.4 + 0.9) / 2, (2.0 + 5.0) / 2])


def two_parts(
    folder: Path,
    strategy: str,
    dice: Mapping[str, float],
    untaught: Mapping[str, str],
    seed: int = 0,
) -> Cell:
    """A cell that reaches ``dice`` in each part; the models of the sites ``untaught`` are not
    scored on the part that they never saw."""
    name = f"{strategy},{seed}"
    run = write_run(folder / name, strategy, seed, lambda *_: 0.5, subjects=7)
    rows = [
        {**row, "part": part, "dice": value + 0.01 * int(row["subject"][-2:])}
        for row in read_cases(run / "cases.csv", SEGMENTATION)
        for part, value in dice.items()
        if untaught.get(row["trained_on"]) != part
    ]
    write_cases(run / "cases.csv", rows, SEGMENTATION)
    write_cross_site(run / "cross_site.csv", summarise(rows, SEGMENTATION, 0), SEGMENTATION)
    return Cell({"strategy": strategy, "seed": str(seed)}, run, "done")


def test_entrants_are_compared_over_the_parts_that_all_are_scored_on(tmp_path: Path) -> None:
    """A site's own model that never saw the hard part is no better for it."""
    cells = [
        two_parts(tmp_path, "fedavg", {"easy": 0.8, "hard": 0.2}, {}),
        two_parts(tmp_path, "local", {"easy": 0.7, "hard": 0.1}, {"south": "hard"}),
    ]
    result = comparison.build(tmp_path / "out", cells, "strategy=fedavg")
    # By plain loops over the tables: at south and at the unseen site easy alone counts.
    count = {"north": ("easy", "hard"), "west": ("easy", "hard")}
    for cell, (model, each) in zip(cells, (("global", False), ("local", True)), strict=True):
        with (cell.folder / "cases.csv").open() as file:
            table = list(csv.DictReader(file))
        for site in (*SITES, *UNSEEN):
            parts = [
                np.mean(
                    [
                        float(row["dice"])
                        for row in table
                        if (row["model"], row["site"], row["structure"]) == (model, site, part)
                        and (not each or site in UNSEEN or row["trained_on"] == site)
                    ]
                )
                for part in count.get(site, ("easy",))
            ]
            found = result.at_site[cell.entrant][site]
            assert found.headline.value == pytest.approx(np.mean(parts))
    rows = by_name(result)
    assert (rows["fedavg"].place, rows["local"].place) == (1, 2)
    assert rows["local"].difference.value == pytest.approx(-0.1)
    said = (
        "At outside, south means are over easy alone: not every model that is compared there is "
        "scored on hard."
    )
    out = tmp_path / "out"
    assert said in (out / "comparison.md").read_text()
    assert said in (out / "comparison.html").read_text()
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(comparison.summary(result, out))
    assert said in console.export_text()


def test_parts_count_seed_by_seed(tmp_path: Path) -> None:
    dice = {"easy": 0.8, "hard": 0.2}
    cells = [two_parts(tmp_path, "fedavg", dice, {}, seed) for seed in (0, 1)]
    cells += [two_parts(tmp_path, "local", dice, {"south": "hard"}, 0)]
    cells += [two_parts(tmp_path, "local", dice, {}, 1)]
    result = comparison.build(tmp_path / "out", cells, "strategy=fedavg")
    for row in result.standings:
        value = result.at_site[row.entrant]["south"].headline.value
        assert value == pytest.approx((0.83 + 0.53) / 2)
    assert by_name(result)["local"].difference.value == pytest.approx(0)
    (said,) = result.comparison.parts_told
    assert said.startswith("At outside, south hard does not count with every seed: with some, not")


def test_a_site_where_entrants_share_no_part_is_not_compared(tmp_path: Path) -> None:
    cells = [
        two_parts(tmp_path, "fedavg", {"easy": 0.8}, {}),
        two_parts(tmp_path, "local", {"easy": 0.7, "hard": 0.1}, {"south": "easy"}),
    ]
    found = read(cells, "strategy=fedavg")
    # All that the models of local training share at the unseen site is hard.
    assert (found.trained, found.unseen) == (("north", "west"), ())
    result = rank(found)
    assert by_name(result)["fedavg"].mean.value == pytest.approx(0.83)
    said = (
        "At outside, south no part counts, and there is no mean: not every model that is compared"
    )
    assert f"{said} there is scored on easy, hard." in page(result, draw_all(result))


def test_a_baseline_that_is_no_entrant() -> None:
    cells = [Cell({"strategy": name, "seed": "0"}, Path("x")) for name in ("local", "fedavg")]
    with pytest.raises(UserError, match=r"names no entrant.*'strategy=local', 'strategy=fedavg'"):
        read(cells, "strategy=fedbn")


# The ranking


def test_the_table_by_hand() -> None:
    base = {
        "north": {"n1": {"0": 0.5, "1": 0.7}, "n2": {"0": 0.8, "1": 0.8}},
        "south": {"s1": {"0": 0.4, "1": 0.4}, "s2": {"0": 0.2}},
        "outside": {"o1": {"0": 0.9, "1": 0.5}},
    }
    better = {
        "north": {"n1": {"0": 0.6}, "n2": {"0": 0.8, "1": 0.9}},
        "south": {"s1": {"0": 0.6, "1": 0.6}, "s2": {"0": 0.4}},
        "outside": {"o1": {"0": 0.6, "1": 0.6}},
    }
    compared = Comparison(
        (entrant("base", base), entrant("better", better)),
        "strategy=base",
        SEGMENTATION,
        ("north", "south"),
        ("outside",),
    )
    rows = by_name(rank(compared))
    first, second = rows["better"], rows["base"]
    assert (first.place, second.place) == (1, 2)
    # n1 0.6, n2 0.85; s1 0.6, s2 0.4.
    assert first.mean.value == pytest.approx((0.725 + 0.5) / 2)
    assert (first.worst_site, first.best_site) == ("south", "north")
    assert first.worst.value == pytest.approx(0.5)
    assert first.gap.value == pytest.approx(0.225)
    assert first.unseen.value == pytest.approx(0.6)
    assert first.second == pytest.approx(10 * (0.725 + 0.5) / 2)
    assert second.mean.value == pytest.approx((0.7 + 0.3) / 2)
    # Gains: n1 0.1 (seed 0 alone), n2 0.05; s1 0.2, s2 0.2.
    assert first.difference.value == pytest.approx((0.075 + 0.2) / 2)
    assert first.subjects == 4
    assert first.outcome == "n too small"
    # With seed 0 0.6, with seed 1 (0.9 + 0.6) / 2.
    assert first.seed_std == pytest.approx(np.std([0.6, 0.75], ddof=1))
    assert (first.mean_rank, second.mean_rank) == (1.0, 2.0)
    assert second.outcome == "baseline"
    assert math.isnan(second.p_subjects) and math.isnan(second.p_seeds)
    assert not second.difference.known


def table(
    rng: np.random.Generator,
    *,
    entrants: int,
    seeds: int,
    gain: float = 0.0,
    luck: float = 0.0,
    subjects: int = 12,
) -> Comparison:
    """A method against itself under other seeds, but for the last entrant's ``gain``.

    Subjects differ in difficulty, each training adds noise of 0.02 to each subject, and ``luck`` is
    the standard deviation of what one training adds to all subjects alike."""
    easy = {site: rng.uniform(0.5, 0.9, subjects) for site in SITES}
    found = []
    for number in range(entrants):
        dice: dict[str, dict[str, dict[str, float]]] = {
            site: {f"{site}-{index}": {} for index in range(subjects)} for site in SITES
        }
        for seed in range(seeds):
            shared = rng.normal(0, luck) + gain * (number == entrants - 1)
            for site in SITES:
                values = easy[site] + shared + rng.normal(0, 0.02, subjects)
                for index, value in enumerate(values):
                    dice[site][f"{site}-{index}"][str(seed)] = float(value)
        found.append(entrant(f"m{number}", dice))
    return Comparison(tuple(found), "strategy=m0", SEGMENTATION, SITES)


@pytest.mark.parametrize(
    ("luck", "clean_tries", "by_subjects_alone"), [(0.0, 97, 95), (0.01, 96, 18)]
)
def test_a_method_against_itself_under_other_seeds(
    luck: float, clean_tries: int, by_subjects_alone: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No significant cell in at least 95 of 100 tries, also where a training's luck is shared by
    all subjects, which the test over subjects alone takes for a difference."""
    monkeypatch.setattr(statistics, "DRAWS", 2)  # No outcome depends on either.
    monkeypatch.setattr(statistics, "PERMUTATIONS", 1)
    clean = by_subjects = 0
    for number in range(100):
        rows = rank(
            table(np.random.default_rng([7, number]), entrants=4, seeds=3, luck=luck)
        ).ranked
        clean += not any(row.outcome in ("better", "worse") for row in rows)
        by_subjects += not any(row.p_subjects_holm < 0.05 for row in rows)
    assert clean >= 95
    assert (clean, by_subjects) == (clean_tries, by_subjects_alone)


def test_a_real_gain_is_found() -> None:
    compared = table(np.random.default_rng(3), entrants=4, seeds=3, gain=0.05, luck=0.005)
    result = rank(compared)
    assert [row.outcome for row in result.ranked].count("better") == 1
    best = result.ranked[0]
    assert (best.label, best.outcome, best.shared_seeds) == ("m3", "better", 3)
    assert best.difference.low < 0.05 < best.difference.high + 0.02
    assert "a real difference (over 36 subjects" in sentences(result.standings, DICE)[0]


def test_one_seed_speaks_of_the_trained_models_alone() -> None:
    result = rank(table(np.random.default_rng(3), entrants=3, seeds=1, gain=0.05))
    best = result.ranked[0]
    assert best.outcome == "better"
    assert math.isnan(best.p_seeds)
    assert "real for these trained models" in sentences(result.standings, DICE)[0]


def test_an_entrant_with_one_seed_keeps_no_other_from_its_test() -> None:
    whole = table(np.random.default_rng(3), entrants=3, seeds=3, gain=0.05)
    first, second, third = whole.entrants
    early = replace(
        second,
        scores={
            site: {subject: {"0": by_seed["0"]} for subject, by_seed in subjects.items()}
            for site, subjects in second.scores.items()
        },
    )
    rows = by_name(rank(replace(whole, entrants=(first, early, third))))
    assert math.isnan(rows["m1"].p_seeds)
    assert rows["m1"].shared_seeds == 1
    assert rows["m2"].shared_seeds == 3
    assert rows["m2"].p_seeds_holm < 0.05


def test_seeds_do_not_multiply_subjects() -> None:
    one, three = (table(np.random.default_rng(5), entrants=2, seeds=n) for n in (1, 3))
    assert by_name(rank(one))["m1"].subjects == by_name(rank(three))["m1"].subjects == 36


def test_gains_at_most_subjects_must_agree_with_the_mean() -> None:
    """Almost all subjects lose a little, and one at the small site gains a lot."""
    base = {
        "big": {f"b{n:02d}": {"0": 0.5 + n / 100} for n in range(20)},
        "small": {f"s{n}": {"0": 0.3 + n / 100} for n in range(6)},
    }
    other = {
        site: {name: {"0": by["0"] - 0.01 - n / 1e4} for n, (name, by) in enumerate(found.items())}
        for site, found in base.items()
    }
    other["small"]["s0"] = {"0": 0.9}
    row = by_name(
        rank(
            Comparison(
                (entrant("a", base), entrant("b", other)),
                "strategy=a",
                SEGMENTATION,
                ("big", "small"),
            )
        )
    )["b"]
    assert row.difference.value > 0 > row.signed_ranks
    assert row.p_subjects_holm < 0.05
    assert row.outcome == "not shown"


def test_a_site_that_was_not_scored_takes_the_place() -> None:
    dice = {"north": {"a": {"0": 0.5}}, "south": {"b": {"0": 0.5}}}
    partial = {"north": {"a": {"0": 0.9}}}
    rows = by_name(
        rank(
            Comparison(
                (entrant("whole", dice), entrant("partial", partial)),
                "strategy=whole",
                SEGMENTATION,
                ("north", "south"),
            )
        )
    )
    assert rows["partial"].place == 0
    assert not rows["partial"].mean.known
    assert rows["whole"].place == 1


# Other tasks

ERROR = Measure("radial_error", "radial error", "lower", "mm", low=0)
RATE = Measure("found", "success rate", "higher", low=0, high=1)
LANDMARKS = TaskCard("landmarks", "landmarks", "landmark", ("a", "b"), (ERROR, RATE), "it is lost")
PRECISION = Measure("ap", "average precision", "higher", low=0, high=1, listed=False, whole=True)
DISTANCE = Measure("frechet", "Frechet distance", "lower", low=0, listed=False, whole=True)


def mapped(compared: Comparison, task: TaskCard, change: Callable[[Any], Any]) -> Comparison:
    """The same entrants with other scores, of ``task``."""
    entrants = [
        replace(
            one,
            scores={
                site: {
                    subject: {seed: change(score) for seed, score in by_seed.items()}
                    for subject, by_seed in subjects.items()
                }
                for site, subjects in one.scores.items()
            },
        )
        for one in compared.entrants
    ]
    return replace(compared, task=task, entrants=tuple(entrants))


def test_where_lower_is_better_everything_is_mirrored() -> None:
    usual = table(np.random.default_rng(3), entrants=4, seeds=3, gain=0.05, luck=0.005)
    found = rank(usual)
    mirrored = rank(mapped(usual, LANDMARKS, lambda score: 1 - score))
    for row, other in zip(found.standings, mirrored.standings, strict=True):
        assert (row.entrant, row.place, row.mean_rank) == (
            other.entrant,
            other.place,
            other.mean_rank,
        )
        assert (row.worst_site, row.outcome) == (other.worst_site, other.outcome)
        assert other.mean.value == pytest.approx(1 - row.mean.value)
        assert other.gap.value == pytest.approx(row.gap.value) and other.gap.value > 0
        for name in ("p_subjects_holm", "p_seeds_holm", "seed_std"):
            assert getattr(other, name) == pytest.approx(getattr(row, name), nan_ok=True)
        assert other.difference.value == pytest.approx(row.difference.value, nan_ok=True)
    assert found.friedman is not None and mirrored.friedman is not None
    assert found.friedman.p_value == mirrored.friedman.p_value
    verdict = sentences(mirrored.standings, ERROR)[0]
    assert "m3 is best in the mean over sites, with a radial error of 0." in verdict
    assert " mm less than m0 (95 % interval 0.0" in verdict


def test_a_page_of_another_task_says_its_names_and_none_of_segmentations() -> None:
    usual = table(np.random.default_rng(3), entrants=4, seeds=3, gain=0.05)
    result = rank(mapped(usual, LANDMARKS, lambda score: 3 - 2 * score))
    text = page(result, draw_all(result))
    assert "Radial error (mm) on the test split" in text and "Success rate" in text
    assert "then over landmarks and over the seeds" in text
    assert "Dice" not in text and "structure" not in text
    # The best is the rightmost of the tracks, and its worst site left of its mean.
    best = text[text.index("<svg") : text.index("</svg>")]
    low, point = (float(found) for found in re.findall(r'cx="([\d.]+)"', best))
    assert low < point
    assert text.count('class="best"') == len(SITES)


def test_a_headline_of_whole_splits_is_tested_over_seeds_alone() -> None:
    task = replace(LANDMARKS, part="", parts=(), measures=(DISTANCE,))
    values = {"a": (9.0, 9.2, 9.1), "b": (7.0, 7.1, 7.2), "c": (9.0, 9.3, 8.9)}
    compared = Comparison(
        tuple(
            Entrant(
                f"strategy={name}",
                {"strategy": name},
                tuple(Cell({"strategy": name, "seed": str(n)}, Path(name), "done") for n in "012"),
                {
                    site: {"": {str(n): np.array([value + at]) for n, value in enumerate(of)}}
                    for at, site in enumerate(SITES)
                },
            )
            for name, of in values.items()
        ),
        "strategy=a",
        task,
        SITES,
    )
    result = rank(compared)
    rows = by_name(result)
    assert [row.label for row in result.ranked] == ["b", "c", "a"]
    assert math.isnan(rows["b"].p_subjects) and rows["b"].subjects == 0
    assert not rows["b"].mean.has_interval
    assert (rows["b"].outcome, rows["c"].outcome) == ("better", "not shown")
    assert rows["b"].difference.value == pytest.approx(2.0)
    assert (
        "2.000 less than a: a real difference (over 3 seeds p"
        in sentences(result.standings, DISTANCE)[0]
    )
    text = page(result, draw_all(result))
    assert "measured of a site's whole test split" in text and "tested over seeds alone" in text
    assert "p, subjects" not in text and "95 %" not in text
    early = mapped(compared, task, lambda score: score)
    early = replace(
        early,
        entrants=tuple(
            replace(
                one,
                scores={site: {"": {"0": by[""]["0"]}} for site, by in one.scores.items()},
            )
            for one in early.entrants
        ),
    )
    assert by_name(rank(early))["b"].outcome == "n too small"


def test_measures_of_whole_splits_are_read_from_the_matrix(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "local", 0, lambda *_: 0.5, subjects=2)
    rows = read_cases(folder / "cases.csv", SEGMENTATION)
    run = read_run(folder)
    whole = [
        {**row, "metric": "ap", "mean": 0.25 if row["trained_on"] == row["site"] else 0.75}
        for row in run.cross_site
        if row["metric"] == "dice" and row["site"] != "west"
    ]
    run = replace(run, cross_site=[*run.cross_site, *whole])
    beside = scores_of(run, replace(SEGMENTATION, measures=(DICE, PRECISION)), rows)
    assert beside["north", "north-00"] == pytest.approx([0.5, 0.25])
    assert beside["outside", "outside-01"] == pytest.approx([0.3, 0.75])
    assert np.isnan(beside["west", "west-00"][1])
    first = scores_of(run, replace(SEGMENTATION, measures=(PRECISION, DICE)), rows)
    assert sorted(first) == [("north", ""), ("outside", ""), ("south", "")]
    assert first["north", ""] == pytest.approx([0.25, 0.5])
    # Without any case, as of generated images.
    alone = scores_of(run, replace(SEGMENTATION, measures=(PRECISION,)), [])
    assert alone["outside", ""] == pytest.approx([0.75])


def test_cells_of_two_tasks_are_refused(tmp_path: Path) -> None:
    cells = grid(tmp_path, {"fedavg": 0.0, "fedprox": 0.01}, seeds=(0,), subjects=2)
    other = replace(SEGMENTATION, name="outlines", title="outlines")
    write_method(cells[1].folder, other)
    with pytest.raises(UserError, match=r"measures segmentation and .*fedprox.* outlines.*each"):
        read(cells, "strategy=fedavg")


# The whole of it


Built = tuple[Path, list[Cell], Result]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Five strategies and three seeds with a clock; one cell failed and one is left."""
    out = tmp_path_factory.mktemp("comparison")
    gains = {"fedavg": 0.0, "local": -0.05, "fedbn": 0.04, "pooled": 0.06}
    cells = grid(out / "cells", gains, clock=1800.0)
    cells += [
        Cell(
            {"strategy": "<b>odd</b>", "seed": "0"}, out / "x", "failed", "it <i>broke</i> & ended"
        ),
        Cell({"strategy": "moon", "seed": "0"}, out / "y"),
    ]
    return out, cells, comparison.build(out, cells, "strategy=fedavg")


def files_of(out: Path) -> dict[str, bytes]:
    paths = [*out.glob("comparison*"), *(out / "figures").iterdir()]
    return {path.name: path.read_bytes() for path in paths}


def test_the_files_and_that_they_are_the_same_again(built: Built) -> None:
    out, cells, _ = built
    before = files_of(out)
    assert set(before) == {
        "comparison.csv",
        "comparison_sites.csv",
        "comparison.md",
        "comparison.tex",
        "comparison.html",
        "critical_difference.png",
        "heat_maps.png",
        "trade_off.png",
        "learning_curves.png",
        "single_site_models.png",
    }
    comparison.build(out, cells, "strategy=fedavg")
    assert files_of(out) == before


def test_traffic_of_many_scales_is_labelled_in_bytes_alone(built: Built) -> None:
    """Small ticks of a logarithmic axis have a formatter of their own, which writes TeX."""
    for least, most in ((1e7, 2.5e8), (3e7, 8e8), (2e4, 3e9)):
        amounts = itertools.cycle((least, most))
        standings = tuple(replace(row, bytes=next(amounts)) for row in built[2].standings)
        drawn = trade_off(replace(built[2], standings=standings))
        axis = drawn.axes[1].xaxis
        drawn.draw_without_rendering()
        low, high = axis.get_view_interval()
        major = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        shown = [tick.label1.get_text() for tick in (*major, *axis.get_minor_ticks())]
        shown = [text for text in shown if text]
        assert 2 <= len(shown) <= 12 and all(re.fullmatch(r"[\d.]+ [kMG]?B", t) for t in shown), (
            shown
        )


def test_the_csv_holds_what_was_ranked(built: Built) -> None:
    out, _, result = built
    rows = by_name(result)
    with (out / "comparison.csv").open(newline="") as file:
        lines = {line["label"]: line for line in csv.DictReader(file)}
    assert list(lines) == list(rows)
    for label, line in lines.items():
        row = rows[label]
        assert float(line["mean"] or "nan") == pytest.approx(row.mean.value, abs=0, nan_ok=True)
        assert float(line["hd95_mm"] or "nan") == pytest.approx(row.second, abs=0, nan_ok=True)
        assert (line["outcome"], line["dice_at_hours"] == "") == (
            row.outcome,
            math.isnan(row.at_hours),
        )
    assert [(row.label, row.place) for row in rows.values()] == [
        ("pooled", 0),  # An upper bound does not compete.
        ("fedbn", 1),
        ("fedavg", 2),
        ("local", 3),
        ("<b>odd</b>", 0),
        ("moon", 0),
    ]
    assert rows["fedbn"].outcome == "better"
    assert rows["local"].outcome == "worse"
    assert rows["fedbn"].bytes == 3 * 1500
    assert rows["fedbn"].seconds == 6.0
    # All rounds are over after 1.5 hours.
    assert rows["fedavg"].hours == 1.5
    text = (out / "comparison.csv").read_text()
    assert "nan" not in text.lower()


def test_the_table_of_sites(built: Built) -> None:
    out, *_ = built
    with (out / "comparison_sites.csv").open(newline="") as file:
        rows = {(row["entrant"], row["site"]): row for row in csv.DictReader(file)}
    assert len(rows) == 4 * 4
    outside = rows["strategy=local", "outside"]
    assert (outside["role"], outside["subjects"]) == ("unseen", "12")
    assert float(outside["difference"]) == pytest.approx(-0.05 - 0.2, abs=0.01)
    assert rows["strategy=fedavg", "north"]["difference"] == ""


class _Page(HTMLParser):
    """Collects open tags and everything that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "wbr", "line", "circle"):
            self.stack.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_opens_offline_and_escapes(built: Built) -> None:
    out, *_ = built
    html = (out / "comparison.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(html)
    assert page.stack == []
    assert all(link.startswith(("data:image/png", "#")) for link in page.links)
    assert "<b>odd</b>" not in html and "<i>broke</i>" not in html
    assert "it <i>broke</i> & ended" in page.text
    assert "nan" not in page.text.lower().split()
    assert "fedbn is best in the mean over sites" in page.text
    assert "Of 14 cells, 1 failed and 1 left." in page.text
    assert "After 1.5 h of simulated time" in page.text
    # The best of each site's column, pooled training aside, are all fedbn's.
    row = html[html.index('<th scope="row">fedbn</th>') :]
    assert row[: row.index("</tr>")].count('class="best"') == html.count('class="best"') == 4


def test_the_terminal_and_the_papers_tables(built: Built) -> None:
    out, _, result = built
    console = Console(width=100, record=True)
    console.print(comparison.summary(result, out))
    text = console.export_text()
    assert "1  fedbn" in text and "better" in text
    assert "comparison.html" in text
    assert "nan" not in text.lower().split()
    markdown = (out / "comparison.md").read_text()
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    assert len({line.count("|") for line in lines}) == 1
    latex = (out / "comparison.tex").read_text()
    heads = next(line for line in latex.splitlines() if line.startswith("entrant &"))
    body = latex[latex.index("\\midrule") : latex.index("\\bottomrule")].splitlines()[1:]
    assert {line.count("&") for line in body} == {heads.count("&")}
    assert "$<$b>odd$<$/b>" in latex
    assert "nan" not in latex


def test_simulated_time_ranks_by_what_was_done_by_then(tmp_path: Path) -> None:
    truth: Truth = lambda *_: 0.9  # noqa: E731
    slow = write_run(tmp_path / "slow", "fedavg", 0, truth, clock=3600.0)
    fast = write_run(tmp_path / "fast", "fedprox", 0, truth, clock=1200.0)
    cells = [
        Cell({"strategy": "fedavg"}, slow, "done"),
        Cell({"strategy": "fedprox"}, fast, "done"),
    ]
    rows = by_name(rank(read(cells, "strategy=fedavg")))
    # The fast run is over after an hour, when the slow one has done one round of three.
    assert rows["fedprox"].hours == 1.0
    assert rows["fedprox"].at_hours == pytest.approx(0.9)
    assert rows["fedavg"].at_hours == pytest.approx(0.3)
    rows = by_name(rank(read(cells, "strategy=fedavg"), hours=0.5))
    assert rows["fedprox"].at_hours == pytest.approx(0.3)
    assert math.isnan(rows["fedavg"].at_hours)
    curve = training.curve([read_run(fast)])
    assert curve.values == pytest.approx([0.3, 0.6, 0.9])
    assert curve.hours == pytest.approx([1 / 3, 2 / 3, 1])


def test_without_a_clock_nothing_is_ranked_by_time(tmp_path: Path) -> None:
    cells = grid(tmp_path, {"fedavg": 0.0}, seeds=(0,), subjects=2)
    row = by_name(rank(read(cells, "strategy=fedavg")))["fedavg"]
    assert math.isnan(row.hours) and math.isnan(row.at_hours)


def test_a_broken_cell_is_a_failed_one(tmp_path: Path) -> None:
    cells = grid(tmp_path / "cells", {"fedavg": 0.0, "fedprox": 0.01}, seeds=(0,), subjects=3)
    (cells[1].folder / "cases.csv").unlink()
    rows = by_name(comparison.build(tmp_path, cells, "strategy=fedavg"))
    assert (rows["fedprox"].failed, rows["fedprox"].place) == (1, 0)
    assert "cannot read the table" in (tmp_path / "comparison.html").read_text()


def test_one_entrant_still_builds(tmp_path: Path) -> None:
    cells = grid(tmp_path / "cells", {"fedavg": 0.0}, seeds=(0,), subjects=1)
    stale = tmp_path / "figures" / "critical_difference.png"
    stale.parent.mkdir()
    stale.write_bytes(b"of an earlier, larger grid")
    comparison.build(tmp_path, cells, "strategy=fedavg")
    assert not stale.exists()
    page = (tmp_path / "comparison.html").read_text()
    assert "Only fedavg is finished" in page
    assert "takes three entrants and two sites" in page


def test_cells_of_which_none_is_finished_compare_nothing(tmp_path: Path) -> None:
    left = [Cell({"strategy": "fedavg", "seed": "0"}, tmp_path / "none")]
    with pytest.raises(UserError, match="no cell of the comparison is finished; run"):
        comparison.build(tmp_path, left, "strategy=fedavg")
    cells = grid(tmp_path / "cells", {"fedavg": 0.0}, seeds=(0,), subjects=1)
    (cells[0].folder / "cases.csv").unlink()
    with pytest.raises(UserError, match="is finished: cannot read the table"):
        comparison.build(tmp_path, cells, "strategy=fedavg")


def test_folds_are_summed_and_their_curves_averaged(tmp_path: Path) -> None:
    truth: Truth = lambda *_: 0.6  # noqa: E731
    run = write_run(tmp_path / "run", "fedavg", 0, truth, subjects=2)
    config = run / "config.yaml"
    config.write_text(config.read_text() + "protocol: leave_one_site_out\n")
    (run / "rounds.jsonl").unlink()
    for site, value in (("north", 0.6), ("south", 0.9)):
        write_run(run / "folds" / site, "fedavg", 0, lambda *_, v=value: v, subjects=2)
    compared = read([Cell({"strategy": "fedavg"}, run, "done")], "strategy=fedavg")
    (entrant_,) = compared.entrants
    assert compared.in_turn == "site"
    assert training.spent(entrant_, "bytes_up") == 2 * 3 * 500
    assert training.curve(training.trainings(entrant_)).values == pytest.approx([0.25, 0.5, 0.75])
