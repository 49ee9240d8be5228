"""What the engine costs: the inline engine against a bare PyTorch loop, and two workers against
one.

Run with ``python benchmarks/engine_overhead.py``. A federation of 8 cardiac phantom sites trains
the default segmentation network for 5 rounds of FedAvg, 30 steps a site and round. Timed on both
sides, from the same warm cache: opening the sites, training (the same batches and augmentation,
Adam afresh for each site and round), averaging by examples, the validation Dice of the averaged
model at every site after every round, and at the end every metric of every validation and test
case of the global model.

The engine does more, and that is what is measured: a policy check and an egress ledger line for
every tensor, packed messages, checks of every update, a checkpoint a round. Neither side measures
domain shift or draws a report. Every process uses one torch thread. Two workers' time includes
starting them. The final weights and all scores must agree, or the benchmark fails.

The three are run in turn, three times; a ratio is the median of the three turns' ratios. CPU
seconds are those of the process and its ended children.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import (
    SPLITS,
    Simulation,
    median_ratio,
    open_all,
    print_table,
    simulation,
    train_and_score,
    verdict,
)
from torch.nn import functional as F

from fedshift import derive_seed
from fedshift.client.augmentation import Augmentation
from fedshift.client.losses import dice_ce
from fedshift.client.metrics import score_case
from fedshift.client.networks.lv_unet import LVUNet
from fedshift.server import checkpoint
from fedshift.server.engines.inline import InlineGrid

SITES = 8
REPEATS = 3
PREDICT_BATCH = 8
Weights = dict[str, np.ndarray]
Scores = dict[tuple[str, str, str], dict[str, Any]]
"""(site, case, structure) -> its metrics."""


def engine(run: Simulation, workers: int) -> tuple[Weights, Scores]:
    """The federation in the inline engine."""
    with InlineGrid(run.sites, ["cpu"] * workers, threads=1) as grid:
        rows = train_and_score(grid, run.plan)
    weights, _ = checkpoint.load(run.plan.checkpoints, run.plan.rounds, run.plan.identity)
    scores = {(row["site"], row["case"], row["structure"]): row for row in rows}
    return {name.removeprefix("segmenter/"): array for name, array in weights.items()}, scores


def bare_loop(run: Simulation) -> tuple[Weights, Scores]:
    """The same federation as a script would write it."""
    plan = run.plan
    torch.set_num_threads(1)
    sites = {name: run.sites.open(name) for name in run.sites.names}
    images = {n: np.concatenate([c.image for c in s.splits["train"]]) for n, s in sites.items()}
    labels = {n: np.concatenate([c.label for c in s.splits["train"]]) for n, s in sites.items()}
    examples = sum(len(found) for found in images.values())

    settings = plan.method
    structures = plan.task["structures"]
    augmentation = Augmentation(**settings["augmentation"])
    torch.manual_seed(derive_seed(plan.seed, "initial weights"))
    net = LVUNet(
        1,
        len(structures) + 1,
        width=settings["width"],
        depth=settings["depth"],
        blocks=settings["blocks"],
        norm=settings["norm"],
    )
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    for number in range(1, plan.rounds + 1):
        average = {name: torch.zeros_like(t, dtype=torch.double) for name, t in weights.items()}
        for name in sites:
            net.load_state_dict(weights)
            net.train()
            adam = torch.optim.Adam(net.parameters(), lr=settings["lr"], fused=True)
            seed = derive_seed(plan.seed, name, number, "federated", "fit")
            rng = np.random.default_rng(derive_seed(seed, "batches"))
            generator = torch.Generator().manual_seed(derive_seed(seed, "augmentation"))
            order: list[int] = []
            for _ in range(plan.local_steps):
                while len(order) < settings["batch"]:
                    order += rng.permutation(len(images[name])).tolist()
                chosen, order = order[: settings["batch"]], order[settings["batch"] :]
                x = torch.from_numpy(images[name][chosen]).unsqueeze(1)
                y = torch.from_numpy(labels[name][chosen])
                x, y = augmentation(x, y, generator)
                loss = dice_ce(net(x), y)
                adam.zero_grad()
                loss.backward()
                adam.step()
            for key, tensor in net.state_dict().items():
                average[key] += len(images[name]) * tensor.double()
        weights = {
            name: (total / examples).to(weights[name].dtype) for name, total in average.items()
        }

        net.load_state_dict(weights)
        for site in sites.values():
            found = [
                np.mean(
                    [dice(case.label == k, predicted == k) for k in range(1, len(structures) + 1)]
                )
                for case in site.splits["val"]
                for predicted in [predict(net, case.image).argmax(axis=1)]
            ]
            np.mean(found)

    scores: Scores = {}
    for name, site in sites.items():
        for split in SPLITS:
            for case in site.splits[split]:
                predicted = case.to_native(predict(net, case.image))
                for row in score_case(
                    case.reference,
                    predicted,
                    case.native_spacing_mm,
                    structures,
                    plan.task["tolerance_mm"],
                ):
                    scores[name, case.id, row["structure"]] = row
    return {name: tensor.numpy() for name, tensor in weights.items()}, scores


def predict(net: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Class probabilities (S, C, H, W) of the slices (S, H, W)."""
    net.eval()
    with torch.inference_mode():
        parts = [
            F.softmax(net(part.unsqueeze(1)), dim=1)
            for part in torch.from_numpy(np.array(images)).split(PREDICT_BATCH)
        ]
    return torch.cat(parts).numpy()


def dice(truth: np.ndarray, found: np.ndarray) -> float:
    """The Dice of two masks, 1 when both are empty."""
    size = int(truth.sum()) + int(found.sum())
    return 1.0 if size == 0 else 2.0 * int((truth & found).sum()) / size


def same(first: tuple[Weights, Scores], second: tuple[Weights, Scores]) -> None:
    """Fail unless two sides trained the same model and scored it alike."""
    (weights, scores), (other_weights, other_scores) = first, second
    assert weights.keys() == other_weights.keys()
    for name, array in weights.items():
        np.testing.assert_allclose(array, other_weights[name], rtol=0, atol=1e-6, err_msg=name)
    assert scores.keys() == other_scores.keys() and scores
    for key, row in scores.items():
        for metric in ("dice", "hd95_mm", "assd_mm", "nsd"):
            assert abs(row[metric] - other_scores[key][metric]) < 1e-6, (key, metric)


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main() -> int:
    """Print seconds and ratios; return 1 when a target is missed."""
    sides: dict[str, Callable[[Simulation], tuple[Weights, Scores]]] = {
        "bare PyTorch loop": bare_loop,
        "inline, 1 worker": lambda run: engine(run, 1),
        "inline, 2 workers": lambda run: engine(run, 2),
    }
    wall: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        open_all(simulation(Path(folder) / "none", cache, SITES, "rounds=5").sites)
        bare_loop(simulation(Path(folder) / "warm", cache, SITES, "rounds=1", "local_steps=2"))
        for repeat in range(REPEATS):
            results = {}
            for side, call in sides.items():
                run = simulation(Path(folder) / f"{side} {repeat}", cache, SITES, "rounds=5")
                start, start_cpu = time.perf_counter(), cpu_seconds()
                results[side] = call(run)
                wall[side].append(time.perf_counter() - start)
                cpu[side].append(cpu_seconds() - start_cpu)
            for side in list(sides)[1:]:
                same(results["bare PyTorch loop"], results[side])
    print(f"{SITES} phantom sites, 5 rounds of 30 steps, one torch thread a process\n")
    print_table(
        ["", "wall s", "CPU s"],
        [
            (side, f"{statistics.median(wall[side]):.2f}", f"{statistics.median(cpu[side]):.2f}")
            for side in sides
        ],
    )
    loop, one, two = sides
    cpu_ratio = median_ratio(cpu[one], cpu[loop])
    print(f"\nCPU seconds, 1 worker / loop: {cpu_ratio:.3f}x")
    met = [
        verdict("1 worker / bare loop", median_ratio(wall[one], wall[loop]), 1.10),
        verdict("2 workers / 1 worker", median_ratio(wall[two], wall[one]), 0.75),
    ]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
