"""A task's card: what it says of its measures, and that it survives the journey to the server."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from fedshift.protocol.measures import Measure, TaskCard

ERROR = Measure("mre_mm", "mean radial error", "lower", "mm", low=0)
RATE = Measure("sdr", "success rate", "higher", low=0, high=1)
COUNT = Measure("found", "landmarks found")
PRECISION = Measure("ap", "average precision", "higher", low=0, high=1, whole=True)
SHARE = Measure("share", "share told", "higher", listed=False, sparse=True)
CARD = TaskCard(
    "landmarks",
    "landmark detection",
    "landmark",
    ("left", "right"),
    (ERROR, RATE, COUNT, PRECISION, SHARE),
    "it is missing",
)


def test_a_card_survives_json_and_strict_json_at_that() -> None:
    text = json.dumps(CARD.to_json(), allow_nan=False)
    assert TaskCard.from_json(json.loads(text)) == CARD


def test_the_direction_is_the_measures_own() -> None:
    assert (ERROR.sign, RATE.sign) == (-1, 1)
    with pytest.raises(ValueError, match="neither more nor less found is better"):
        _ = COUNT.sign


def test_a_ratio_is_bounded_by_0_and_1_and_has_a_better_end() -> None:
    assert RATE.ratio
    assert not ERROR.ratio
    assert not replace(RATE, better="").ratio
    assert not replace(RATE, low=-math.inf).ratio


def test_headline_second_and_columns_follow_the_order_of_the_measures() -> None:
    assert (CARD.headline, CARD.second) == (ERROR, RATE)
    assert replace(CARD, measures=(ERROR,)).second is None
    assert CARD.measure("found") is COUNT
    assert CARD.per_case == (ERROR, RATE, COUNT, SHARE)
    assert CARD.case_columns[6:] == ("case", "landmark", "mre_mm", "sdr", "found", "failed")
    assert CARD.summary_columns[3:6] == ("vendor", "landmark", "metric")
    assert replace(CARD, part="").summary_columns[3:5] == ("vendor", "metric")


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ({"name": "mean error"}, "name"),
        ({"better": "more"}, "better"),
        ({"low": 1.0, "high": 0.0}, "low < high"),
    ],
)
def test_a_measure_that_contradicts_itself_is_refused(broken: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        replace(ERROR, **broken)


@pytest.mark.parametrize(
    "broken",
    [
        {"measures": (ERROR, ERROR)},
        {"measures": (replace(ERROR, name="site"),)},
        {"measures": (replace(ERROR, name="mean"),)},
        {"part": "case"},
        {"part": "mre_mm"},
    ],
)
def test_no_two_columns_of_a_table_have_one_name(broken: dict) -> None:
    with pytest.raises(ValueError, match="one name"):
        replace(CARD, **broken)


def test_a_task_has_a_measure_by_which_models_are_ranked() -> None:
    for measures in ((), (COUNT, ERROR)):
        with pytest.raises(ValueError, match="models are ranked"):
            replace(CARD, measures=measures)


def test_a_value_is_printed_by_its_unit_and_a_change_by_its_direction() -> None:
    assert (ERROR.cell(1.234), ERROR.said(1.234), ERROR.cell(math.nan)) == ("1.23", "1.23 mm", "–")
    assert (RATE.cell(0.5), RATE.said(0.5)) == ("0.500", "0.500")


@pytest.mark.parametrize(
    ("value", "cell"),
    [(0.0, "0.00"), (0.25, "0.25"), (0.05, "0.050"), (0.00213, "0.0021"), (-3e-6, "-0.0000030")],
)
def test_a_small_number_with_a_unit_keeps_two_digits(value: float, cell: str) -> None:
    assert ERROR.cell(value) == cell
    assert ERROR.cell(1e-17) == "0.00" and RATE.cell(0.0004) == "0.000"
    assert (ERROR.label, RATE.label) == ("Mean radial error (mm)", "Success rate")
    assert ERROR.worsening == "rise in mean radial error"
    assert RATE.worsening == "drop in success rate"
