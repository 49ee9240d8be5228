"""Projection and filtered back-projection against numpy, analysis and scikit-image."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from fedshift.sites.tomography import Tomograph, inside_circle, ramp, tomograph

CPU = torch.device("cpu")


def disc(size: int, radius: float, blur: float = 0.0) -> np.ndarray:
    """A disc of ones about the axis, each pixel the mean of 10 x 10 points."""
    fine = (np.arange(10 * size) + 0.5) / 10 - 0.5 - size // 2
    covered = np.hypot(fine[:, None], fine) < radius
    image = covered.reshape(size, 10, size, 10).mean((1, 3))
    return ndimage.gaussian_filter(image, blur) if blur else image


def random_images(count: int, size: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    images = rng.uniform(0, 1, (count, size, size)) * inside_circle(size)
    return torch.from_numpy(images.astype(np.float32))


@pytest.mark.parametrize("size", [32, 33])
def test_projection_is_the_sum_along_the_columns_of_the_rotated_image(size: int) -> None:
    images, angles = random_images(2, size), 7
    found = Tomograph(size, angles, CPU).project(images).numpy()
    assert found.shape == (2, angles, size)
    centre = size // 2
    steps, detectors = np.mgrid[:size, :size] - centre
    for k, angle in enumerate(np.arange(angles) * np.pi / angles):
        x = np.cos(angle) * detectors + np.sin(angle) * steps + centre
        y = np.cos(angle) * steps - np.sin(angle) * detectors + centre
        for image, sinogram in zip(images.numpy(), found, strict=True):
            padded = np.pad(image, 1)
            rays = ndimage.map_coordinates(padded, (y + 1, x + 1), order=1, cval=0.0).sum(0)
            np.testing.assert_allclose(sinogram[k], rays, atol=1e-4)


def test_a_discs_projections_are_its_chords() -> None:
    size, radius = 128, 40.0
    image = torch.from_numpy(disc(size, radius)).float()[None]
    found = tomograph(size, 16, CPU).project(image)[0].numpy()
    offset = np.arange(size) - size // 2
    chord = 2 * np.sqrt(np.maximum(radius**2 - offset**2, 0))
    # At the rim the chord falls to nothing within a pixel.
    inner = np.abs(offset) < radius - 2
    np.testing.assert_allclose(found[:, inner], np.tile(chord[inner], (16, 1)), rtol=0.02)
    assert np.abs(found[:, np.abs(offset) > radius + 2]).max() == 0


def reference_reconstruction(sinogram: np.ndarray, a: float, b: float) -> np.ndarray:
    """The paper's formula by Fourier transform and ``np.interp``, in double precision."""
    angles, size = sinogram.shape
    padded = 1024
    lag = np.fft.fftfreq(padded, 1 / padded)
    odd = lag % 2 == 1
    taps = np.zeros(padded)
    taps[0], taps[odd] = 0.25, -1 / (np.pi * lag[odd]) ** 2
    w = 2 * np.fft.fft(taps).real
    response = w * (1 + a * w**b)
    projections = np.zeros((angles, padded))
    # In the middle of the padding, so that both tails of the filtered projection are there.
    first = padded // 2 - size // 2
    projections[:, first : first + size] = sinogram
    filtered = np.fft.ifft(np.fft.fft(projections) * response).real
    rows, columns = np.mgrid[:size, :size] - size // 2
    image = np.zeros((size, size))
    for projection, angle in zip(filtered, np.arange(angles) * np.pi / angles, strict=True):
        place = columns * np.cos(angle) - rows * np.sin(angle)
        image += np.interp(place, np.arange(padded) - padded // 2, projection)
    return np.pi / (2 * angles) * image * inside_circle(size)


@pytest.mark.parametrize("size", [48, 49])
def test_each_sinogram_is_reconstructed_with_its_own_kernel(size: int) -> None:
    scanner = tomograph(size, 30, CPU)
    sinograms = scanner.project(random_images(3, size))
    kernels = [(0.0, 1.0), (30.0, 3.0), (-1.0, 0.7)]
    a, b = torch.tensor(kernels).T
    found = scanner.reconstruct(sinograms, a, b)
    for image, sinogram, kernel in zip(found, sinograms.double().numpy(), kernels, strict=True):
        expected = reference_reconstruction(sinogram, *kernel)
        # The length of the padding changes the filter's mean a little.
        np.testing.assert_allclose(image.numpy(), expected, atol=2e-3 * np.abs(expected).max())
    alone = scanner.reconstruct(sinograms[1:2], 30.0, 3.0)
    torch.testing.assert_close(alone[0], found[1])


@pytest.mark.parametrize(("size", "angles"), [(64, 64), (65, 40), (128, 180)])
def test_equal_to_scikit_image(size: int, angles: int) -> None:
    transform = pytest.importorskip("skimage.transform")
    images = random_images(1, size)
    scanner = tomograph(size, angles, CPU)
    sinogram = scanner.project(images)
    theta = np.arange(angles) * (180 / angles)
    expected = transform.radon(images[0].numpy(), theta, circle=True)
    error = np.abs(sinogram[0].numpy().T - expected).max()
    assert error < 1e-4 * np.abs(expected).max()
    image = scanner.reconstruct(sinogram, 0.0, 1.0)
    expected = transform.iradon(expected, theta, circle=True)
    assert np.abs(image[0].numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_ramp_rises_from_nothing_to_one_along_the_frequency() -> None:
    response = ramp(64).numpy()
    # 64 x sqrt(2) = 91 detectors, twice that is 182, the next power of two 256.
    assert len(response) == 129
    frequency = np.arange(129) / 128
    assert np.abs(response - frequency).max() < 0.005
    assert response[0] > 0 and response[-1] < 1 and (np.diff(response) > 0).all()
    # So the strongest smoothing, a = -1, still passes every frequency with the right sign.
    assert (response * (1 - response**0.1) >= 0).all()


def test_the_plain_ramp_gives_back_a_smooth_image() -> None:
    size = 128
    image = disc(size, 30.0, blur=2.0)
    scanner = tomograph(size, size, CPU)
    found = scanner.reconstruct(scanner.project(torch.from_numpy(image).float()[None]), 0.0, 1.0)
    assert np.abs(found[0].numpy() - image).max() < 0.03
    assert found[0, 64, 64] == pytest.approx(1.0, abs=0.01)


def test_sharpening_raises_and_smoothing_lowers_the_high_frequencies() -> None:
    scanner = tomograph(64, 64, CPU)
    sinogram = scanner.project(random_images(1, 64))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64)))
    power = []
    for a, b in ((-1.0, 0.7), (-0.5, 0.7), (0.0, 1.0), (10.0, 3.0), (30.0, 3.0)):
        image = scanner.reconstruct(sinogram, a, b)[0].numpy()
        power.append((np.abs(np.fft.fft2(image)) ** 2)[frequency > 0.25].sum())
    assert all(later > 1.5 * earlier for earlier, later in itertools.pairwise(power))


def test_what_lies_outside_the_circle_is_neither_seen_nor_reconstructed() -> None:
    size, outside = 40, torch.from_numpy(~inside_circle(40))
    images = random_images(1, size)
    scanner = tomograph(size, 20, CPU)
    sinogram = scanner.project(images)
    assert torch.equal(scanner.project(images.masked_fill(outside, 5.0)), sinogram)
    assert not scanner.reconstruct(sinogram, 0.0, 1.0)[0, outside].any()


def test_any_number_of_threads_gives_the_same_bits() -> None:
    images, threads = random_images(5, 64), torch.get_num_threads()
    scanner = tomograph(64, 48, CPU)
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            sinogram = scanner.project(images)
            found.append((sinogram, scanner.reconstruct(sinogram, 20.0, 2.0)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_and_cpu_agree() -> None:
    images = random_images(4, 64)
    results = []
    for device in (CPU, torch.device("cuda")):
        scanner = tomograph(64, 64, device)
        sinogram = scanner.project(images.to(device))
        results.append((sinogram.cpu(), scanner.reconstruct(sinogram, 30.0, 3.0).cpu()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-3, atol=1e-3)
