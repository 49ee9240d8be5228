"""The tables of a run: exact columns, hand-computed summaries, and loops as oracles."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.measured import DICE, HD95, SEGMENTATION, measured
from scipy.stats import spearmanr

from fedshift import UserError
from fedshift.client.metrics import score_case
from fedshift.protocol.measures import Measure
from fedshift.protocol.tables import SHIFT_COLUMNS
from fedshift.server.tables.correlation import PERMUTATIONS, rank_correlation
from fedshift.server.tables.files import (
    read_cases,
    read_cross_site,
    read_shift,
    write_cases,
    write_cross_site,
    write_shift,
)
from fedshift.server.tables.overview import (
    Overview,
    comparable,
    narrowed,
    overview,
    site_values,
)
from fedshift.server.tables.summary import summarise

CASE_COLUMNS, CROSS_SITE_COLUMNS = SEGMENTATION.case_columns, SEGMENTATION.summary_columns
VOLUME, ASSD = SEGMENTATION.measure("volume_ml"), SEGMENTATION.measure("assd_mm")


def case_row(subject: str, case: str, dice: float, **other: Any) -> dict[str, Any]:
    row: dict[str, Any] = measured(0.5) | {
        "model": "global",
        "trained_on": "all",
        "site": "a",
        "vendor": "V",
        "split": "test",
        "subject": subject,
        "case": case,
        "part": "it",
        "failed": 0,
    }
    return row | {"dice": dice} | other


def cross_row(model: str, trained_on: str, site: str, mean: float, **other: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(CROSS_SITE_COLUMNS, math.nan) | {
        "model": model,
        "trained_on": trained_on,
        "site": site,
        "vendor": f"V{site}",
        "part": "it",
        "metric": "dice",
        "n": 1,
        "n_failed": 0,
        "mean": mean,
    }
    return row | other


def one(rows: list[dict[str, Any]], **keys: str) -> dict[str, Any]:
    (row,) = (row for row in rows if all(row[key] == value for key, value in keys.items()))
    return row


# Files


def test_cases_keep_their_columns_order_and_every_bit(tmp_path: Path) -> None:
    rows = [
        case_row("s2", "c1", np.float64(0.1) + 0.2, hd95_mm=1e-17, failed=np.int64(1)),
        case_row("007", 'c"2,\n', 1 / 3, hd95_mm=math.pi),
    ]
    write_cases(tmp_path / "cases.csv", rows, SEGMENTATION)
    text = (tmp_path / "cases.csv").read_text()
    assert text.splitlines()[0] == ",".join(CASE_COLUMNS)
    assert "np.float64" not in text
    found = read_cases(tmp_path / "cases.csv", SEGMENTATION)
    assert [row["subject"] for row in found] == ["007", "s2"]
    keys = ["part" if column == "structure" else column for column in CASE_COLUMNS]
    assert found == [{key: row[key] for key in keys} for row in reversed(rows)]
    write_cases(tmp_path / "again.csv", reversed(rows), SEGMENTATION)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "cases.csv").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.csv", "cases.csv"]


def test_cross_site_and_shift_come_back_with_their_nans(tmp_path: Path) -> None:
    cross = summarise([case_row("s", "c", 0.25)], SEGMENTATION, seed=0)
    write_cross_site(tmp_path / "cross_site.csv", cross, SEGMENTATION)
    header = (tmp_path / "cross_site.csv").read_text().splitlines()[0]
    assert header == ",".join(CROSS_SITE_COLUMNS)
    found = one(read_cross_site(tmp_path / "cross_site.csv", SEGMENTATION), metric="dice")
    assert (found["mean"], found["n"], found["vendor"]) == (0.25, 1, "V")
    assert math.isnan(found["ci_low"])
    shift = [{"site_a": "a", "site_b": "b", "metric": "mmd", "value": 0.1}]
    write_shift(tmp_path / "shift.csv", shift)
    assert (tmp_path / "shift.csv").read_text() == ",".join(SHIFT_COLUMNS) + "\na,b,mmd,0.1\n"
    assert read_shift(tmp_path / "shift.csv") == shift


def test_a_failed_write_leaves_the_earlier_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cases.csv"
    write_cases(path, [case_row("s", "c", 0.5)], SEGMENTATION)
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_cases(path, [], SEGMENTATION)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_broken_tables_are_named(tmp_path: Path) -> None:
    path = tmp_path / "shift.csv"
    with pytest.raises(UserError, match=r"cannot read the table .*shift\.csv"):
        read_shift(path)
    path.write_text("site_a,site_b,value\na,b,1\n")
    with pytest.raises(UserError, match=r"shift\.csv has no column metric"):
        read_shift(path)
    for line in ("a,b,mmd", "a,b,mmd,far"):
        path.write_text(f"{','.join(SHIFT_COLUMNS)}\na,c,mmd,1\n{line}\n")
        with pytest.raises(UserError, match="row 3 is broken"):
            read_shift(path)


# The cross-site summary


def test_cases_are_averaged_by_subject_before_the_site() -> None:
    rows = [case_row("s1", f"c{i}", 0.9) for i in range(9)] + [case_row("s2", "c", 0.1)]
    dice = one(summarise(rows, SEGMENTATION, seed=0), metric="dice")
    assert dice["mean"] == pytest.approx(0.5)  # 0.82 if every case counted alike.
    assert dice["median"] == pytest.approx(0.5)
    assert dice["std"] == pytest.approx(math.sqrt(2 * 0.4**2))
    assert (dice["n"], dice["n_failed"]) == (10, 0)


def test_only_the_test_split_is_summarised() -> None:
    rows = [case_row("s1", "c", 0.2), case_row("s2", "c", 0.9, split="val")]
    assert one(summarise(rows, SEGMENTATION, seed=0), metric="dice")["mean"] == 0.2
    assert summarise(rows[1:], SEGMENTATION, seed=0) == []


def test_groups_are_told_apart_and_vendors_joined() -> None:
    rows = [
        case_row("s1", "c", 0.2),
        case_row("s2", "c", 0.4, vendor="A"),
        case_row("s1", "c", 0.6, part="other", failed=1),
        case_row("s1", "c", 0.8, site="b"),
        case_row("s1", "c", 1.0, model="local", trained_on="b"),
    ]
    found = [row for row in summarise(rows, SEGMENTATION, seed=0) if row["metric"] == "dice"]
    keys = ("model", "trained_on", "site", "vendor", "part", "n", "n_failed", "mean")
    assert [tuple(row[key] for key in keys) for row in found] == [
        ("global", "all", "a", "A+V", "it", 2, 0, pytest.approx(0.3)),
        ("global", "all", "a", "A+V", "other", 1, 1, 0.6),
        ("global", "all", "b", "V", "it", 1, 0, 0.8),
        ("local", "b", "a", "A+V", "it", 1, 0, 1.0),
    ]


def test_every_measure_has_its_row_and_rows_from_a_file_have_theirs(tmp_path: Path) -> None:
    rows = [case_row("s1", "c", 0.2), case_row("s2", "c", 0.4)]
    told = [measure for measure in SEGMENTATION.measures if measure.summarised]
    dense = [measure.name for measure in told if not measure.sparse]
    listed = [measure.name for measure in told if measure.listed]
    assert [row["metric"] for row in summarise(rows, SEGMENTATION, seed=0)] == dense
    write_cases(tmp_path / "cases.csv", rows, SEGMENTATION)
    again = summarise(read_cases(tmp_path / "cases.csv", SEGMENTATION), SEGMENTATION, seed=0)
    assert [row["metric"] for row in again] == listed
    whole = summarise(rows, SEGMENTATION, seed=0)
    assert again == [row for row in whole if row["metric"] in listed]


def test_a_sparse_measure_is_of_the_cases_that_have_it() -> None:
    rows = [
        case_row("s1", "c", 0.2),
        case_row("s2", "c", 0.4, specificity=1.0),
        case_row("s3", "c", 0.0, specificity=0.0, failed=1),
        case_row("s1", "c", 0.6, site="b"),
    ]
    found = summarise(rows, SEGMENTATION, seed=0)
    share = one(found, metric="specificity")
    assert (share["site"], share["n"], share["n_failed"], share["mean"]) == ("a", 2, 1, 0.5)
    # What others have does not depend on it.
    without = summarise([row | {"specificity": math.nan} for row in rows], SEGMENTATION, seed=0)
    assert repr([row for row in found if row["metric"] != "specificity"]) == repr(without)


def test_measures_of_a_whole_split_keep_the_interval_that_they_came_with(tmp_path: Path) -> None:
    precision = Measure("ap", "average precision", "higher", low=0, high=1, whole=True)
    task = replace(SEGMENTATION, part="", parts=(), measures=(*SEGMENTATION.measures, precision))
    whole = {
        "model": "global",
        "trained_on": "all",
        "site": "a",
        "vendor": "A",
        "split": "test",
        "part": "",
        "metric": "ap",
        "n_failed": 0,
        "n": 40,
        "value": 0.75,
        "low": 0.5,
        "high": 0.875,
    }
    wholes = [whole, whole | {"split": "val"}, whole | {"site": "b", "value": math.nan}]
    rows = [case_row("s", "c", 0.5, part=""), case_row("t", "c", 0.5, part="", vendor="W")]
    write_cross_site(tmp_path / "x.csv", summarise(rows, task, 0, wholes), task)
    found = one(read_cross_site(tmp_path / "x.csv", task), metric="ap")
    assert (found["vendor"], found["part"], found["n"], found["n_failed"]) == ("V+W", "", 40, 0)
    assert (found["mean"], found["median"]) == (0.75, 0.75)
    assert (found["ci_low"], found["ci_high"]) == (0.5, 0.875)
    assert math.isnan(found["std"])
    assert "structure" not in (tmp_path / "x.csv").read_text()
    # A split may have no case of its own that could be listed.
    assert [row["vendor"] for row in summarise([], task, 0, wholes)] == ["A"]


def test_a_single_case_has_no_interval_and_a_single_subject_no_deviation() -> None:
    alone = one(summarise([case_row("s", "c", 0.2)], SEGMENTATION, seed=0), metric="dice")
    assert all(math.isnan(alone[key]) for key in ("std", "ci_low", "ci_high"))
    two = one(
        summarise([case_row("s", "c", 0.2), case_row("s", "d", 0.6)], SEGMENTATION, 0),
        metric="dice",
    )
    assert math.isnan(two["std"])
    assert (two["ci_low"], two["ci_high"]) == (0.2, 0.6)


def test_the_interval_is_that_of_a_plain_nested_resampling_loop() -> None:
    rng = np.random.default_rng(5)
    values = {f"s{i}": rng.uniform(0, 1, size) for i, size in enumerate((1, 7, 2, 4, 1, 3))}
    rows = [
        case_row(subject, f"c{index}", value)
        for subject, cases in values.items()
        for index, value in enumerate(cases)
    ]
    found = one(summarise(rows, SEGMENTATION, seed=0), metric="dice")
    means = []
    for _ in range(8000):
        drawn = rng.choice(list(values), len(values))
        means.append(np.mean([rng.choice(values[s], len(values[s])).mean() for s in drawn]))
    low, high = np.percentile(means, [2.5, 97.5])
    # 1000 draws leave an end of the interval a standard error of about 0.008 here.
    assert found["ci_low"] == pytest.approx(low, abs=0.03)
    assert found["ci_high"] == pytest.approx(high, abs=0.03)


def test_the_interval_depends_on_the_seed_alone() -> None:
    rng = np.random.default_rng(1)
    rows = [case_row(f"s{i}", "c", float(rng.random())) for i in range(8)]
    first = summarise(rows, SEGMENTATION, seed=3)
    assert summarise(rows[::-1], SEGMENTATION, seed=3) == first
    others = [case_row(f"s{i}", "c", 0.5, site="b") for i in range(3)]
    assert [
        row for row in summarise(rows + others, SEGMENTATION, seed=3) if row["site"] == "a"
    ] == first
    assert one(summarise(rows, SEGMENTATION, seed=4), metric="dice")["ci_low"] != first[0]["ci_low"]


def test_missed_cases_stay_in_the_mean() -> None:
    reference = np.zeros((1, 64, 48), np.uint8)
    reference[0, 20:30, 20:30] = 1
    moved, missed = np.roll(reference, 4, axis=1), np.zeros_like(reference)
    rows = []
    for index, prediction in enumerate([moved] * 5 + [missed] * 5):
        (scores,) = score_case(reference, prediction, (1.0, 1.0, 1.0), ["it"], 2.0)
        rows.append(case_row(f"s{index}", "c", 0.0) | scores)
    summary = summarise(rows, SEGMENTATION, seed=0)
    distance, dice = one(summary, metric="hd95_mm"), one(summary, metric="dice")
    assert rows[0]["hd95_mm"] == 4.0
    assert distance["mean"] == pytest.approx((5 * 4.0 + 5 * 80.0) / 10)
    assert dice["mean"] == pytest.approx((5 * 0.6 + 5 * 0.0) / 10)
    assert distance["n_failed"] == dice["n_failed"] == 5


# What the cross-site matrix says of each model


def test_overview_of_a_matrix_computed_by_hand() -> None:
    rows = [
        cross_row("local", "a", "a", 0.875, vendor="V"),
        cross_row("local", "a", "b", 0.5, vendor="V"),
        cross_row("local", "a", "c", 0.125, vendor="W"),
        cross_row("local", "a", "new", 0.25, vendor="X"),
        cross_row("local", "a", "a", 9.0, metric="hd95_mm"),
    ]
    (found,) = overview(rows[:4], DICE, unseen={"new"})
    assert found == Overview(
        model="local",
        trained_on="a",
        macro_mean=0.5,
        worst_site="c",
        worst=0.125,
        gap=0.75,
        home=0.875,
        away=0.3125,
        unseen=0.25,
        vendors={"V": 0.6875, "W": 0.125, "X": 0.25},
    )
    assert overview(rows, DICE, {"new"})[0].macro_mean == found.macro_mean


def test_overview_averages_structures_before_sites() -> None:
    rows = [
        cross_row("global", "all", "a", 0.2, part="x"),
        cross_row("global", "all", "a", 0.4, part="y"),
        cross_row("global", "all", "b", 0.9, part="x"),
    ]
    (found,) = overview(rows, DICE)
    assert found.macro_mean == pytest.approx((0.3 + 0.9) / 2)
    assert (found.worst_site, found.worst) == ("a", pytest.approx(0.3))
    assert all(math.isnan(value) for value in (found.home, found.away, found.unseen))


def test_models_are_compared_over_the_parts_that_count_at_a_site() -> None:
    """Site b never taught y; the model of c was taught y alone."""
    values: dict[tuple[str, str], dict[str, tuple[float | None, ...]]] = {
        ("global", "all"): {"a": (0.5, 0.25), "b": (0.75, 0.125), "c": (0.5, 0.5)},
        ("local", "a"): {"a": (0.75, 0.5), "b": (0.5, 0.25), "c": (0.25, 0.25)},
        ("local", "b"): {"a": (0.5, None), "b": (0.875, None), "c": (0.25, None)},
        ("local", "c"): {"a": (None, 0.5), "b": (None, 0.25), "c": (None, 0.75)},
    }
    rows = [
        cross_row(*model, site, value, part=part)
        for model, sites in values.items()
        for site, found in sites.items()
        for part, value in zip("xy", found, strict=True)
        if value is not None
    ]

    assert site_values(rows, DICE) == {
        ("global", "all"): {"a": 0.375, "b": 0.75, "c": 0.5},
        ("local", "a"): {"a": 0.625, "b": 0.5, "c": 0.25},
        ("local", "b"): {"b": 0.875},  # at a both parts count, at c y does
        ("local", "c"): {"c": 0.75},
    }
    assert narrowed(rows, DICE) == {
        "a": ({"x", "y"}, set()),
        "b": ({"x"}, {"y"}),
        "c": ({"y"}, {"x"}),
    }
    (_, found, *_) = overview(rows, DICE)
    assert (found.home, found.away) == (0.625, 0.375)
    # Nobody's own model: what all were scored on, here nothing.
    elsewhere = [row for row in rows if row["model"] == "local" and row["site"] == "a"]
    elsewhere = [{**row, "site": "new"} for row in elsewhere]
    assert comparable(elsewhere, DICE) == []
    assert narrowed(elsewhere, DICE) == {"new": (set(), {"x", "y"})}
    whole = [row for row in rows if row["trained_on"] in ("all", "a")]
    assert comparable(whole, DICE) == whole and narrowed(whole, DICE) == {}


def test_the_worst_site_has_the_largest_distance() -> None:
    rows = [
        cross_row("global", "all", site, mean, metric="assd_mm")
        for site, mean in (("a", 1.0), ("b", 7.0), ("c", 2.0))
    ]
    (found,) = overview(rows, ASSD)
    assert (found.worst_site, found.worst, found.gap) == ("b", 7.0, 6.0)
    with pytest.raises(ValueError, match="volume_ml"):
        overview(rows, VOLUME)


def test_overview_where_every_site_is_unseen() -> None:
    (found,) = overview([cross_row("global", "all", "new", 0.4)], DICE, unseen={"new"})
    assert (found.unseen, found.worst_site) == (0.4, "")
    assert all(math.isnan(value) for value in (found.macro_mean, found.worst, found.gap))


# Shift and drop


def matrix_rows(dice: np.ndarray, sites: str) -> list[dict[str, Any]]:
    return [
        cross_row("local", a, b, dice[i, j])
        for (i, a), (j, b) in itertools.product(enumerate(sites), repeat=2)
        if not np.isnan(dice[i, j])
    ]


def shift_rows(shift: np.ndarray, sites: str, metric: str = "mmd") -> list[dict[str, Any]]:
    """One row for each unordered pair, in no particular direction."""
    return [
        {"site_a": sites[j], "site_b": sites[i], "metric": metric, "value": shift[i, j]}
        for i, j in itertools.combinations(range(len(sites)), 2)
    ]


def random_federation(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shift = rng.random((n, n))
    shift += shift.T
    dice = 0.9 - 0.2 * shift + 0.1 * rng.random((n, n))
    np.fill_diagonal(dice, 0.9 + 0.05 * rng.random(n))
    return shift, dice


def test_rho_and_p_are_those_of_renaming_the_sites_in_every_way() -> None:
    shift, dice = random_federation(4, seed=2)
    dice[3] = np.nan  # Site d is unseen: scored, but nothing is trained there.
    (found,) = rank_correlation(shift_rows(shift, "abcd"), matrix_rows(dice, "abcd"), DICE)
    pairs = [(i, j) for i in range(3) for j in range(4) if i != j]
    drop = [dice[i, i] - dice[i, j] for i, j in pairs]
    rhos = [
        spearmanr([shift[name[i], name[j]] for i, j in pairs], drop).statistic
        for name in itertools.permutations(range(4))
    ]
    assert found.rho == pytest.approx(rhos[0])
    assert found.p_value == pytest.approx(np.mean(np.abs(rhos) >= abs(rhos[0]) - 1e-9))
    assert 1 / 24 <= found.p_value < 1
    assert (found.metric, found.n_pairs) == ("mmd", 9)


def test_many_sites_are_renamed_at_random_and_alike_for_the_same_seed() -> None:
    shift, dice = random_federation(8, seed=0)
    sites = "abcdefgh"
    rows = (shift_rows(shift, sites), matrix_rows(dice, sites))
    (found,) = rank_correlation(*rows, DICE, seed=1)
    off = ~np.eye(8, dtype=bool)
    drop = (np.diag(dice)[:, None] - dice)[off]
    assert found.rho == pytest.approx(spearmanr(shift[off], drop).statistic)
    assert found.p_value == pytest.approx(1 / PERMUTATIONS)
    assert [found] == rank_correlation(*rows, DICE, seed=1)
    unrelated = shift_rows(random_federation(8, seed=9)[0], sites)
    assert rank_correlation(unrelated, rows[1], DICE)[0].p_value > 0.05


def test_a_drop_is_positive_where_a_distance_grows() -> None:
    shift, dice = random_federation(4, seed=2)
    worse = [
        row | {"metric": "hd95_mm", "mean": 1 - row["mean"]} for row in matrix_rows(dice, "abcd")
    ]
    rows = shift_rows(shift, "abcd")
    (by_dice,) = rank_correlation(rows, matrix_rows(dice, "abcd"), DICE)
    (by_distance,) = rank_correlation(rows, worse, HD95)
    assert by_distance.rho == pytest.approx(by_dice.rho)
    with pytest.raises(ValueError, match="volume_ml"):
        rank_correlation(rows, worse, VOLUME)


def test_a_direction_of_its_own_is_used_where_the_table_has_it() -> None:
    _, dice = random_federation(4, seed=2)
    shift = np.random.default_rng(4).random((4, 4))
    rows = [
        {"site_a": "abcd"[i], "site_b": "abcd"[j], "metric": "directed", "value": shift[i, j]}
        for i, j in itertools.permutations(range(4), 2)
    ]
    (found,) = rank_correlation(rows, matrix_rows(dice, "abcd"), DICE)
    off = ~np.eye(4, dtype=bool)
    expected = spearmanr(shift[off], (np.diag(dice)[:, None] - dice)[off]).statistic
    assert found.rho == pytest.approx(expected)


def test_sites_without_a_shift_are_left_out_and_the_pairs_counted() -> None:
    shift, dice = random_federation(5, seed=3)
    shift[2, :] = shift[:, 2] = np.nan
    rows = shift_rows(shift, "abcde")
    (found,) = rank_correlation(rows, matrix_rows(dice, "abcde"), DICE)
    kept = [0, 1, 3, 4]
    (without,) = rank_correlation(
        shift_rows(shift[np.ix_(kept, kept)], "abde"),
        matrix_rows(dice[np.ix_(kept, kept)], "abde"),
        DICE,
    )
    assert found == without
    assert found.n_pairs == 12
    missing = [row for row in rows if not np.isnan(row["value"])]
    assert rank_correlation(missing, matrix_rows(dice, "abcde"), DICE) == [found]


def test_metrics_named_are_skipped_and_others_kept() -> None:
    shift, dice = random_federation(3, seed=1)
    rows = shift_rows(shift, "abc", "mmd") + shift_rows(shift, "abc", "mmd_p")
    found = rank_correlation(rows, matrix_rows(dice, "abc"), DICE, skip={"mmd_p"})
    assert [item.metric for item in found] == ["mmd"]


def test_nothing_to_correlate_is_nan_and_not_an_error() -> None:
    shift, dice = random_federation(3, seed=1)
    rows = shift_rows(shift, "abc")
    (no_models,) = rank_correlation(rows, [cross_row("global", "all", "a", 0.5)], DICE)
    assert no_models.n_pairs == 0
    (constant,) = rank_correlation(
        shift_rows(np.ones((3, 3)), "abc"), matrix_rows(dice, "abc"), DICE
    )
    assert constant.n_pairs == 6
    assert all(
        math.isnan(value) for item in (no_models, constant) for value in (item.rho, item.p_value)
    )
    assert rank_correlation([], matrix_rows(dice, "abc"), DICE) == []
