"""The physics of a balanced steady-state free precession (bSSFP) cine scan.

From tissue properties to a magnitude image: steady-state signal, coil sensitivity, sampling of
k-space, thermal noise, and the vendor's own rendering.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import fft

FAT_SHIFT_PPM = -3.4
"""Chemical shift of fat from water; times 42.58 MHz/T it is -217 Hz at 1.5 T."""
PROTON_MHZ_PER_TESLA = 42.577


@dataclass(frozen=True)
class MriProtocol:
    """How one vendor scans."""

    field_t: float
    """Main field, tesla: sets T1 and T2, the signal's size and the fat's off-resonance."""
    flip_deg: float
    tr_ms: float
    """Repetition time; the echo time is half of it."""
    contrast_agent_mm: float
    """Gadolinium left in the blood when the cine is taken, mmol/L; 0 before injection."""
    fat_suppression: float
    """Fraction of the fat signal that is suppressed, 0 to 1."""
    inhomogeneity_ppm: float
    """Standard deviation of the smooth main-field error."""
    coil_decay: float
    """Loss of coil sensitivity, in e-folds per 100 mm from the coil."""
    resolution_read: float
    resolution_phase: float
    """Sampled fraction of k-space along columns and rows; the rest is filled with zeros."""
    partial_fourier: float
    """Sampled fraction of the acquired rows of k-space, 0.5 to 1."""
    noise: float
    """Standard deviation of the real and imaginary noise, relative to water's magnetisation at
    1.5 T and a fully sampled k-space."""
    saturation: float
    """Fraction of the pixels that the vendor's window clips at the top, 0 to below 1."""
    gamma: float
    """Exponent of the vendor's intensity curve."""


def bssfp_signal(
    t1_ms: np.ndarray,
    t2_ms: np.ndarray,
    flip_deg: float,
    tr_ms: float,
    off_resonance_hz: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Transverse bSSFP steady-state magnitude at TE = TR / 2, as a fraction of M0.

    With E1 = exp(-TR/T1), E2 = exp(-TR/T2) and c = cos(2 pi df TR) for RF pulses of alternating
    phase, it is::

        (1 - E1) sin(a) sqrt(1 + E2^2 + 2 E2 c) exp(-TE/T2)
        ---------------------------------------------------------
        (1 - E1 cos a) (1 + E2 c) - E2 (E1 - cos a) (E2 + c)

    (Freeman and Hill, J Magn Reson 4:366, 1971). On resonance it is the textbook form
    sin(a) (1 - E1) / (1 - (E1 - E2) cos a - E1 E2) (Scheffler and Lehnhardt, Eur Radiol 13:2409,
    2003); at df = 1 / (2 TR) it is the dark band. Arrays broadcast.
    """
    e1, e2 = np.exp(-tr_ms / t1_ms), np.exp(-tr_ms / t2_ms)
    cos_a, sin_a = np.cos(np.deg2rad(flip_deg)), np.sin(np.deg2rad(flip_deg))
    c = np.cos(2e-3 * np.pi * tr_ms * np.asarray(off_resonance_hz))
    # Rounding may leave a negative zero under the root in the dark band.
    root = np.sqrt(np.maximum(1 + e2 * (e2 + 2 * c), 0))
    denominator = (1 - e1 * cos_a) * (1 + e2 * c) - e2 * (e1 - cos_a) * (e2 + c)
    return (1 - e1) * sin_a * root * np.sqrt(e2) / denominator


def coil_sensitivity(
    x_mm: np.ndarray, y_mm: np.ndarray, coil_mm: tuple[float, float], decay: float
) -> np.ndarray:
    """Sensitivity of a receive coil at ``coil_mm`` (x, y): exponential in the distance, 1 at it.

    ``decay`` is in e-folds per 100 mm; 0 is a uniform coil.
    """
    distance = np.hypot(x_mm - coil_mm[0], y_mm - coil_mm[1])
    return np.exp(-decay / 100.0 * distance)


def sampled_rows(rows: int, resolution: float, partial_fourier: float) -> np.ndarray:
    """Which rows of an (unshifted) k-space of ``rows`` lines are acquired, as booleans.

    ``resolution`` keeps the centre; ``partial_fourier`` then keeps the positive frequencies and
    only so many negative ones that this fraction of the centre remains.
    """
    frequency = fft.fftfreq(rows)
    highest = 0.5 * resolution
    return (np.abs(frequency) <= highest) & (frequency >= highest * (1 - 2 * partial_fourier))


def acquire(
    rng: np.random.Generator, magnetisation: np.ndarray, size: int, protocol: MriProtocol
) -> np.ndarray:
    """Scan complex ``magnetisation`` (S, 2 size, 2 size) into magnitudes (S, size, size) float32.

    The scanner samples the low half of the object's k-space (so edges ring), of it only the lines
    that the protocol acquires, with complex Gaussian noise on each sample; the magnitude of the
    result has Rician noise. Pixel (i, j) lies on the object's sample (2 i, 2 j).
    """
    kspace = fft.fft2(magnetisation, norm="forward")
    low = np.r_[0 : (size + 1) // 2, 2 * size - size // 2 : 2 * size]
    rows = sampled_rows(size, protocol.resolution_phase, protocol.partial_fourier)
    columns = sampled_rows(size, protocol.resolution_read, 1.0)
    kspace = kspace[:, low[:, None], low] * (rows[:, None] & columns)
    # Noise on the sampled lines only: fewer lines, less noise an image, as on a scanner. Its
    # standard deviation a k-space sample is per unit of the forward-normalised transform.
    noise = rng.standard_normal((2, *kspace.shape), dtype=np.float32) * (protocol.noise / size)
    kspace += (noise[0] + 1j * noise[1]) * (rows[:, None] & columns)
    return np.abs(fft.ifft2(kspace, norm="forward")).astype(np.float32)


def render(magnitude: np.ndarray, protocol: MriProtocol, gain: float) -> np.ndarray:
    """The vendor's rendering of ``magnitude``: window at the top, intensity curve, gain.

    The result has the input's shape, float32, from 0 to ``gain``.
    """
    top = np.quantile(magnitude, 1.0 - protocol.saturation)
    return (gain * np.minimum(magnitude / top, 1.0) ** protocol.gamma).astype(np.float32)
