"""Havaei et al., 2021: DRAI against DAI, the same networks without DRAI's constraints.

The paper trains on lung nodules (LIDC) and skin lesions. Here three vendors' cardiac phantoms train
by federated averaging. Every measure is computed at the sites, on their validation images, and is
read from what they reported in the last round; features are pooled over the sites by their moments.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from fedshift.papers.bench import Bench, Claim, Paper, Table

CIFC, FRECHET = "CIFC", "feature Frechet distance"
RELATIVE = "CIFC as a share of the codes' spread"
RECONSTRUCTION = "reconstruction error"
STYLE_VARIANCE = "variance of the style codes"
CONTENT_VARIANCE = "variance of the content codes"
BETWEEN = "share of the content codes' variance between vendors"

METRICS = {
    CIFC: "cifc",
    RELATIVE: "cifc_relative",
    "CIFC, codes of another vendor": "cifc_across",
    FRECHET: "frechet",
    RECONSTRUCTION: "reconstruction",
    STYLE_VARIANCE: "style_variance",
    CONTENT_VARIANCE: "content_variance",
    "share of the style codes' variance between vendors": "style_between_sites",
    BETWEEN: "content_between_sites",
}

COMMON = (
    "federation=cardiac_phantom",
    "method=drai",
    # The same segmentation network, bit by bit, in every arm: features are then comparable.
    "method.use=hybrids",
    "method.hybrids=0",
    "baselines=[]",
    "evaluated=[global]",
    "validate_every=0",
)
SIZES = {
    "small": (
        "federation.size=32",
        "method.depth=3",
    ),
    "paper": (),
}
ARMS = {"DAI": (), "DRAI": ("information", "self", "code_cycle")}
ABLATION = {
    "DAI + self + information": ("information", "self"),
    "DAI + code cycle": ("code_cycle",),
    "DAI + information": ("information",),
    "DAI + self": ("self",),
}
"""The paper's Table 2; run with the paper's preset only."""


def measure(bench: Bench, seed: int) -> Table:
    """One row an arm: the mean over the sites of what they measured in the last round."""
    arms = ARMS if bench.preset == "small" else ARMS | ABLATION
    table: Table = {}
    for arm, constraints in arms.items():
        name = arm.lower().replace(" + ", "_").replace(" ", "_")
        chosen = f"method.constraints=[{','.join(constraints)}]"
        run = bench.simulate(name, seed, [*COMMON, *SIZES[bench.preset], chosen])
        table[arm] = last_metrics(run)
    return table


def last_metrics(run: Path) -> dict[str, float]:
    """The mean over the sites of each column, from the last line of a run's ``rounds.jsonl``."""
    last = json.loads((run / "rounds.jsonl").read_text().splitlines()[-1])
    return {
        column: statistics.fmean(site[name] for site in last["sites"].values())
        for column, name in METRICS.items()
    }


def _lower(column: str) -> Claim:
    return Claim(
        f"DRAI's {column} is below DAI's",
        lambda table: table["DRAI"][column] < table["DAI"][column],
    )


PAPER = Paper(
    number="09",
    title="DRAI: disentangled adversarial inference",
    citation=(
        "Havaei et al., Conditional Generation of Medical Images via Disentangled Adversarial "
        "Inference, 2021, Tables 1 and 2 (LIDC)"
    ),
    published={
        "DAI": {CIFC: 1.096, FRECHET: 0.106},
        "DRAI": {CIFC: 0.456, FRECHET: 0.089},
        "DAI + self + information": {CIFC: 0.554, FRECHET: 0.176},
        "DAI + code cycle": {CIFC: 0.913, FRECHET: 0.221},
        "DAI + information": {CIFC: 0.747, FRECHET: 0.154},
        "DAI + self": {CIFC: 0.781, FRECHET: 0.208},
    },
    measure=measure,
    claims=(
        _lower(CIFC),
        _lower(RELATIVE),
        _lower(BETWEEN),
        _lower(FRECHET),
        Claim(
            "DRAI does not pay for it: its reconstruction error is at most 1.1 times DAI's",
            lambda table: table["DRAI"][RECONSTRUCTION] <= 1.1 * table["DAI"][RECONSTRUCTION],
        ),
        Claim(
            "no collapse: DRAI's codes vary, by at least 0.01 a component",
            lambda table: (
                min(table["DRAI"][STYLE_VARIANCE], table["DRAI"][CONTENT_VARIANCE]) >= 0.01
            ),
        ),
    ),
    note=(
        "The paper's numbers are of other images, code sizes and features (Inception-V3, tuned on "
        "its data): compare the order of the rows, not the values. A CIFC of codes that hardly "
        "vary is low whatever the images; its share of the codes' spread, and the rows below it, "
        "show that."
    ),
)
