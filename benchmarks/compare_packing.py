"""How much of the cores' time ``fedshift compare`` spends in training and evaluation.

Run with ``python benchmarks/compare_packing.py [full]``. By default a small grid: 5 strategies x 2
methods x 1 seed over small cardiac phantoms. With ``full`` the grid that the target is of: 3 seeds,
the default phantoms, 10 rounds of 30 steps. ``strategy=local method=unet_gan`` is refused by
design, so one cell in ten fails and costs nothing.

Counted as training and evaluation is the time that sites take to answer: training, validation, the
scoring of every model at every site, and the comparison of their images. Everything else counts
against it: imports, composing the configurations, drawing the phantoms (the cache is empty),
packing and aggregating, checkpoints and ledgers, tables, workers that wait for the last cell, and
the comparison's statistics and page. The share is of the workers times the life of the whole
process; the lines below it say where the rest goes. The small grid pays for the same start and page
with a tenth of the work, so the target is not judged by it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from common import print_table, verdict_at_least

from fedshift.client.worker import SiteWorker
from fedshift.protocol.flower import Message
from fedshift.runs.cells import RunCell
from fedshift.runs.compare import compare
from fedshift.runs.sweep import Sweep

SMALL = (
    "seed=0",
    "federation.subjects=8",
    "federation.slices=3",
    "rounds=8",
    "local_steps=8",
)
FULL = ("seed=0,1,2", "rounds=10")
GRID = (
    "federation=cardiac_phantom",
    "strategy=local,fedavg,fedprox,fednova,fedbn",
    "method=supervised,unet_gan",
    "data.unlabelled_sites=[vendor_c]",
    "engine.devices=cpu",
)
TARGET = 0.85


@dataclass(frozen=True)
class TimedCell(RunCell):
    """A cell that notes, beside its comparison, when it ran and for how long its sites worked."""

    def __call__(self, device: str, tell: Callable[[float, str], None]) -> None:
        answered = SiteWorker.handle
        busy = 0.0

        def timed(worker: SiteWorker, message: Message) -> Message:
            nonlocal busy
            start = time.perf_counter()
            try:
                return answered(worker, message)
            finally:
                busy += time.perf_counter() - start

        SiteWorker.handle = timed  # type: ignore[method-assign]
        start = time.time()
        try:
            super().__call__(device, tell)
        finally:
            SiteWorker.handle = answered  # type: ignore[method-assign]
            note = {"start": start, "end": time.time(), "busy": busy}
            folder = self.folder.parents[1].with_suffix(".times")
            folder.mkdir(exist_ok=True)
            (folder / f"{self.number}.json").write_text(json.dumps(note))


def main() -> int:
    full = sys.argv[1:] == ["full"]
    workers = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "comparison"
        grid = [*GRID, *(FULL if full else SMALL), f"out={out}", f"data.cache={scratch}/cache"]
        compare(Sweep.parse(grid), task=TimedCell)
        notes = [json.loads(path.read_text()) for path in out.with_suffix(".times").iterdir()]
    whole = time.time() - psutil.Process().create_time()
    busy = sum(note["busy"] for note in notes)
    cells = sum(note["end"] - note["start"] for note in notes)
    phase = max(note["end"] for note in notes) - min(note["start"] for note in notes)
    print()
    print_table(
        ("share of the cores' time", "seconds", "of", "share"),
        [
            (
                f"the whole command, {workers} workers",
                f"{busy:.0f}",
                f"{workers * whole:.0f}",
                f"{busy / workers / whole:.2f}",
            ),
            (
                "from the first cell to the last",
                f"{busy:.0f}",
                f"{workers * phase:.0f}",
                f"{busy / workers / phase:.2f}",
            ),
            ("within the cells", f"{busy:.0f}", f"{cells:.0f}", f"{busy / cells:.2f}"),
        ],
    )
    share = busy / workers / whole
    if not full:
        print("the target is of the full grid: python benchmarks/compare_packing.py full")
        return 0
    return 0 if verdict_at_least("training and evaluation", share, TARGET, "") else 1


if __name__ == "__main__":
    sys.exit(main())
