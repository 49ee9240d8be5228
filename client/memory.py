"""What one site's training takes, measured and not guessed: memory on a GPU, a step on a CPU."""

from __future__ import annotations

import re
import resource
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedshift.client.contract.method import Budget
from fedshift.client.contract.task import Task
from fedshift.client.model import Model
from fedshift.sites.geometry import Grid
from fedshift.sites.types import Case, Domain, SiteData

_SLICES = 64
_TIMED = 3
_STEPS = 2


def training_bytes(
    method: Mapping[str, Any], task: Mapping[str, Any], rounds: int, size: int, device: str
) -> int:
    """The peak of ``device``'s memory, in bytes, over two steps on random images of ``size``, in
    the first and in the middle one of ``rounds``: methods train other networks later."""
    place = torch.device(device)
    torch.cuda.reset_peak_memory_stats(place)
    before = torch.cuda.memory_allocated(place)
    model = Model(method, {**task, "size": [size, size]}, place, seed=0)
    data = _random_site(model.task)
    for number in sorted({1, 1 + rounds // 2}):
        budget = Budget(model.task, steps=_STEPS, seed=0, device=place, round=number, rounds=rounds)
        model.method.fit(data, model.nets, {}, budget)
    peak = torch.cuda.max_memory_reserved(place) - before
    del model
    torch.cuda.empty_cache()
    return int(peak)


@dataclass(frozen=True)
class StepCost:
    """What one training step of a site takes on one CPU core."""

    seconds: float
    megabytes: float


def step_cost(
    method: Mapping[str, Any], task: Mapping[str, Any], rounds: int, size: int
) -> StepCost:
    """Train a few steps on random images of ``size`` with one thread: the median time of a step,
    and how much memory a process takes for it (10^6 bytes)."""
    # A process of its own: the peak of one that has read images already hides that of training.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(_measured, dict(method), dict(task), rounds, size).result()


def _measured(
    method: Mapping[str, Any], task: Mapping[str, Any], rounds: int, size: int
) -> StepCost:
    torch.set_num_threads(1)
    before = _resident()
    model = Model(method, {**task, "size": [size, size]}, torch.device("cpu"), seed=0)
    data = _random_site(model.task)
    spent = []
    for number in range(_TIMED + 1):  # The first one also prepares the machine.
        start = time.perf_counter()
        budget = Budget(model.task, steps=1, seed=number, device=torch.device("cpu"), rounds=rounds)
        model.method.fit(data, model.nets, {}, budget)
        spent.append(time.perf_counter() - start)
    return StepCost(float(np.median(spent[1:])), max(0.0, _resident() - before) / 1e6)


def _resident() -> float:
    """The most memory that this process ever held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux getrusage tells of the process that started this one, too.
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.M)
        if found is not None:
            return float(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _random_site(task: Task) -> SiteData:
    """A labelled site of noise, large enough to fill a batch."""
    random = np.random.default_rng(0)
    rows, columns = task.size
    case = Case(
        id="noise",
        subject="noise",
        session="",
        domain=Domain(vendor="noise"),
        image=random.standard_normal((_SLICES, task.in_channels, rows, columns), dtype=np.float32),
        labels=task.noise(_SLICES, random),
        labelled=np.ones(_SLICES, dtype=bool),
        spacing_mm=(1.0, 1.0, 1.0),
        native_spacing_mm=(1.0, 1.0, 1.0),
        grid=Grid(task.size, (1.0, 1.0), (1.0, 1.0), rows),
    )
    splits = {"train": (case,), "val": (), "test": ()}
    return SiteData("noise", "train", task.parts, splits)  # type: ignore[arg-type]
