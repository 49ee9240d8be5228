"""The Frechet distance of feature distributions, from moments that can be pooled over sites."""

from __future__ import annotations

import numpy as np


def pool_moments(
    counts: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """Pool (S,) counts, (S, D) means and (S, D, D) covariances (divided by n) of S samples.

    Returns count, mean and covariance of the samples put together: exact, not an approximation.
    """
    total = float(counts.sum())
    shares = counts / total
    mean = shares @ means
    offsets = means - mean
    within = np.tensordot(shares, covariances, axes=1)
    return total, mean, within + (offsets * shares[:, None]).T @ offsets


def frechet_distances(
    mean: np.ndarray, covariance: np.ndarray, means: np.ndarray, covariances: np.ndarray
) -> np.ndarray:
    """From one Gaussian, (D,) and (D, D), to each of S others, (S, D) and (S, D, D): (S,).

    The squared Wasserstein-2 distance (Dowson and Landau, 1982, J. Multivar. Anal. 12), the
    quantity Heusel et al. (NIPS 2017) compute for Inception features.
    """
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    # The square root of C1 C2 has the trace of that of R C2 R with R R = C1, which is symmetric.
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances @ root), 0.0)).sum(axis=1)
    traces = np.trace(covariance) + np.trace(covariances, axis1=1, axis2=2)
    return np.maximum(((means - mean) ** 2).sum(axis=1) + traces - 2.0 * cross, 0.0)
