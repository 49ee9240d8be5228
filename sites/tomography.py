"""Parallel-beam computed tomography: projection, and filtered back-projection with a kernel.

Saparov et al., "Zero-Shot Domain Adaptation in CT Segmentation by Filtered Back Projection
Augmentation", DART 2021, section 2.1. The discrete conventions are those of scikit-image's
``radon`` and ``iradon`` with ``circle=True``, so that the two can be compared number by number:
detectors of a pixel's width, bilinear sampling along the rays, the ramp filter of Kak and Slaney
(1988, eq. 61), linear interpolation between detectors. The paper prints 1 / (2 n) before the sum
of the back-projection; with a ramp that rises to 1 at the Nyquist frequency it is pi / (2 n).

Projection and back-projection are linear and the same for every image, so each is a sparse matrix,
made once per process, size and number of angles. Its product with many images at once reads each
weight once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import csr_array
from torch.nn import functional as F

Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A block of a sparse matrix's rows: weights, column indices, and entries in each row."""


class Tomograph:
    """Square images of one size, seen from ``angles`` directions evenly spread over 180 degrees.

    Only the inscribed circle is seen: what lies outside it is taken as 0, and reconstructed as 0.
    """

    def __init__(self, size: int, angles: int, device: torch.device) -> None:
        """The matrices take about 30 bytes x ``size``**2 x ``angles`` on ``device``."""
        self.size, self.angles = size, angles
        self._forward = _SparseMatrix(_rays(size, angles), size * size, device)
        self._back = _SparseMatrix(_backprojections(size, angles), angles * _span(size), device)
        self._ramp = ramp(size).to(device)

    def project(self, images: torch.Tensor) -> torch.Tensor:
        """The line integrals (B, angles, size), in pixels, of images (B, size, size) float32."""
        rays = self._forward @ images.reshape(-1, self.size**2).T
        return rays.T.reshape(-1, self.angles, self.size)

    def reconstruct(
        self, sinograms: torch.Tensor, a: torch.Tensor | float, b: torch.Tensor | float
    ) -> torch.Tensor:
        """Filtered back-projection (B, size, size) of sinograms (B, angles, size) float32.

        The filter is ``r (1 + a r**b)``, with ``r`` the ramp, 0 to 1: ``a = 0`` is the plain ramp,
        ``a > 0`` sharpens, ``a < 0`` (at least -1) smooths. ``a`` and ``b`` are numbers or one a
        sinogram, (B,).
        """
        a, b = (torch.as_tensor(v, dtype=torch.float32).to(self._ramp.device) for v in (a, b))
        response = self._ramp * (1 + a[..., None] * self._ramp ** b[..., None])
        padded = 2 * (len(self._ramp) - 1)
        spectrum = torch.fft.rfft(sinograms, n=padded) * response[..., None, :]
        filtered = torch.fft.irfft(spectrum)[..., : _span(self.size)]
        images = self._back @ filtered.flatten(1).T
        return images.T.reshape(-1, self.size, self.size) * (math.pi / (2 * self.angles))


@lru_cache(maxsize=4)
def tomograph(size: int, angles: int, device: torch.device) -> Tomograph:
    """The process's own tomograph of this kind."""
    return Tomograph(size, angles, device)


def inside_circle(size: int) -> np.ndarray:
    """The pixels (size, size) bool of the inscribed circle, whose centre is pixel ``size // 2``."""
    offset = np.arange(size) - size // 2
    return offset[:, None] ** 2 + offset**2 <= (size // 2) ** 2


def ramp(size: int) -> torch.Tensor:
    """The ramp filter at the frequencies 0 to Nyquist of a padded projection, about 0 to 1.

    It is the transform of the band-limited ramp's samples: sampling ``|w|`` itself would lose the
    mean. The padding is scikit-image's: a power of two, at least twice the image's diagonal.
    """
    padded = max(64, 2 ** math.ceil(math.log2(2 * math.ceil(math.sqrt(2) * size))))
    lag = np.minimum(np.arange(padded), padded - np.arange(padded))
    taps = np.where(lag % 2 == 1, -1 / (np.pi * np.maximum(lag, 1)) ** 2, 0.0)
    taps[0] = 0.25
    return torch.from_numpy(2 * np.fft.rfft(taps).real).float()


def _span(size: int) -> int:
    """Places along the detector that the circle's diameter reaches, one more than the detectors
    when ``size`` is even."""
    return 2 * (size // 2) + 1


def _rays(size: int, angles: int) -> Iterator[Entries]:
    """For each angle the rows of its detectors: the pixels' weights in the sums along the rays.

    A ray is sampled at unit steps; a sample interpolates between its four neighbours.
    """
    centre, inside = size // 2, inside_circle(size)
    along = np.arange(size) - centre
    for angle in np.arange(angles) * (np.pi / angles):
        cos, sin = np.cos(angle), np.sin(angle)
        # Rows are detectors, columns steps along the ray.
        x = cos * along[:, None] + sin * along + centre
        y = cos * along - sin * along[:, None] + centre
        left, top = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
        columns = left[..., None] + np.array([0, 1, 0, 1], np.int32)
        rows = top[..., None] + np.array([0, 0, 1, 1], np.int32)
        right, down = (x - left)[..., None], (y - top)[..., None]
        weights = np.concatenate([1 - right, right] * 2, -1)
        weights *= np.concatenate([1 - down, 1 - down, down, down], -1)
        seen = (columns >= 0) & (columns < size) & (rows >= 0) & (rows < size) & (weights > 0)
        pixels = rows * size + columns
        seen &= inside.ravel()[np.where(seen, pixels, 0)]
        yield weights[seen], pixels[seen], seen.sum((1, 2))


def _backprojections(size: int, angles: int) -> Iterator[Entries]:
    """For each row of pixels its weights of the filtered projections, two detectors an angle."""
    centre, inside, span = size // 2, inside_circle(size), _span(size)
    angle = np.arange(angles) * (np.pi / angles)
    along = np.arange(size)[:, None] - centre
    first = np.arange(angles, dtype=np.int32) * span
    for row in range(size):
        place = along * np.cos(angle) - (row - centre) * np.sin(angle) + centre
        # The last place has no right neighbour: it is its left one's, with weight 1.
        left = np.clip(np.floor(place), 0, span - 2).astype(np.int32)
        weights = np.stack([1 - (place - left), place - left], -1)[inside[row]]
        detectors = np.stack([first + left, first + left + 1], -1)[inside[row]]
        yield weights.ravel(), detectors.ravel(), inside[row] * (2 * angles)


class _SparseMatrix:
    """A sparse matrix by rows, built from blocks of rows, times dense float32 columns."""

    def __init__(self, blocks: Iterator[Entries], columns: int, device: torch.device) -> None:
        weights, indices, counts = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        starts = np.concatenate([[0], np.cumsum(counts)])
        matrix = csr_array(
            (weights.astype(np.float32), indices, starts), shape=(len(counts), columns)
        )
        matrix.sum_duplicates()
        self._indices = torch.from_numpy(matrix.indices.astype(np.int32)).to(device)
        self._starts = torch.from_numpy(matrix.indptr.astype(np.int32)).to(device)
        self._weights = torch.from_numpy(matrix.data).to(device)

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        # A weighted sum of rows is what an embedding bag is; torch's kernel for it is faster than
        # its sparse product, and gives the same bits whatever the number of threads.
        return F.embedding_bag(
            self._indices,
            dense.contiguous(),
            self._starts,
            mode="sum",
            per_sample_weights=self._weights,
            include_last_offset=True,
        )
