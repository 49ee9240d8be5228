"""Structural similarity, with the weight of each component free.

Wang et al., "Image quality assessment: from error visibility to structural similarity", IEEE TIP
2004: luminance l, contrast c and structure s in a Gaussian window,

    l = (2 mu_a mu_b + c1) / (mu_a^2 + mu_b^2 + c1)
    c = (2 sigma_a sigma_b + c2) / (sigma_a^2 + sigma_b^2 + c2)
    s = (sigma_ab + c3) / (sigma_a sigma_b + c3)          SSIM = l^alpha c^beta s^gamma

Yan et al., MICCAI 2019, print a factor 2 before sigma_ab in s: then SSIM(a, a) is near 2 and
1 - SSIM negative. It is left out here. Multi-scale: Wang et al., Asilomar 2003.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch.nn import functional as F

SIGMA = 1.5
"""Standard deviation of the Gaussian window, in pixels (Wang et al. 2004, with 11 x 11 pixels)."""
C1, C2, C3 = 0.01**2, 0.03**2, 0.5 * 0.03**2
"""Of the same paper, for images whose values range over 1."""
MIDDLE = 0.5
FLOOR = 1e-7
"""A common variance added to both images: it bounds the gradient where one of them is flat."""
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Of the five scales of the multi-scale index, finest first (Wang et al. 2003)."""


def ssim(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    window: int = 11,
    alpha: float = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> torch.Tensor:
    """The mean similarity of images ``a`` and ``b`` (B, C, H, W), from -1 to 1; (B,).

    The images' values range over 1. ``window`` is odd and fits into the image; only places where it
    lies wholly inside count. ``alpha``, ``beta`` and ``gamma`` weigh luminance, contrast and
    structure: all 1 is the usual index, and Yan et al. use 0.1, 0.1 and 1. Where a component with
    an exponent other than 1 is negative, it counts as 0.
    """
    luminance, contrast, structure = _components(a, b, window)
    found = _power(luminance, alpha) * _power(contrast, beta) * _power(structure, gamma)
    return found.mean(dim=(1, 2, 3))


def ms_ssim(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    window: int = 11,
    weights: tuple[float, ...] = SCALE_WEIGHTS,
) -> torch.Tensor:
    """The multi-scale similarity of images (B, C, H, W) whose values range over 1; (B,), 0 to 1.

    Scale ``j`` is the image halved ``j`` times by averaging; contrast x structure of every scale
    and the coarsest scale's luminance enter, each as the mean over the image, to the power of its
    weight. The image's sides must leave ``window`` pixels at the coarsest scale.
    """
    product = torch.ones(len(a), device=a.device)
    for scale, weight in enumerate(weights):
        luminance, contrast, structure = _components(a, b, window)
        similarity = contrast * structure
        if scale == len(weights) - 1:
            similarity = luminance * similarity
        product = product * _power(similarity.mean(dim=(1, 2, 3)), weight)
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return product


def _components(
    a: torch.Tensor, b: torch.Tensor, window: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Luminance, contrast and structure at every place of the window."""
    # Around the middle of the range a mean's square takes fewest digits from the variance.
    exact = torch.promote_types(a.dtype, torch.float32)  # half precision has too few digits
    a, b = a.to(exact) - MIDDLE, b.to(exact) - MIDDLE
    if min(a.shape[-2:]) < window:
        raise ValueError(
            f"images of {a.shape[-2]} x {a.shape[-1]} pixels are smaller than "
            f"the window of {window} pixels"
        )
    moments = _blur(torch.stack([a, b, a * a, b * b, a * b]), window)
    mean_a, mean_b, square_a, square_b, product = moments.unbind()
    # Rounding may leave a variance just below zero.
    var_a = (square_a - mean_a**2).clamp(min=0) + FLOOR
    var_b = (square_b - mean_b**2).clamp(min=0) + FLOOR
    covariance = product - mean_a * mean_b + FLOOR
    mean_a, mean_b = mean_a + MIDDLE, mean_b + MIDDLE
    spread = torch.sqrt(var_a * var_b)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    contrast = (2 * spread + C2) / (var_a + var_b + C2)
    structure = (covariance + C3) / (spread + C3)
    return luminance, contrast, structure


def _blur(images: torch.Tensor, window: int) -> torch.Tensor:
    """Gaussian means of (..., H, W) in a window, without padding.

    As two products with banded matrices: on a CPU several times faster than convolutions of one
    channel."""
    height, width = images.shape[-2:]
    rows, columns = _band(height, window), _band(width, window)
    return rows.to(images) @ images @ columns.T.to(images)


@lru_cache(maxsize=16)
def _band(size: int, window: int) -> torch.Tensor:
    """The (size - window + 1, size) matrix whose rows hold the window at each place."""
    offsets = torch.arange(window) - (window - 1) / 2
    kernel = torch.exp(-0.5 * (offsets / SIGMA) ** 2)
    band = torch.zeros(size - window + 1, size)
    for row in range(len(band)):
        band[row, row : row + window] = kernel / kernel.sum()
    return band


def _power(values: torch.Tensor, exponent: float) -> torch.Tensor:
    """``values`` to the ``exponent``; below a small positive number they count as that number,
    because a fractional power has no value below zero and no finite gradient at it."""
    if exponent == 1.0:
        return values
    return values.clamp(min=1e-4) ** exponent
