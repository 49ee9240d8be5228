"""Federations of hundreds of sites: which pairs are compared, and a report that stays readable."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.measured import DICE, SEGMENTATION
from kit.pages import Page, shown, write_run
from scipy.stats import spearmanr

from fedshift.protocol import statistics as names
from fedshift.server import shift
from fedshift.server.advice.rules import advise
from fedshift.server.pairs import FEW_SITES, NEAREST, RINGS, choose
from fedshift.server.report import build, figures
from fedshift.server.report.run import read_run
from fedshift.server.tables.correlation import rank_correlation
from fedshift.server.tables.files import write_cross_site, write_shift


def sent_by(count: int, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """What so many sites might send, small: a grey level of their own, features about it."""
    random = np.random.default_rng(seed)
    bins = len(names.intensity_edges()) - 1
    found = {}
    for number in range(count):
        level = random.uniform(0, 1)
        middle = bins * (0.3 + 0.4 * level)
        histogram = np.exp(-(((np.arange(bins) - middle) / 20) ** 2))
        features = random.normal(level, 1, (4, 3))
        found[f"s{number:03d}"] = {
            names.INTENSITY_HISTOGRAM: histogram,
            names.LOG_SPECTRUM: random.normal(0, 1, 32),
            names.FEATURE_COUNT: np.array([20.0]),
            names.FEATURE_MEAN: features.mean(axis=0),
            names.FEATURE_COVARIANCE: np.eye(3) * random.uniform(0.5, 1),
            names.BLOCK_COUNTS: np.full(4, 5.0),
            names.BLOCK_FEATURES: features,
            names.TRAINING_SECOND_MOMENT: 20 * np.eye(3),
            names.LABELS: random.uniform(1, 2, 3),
        }
    return found


def answers_to(
    asked: dict[str, dict[str, np.ndarray]], sent: dict[str, dict[str, np.ndarray]]
) -> dict[str, dict[str, np.ndarray]]:
    """Each site's answer, its two held-out blocks above thresholds as their mean features are."""
    answers = {}
    for site, question in asked.items():
        held = sent[site][names.BLOCK_FEATURES][names.HELD_OUT_BLOCKS]
        above = held @ question[names.DIRECTIONS].T > question[names.THRESHOLDS]
        fourier = np.cos(np.outer(sent[site][names.BLOCK_FEATURES].sum(axis=1), np.arange(8.0)))
        answers[site] = {names.DOMAIN_COUNTS: 5.0 * above, names.FOURIER_MEANS: fourier}
    return answers


# The pairs.


def test_few_sites_are_all_compared_and_many_sampled() -> None:
    few = choose(sent_by(FEW_SITES), "auto", 0)
    assert (few.how, len(few.pairs), few.sentence) == ("all", FEW_SITES * (FEW_SITES - 1) // 2, "")
    many = choose(sent_by(FEW_SITES + 1), "auto", 0)
    assert many.how == "sampled"
    assert len(many.pairs) <= RINGS * (FEW_SITES + 1) < many.of
    assert many.sentence.startswith(f"Of 1,275 pairs of sites {len(many.pairs)} were compared")
    assert choose(sent_by(FEW_SITES + 1), "all", 0).of == 1275


def test_sampled_pairs_hold_every_site_and_follow_the_seed() -> None:
    sent = sent_by(500)
    found = choose(sent, "sampled", 3)
    assert found == choose(sent, "sampled", 3) != choose(sent, "sampled", 4)
    assert list(found.pairs) == sorted(set(found.pairs))
    assert all(first < second for first, second in found.pairs)
    times = Counter(itertools.chain(*found.pairs))
    assert times.keys() == sent.keys()
    assert max(times.values()) <= 2 * RINGS
    assert 0.97 * RINGS * 500 < len(found.pairs) <= RINGS * 500


def test_every_pair_is_drawn_as_often() -> None:
    """Shares of pairs, which advice rests on, are then those of all pairs in the mean."""
    sent = sent_by(12)
    times = Counter(pair for seed in range(400) for pair in choose(sent, "sampled", seed).pairs)
    share = np.array([times[pair] for pair in itertools.combinations(sorted(sent), 2)]) / 400
    # A ring of 12 has each pair with probability 2/11; five of them miss it with (9/11) ** 5.
    expected = 1 - (9 / 11) ** RINGS
    assert len(share) == 66
    assert np.abs(share - expected).max() < 4.5 * math.sqrt(expected * (1 - expected) / 400)


def test_nearest_pairs_are_those_of_the_smallest_distance() -> None:
    sent = sent_by(30)
    found = choose(sent, "nearest", 0)
    wanted = set()
    for site, kept in sent.items():
        p = kept[names.INTENSITY_HISTOGRAM] / kept[names.INTENSITY_HISTOGRAM].sum()
        distance = {}
        for other, theirs in sent.items():
            q = theirs[names.INTENSITY_HISTOGRAM] / theirs[names.INTENSITY_HISTOGRAM].sum()
            distance[other] = np.sqrt(((np.sqrt(p) - np.sqrt(q)) ** 2).sum() / 2)
        del distance[site]
        near = sorted(distance, key=distance.__getitem__)[:NEAREST]
        wanted |= {tuple(sorted((site, other))) for other in near}
    assert set(found.pairs) == wanted
    del sent["s000"][names.INTENSITY_HISTOGRAM]
    assert not any("s000" in pair for pair in choose(sent, "nearest", 0).pairs)


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("how", ["all", "nearest", "sampled"])
def test_very_few_sites_have_the_pairs_they_have(count: int, how: Any) -> None:
    found = choose(sent_by(count), how, 0)
    assert len(found.pairs) == found.of == count * (count - 1) // 2


def test_chosen_pairs_have_the_values_that_all_pairs_have() -> None:
    """Also the domain classifiers', whose columns in an answer lie by who was asked about whom."""
    sent = sent_by(12)
    asked = shift.questions(sent, 0)
    rows, _ = shift.pairwise(sent, answers_to(asked, sent), 0)
    every = {(row["site_a"], row["site_b"], row["metric"]): row["value"] for row in rows}
    for how in ("sampled", "nearest"):
        pairs = choose(sent, how, 1).pairs  # type: ignore[arg-type]
        assert 12 < len(pairs) < 66
        fewer = shift.questions(sent, 0, pairs)
        part, _ = shift.pairwise(sent, answers_to(fewer, sent), 0, pairs)
        assert {(row["site_a"], row["site_b"]) for row in part} == set(pairs)
        assert {row["metric"] for row in part} == {row["metric"] for row in rows}
        for row in part:
            wanted = every[row["site_a"], row["site_b"], row["metric"]]
            assert row["value"] == pytest.approx(wanted, abs=1e-12)
    degree = Counter(itertools.chain(*pairs))
    width = 1 + shift.DOMAIN_RELABELLINGS
    for site, question in fewer.items():
        assert len(question[names.DIRECTIONS]) == width * degree[site]


def test_five_hundred_sites_are_compared_in_little_time_and_space(tmp_path: Path) -> None:
    sent = sent_by(500)
    start = time.perf_counter()
    chosen = choose(sent, "auto", 0)
    asked = shift.questions(sent, 0, chosen.pairs)
    rows, _ = shift.pairwise(sent, answers_to(asked, sent), 0, chosen.pairs)
    write_shift(tmp_path / "shift.csv", rows)
    assert time.perf_counter() - start < 60
    assert len(rows) == len(chosen.pairs) * len({row["metric"] for row in rows})
    assert (tmp_path / "shift.csv").stat().st_size < 3_000_000


# The correlation of a part of the pairs.


def federation(count: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    values = random.random((count, count))
    values += values.T
    dice = 0.9 - 0.2 * values + 0.1 * random.random((count, count))
    np.fill_diagonal(dice, 0.9 + 0.05 * random.random(count))
    return [f"s{number:03d}" for number in range(count)], values, dice


def rows_of(
    sites: list[str], values: np.ndarray, dice: np.ndarray, pairs: list[tuple[int, int]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    shifts = [
        {"site_a": sites[i], "site_b": sites[j], "metric": "mmd", "value": values[i, j]}
        for i, j in pairs
    ]
    cells = [
        {
            "model": "local", "trained_on": home, "site": site, "vendor": "v",
            "part": "x", "metric": "dice", "mean": dice[i, j],
        }
        for (i, home), (j, site) in itertools.product(enumerate(sites), repeat=2)
        if np.isfinite(dice[i, j])
    ]  # fmt: skip
    return shifts, cells


def test_rho_and_p_of_sampled_pairs_are_those_of_renaming_the_drops() -> None:
    sites, values, dice = federation(5, seed=2)
    pairs = [(0, 1), (1, 2), (2, 4), (0, 3)]
    (found,) = rank_correlation(*rows_of(sites, values, dice, pairs), DICE, sampled=True)
    ways = [way for pair in pairs for way in (pair, pair[::-1])]
    shifts = [values[way] for way in ways]
    rhos = []
    for name in itertools.permutations(range(5)):
        drop = [dice[name[i], name[i]] - dice[name[i], name[j]] for i, j in ways]
        rhos.append(spearmanr(shifts, drop).statistic)
    assert found.n_pairs == 8
    assert found.rho == pytest.approx(rhos[0])
    assert found.p_value == pytest.approx(np.mean(np.abs(rhos) >= abs(rhos[0]) - 1e-9))


def test_all_pairs_taken_for_sampled_give_the_same() -> None:
    sites, values, dice = federation(5, seed=3)
    rows = rows_of(sites, values, dice, list(itertools.combinations(range(5), 2)))
    (whole,), (part,) = rank_correlation(*rows, DICE), rank_correlation(*rows, DICE, sampled=True)
    assert (part.n_pairs, part.rho) == (whole.n_pairs, pytest.approx(whole.rho))
    assert part.p_value == pytest.approx(whole.p_value)


def test_a_site_without_a_model_is_left_out_of_sampled_pairs() -> None:
    sites, values, dice = federation(6, seed=4)
    pairs = [(0, 1), (1, 2), (2, 4), (0, 3), (3, 5), (4, 5)]
    dice[5] = np.nan
    (found,) = rank_correlation(*rows_of(sites, values, dice, pairs), DICE, sampled=True)
    assert found.n_pairs == 8


# The run and its report.


def test_the_pairs_of_a_run_are_set_and_recorded(
    simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    few = ("evaluated=[global]", "rounds=1", "validate_every=0")
    for how in ("nearest", "sampled"):
        run = simulate_undrawn(tmp_path / how, *few, f"shift.pairs={how}")
        recorded = json.loads((run / "checkpoints" / "evaluation.json").read_text())
        assert recorded["shift_pairs"]["how"] == how
        assert f"shift.pairs={how}" in recorded["shift_pairs"]["told"]
        assert (run / "shift.csv").read_text().count("\n") > 1


def test_nearest_pairs_are_no_evidence_for_all(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [f"s{number}" for number in range(6)], rounds=1)
    told = "Of 15 pairs of sites 9 were compared, each site's 5 nearest (shift.pairs=nearest)."
    notes = {"problems": [], "encoder": "", "shift_pairs": {"how": "nearest", "told": told}}
    (run / "checkpoints" / "evaluation.json").write_text(json.dumps(notes))
    found = read_run(run)
    assert found.correlations == []
    advice = advise(found.evidence)
    assert "nothing" not in advice.families and "harmonise" not in advice.families
    assert any("shift.pairs=nearest" in item.said for item in advice.findings)
    text = Page(build(run)).text
    assert told in text
    assert "pairs that stand for all, as shift.pairs=sampled draws them" in text


def test_the_report_of_many_sites_is_small_and_names_few(tmp_path: Path) -> None:
    sites = [f"hospital_{number:03d}" for number in range(100)]
    run = write_run(tmp_path / "run", sites[:3], tuple(sites[3:]), ("cavity",), rounds=1,
                    metrics=("dice", "hd95_mm"))  # fmt: skip
    start = time.perf_counter()
    page = build(run)
    assert time.perf_counter() - start < 60
    assert page.stat().st_size < 1_000_000
    found = Page(page)
    # A head, three best, what lies between, three worst.
    assert len(found.cells["0|0"]) == 8
    assert "94 sites between" in found.cells["0|0"][4][0]
    values = {row["site"]: row["mean"] for row in read_run(run).rows(DICE, "cavity")
              if row["model"] == "global"}  # fmt: skip
    order = sorted(values, key=lambda site: -values[site])
    rows = [row[0] for row in found.cells["0|0"][1:]]
    for site, row in zip([*order[:3], *order[-3:]], [*rows[:3], *rows[4:]], strict=True):
        assert row.startswith(site)
    printed = shown(run, width=80)
    assert max(map(len, printed.splitlines())) <= 80
    assert len(printed.splitlines()) < 40


def test_the_matrix_of_many_sites_is_drawn_by_vendor(tmp_path: Path) -> None:
    train = [f"t{number:02d}" for number in range(4)]
    sites = [*train, *(f"u{number:02d}" for number in range(60))]
    run = write_run(tmp_path / "run", train, tuple(sites[4:]), ("cavity",), metrics=("dice",),
                    scores_only=True)  # fmt: skip
    vendor = {site: "AB"[place % 2] for place, site in enumerate(sites)}
    rows = [{**row, "vendor": vendor[row["site"]]} for row in read_run(run).cross_site]
    write_cross_site(run / "cross_site.csv", rows, SEGMENTATION)
    found = read_run(run)
    groups = figures.vendor_groups(found)
    assert list(groups) == ["A", "A\n(unseen)", "B", "B\n(unseen)"]
    names, labels, mean = figures._grouped(found, found.matrix(DICE), groups)
    assert names == list(groups)
    assert set(labels) == {
        "local, at home", "local, A", "local, B", "personal (each site's own)", "federated",
        "pooled (upper bound)",
    }  # fmt: skip

    def over(model: str, home: str, name: str, at_home: bool) -> float:
        kept = [
            row["mean"]
            for row in rows
            if (row["model"], vendor.get(row["trained_on"], "")) == (model, home)
            and row["site"] in groups[name]
            and (row["site"] == row["trained_on"]) == at_home
        ]
        return float(np.mean(kept)) if kept else math.nan

    for column, name in enumerate(names):
        seen = dict(zip(labels, mean[:, column], strict=True))
        assert seen["local, A"] == pytest.approx(over("local", "A", name, False))
        assert seen["federated"] == pytest.approx(over("global", "", name, False))
        at_home = over("local", name[0], name, True)
        assert seen["local, at home"] == pytest.approx(at_home, nan_ok=True)
    rows = [{**row, "vendor": row["site"]} for row in rows]
    write_cross_site(run / "cross_site.csv", rows, SEGMENTATION)
    assert figures.vendor_groups(read_run(run)) == {}
