"""Time HD95, ASSD and NSD of one 256 x 256 x 12 case against MedPy's calls for the same three.

Run with ``python benchmarks/distances.py``. Ours is a whole ``score_case``, overlap and volumes
included. MedPy has no NSD, so it gets ``hd95``, ``assd``, and for NSD the two directed distance
lists that these are made of. Medians of three after one untimed call.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import medpy.metric.binary as medpy_binary
import numpy as np

from fedshift.client.metrics import score_case

SHAPE = (12, 256, 256)
SPACING_MM = (8.0, 1.3, 1.3)
TOLERANCE_MM = 2.0
METRICS = ("hd95_mm", "assd_mm", "nsd")


def ellipsoid(center_mm: tuple[float, float, float], radius_mm: float) -> np.ndarray:
    """A ball of ``radius_mm`` whose centre is off the image's centre by ``center_mm``."""
    axes = [
        (np.arange(n) - (n - 1) / 2) * step - center
        for n, step, center in zip(SHAPE, SPACING_MM, center_mm, strict=True)
    ]
    squares = np.meshgrid(*(axis**2 for axis in axes), indexing="ij", sparse=True)
    return np.asarray(sum(squares) <= radius_mm**2)


def ours(reference: np.ndarray, prediction: np.ndarray) -> list[float]:
    """The three values by fedshift."""
    (row,) = score_case(
        reference.astype(np.uint8), prediction.astype(np.uint8), SPACING_MM, ["it"], TOLERANCE_MM
    )
    return [row[metric] for metric in METRICS]


def medpys(reference: np.ndarray, prediction: np.ndarray) -> list[float]:
    """The three values by MedPy."""
    directed = getattr(medpy_binary, "__surface_distances")
    distances = np.concatenate(
        [
            directed(reference, prediction, SPACING_MM),
            directed(prediction, reference, SPACING_MM),
        ]
    )
    return [
        float(medpy_binary.hd95(prediction, reference, SPACING_MM)),
        float(medpy_binary.assd(prediction, reference, SPACING_MM)),
        float((distances <= TOLERANCE_MM).mean()),
    ]


def median_ms(call: Callable[..., object], *arguments: np.ndarray) -> float:
    """The median of three timed calls, in milliseconds, after one to warm up."""
    call(*arguments)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        call(*arguments)
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def main() -> int:
    """Print a line for each case; return 1 when any value differs by more than 1e-6."""
    noise = np.random.default_rng(0).random(SHAPE) > 0.9
    cases = {
        "left ventricle": (ellipsoid((0, 0, 0), 40), ellipsoid((0, 2, -1), 37)),
        "organ filling the image": (ellipsoid((0, 0, 0), 150), ellipsoid((0, 3, 2), 144)),
        "two ends of the image": (ellipsoid((-30, -120, -120), 25), ellipsoid((30, 120, 120), 25)),
        "ventricle against noise": (ellipsoid((0, 0, 0), 40), noise),
    }
    heads = ("MedPy ms", "fedshift ms", "ratio", "largest error")
    print(f"{'256 x 256 x 12':<25}" + "".join(f"{head:>15}" for head in heads))
    worst = 0.0
    for name, masks in cases.items():
        error = float(np.abs(np.subtract(ours(*masks), medpys(*masks))).max())
        theirs_ms, ours_ms = median_ms(medpys, *masks), median_ms(ours, *masks)
        ratio = theirs_ms / ours_ms
        print(f"{name:<25}{theirs_ms:>15.1f}{ours_ms:>15.1f}{ratio:>14.1f}x{error:>15.1e}")
        worst = max(worst, error)
    return int(worst > 1e-6)


if __name__ == "__main__":
    sys.exit(main())
