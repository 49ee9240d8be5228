"""Amplitude spectra of images: what scanners and protocols change most, apart from the phase, in
which most of the anatomy lies.

The transform is unitary, so amplitudes are in units of pixel values times the square root of the
number of pixels. A window of low frequencies is centred: entry (r, c) of (2 r + 1, 2 c + 1) is
frequency 0. All functions work on the images' device, in single precision, for sides of any length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedshift.sites.types import Case

_BATCH = 32


def amplitude(images: torch.Tensor) -> torch.Tensor:
    """The amplitude spectra of ``images`` (..., H, W), frequency 0 first."""
    return torch.fft.fft2(images, norm="ortho").abs()


def with_amplitude(images: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """``images`` (..., H, W) with the spectrum ``wanted`` (H, W) and their own phase."""
    phase = torch.fft.fft2(images, norm="ortho").angle()
    return torch.fft.ifft2(torch.polar(wanted.expand_as(phase), phase), norm="ortho").real


@dataclass(frozen=True)
class Window:
    """The low frequencies of images (H, W): up to ``reach`` times a side either way."""

    size: tuple[int, int]
    reach: float

    @property
    def shape(self) -> tuple[int, int]:
        """Frequencies a side, odd; the highest one of an even side, which is its own mirror image,
        is never among them."""
        rows, columns = (2 * min(int(self.reach * n), (n - 1) // 2) + 1 for n in self.size)
        return rows, columns

    def _places(self) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = (
            (torch.arange(count) - count // 2) % n
            for count, n in zip(self.shape, self.size, strict=True)
        )
        return rows[:, None], columns

    def of(self, spectra: torch.Tensor) -> torch.Tensor:
        """The window of ``spectra`` (..., H, W)."""
        return spectra[(..., *self._places())]

    def interpolate(
        self, images: torch.Tensor, towards: torch.Tensor, share: torch.Tensor
    ) -> torch.Tensor:
        """``images`` (B, C, H, W) whose low amplitudes a are (1 - share) a + share ``towards``, a
        window and a share for every image; all else of the spectrum stays."""
        spectra = torch.fft.fft2(images, norm="ortho")
        low = self.of(spectra)
        share = share.view(-1, 1, 1, 1)
        mixed = (1 - share) * low.abs() + share * towards.unsqueeze(1)
        spectra[(..., *self._places())] = torch.polar(mixed, low.angle())
        return torch.fft.ifft2(spectra, norm="ortho").real

    def noise(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Standard normal (count, rows, columns), the same at a frequency and its opposite, as the
        amplitudes of a real image are. ``generator`` is a CPU generator."""
        rows, columns = self.shape
        half = rows * columns // 2
        drawn = torch.randn(count, half + 1, generator=generator)
        return torch.cat([drawn, drawn[:, :half].flip(1)], dim=1).view(count, rows, columns)


def moments(cases: Sequence[Case], device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the amplitude spectra (H, W) of all slices and channels of
    ``cases``, of which there must be one at least."""
    total = squares = torch.zeros((), dtype=torch.float64)
    count = 0
    for images in _batches(cases):
        found = amplitude(torch.from_numpy(images).to(device)).cpu().double()
        total = total + found.sum(dim=0)
        squares = squares + found.square().sum(dim=0)
        count += len(images)
    mean = total / count
    deviation = (squares / count - mean**2).clamp(min=0).sqrt()
    return mean.float().numpy(), deviation.float().numpy()


def _batches(cases: Sequence[Case]) -> Iterator[np.ndarray]:
    for case in cases:
        planes = case.image.reshape(-1, *case.image.shape[2:])
        for start in range(0, len(planes), _BATCH):
            yield np.array(planes[start : start + _BATCH], dtype=np.float32)
