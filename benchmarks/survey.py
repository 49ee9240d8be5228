"""What it costs to look at every file before a run: 200 PNG photographs and 20 NIfTI volumes.

Run with ``python benchmarks/survey.py``. On an empty cache the sites are opened (each file read and
prepared for the network), once as they are and once after the survey, plan and check that every
command makes first; then the check is repeated, which reads nothing again. Medians of three turns,
after one untimed turn that fills the disk cache. Training, which takes longer, is left out.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from common import median_ratio, print_table, verdict
from PIL import Image

from fedshift.runs.checking import examine
from fedshift.runs.config import load
from fedshift.runs.federation import open_federation
from fedshift.sites import open_site

TURNS = 3
PHOTOGRAPHS, PHOTOGRAPH = 200, (480, 640)
VOLUMES, VOLUME = 20, (256, 256, 40)
BY_HAND = ("data.spacing_mm=1.0", "data.size=256", "data.slice_axis=2", "data.normalise=percentile")


def draw(folder: Path) -> Path:
    """Write two sites of each kind and their table."""
    rows = ["path\tlabel_path\tsite\tsubject\tspacing_mm"]
    for k in range(PHOTOGRAPHS + VOLUMES):
        rng = np.random.default_rng(k)
        flat = k < PHOTOGRAPHS
        shape = PHOTOGRAPH if flat else VOLUME
        label = np.zeros(shape, np.uint8)
        label[tuple(slice(n // 3, n // 2) for n in shape)] = 1
        image = (rng.normal(90, 12, shape) + 60 * label).clip(0, 255)
        names = [f"{k}{part}.{'png' if flat else 'nii.gz'}" for part in ("", "_mask")]
        for name, array in zip(names, (image, label), strict=True):
            if flat:
                Image.fromarray(array.astype(np.uint8)).save(folder / name)
            else:
                volume = nibabel.Nifti1Image(
                    array.astype(np.uint8 if array is label else np.int16),
                    np.diag([1.0, 1.0, 4.0, 1.0]),
                )
                nibabel.save(volume, folder / name)
        site = f"{'photographs' if flat else 'volumes'}_{'ab'[k % 2]}"
        rows.append(f"{names[0]}\t{names[1]}\t{site}\ts{k}\t{'0.5' if flat else ''}")
    table = folder / "table.tsv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def seconds(work: Callable[[], None]) -> float:
    """How long ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def turn(table: Path) -> dict[str, float]:
    """One measurement of each, every first look on a cache of its own."""
    took = {}
    for name, first in (("open", False), ("check, then open", True)):
        with tempfile.TemporaryDirectory() as cache:
            given = [f"data.manifest={table}", f"data.cache={cache}", "data.labels={it: 1}"]
            config = load(["federation=manifest", *given, *BY_HAND])

            def check(config: dict[str, object] = config) -> None:
                found = examine(config)
                assert not found.stopping, found.stopping[0].told()

            def open_all(config: dict[str, object] = config) -> None:
                federation, data = open_federation(config)
                for site in federation.sites:
                    open_site(site, federation.parts, data, 0)

            spent = seconds(check) if first else 0.0
            took[name] = spent + seconds(open_all)
            if first:
                took["check, cold"] = spent
                took["check, warm"] = seconds(check)
    return took


def main() -> int:
    """Print seconds; return 1 when a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        table = draw(Path(folder))
        turns = [turn(table) for _ in range(TURNS + 1)][1:]
    took = {name: [found[name] for found in turns] for name in turns[0]}
    print_table(
        ["", "wall s"], [(name, f"{statistics.median(found):.2f}") for name, found in took.items()]
    )
    met = [
        verdict(
            "\nfirst start, with / without",
            median_ratio(took["check, then open"], took["open"]),
            1.75,
        ),
        verdict("check, warm / cold", median_ratio(took["check, warm"], took["check, cold"]), 0.1),
    ]
    return int(not all(met))


if __name__ == "__main__":
    sys.exit(main())
