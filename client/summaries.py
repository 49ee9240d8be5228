"""What a site sends so that domain shift between sites can be measured. Never an image.

The images are the slices of the site's training split, or of the test split of an unseen site.
Labels count only where a slice is labelled. Two rules protect the images: a site with fewer than
``min_count`` images, or ``min_subjects`` subjects, sends nothing, and whatever is an average is one
over at least as many of both (a histogram bin: pixels; how labels are distributed: labelled
slices). These are limits, not a formal guarantee such as differential privacy.

Averages a null distribution is drawn from are kept by block. A block is whole subjects where that
gives at least four blocks, because slices of one subject are not independent; otherwise, and where
a single subject may be told of, it is a run of neighbouring slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedshift import Tellable, derive_seed
from fedshift.client.contract.task import Task
from fedshift.protocol import statistics as names
from fedshift.sites.types import Case, SiteData

Features = Callable[[torch.Tensor], torch.Tensor]
"""The federation's encoder: images (B, C, H, W) to features (B, D)."""

_BATCH = 32
_NORMALISATIONS = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm)


def summarise(
    site: SiteData,
    features: Features,
    nets: Mapping[str, nn.Module],
    task: Task,
    *,
    seed: int,
    device: torch.device,
    min_count: int,
    min_subjects: int = 1,
) -> dict[str, np.ndarray]:
    """Summarise the site's images: the first exchange of :mod:`fedshift.protocol.statistics`.

    ``features`` runs ``nets``, which lie on ``device``; both and ``seed`` must be the same at
    every site. Normalisation layers that ``features`` does not run, or that are not batch,
    instance or group normalisation, are left out.

    Returns float64 arrays by name; none when the site has fewer than ``min_count`` images or
    ``min_subjects`` subjects, no distribution of labels when fewer are labelled. Raises
    :class:`fedshift.Tellable` when the features are not finite or not (B, D).
    """
    slices = _slices(site)
    if not _enough(slices, min_count, min_subjects):
        return {}

    histogram = np.zeros(names.INTENSITY_BINS)
    amplitude = np.zeros(site.size)
    window = _window(site.size)
    encoded: list[np.ndarray] = []
    with _evaluating(nets), _normalisation_inputs(nets) as moments:
        for images in _batches(slices):
            histogram += _histogram(images)
            planes = images.reshape(-1, *site.size)  # Channels, too, are averaged over.
            amplitude += _log_amplitude(planes, window).sum(axis=0) / images.shape[1]
            encoded.append(_encode(site.name, features, images, device))

    values = _project(np.concatenate(encoded), names.FEATURE_DIM, seed)
    mean = values.mean(axis=0)
    centred = values - mean
    summary = {
        names.LOG_SPECTRUM: _radial(amplitude / len(slices)),
        names.FEATURE_COUNT: np.array([float(len(values))]),
        names.FEATURE_MEAN: mean,
        names.FEATURE_COVARIANCE: centred.T @ centred / len(values),
    }
    histogram[histogram < min_count] = 0.0
    if histogram.any():
        summary[names.INTENSITY_HISTOGRAM] = histogram
    summary |= _block_moments(
        _project(values, names.DOMAIN_DIM, seed), _starts(slices, min_count, min_subjects)
    )
    if moments:
        summary[names.NORM_MEAN] = np.concatenate([layer.mean for layer in moments])
        summary[names.NORM_VARIANCE] = np.concatenate([layer.variance for layer in moments])
    labelled = [case for case in _summarised(site) if case.labelled.any()]
    few = len({case.subject for case in labelled}) < min_subjects
    labels = None if few else task.described(labelled, min_count)
    if labels is not None:
        summary[names.LABELS] = labels
    return summary


def answer(
    site: SiteData,
    features: Features,
    nets: Mapping[str, nn.Module],
    question: Mapping[str, np.ndarray],
    *,
    seed: int,
    device: torch.device,
    min_count: int,
    min_subjects: int = 1,
    most_projections: int | None = None,
) -> dict[str, np.ndarray]:
    """Answer the coordinator's question: the second exchange.

    Returns the mean random Fourier features of each block for the kernels of the asked
    bandwidths (Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NIPS 2007:
    the inner product of two images' features approximates the average of the Gaussian kernels),
    and, where domain classifiers were sent, how many images of each held-out block lie above each
    threshold. Nothing when the site has fewer than ``min_count`` images or ``min_subjects``
    subjects. Raises :class:`fedshift.Tellable` when the features are not finite or not (B, D), or
    the question has more than ``most_projections`` directions (None: any number), and
    ``ValueError`` for what is no question.
    """
    _check_question(question, most_projections)
    slices = _slices(site)
    if not _enough(slices, min_count, min_subjects):
        return {}
    with _evaluating(nets):
        encoded = [_encode(site.name, features, images, device) for images in _batches(slices)]
    values = _project(np.concatenate(encoded), names.FEATURE_DIM, seed)
    blocks = np.split(values, _starts(slices, min_count, min_subjects)[1:])

    bandwidths = question[names.BANDWIDTHS]
    random = np.random.default_rng(derive_seed(seed, "fourier features"))
    frequencies = random.standard_normal(
        (len(bandwidths), values.shape[1], names.FOURIER_FREQUENCIES)
    )
    frequencies = np.concatenate(list(frequencies / bandwidths[:, None, None]), axis=1)
    reply = {names.FOURIER_MEANS: np.stack([_fourier_mean(block, frequencies) for block in blocks])}

    if names.DIRECTIONS in question:
        directions, thresholds = question[names.DIRECTIONS], question[names.THRESHOLDS]
        reply[names.DOMAIN_COUNTS] = np.stack(
            [
                (_project(block, names.DOMAIN_DIM, seed) @ directions.T > thresholds).sum(axis=0)
                for block in blocks[names.HELD_OUT_BLOCKS]
            ]
        ).astype(np.float64)
    return reply


def _summarised(site: SiteData) -> tuple[Case, ...]:
    return site.splits["train" if site.role == "train" else "test"]


def _slices(site: SiteData) -> list[tuple[Case, int]]:
    """Every slice of the summarised split, subject after subject."""
    ordered = sorted(_summarised(site), key=lambda case: (case.subject, case.session, case.id))
    return [(case, index) for case in ordered for index in range(len(case.image))]


def _batches(slices: Sequence[tuple[Case, int]]) -> Iterator[np.ndarray]:
    for start in range(0, len(slices), _BATCH):
        yield np.stack([case.image[index] for case, index in slices[start : start + _BATCH]])


def _check_question(question: Mapping[str, np.ndarray], most: int | None) -> None:
    """Raise ``ValueError`` for what is no question of the second exchange, or one of more than
    ``most`` projections: each is a look at the images."""
    bandwidths = question.get(names.BANDWIDTHS)
    if bandwidths is None or bandwidths.shape != (len(names.BANDWIDTH_FACTORS),):
        raise ValueError(f"the question has not {len(names.BANDWIDTH_FACTORS)} bandwidths")
    directions, thresholds = question.get(names.DIRECTIONS), question.get(names.THRESHOLDS)
    asked = [bandwidths]
    if directions is not None and thresholds is not None:
        asked += [directions, thresholds]
        if directions.ndim != 2 or thresholds.shape != directions.shape[:1]:
            raise ValueError("the question's directions and thresholds do not go together")
        if most is not None and len(directions) > most:
            raise Tellable(
                f"the question has {len(directions)} projections, and the site's policy answers "
                f"{most} (policy.sites)"
            )
    elif directions is not thresholds:
        raise ValueError("the question has directions without thresholds, or the other way round")
    if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in asked):
        raise ValueError("the question's numbers are not finite, or no float64")
    if (bandwidths <= 0).any():
        raise ValueError("the question's bandwidths are not positive")


def _enough(slices: Sequence[tuple[Case, int]], min_count: int, min_subjects: int) -> bool:
    """Whether there are slices, and subjects, enough to tell of them."""
    subjects = {case.subject for case, _ in slices}
    return len(slices) >= max(min_count, 1) and len(subjects) >= min_subjects


def _starts(slices: Sequence[tuple[Case, int]], min_count: int, min_subjects: int) -> list[int]:
    """Where each block begins; a block has at least ``min_count`` slices of ``min_subjects``."""
    total = len(slices)
    size = max(min_count, -(-total // names.MAX_BLOCKS))
    starts = [0]
    subjects = [case.subject for case, _ in slices]
    for index in range(1, total - size + 1):
        new_subject = subjects[index] != subjects[index - 1]
        if new_subject and index - starts[-1] >= size:
            parts = (subjects[starts[-1] : index], subjects[index:])
            if all(len(set(part)) >= min_subjects for part in parts):
                starts.append(index)
    # Within a subject only where one alone may be told of.
    if len(starts) < names.MIN_BLOCKS and min_subjects == 1:
        count = total // size
        starts = [total * block // count for block in range(count)]
    return starts


def _encode(site: str, features: Features, images: np.ndarray, device: torch.device) -> np.ndarray:
    with torch.no_grad():
        batch = torch.from_numpy(images).to(device)
        encoded: np.ndarray = features(batch).double().cpu().numpy()
    if encoded.ndim != 2 or len(encoded) != len(images):
        raise Tellable(
            f"the method's features of {len(images)} images have the shape {encoded.shape}, so the "
            f"shift of site {site} cannot be measured: return (B, D), such as means over the pixels"
        )
    if not np.isfinite(encoded).all():
        raise Tellable(
            f"the model's features at site {site} are not finite, so its shift cannot be "
            "measured: training diverged, lower the learning rate and run again"
        )
    return encoded


def _project(values: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Project (n, D) to at most ``dim`` columns by a random orthonormal map drawn from ``seed``."""
    if values.shape[1] <= dim:
        return values
    random = np.random.default_rng(derive_seed(seed, "projection", values.shape[1], dim))
    basis, _ = np.linalg.qr(random.standard_normal((values.shape[1], dim)))
    return values @ basis


def _block_moments(values: np.ndarray, starts: Sequence[int]) -> dict[str, np.ndarray]:
    blocks = np.split(values, starts[1:])
    training = np.concatenate(blocks[names.TRAINING_BLOCKS])
    return {
        names.BLOCK_COUNTS: np.array([float(len(block)) for block in blocks]),
        names.BLOCK_FEATURES: np.stack([block.mean(axis=0) for block in blocks]),
        names.TRAINING_SECOND_MOMENT: training.T @ training,
    }


def _fourier_mean(values: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    phase = values @ frequencies
    waves = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    mean: np.ndarray = waves.mean(axis=0) / np.sqrt(frequencies.shape[1])
    return mean


def _histogram(images: np.ndarray) -> np.ndarray:
    reach = names.INTENSITY_REACH
    scaled = names.intensity_scale(images)
    return np.histogram(scaled, bins=names.INTENSITY_BINS, range=(-reach, reach))[0]


def _window(size: tuple[int, int]) -> np.ndarray:
    """A Hann window of unit power: without it the image's borders hide the noise floor."""
    window = np.outer(np.hanning(size[0] + 2)[1:-1], np.hanning(size[1] + 2)[1:-1])
    scaled: np.ndarray = window / np.sqrt((window**2).mean())
    return scaled


def _log_amplitude(images: np.ndarray, window: np.ndarray) -> np.ndarray:
    centred = images - images.mean(axis=(1, 2), keepdims=True, dtype=np.float64)
    amplitude = np.abs(np.fft.fft2(centred * window, norm="ortho"))
    decibel: np.ndarray = 20.0 * np.log10(amplitude + names.SPECTRUM_FLOOR)
    return decibel


def _radial(spectrum: np.ndarray) -> np.ndarray:
    """Average (H, W) over rings one frequency step wide, then read the fixed frequencies off."""
    rows, columns = (np.fft.fftfreq(size) for size in spectrum.shape)
    shorter = min(spectrum.shape)
    ring = np.rint(np.hypot(rows[:, None], columns[None, :]) * shorter).astype(int).ravel()
    sums = np.bincount(ring, weights=spectrum.ravel())
    rings = np.arange(1, shorter // 2 + 1)
    profile = sums[rings] / np.bincount(ring)[rings]
    return np.interp(names.SPECTRUM_FREQUENCIES, rings / shorter, profile)


class _Moments:
    """The mean and variance of one normalisation layer's inputs, by channel."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = np.zeros(())
        self.squares = np.zeros(())

    def __call__(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].detach().double().transpose(0, 1).flatten(1)
        self.count += values.shape[1]
        self.sum = self.sum + values.sum(1).cpu().numpy()
        self.squares = self.squares + values.square().sum(1).cpu().numpy()

    @property
    def mean(self) -> np.ndarray:
        return self.sum / self.count

    @property
    def variance(self) -> np.ndarray:
        return np.maximum(self.squares / self.count - self.mean**2, 0.0)


@contextmanager
def _normalisation_inputs(nets: Mapping[str, nn.Module]) -> Iterator[list[_Moments]]:
    """Watch the normalisation layers; on leaving, keep the moments of those that ran."""
    layers = [
        layer
        for name in sorted(nets)
        for layer in nets[name].modules()
        if isinstance(layer, _NORMALISATIONS)
    ]
    moments = [_Moments() for _ in layers]
    handles = [
        layer.register_forward_pre_hook(watcher)
        for layer, watcher in zip(layers, moments, strict=True)
    ]
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()
        moments[:] = [watcher for watcher in moments if watcher.count]


@contextmanager
def _evaluating(nets: Mapping[str, nn.Module]) -> Iterator[None]:
    """Evaluation mode for every module, each put back as it was."""
    modules = [module for net in nets.values() for module in net.modules()]
    training = [module.training for module in modules]
    for net in nets.values():
        net.eval()
    try:
        yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
