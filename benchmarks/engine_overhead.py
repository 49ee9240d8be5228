"""What the engine costs: the inline engine against a bare PyTorch loop, and two workers against
one.

Run with ``python benchmarks/engine_overhead.py [TURNS]``. A federation of 8 cardiac phantom sites
trains the default segmentation network for 5 rounds of FedAvg, 15 steps a site and round. Timed on
both sides, from the same warm cache: opening the sites, training (the same batches and
augmentation, Adam afresh for each site and round), averaging by examples, the validation Dice of
the averaged model at every site after every round, and at the end every metric of every
validation and test case of the global model.

The engine does more, and that is what is measured: a policy check and an egress ledger line for
every tensor, packed messages, checks of every update, a checkpoint a round. It also does what a
script would not: its workers keep the memory that a training step freed for the next one. Neither
side measures domain shift or draws a report. Every process uses one torch thread. Two workers' time
includes starting them. The final weights and all scores must agree, or the benchmark fails.

With ``MALLOC_TRIM_THRESHOLD_=67108864 MALLOC_MMAP_THRESHOLD_=33554432`` in the environment the bare
loop keeps that memory, too, and the ratio is that of all the rest.

The three sides run one after the other, each in a fresh process, in TURNS turns (3); a ratio is
the median of the turns' ratios. Timed is the run alone, after all imports but those that a side's
own work or workers cause.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
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
from fedshift.client.augmentation import Augmentation, warp_mask
from fedshift.client.losses import dice_ce
from fedshift.client.metrics import score_case
from fedshift.client.networks.lv_unet import LVUNet
from fedshift.server import checkpoint
from fedshift.server.engines.inline import InlineGrid

SITES = 8
OPTIONS = ("rounds=5", "local_steps=15")
PREDICT_BATCH = 8
METRICS = ("dice", "hd95_mm", "assd_mm", "nsd")


@dataclass(frozen=True)
class Outcome:
    """The global model, its :data:`METRICS` by (site, case, structure), and what both took."""

    weights: dict[str, np.ndarray]
    scores: dict[tuple[str, str, str], list[float]]
    wall_s: float
    cpu_s: float


def engine(run: Simulation, workers: int) -> Outcome:
    """The federation in the inline engine."""
    start, start_cpu = time.perf_counter(), cpu_seconds()
    with InlineGrid(run.sites, ["cpu"] * workers, threads=1) as grid:
        rows = train_and_score(grid, run.plan)
        cpu_s = cpu_seconds() - start_cpu  # while the workers still live
    wall_s = time.perf_counter() - start
    held = checkpoint.load(run.plan.checkpoints, run.plan.rounds, run.plan.identity)
    weights = {name.removeprefix("segmenter/"): array for name, array in held.model.items()}
    scores = {
        (row["site"], row["case"], row["part"]): [row[metric] for metric in METRICS] for row in rows
    }
    return Outcome(weights, scores, wall_s, cpu_s)


def bare_loop(run: Simulation) -> Outcome:
    """The same federation as a script would write it."""
    start, start_cpu = time.perf_counter(), cpu_seconds()
    plan = run.plan
    torch.set_num_threads(1)
    sites = {name: run.sites.open(name) for name in run.sites.names}
    images = {n: np.concatenate([c.image for c in s.splits["train"]]) for n, s in sites.items()}
    labels = {
        n: np.concatenate([c.labels["mask"].grid for c in s.splits["train"]])
        for n, s in sites.items()
    }
    examples = sum(len(found) for found in images.values())

    settings = plan.method
    structures = plan.task["parts"]
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
                x = torch.from_numpy(images[name][chosen])
                y = torch.from_numpy(labels[name][chosen])
                x, y = augmentation(x, y, generator, warp_mask)
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
                np.mean([dice(truth == k, predicted == k) for k in range(1, len(structures) + 1)])
                for case in site.splits["val"]
                for truth in [case.labels["mask"].grid]
                for predicted in [predict(net, case.image).argmax(axis=1)]
            ]
            np.mean(found)

    scores: dict[tuple[str, str, str], list[float]] = {}
    for name, site in sites.items():
        for split in SPLITS:
            for case in site.splits[split]:
                predicted = case.grid.to_native(predict(net, case.image))
                for row in score_case(
                    case.labels["mask"].native,
                    predicted,
                    case.native_spacing_mm,
                    structures,
                    plan.task["tolerance_mm"],
                ):
                    values = [row[metric] for metric in METRICS]
                    scores[name, case.id, row["structure"]] = values
    wall_s, cpu_s = time.perf_counter() - start, cpu_seconds() - start_cpu
    return Outcome({name: t.numpy() for name, t in weights.items()}, scores, wall_s, cpu_s)


def predict(net: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """Class probabilities (S, C, H, W) of the slices (S, 1, H, W)."""
    net.eval()
    with torch.inference_mode():
        parts = [
            F.softmax(net(part), dim=1)
            for part in torch.from_numpy(np.array(images)).split(PREDICT_BATCH)
        ]
    return torch.cat(parts).numpy()


def dice(truth: np.ndarray, found: np.ndarray) -> float:
    """The Dice of two masks, 1 when both are empty."""
    size = int(truth.sum()) + int(found.sum())
    return 1.0 if size == 0 else 2.0 * int((truth & found).sum()) / size


def same(first: Outcome, second: Outcome) -> None:
    """Fail unless two sides trained the same model and scored it alike."""
    assert first.weights.keys() == second.weights.keys() and first.weights
    for name, array in first.weights.items():
        np.testing.assert_allclose(array, second.weights[name], rtol=0, atol=1e-6, err_msg=name)
    assert first.scores.keys() == second.scores.keys() and first.scores
    for key, values in first.scores.items():
        np.testing.assert_allclose(values, second.scores[key], rtol=0, atol=1e-6, err_msg=str(key))


def cpu_seconds() -> float:
    """CPU time of this process and of its live children."""
    process = psutil.Process()
    times = [member.cpu_times() for member in (process, *process.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def measured(side: str, run: Simulation) -> Outcome:
    """Run one side in a process of its own, for wall and CPU seconds that nothing before shares."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        fresh.submit(torch.set_num_threads, 1).result()  # starts the process and its imports
        return fresh.submit(SIDES[side], run).result()


SIDES: dict[str, Callable[[Simulation], Outcome]] = {
    "bare PyTorch loop": bare_loop,
    "inline, 1 worker": partial(engine, workers=1),
    "inline, 2 workers": partial(engine, workers=2),
}


def main(turns: int) -> int:
    """Print seconds and ratios; return 1 when a target is missed."""
    outcomes: dict[str, list[Outcome]] = {side: [] for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        open_all(simulation(Path(folder) / "none", cache, SITES).sites)
        for turn in range(turns):
            for side, found in outcomes.items():
                run = simulation(Path(folder) / f"{side} {turn}", cache, SITES, *OPTIONS)
                found.append(measured(side, run))
                same(outcomes["bare PyTorch loop"][turn], found[turn])
    wall = {side: [outcome.wall_s for outcome in found] for side, found in outcomes.items()}
    cpu = {side: [outcome.cpu_s for outcome in found] for side, found in outcomes.items()}
    print(f"{SITES} phantom sites, 5 rounds of 15 steps, one torch thread a process\n")
    print_table(
        ["", "wall s", "CPU s"],
        [
            (side, f"{statistics.median(wall[side]):.2f}", f"{statistics.median(cpu[side]):.2f}")
            for side in SIDES
        ],
    )
    loop, one, two = SIDES
    print(f"\nCPU seconds: 1 worker / bare loop {median_ratio(cpu[one], cpu[loop]):.3f}x")
    print(f"CPU seconds: 2 workers / 1 worker {median_ratio(cpu[two], cpu[one]):.3f}x")
    met = [
        verdict("1 worker / bare loop", median_ratio(wall[one], wall[loop]), 1.05),
        verdict("2 workers / 1 worker", median_ratio(wall[two], wall[one]), 0.75),
    ]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 3))
