"""Time the batched projection and filtered back-projection against scikit-image's, and compare.

Run with ``python benchmarks/fbp.py``: 64 slices of 128 x 128, 180 angles, on one thread, since
scikit-image uses one. Ours in batches of 64, the matrices made before: once in a process (their
time is printed). scikit-image's ``radon`` and ``iradon`` slice by slice. Medians of five pairs,
measured in turn. With a GPU, ours there is timed as well.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch
from common import median_ratio, print_table, verdict, verdict_at_least
from skimage.transform import iradon, radon

from fedshift.sites.tomography import Tomograph, inside_circle

SLICES, SIZE, ANGLES = 64, 128, 180
REPEATS = 5


def ours(scanner: Tomograph, images: torch.Tensor) -> torch.Tensor:
    """Projected and reconstructed with the plain ramp, scikit-image's default."""
    found = scanner.reconstruct(scanner.project(images), 0.0, 1.0)
    if images.is_cuda:
        torch.cuda.synchronize()
    return found


def theirs(images: np.ndarray) -> np.ndarray:
    """The same, slice by slice."""
    theta = np.arange(ANGLES) * (180 / ANGLES)
    return np.stack([iradon(radon(image, theta), theta) for image in images])


def main() -> bool:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images = (rng.random((SLICES, SIZE, SIZE)) * inside_circle(SIZE)).astype(np.float32)
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
    scanners, batches = [], []
    for device in devices:
        start = time.perf_counter()
        scanners.append(Tomograph(SIZE, ANGLES, device))
        batches.append(torch.from_numpy(images).to(device))
        print(f"matrices on {device.type}: {time.perf_counter() - start:.2f} s, once")
    expected = theirs(images)
    error = 0.0
    for scanner, batch in zip(scanners, batches, strict=True):
        found = ours(scanner, batch).cpu().numpy()
        error = max(error, float(np.abs(found - expected).max() / np.abs(expected).max()))
    seconds: dict[str, list[float]] = {"scikit-image": []}
    seconds |= {device.type: [] for device in devices}
    for _ in range(REPEATS):
        start = time.perf_counter()
        theirs(images)
        seconds["scikit-image"].append(time.perf_counter() - start)
        for device, scanner, batch in zip(devices, scanners, batches, strict=True):
            start = time.perf_counter()
            ours(scanner, batch)
            seconds[device.type].append(time.perf_counter() - start)
    print_table(
        ["radon + iradon", "ms"],
        [(name, f"{1000 * statistics.median(times):.1f}") for name, times in seconds.items()],
    )
    faster = median_ratio(seconds["scikit-image"], seconds["cpu"])
    return all(
        [
            verdict_at_least("faster than scikit-image on one thread", faster, 20),
            verdict("largest difference, thousandths of the largest pixel", 1000 * error, 1, ""),
        ]
    )


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
