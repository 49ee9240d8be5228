"""The papers' comparisons, small preset, three seeds: some ten minutes each on two cores.

They run on request only (``make reproduce``). Results stay in ``reproductions/``;
docs/papers/ shows what was measured, and which claims of the papers did not hold."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from fedshift.cli.reproduce import reproduce
from fedshift.papers import NUMBERS

pytestmark = pytest.mark.slow

SEEDS = ("0", "1", "2")
_DONE: dict[str, dict[str, Any]] = {}


def result(number: str) -> dict[str, Any]:
    """The paper's ``reproduction.json``; run once, and gone on with after an interruption."""
    if number not in _DONE:
        out = Path("reproductions") / number
        reproduce(number, ",".join(SEEDS), "small", out, None)
        _DONE[number] = json.loads((out / "reproduction.json").read_text())
    return _DONE[number]


def mean(number: str, row: str, column: str) -> float:
    """A cell of the table, the mean over the seeds."""
    return statistics.fmean(result(number)["measured"][seed][row][column] for seed in SEEDS)


@pytest.mark.parametrize("number", NUMBERS)
def test_every_arm_runs_and_is_measured(number: str) -> None:
    found = result(number)
    assert [run["name"] for run in found["runs"] if run["problems"]] == []
    for table in found["measured"].values():
        cells = [value for row in table.values() for value in row.values()]
        assert cells and all(map(math.isfinite, cells))


def test_unet_gan_beats_noise_on_the_worse_target_in_every_seed() -> None:
    for seed in SEEDS:
        table = result("01")["measured"][seed]
        assert table["Unet-GAN"]["worse target"] > table["noisy U-Net"]["worse target"]


def test_stale_gradients_keep_most_of_the_exact_forms_gain() -> None:
    column = "recovered, worse target"
    stale = mean("01", "Unet-GAN, stale, 2 local steps", column)
    assert stale >= 0.7 * mean("01", "Unet-GAN", column) > 0


def test_back_projection_makes_pairs_agree() -> None:
    column = "consistency of the pairs"
    assert mean("28", "FBPAug", column) >= mean("28", "Baseline", column) + 0.15
