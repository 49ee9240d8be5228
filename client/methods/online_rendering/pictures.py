"""Pictures of how test images are rendered, iteration by iteration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fedshift.client.contract.illustrations import Curves, Illustration, ImageGrid
from fedshift.client.metrics import dice
from fedshift.sites.types import IGNORED, SiteData

SHOWN_IMAGES = 3
SHOWN_ITERATIONS = (0, 1, 5)
"""What is drawn: so many test images, after these iterations and the last."""


def pictures(
    site: SiteData,
    trajectory: Callable[[np.ndarray], Iterable[tuple[np.ndarray, np.ndarray]]],
    iterations: int,
) -> list[Illustration]:
    """The first test images by iteration, and the mean Dice of those with labels.

    ``trajectory`` gives an image (C, H, W) as rendered and its class probabilities (K, H, W),
    before the first and after every one of at most so many ``iterations``.
    """
    cases = site.splits["test"][:SHOWN_IMAGES]
    columns = sorted({k for k in SHOWN_ITERATIONS if k < iterations} | {iterations})
    rows, lines = [], []
    for case in cases:
        middle = len(case.image) // 2
        image = np.asarray(case.image[middle])
        steps = list(trajectory(image))
        # Where the iterations ended early, the last one stays.
        steps += [steps[-1]] * (iterations + 1 - len(steps))
        mask = 1 - steps[-1][1][0]
        shown = [image, *(steps[k][0] for k in columns)]
        rows.append([*(channels.mean(0) for channels in shown), mask])
        if case.labelled[middle]:
            truth = np.asarray(case.labels["mask"].grid[middle])
            lines.append([_mean_dice(truth, guess, case.annotates) for _, guess in steps])
    if not rows:
        return []
    found: list[Illustration] = [
        ImageGrid(
            "rendering",
            "Online rendering by iteration",
            "Test images, as rendered before the first online update (iteration 0) and after "
            "some; right, the probability of any structure at the end.",
            rows,
            ["image", *(f"iteration {k}" for k in columns), "segmentation"],
            [case.id for case in cases],
        )
    ]
    if lines:
        found.append(
            Curves(
                "dice",
                "Dice by iteration",
                f"Mean over {len(lines)} test images, which are adapted one by one without "
                "their labels; the labels only measure.",
                np.arange(iterations + 1),
                {"rendered": np.mean(lines, axis=0)},
                ("iteration", "Dice"),
            )
        )
    return found


def _mean_dice(
    truth: np.ndarray, probabilities: np.ndarray, annotated: Sequence[int] | None
) -> float:
    found = np.where(truth == IGNORED, 0, probabilities.argmax(0))
    classes = annotated or range(1, len(probabilities))
    return float(np.mean([dice(truth == k, found == k) for k in classes]))
