"""Yang et al., MICCAI 2018: a segmentor of one scanner's images, tested on another scanner's.

The paper's two scanners are two vendors of the fetal-head phantom here: the source trains, the
target's labels only measure. Every run yields three models: the plain segmentor (Orig-S2T),
renderer and segmentor before any online update (iteration 0), and the finished method.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch

from fedshift.client.contract.method import Budget, Networks, Scene
from fedshift.client.methods.online_rendering import OnlineRendering, Reals
from fedshift.client.metrics import dice
from fedshift.client.model import shared_model
from fedshift.papers.bench import Bench, Claim, Paper, Table
from fedshift.runs.federation import open_federation
from fedshift.runs.stored import stored_run
from fedshift.sites import open_site
from fedshift.sites.types import Case

SITES = {"source": "vendor_a", "target": "vendor_c"}

COMMON = (
    "federation=fetal_head_phantom",
    f"federation.sites={{{','.join(f'{site}:[{vendor}]' for site, vendor in SITES.items())}}}",
    "federation.unseen=[]",
    "method=online_rendering",
    "baselines=[]",
    "evaluated=[global]",
    "validate_every=0",
)
SIZES = {
    "small": (),
    # The paper's 900 training images of each scanner.
    "paper": ("federation.subjects=300", "federation.slices=5", "federation.size=320"),
}
# The site without labels trains nothing; its test images are the same in every arm.
S2T, T2T = "data.unlabelled_sites=[target]", "data.unlabelled_sites=[source]"
PAPERS_GAME = ("method.disturbance=0", "method.reals=stale_gradient")
PLAIN_ONLY = ("method.without=structure_and_pair", "method.iterations=0", *PAPERS_GAME)
"""The runs of which the plain segmentor alone is read."""
ARMS = {
    "S2T-sp": (S2T, *PAPERS_GAME, "method.without=structure_and_pair"),
    "S2T-p": (S2T, *PAPERS_GAME, "method.without=pair"),
    "S2T": (S2T, *PAPERS_GAME),
    "S2T, disturbed": (S2T,),
}
FORMS: tuple[Reals, ...] = ("stale_gradient", "frozen", "statistics")
SHOWN_ITERATIONS = (1, 3, 5, 10, 25)

METRICS = {
    "Dice": "dice",
    "Jaccard": "jaccard",
    "Precision": "precision",
    "Recall": "recall",
    "ASSD mm": "assd_mm",
    "HD95 mm": "hd95_mm",
}


def measure(bench: Bench, seed: int) -> Table:
    """One row an arm, at the target; then Dice by iteration, and for every form of the reals."""

    def run(name: str, *overrides: str) -> Path:
        return bench.simulate(name, seed, [*COMMON, *SIZES[bench.preset], *overrides])

    home = run("orig_t2t", T2T, *PLAIN_ONLY)
    varied = run("orig_s2t_intensity", S2T, *PLAIN_ONLY, "augmentation=intensity")
    runs = {row: run(f"arm_{index}", *ARMS[row]) for index, row in enumerate(ARMS)}
    full, disturbed = runs["S2T"], runs["S2T, disturbed"]
    return {
        "Orig-T2T": _row(bench, home, "source"),
        "Orig-S2T": _row(bench, full, "source"),
        "Orig-S2T, intensity": _row(bench, varied, "source"),
        "iteration 0": _row(bench, full, "iteration_0"),
        **{row: _row(bench, runs[row], "global") for row in ("S2T-sp", "S2T-p", "S2T")},
        **_forms("S2T", full),
        "iteration 0, disturbed": _row(bench, disturbed, "iteration_0"),
        "S2T, disturbed": _row(bench, disturbed, "global"),
        **_forms("S2T, disturbed", disturbed),
    }


def _row(bench: Bench, run: Path, model: str) -> dict[str, float]:
    row = {
        column: bench.scores(run, model=model, metric=metric)["target"]
        for column, metric in METRICS.items()
    }
    # Of the mean Dice: a single image's conformity has no lower bound.
    conformity = 3 - 2 / row["Dice"] if row["Dice"] else math.nan
    return {"Dice": row["Dice"], "Conf": conformity, **row}


def _forms(name: str, run: Path) -> Table:
    """A row for every form of the reals: the mean Dice over the target's test images, one by one,
    after some of the iterations, all from the same trained networks."""
    table: Table = {}
    with stored_run(run) as stored:
        [ref] = [ref for ref in stored.models if ref.model == "global"]
        seed = stored.config["seed"]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = shared_model(stored.instruction.method, stored.instruction.task, device)
        model.load(ref.load())
        federation, data = open_federation(stored.config)
        source, target = (
            open_site(federation.site(site), federation.parts, data, seed)
            for site in ("source", "target")
        )
        for reals in FORMS:
            method = replace(cast(OnlineRendering, model.method), reals=reals)
            # What the source publishes in the last round for this form.
            last = Budget(model.task, 0, seed, device, round=2, rounds=2)
            published = method.fit(source, model.nets, {}, last).statistics
            scene = Scene(model.task, target.name, device, seed, {source.name: published})
            scores = [
                _dice_by_iteration(method, model.nets, case, index, scene)
                for case in target.splits["test"]
                for index in range(len(case.image))
            ]
            means = np.mean(scores, axis=0)
            shown = {k: means[k] for k in SHOWN_ITERATIONS if k < len(means)}
            table[f"{name}, {reals}"] = {f"Dice at {k}": float(d) for k, d in shown.items()}
    return table


def _dice_by_iteration(
    method: OnlineRendering, nets: Networks, case: Case, index: int, scene: Scene
) -> list[float]:
    truth, image = case.labels["mask"].grid[index] == 1, np.asarray(case.image[index])
    found = [dice(truth, maps.argmax(0) == 1) for _, maps in method.trajectory(nets, image, scene)]
    # Where the iterations ended early, the last one stays.
    return found + found[-1:] * (method.iterations + 1 - len(found))


def _order(worse: str, better: str, meaning: str) -> Claim:
    return Claim(
        f"Dice of {worse} < {better}: {meaning}",
        lambda table: table[worse]["Dice"] < table[better]["Dice"],
    )


PAPER = Paper(
    number="02",
    title="Online adversarial rendering",
    citation=(
        'Yang et al., "Generalizing Deep Models for Ultrasound Image Segmentation", MICCAI 2018, '
        "Table 1 and Fig. 5"
    ),
    published={
        row: dict(zip(("Dice", "Conf", "Jaccard", "Precision", "Recall"), values, strict=True))
        for row, values in {
            "Orig-T2T": (0.97848, 0.95575, 0.95799, 0.96606, 0.99148),
            "Orig-S2T": (0.88979, 0.73493, 0.80801, 0.94486, 0.84737),
            "S2T-sp": (0.92736, 0.84075, 0.86688, 0.94971, 0.91267),
            "S2T-p": (0.93296, 0.85127, 0.87619, 0.95115, 0.93262),
            "S2T": (0.93379, 0.85130, 0.87886, 0.95218, 0.92633),
        }.items()
    },
    measure=measure,
    claims=(
        _order("Orig-S2T", "S2T-sp", "rendering with the appearance discriminator alone helps"),
        _order("S2T-sp", "S2T-p", "so does the structure discriminator"),
        _order("S2T-p", "S2T", "so does the pair discriminator"),
        _order("iteration 0", "S2T", "the online updates help"),
        _order("S2T", "Orig-T2T", "training on the target's own labels stays better"),
    ),
    note=(
        "The paper's distances are left out: they are pixels of images cropped around the head. "
        "Its conformity is a mean over images, ours follows from the mean Dice. Not the paper's: "
        "'intensity' is the plain segmentor trained with random contrast, brightness, gamma and "
        "blur, and not adapted at all; 'disturbed' is self-play whose generated images are changed "
        "so; the rows by form compare what may stand in for the source's images online. S2T-sp, "
        "S2T-p and S2T send the discriminators' gradient on real images (stale_gradient)."
    ),
)
