"""Augmentation against scipy and against what each option promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from fedshift.client import augmentation as module
from fedshift.client.augmentation import Augmentation, warp_mask


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(count: int = 4, height: int = 48, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    """Ellipses well inside the frame: a smooth image whose level set at 0.5 is the label."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    radius = ((y - 22) / 9) ** 2 + ((x - 36) / 13) ** 2
    image = torch.sigmoid(4 * (1 - radius))
    images = image.repeat(count, 1, 1, 1)
    return images, (images[:, 0] > 0.5).to(torch.uint8)


def test_everything_off_changes_nothing() -> None:
    images, labels = blobs()
    found, truth = Augmentation(affine=False)(images, labels, generator(), warp_mask)
    assert torch.equal(found, images)
    assert torch.equal(truth, labels)


def test_affine_moves_image_and_label_together() -> None:
    images, labels = blobs(count=16)
    found, truth = Augmentation()(images, labels, generator(), warp_mask)
    assert truth.dtype == torch.uint8
    assert set(truth.unique().tolist()) == {0, 1}
    redrawn = (found[:, 0] > 0.5).to(torch.uint8)
    # Nearest against bilinear: they may differ on the contour, which is 3 % of the frame.
    assert (redrawn != truth).float().mean() < 0.01
    # Yet the label truly moved.
    assert (truth != labels).float().mean() > 0.02


def test_affine_keeps_shape_and_stays_within_its_limits() -> None:
    """An ellipse stays one: area within the scale limit, axes' ratio kept on an oblong frame."""
    images, labels = blobs(count=64)
    _, truth = Augmentation()(images, labels, generator(1), warp_mask)

    def axes(mask: np.ndarray) -> np.ndarray:
        points = np.argwhere(mask).astype(float)
        return np.sqrt(np.linalg.eigvalsh(np.cov(points.T)))

    minor, major = axes(labels[0].numpy())
    shift = module.SHIFT / 2 * np.array([48, 64])
    for mask in truth.numpy():
        small, large = axes(mask)
        assert large / small == pytest.approx(major / minor, rel=0.06)
        assert 1 / 1.13 < large / major < 1 / 0.87
        # The centre turns around the frame's centre by the rotation, then shifts.
        moved = np.argwhere(mask).mean(0) - np.argwhere(labels[0].numpy()).mean(0)
        reach = np.hypot(1.5, 4.5) * (module.ROTATION + 0.11) + 1
        assert (np.abs(moved) <= shift * 1.12 + reach).all()


def test_flip_mirrors_left_and_right_about_half_of_the_time() -> None:
    images, labels = blobs(count=64)
    found, truth = Augmentation(affine=False, flip=True)(images, labels, generator(), warp_mask)
    mirrored = (truth != labels).flatten(1).any(1)
    assert 20 <= int(mirrored.sum()) <= 44
    torch.testing.assert_close(found[mirrored], images[mirrored].flip(3))
    torch.testing.assert_close(found[~mirrored], images[~mirrored])
    assert torch.equal(truth[mirrored], labels[mirrored].flip(2))


def test_noise_is_gaussian_with_a_level_up_to_the_set_share_of_the_slice_spread() -> None:
    images = 7 + 3 * torch.randn(64, 1, 64, 64, generator=generator(5))
    labels = torch.zeros(64, 64, 64, dtype=torch.uint8)
    found, _ = Augmentation(affine=False, noise=0.5)(images, labels, generator(), warp_mask)
    level = ((found - images).std((1, 2, 3)) / images.std((1, 2, 3))).numpy()
    assert level.max() <= 0.5 * 1.05
    assert level.mean() == pytest.approx(0.25, abs=3 * 0.5 / math.sqrt(12 * 64))
    noise = ((found - images) / (found - images).std((1, 2, 3), keepdim=True)).flatten().numpy()
    assert np.mean(noise**4) == pytest.approx(3, abs=0.05)


def test_intensity_is_independent_of_the_images_value_range() -> None:
    images, labels = blobs()
    augment = Augmentation(affine=False, intensity=1.0)
    found, truth = augment(images, labels, generator(), warp_mask)
    wide, _ = augment(100 * images - 40, labels, generator(), warp_mask)
    torch.testing.assert_close(wide, 100 * found - 40, rtol=1e-4, atol=1e-3)
    assert torch.equal(truth, labels)
    assert (found - images).abs().amax((1, 2, 3)).min() > 0.02


def test_intensity_change_grows_with_its_strength() -> None:
    images, labels = blobs(count=16)
    change = [
        float(
            (
                Augmentation(affine=False, intensity=s)(images, labels, generator(), warp_mask)[0]
                - images
            )
            .abs()
            .mean()
        )
        for s in (0.1, 0.5, 1.0)
    ]
    assert change[0] < 0.4 * change[1] < 0.4 * change[2]


def test_constant_slice_stays_finite() -> None:
    images = torch.full((3, 1, 16, 16), 2.0)
    labels = torch.zeros(3, 16, 16, dtype=torch.uint8)
    found, _ = Augmentation(flip=True, intensity=1.0, noise=1.0)(
        images, labels, generator(), warp_mask
    )
    assert found.isfinite().all()


def test_blur_is_scipys_gaussian_filter_with_each_slices_own_width() -> None:
    images = torch.randn(2, 1, 24, 20, generator=generator(2))
    sigma = torch.tensor([0.4, 1.0]).view(2, 1, 1, 1)
    found = module._blur(images, sigma)
    for slice_found, image, width in zip(found, images, (0.4, 1.0), strict=True):
        expected = ndimage.gaussian_filter(image[0].double().numpy(), width, radius=3)
        # scipy's "reflect" differs from repeating the border in the outermost three pixels.
        inner = np.s_[3:-3, 3:-3]
        np.testing.assert_allclose(slice_found[0].numpy()[inner], expected[inner], atol=1e-5)


def test_equal_generators_give_equal_batches_and_other_seeds_others() -> None:
    images, labels = blobs()
    augment = Augmentation(flip=True, intensity=0.5, noise=0.2)
    first, again = (
        augment(images, labels, generator(1), warp_mask),
        augment(images, labels, generator(1), warp_mask),
    )
    other = augment(images, labels, generator(2), warp_mask)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_draws_the_same_augmentation_as_the_cpu() -> None:
    images, labels = blobs()
    augment = Augmentation(flip=True, intensity=0.5, noise=0.2)
    on_cpu, label_cpu = augment(images, labels, generator(1), warp_mask)
    on_gpu, label_gpu = augment(images.cuda(), labels.cuda(), generator(1), warp_mask)
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)
    assert (label_gpu.cpu() != label_cpu).float().mean() < 1e-3
