"""How the codes of each site are distributed, as the sites publish it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from fedshift.client.contract.method import StatisticsBank
from fedshift.protocol.frechet import frechet_distances, pool_moments

Gaussian = tuple[torch.Tensor, torch.Tensor]
"""A mean (D,) and a root (D, D) of a covariance: mean + root e has both, for e ~ N(0, I)."""


def gaussians(bank: StatisticsBank, code: str) -> list[Gaussian]:
    """The distributions of a ``code`` at the sites that published one, in order of their names."""
    gaussians = []
    for _, found in sorted(bank.items()):
        if found:
            values, vectors = np.linalg.eigh(found[f"{code}_covariance"])
            root = torch.from_numpy(vectors * np.sqrt(np.maximum(values, 0.0)))
            gaussians.append((torch.from_numpy(found[f"{code}_mean"]).float(), root.float()))
    return gaussians


def draw(sites: Sequence[Gaussian], count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` codes (count, D) on the CPU, each of a site drawn at random."""
    chosen = torch.randint(len(sites), (count,), generator=generator).tolist()
    noise = torch.randn(count, len(sites[0][0]), generator=generator)
    return torch.stack([sites[k][0] + sites[k][1] @ e for k, e in zip(chosen, noise, strict=True)])


def pooled(bank: StatisticsBank) -> dict[str, float]:
    """What only all sites together can say, from the moments they published last round: the share
    of each code's variance that lies between the sites, and the Frechet distance between the task
    encoder's features of all images and of all generated ones; what was not published is left out.
    """
    metrics = {}
    published = [found for _, found in sorted(bank.items()) if found]
    if published:
        counts = np.concatenate([found["count"] for found in published])
        for code in ("style", "content"):
            _, covariance = _pool(published, code)
            within = counts @ [np.trace(found[f"{code}_covariance"]) for found in published]
            metrics[f"{code}_between_sites"] = float(
                1 - within / counts.sum() / max(np.trace(covariance), 1e-12)
            )
    published = [found for found in published if "real_mean" in found]
    if published:
        mean, covariance = _pool(published, "real")
        means, covariances = _pool(published, "generated")
        (distance,) = frechet_distances(mean, covariance, means[None], covariances[None])
        metrics["frechet"] = float(distance)
    return metrics


def _pool(
    published: Sequence[Mapping[str, np.ndarray]], name: str
) -> tuple[np.ndarray, np.ndarray]:
    """The mean and covariance of what several sites published under ``name``, put together."""
    _, mean, covariance = pool_moments(
        np.concatenate([found["count"] for found in published]),
        np.stack([found[f"{name}_mean"] for found in published]),
        np.stack([found[f"{name}_covariance"] for found in published]),
    )
    return mean, covariance
