"""The physics of a B-mode ultrasound image, in the beam space of a convex probe.

Arrays are (S, depth, beam): ``depth`` counts samples along a beam from the probe's face, ``beam``
counts the beams from one side of the fan to the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

SOUND_MM_PER_US = 1.54
FWHM = 2.3548
"""Full width at half maximum of a Gaussian, in standard deviations."""


@dataclass(frozen=True)
class UltrasoundProtocol:
    """How one vendor scans."""

    frequency_mhz: float
    """Sets attenuation, pulse length and beam width."""
    cycles: float
    """Length of the pulse."""
    aperture_mm: float
    """A wider aperture focuses more sharply."""
    focus_mm: float
    tgc: float
    """Time-gain compensation, as a fraction of what soft tissue's attenuation calls for."""
    shadow: float
    """Scale of the skull's attenuation, its edges' refraction included."""
    electronic_noise_db: float
    """Noise of the receiver relative to a perfect reflector at the probe's face."""
    gain_db: float
    """Overall gain before compression."""
    dynamic_range_db: float
    smoothing_mm: float
    """Standard deviation of the vendor's speckle filter, on the finished image."""
    gamma: float
    """Exponent of the vendor's grey-level curve."""


def amplitude(level_db: np.ndarray | float) -> np.ndarray:
    """The amplitude ratio of a level in dB."""
    return np.exp(level_db * (math.log(10.0) / 20.0))


def lateral_sigma_mm(depth_mm: np.ndarray, protocol: UltrasoundProtocol) -> np.ndarray:
    """Standard deviation of the lateral point spread at each depth, in mm.

    At the focus the width is set by diffraction (wavelength x depth / aperture); away from it the
    converging beam's geometric width, aperture x |1 - depth / focus|, is added in quadrature.
    """
    wavelength_mm = SOUND_MM_PER_US / protocol.frequency_mhz
    diffraction = wavelength_mm * depth_mm / protocol.aperture_mm
    geometric = 0.25 * protocol.aperture_mm * np.abs(1.0 - depth_mm / protocol.focus_mm)
    return np.hypot(diffraction, geometric) / FWHM


class PointSpread(NamedTuple):
    """The point spread as transfer functions: ``axial`` (D,) and, by depth, ``lateral`` (D, B).

    Both profiles are Gaussians of unit energy: uncorrelated scatterers keep their mean intensity,
    whatever the width.
    """

    axial: np.ndarray
    lateral: np.ndarray

    @property
    def mirror_gain(self) -> np.ndarray:
        """By how much blurring raises the amplitude of a wide mirror at each depth, (D,)."""
        return self.axial[0] * self.lateral[:, 0]


def point_spread(
    step_mm: float, beam_mm: np.ndarray, beams: int, protocol: UltrasoundProtocol
) -> PointSpread:
    """The point spread for depth samples ``step_mm`` apart and ``beams`` beams that are
    ``beam_mm`` (D,) apart at each depth."""
    depths = len(beam_mm)
    pulse = protocol.cycles * SOUND_MM_PER_US / protocol.frequency_mhz / 2.0 / FWHM / step_mm
    sigma = lateral_sigma_mm(step_mm * np.arange(depths), protocol) / beam_mm
    axial = np.exp(-2.0 * (np.pi * pulse * fft.fftfreq(depths)) ** 2)
    lateral = np.exp(-2.0 * (np.pi * sigma[:, None] * fft.fftfreq(beams)) ** 2)
    axial /= np.sqrt((axial**2).mean())
    lateral /= np.sqrt((lateral**2).mean(axis=1, keepdims=True))
    return PointSpread(axial.astype(np.float32), lateral.astype(np.float32))


def blur(echo: np.ndarray, spread: PointSpread) -> np.ndarray:
    """Convolve the complex ``echo`` (S, D, B) with ``spread``, in Fourier space: there a width
    that varies with depth costs nothing."""
    echo = fft.ifft(fft.fft(echo, axis=1) * spread.axial[:, None], axis=1)
    return fft.ifft(fft.fft(echo, axis=2) * spread.lateral, axis=2)


def round_trip_loss_db(
    attenuation: np.ndarray, step_mm: float, protocol: UltrasoundProtocol
) -> np.ndarray:
    """Loss on the way to each sample and back, in dB, from attenuation in dB / (cm MHz)."""
    one_way = np.cumsum(attenuation, axis=1) - attenuation
    return one_way * (2.0 * 0.1 * step_mm * protocol.frequency_mhz)


def gain_compensation_db(
    depth_mm: np.ndarray, protocol: UltrasoundProtocol, soft_tissue: float
) -> np.ndarray:
    """Time-gain compensation at each depth, in dB: ``tgc`` of the loss that ``soft_tissue``
    (dB / (cm MHz)) causes."""
    return protocol.tgc * 2.0 * 0.1 * soft_tissue * protocol.frequency_mhz * depth_mm


def compress(envelope: np.ndarray, protocol: UltrasoundProtocol) -> np.ndarray:
    """Log-compress an ``envelope`` to 0..1: 1 at 0 dB, 0 at the end of the dynamic range."""
    level = 20.0 * np.log10(np.maximum(envelope, 1e-9)) + protocol.gain_db
    return np.clip(1.0 + level / protocol.dynamic_range_db, 0.0, 1.0) ** protocol.gamma


def scan_convert(
    beams: np.ndarray, rows: np.ndarray, columns: np.ndarray, smoothing: float
) -> np.ndarray:
    """Bring (S, depth, beam) to an image by linear interpolation; black outside the fan.

    ``rows`` and ``columns`` (2 H, 2 W) are the fractional depth and beam of half pixels, of which
    each pixel is the mean of four; ``smoothing`` is the speckle filter's width in pixels.
    """
    fine = np.stack(
        [ndimage.map_coordinates(plane, (rows, columns), order=1, cval=0.0) for plane in beams]
    )
    image = 0.25 * (
        fine[:, ::2, ::2] + fine[:, 1::2, ::2] + fine[:, ::2, 1::2] + fine[:, 1::2, 1::2]
    )
    return ndimage.gaussian_filter(image, (0.0, smoothing, smoothing))
