"""Structural similarity against direct sums over windows in double precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedshift.client.methods.unet_gan.ssim import C1, C2, C3, SCALE_WEIGHTS, ms_ssim, ssim


def window_moments(a: np.ndarray, b: np.ndarray, window: int) -> list[tuple[float, ...]]:
    """Means, standard deviations and covariance in every window, from their definitions."""
    offsets = np.arange(window) - window // 2
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    found = []
    for y in range(a.shape[0] - window + 1):
        for x in range(a.shape[1] - window + 1):
            p, q = (i[y : y + window, x : x + window] for i in (a, b))
            mean_p, mean_q = (kernel * p).sum(), (kernel * q).sum()
            var_p = (kernel * (p - mean_p) ** 2).sum()
            var_q = (kernel * (q - mean_q) ** 2).sum()
            cov = (kernel * (p - mean_p) * (q - mean_q)).sum()
            found.append((mean_p, mean_q, np.sqrt(var_p), np.sqrt(var_q), cov))
    return found


def components(a: np.ndarray, b: np.ndarray, window: int) -> np.ndarray:
    """l, c, s of every window, (N, 3)."""
    return np.array(
        [
            (
                (2 * m * n + C1) / (m**2 + n**2 + C1),
                (2 * s * t + C2) / (s**2 + t**2 + C2),
                (cov + C3) / (s * t + C3),
            )
            for m, n, s, t, cov in window_moments(a, b, window)
        ]
    )


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Two related images (2, 20, 18) in [0, 1]."""
    rng = np.random.default_rng(0)
    a = rng.uniform(0, 1, (2, 20, 18))
    return a, np.clip(0.3 + 0.4 * a + rng.normal(0, 0.1, a.shape), 0, 1)


def torch_pair(pair: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = (torch.from_numpy(image.astype(np.float32))[:, None] for image in pair)
    return a, b


@pytest.mark.parametrize("window", [7, 11])
def test_ssim_is_the_mean_of_the_definition(
    pair: tuple[np.ndarray, np.ndarray], window: int
) -> None:
    found = ssim(*torch_pair(pair), window=window)
    expected = [components(a, b, window).prod(axis=1).mean() for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_plain_ssim_is_wangs_formula_of_two_factors(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """(2 mu mu + c1)(2 cov + c2) / ((mu^2 + mu^2 + c1)(var + var + c2)), as c3 = c2 / 2."""
    values = [
        (2 * m * n + C1) * (2 * cov + C2) / ((m**2 + n**2 + C1) * (s**2 + t**2 + C2))
        for m, n, s, t, cov in window_moments(pair[0][0], pair[1][0], 11)
    ]
    assert ssim(*torch_pair(pair))[0].item() == pytest.approx(np.mean(values), rel=1e-4)


def test_weighted_ssim_raises_the_components(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = ssim(*torch_pair(pair), alpha=0.1, beta=0.1)
    expected = [
        (components(a, b, 11) ** [0.1, 0.1, 1.0]).prod(axis=1).mean()
        for a, b in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("exponents", [(1.0, 1.0, 1.0), (0.1, 0.1, 1.0)])
def test_ssim_is_one_of_an_image_with_itself_symmetric_and_at_least_minus_one(
    pair: tuple[np.ndarray, np.ndarray], exponents: tuple[float, float, float]
) -> None:
    """With the factor 2 that the paper prints in s, the first would be near 2."""
    weights = dict(zip(("alpha", "beta", "gamma"), exponents, strict=True))
    a, b = torch_pair(pair)
    flat = torch.full((1, 1, 16, 16), 0.4)
    for image in (a, b, flat):
        np.testing.assert_allclose(ssim(image, image, **weights).numpy(), 1, atol=1e-5)
    torch.testing.assert_close(ssim(a, b, **weights), ssim(b, a, **weights))
    inverted = ssim(a, 1 - a, **weights)
    assert (inverted < -0.5).all()
    assert (inverted >= -1).all()


def test_a_change_of_contrast_costs_less_when_structure_weighs_most(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    a, _ = torch_pair(pair)
    changed = 0.2 + 0.3 * a
    assert (ssim(a, changed, alpha=0.1, beta=0.1) > ssim(a, changed) + 0.1).all()


def test_gradient_is_finite_where_an_image_is_flat_or_a_component_negative() -> None:
    a = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(a, 0.5).requires_grad_()
    inverted = (1 - a).requires_grad_()
    for image in (flat, inverted):
        loss = 1 - ssim(a, image, alpha=0.1, beta=0.1, gamma=0.5).mean()
        (gradient,) = torch.autograd.grad(loss, image)
        assert torch.isfinite(gradient).all()


def test_gradient_is_the_slope() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.rand(2, 1, 1, 14, 14, generator=generator)
    direction = torch.randn(b.shape, generator=generator)
    b.requires_grad_()
    (gradient,) = torch.autograd.grad(ssim(a, b, alpha=0.1, beta=0.1).sum(), b)
    ahead, behind = (ssim(a, b + h * direction, alpha=0.1, beta=0.1) for h in (1e-3, -1e-3))
    slope = (ahead - behind).item() / 2e-3
    assert (gradient * direction).sum().item() == pytest.approx(slope, rel=2e-2)


def test_multi_scale_is_the_weighted_product_over_halved_images() -> None:
    rng = np.random.default_rng(2)
    a = rng.uniform(0, 1, (44, 48))
    b = np.clip(a + rng.normal(0, 0.1, a.shape), 0, 1)
    expected, weights, first, second = 1.0, (0.4, 0.6), a, b
    for scale, weight in enumerate(weights):
        found = components(first, second, 11)
        kept = found.prod(axis=1) if scale == 1 else found[:, 1:].prod(axis=1)
        expected *= kept.mean() ** weight
        first, second = (
            i.reshape(i.shape[0] // 2, 2, i.shape[1] // 2, 2).mean((1, 3)) for i in (first, second)
        )
    images = (torch.from_numpy(i.astype(np.float32))[None, None] for i in (a, b))
    assert ms_ssim(*images, weights=weights).item() == pytest.approx(expected, rel=1e-4)


def test_multi_scale_of_an_image_with_itself_is_one() -> None:
    image = torch.rand(1, 1, 176, 176, generator=torch.Generator().manual_seed(3))
    assert sum(SCALE_WEIGHTS) == pytest.approx(1, abs=1e-3)
    assert ms_ssim(image, image).item() == pytest.approx(1, abs=1e-5)


def test_image_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller than the window of 11"):
        ssim(torch.rand(1, 1, 8, 32), torch.rand(1, 1, 8, 32))
