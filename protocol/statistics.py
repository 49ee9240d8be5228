"""What a site says of its images so that domain shift can be measured: names, shapes, fixed bins.

Two small exchanges. First every site sends a summary; from all summaries the coordinator forms a
question for each site (kernel bandwidths, and the directions of linear domain classifiers); the
site answers. Every array is float64. ``n`` is the number of images (slices) of the site's split,
``D`` at most :data:`FEATURE_DIM`, ``p`` at most :data:`DOMAIN_DIM`, ``blocks`` at most
:data:`MAX_BLOCKS`; no array grows with ``n``.
"""

from __future__ import annotations

import numpy as np

FEATURE_DIM = 64
"""Features wider than this are projected, by one random orthonormal map for all sites."""

DOMAIN_DIM = 16
"""Dimensions the domain classifiers work in."""

MAX_BLOCKS = 16
"""A site's images are cut into at most this many blocks; a block's mean is what leaves."""

MIN_BLOCKS = 4
"""A site whose subjects would give fewer blocks than this is cut within subjects."""

TRAINING_BLOCKS = slice(0, None, 2)
"""The blocks the domain classifiers are fitted on."""

HELD_OUT_BLOCKS = slice(1, None, 2)
"""The blocks the domain classifiers are scored on."""

# The summary.

INTENSITY_HISTOGRAM = "intensity_histogram"
"""(512,) pixels in each bin of :func:`intensity_edges`; a bin below the minimum count is 0."""

LOG_SPECTRUM = "log_spectrum"
"""(32,) amplitude in dB at :data:`SPECTRUM_FREQUENCIES`, averaged over directions and images."""

FEATURE_COUNT = "feature_count"
"""(1,) number of images ``n``."""

FEATURE_MEAN = "feature_mean"
"""(D,) mean of the encoder's features."""

FEATURE_COVARIANCE = "feature_covariance"
"""(D, D) covariance of the features, divided by ``n`` so that moments pool exactly."""

BLOCK_COUNTS = "block_counts"
"""(blocks,) images in each block."""

BLOCK_FEATURES = "block_features"
"""(blocks, p) mean of the projected features in each block."""

TRAINING_SECOND_MOMENT = "training_second_moment"
"""(p, p) sum of outer products of the projected features over the training blocks."""

NORM_MEAN = "norm_mean"
"""(channels,) mean at the inputs of the normalisation layers, layer after layer."""

NORM_VARIANCE = "norm_variance"
"""(channels,) variance at the inputs of the normalisation layers."""

LABELS = "label_distribution"
"""(K,) how the labels of the labelled slices are distributed, as the task says: of masks mL of the
background and of each structure, of points their number by part and cell. nan where too few slices
tell."""

# The question and its answer.

DOMAIN_RELABELLINGS = 19
"""Domain classifiers of relabelled blocks that are asked for beside each pair's own."""

BANDWIDTHS = "bandwidths"
"""Question: (3,) widths sigma of the Gaussian kernels, in units of the features."""

DIRECTIONS = "directions"
"""Question: (K, p) directions of the domain classifiers that this site takes part in."""

THRESHOLDS = "thresholds"
"""Question: (K,) a projection above its threshold is of the pair's first site."""

FOURIER_MEANS = "fourier_means"
"""Answer: (blocks, 768) mean random Fourier feature of each block."""

DOMAIN_COUNTS = "domain_counts"
"""Answer: (held-out blocks, K) images of each block above each threshold."""

FOURIER_FREQUENCIES = 128
"""Random frequencies a bandwidth; each gives a cosine and a sine."""

BANDWIDTH_FACTORS = (0.5, 1.0, 2.0)
"""Kernel widths as multiples of the pooled root-mean-square distance between two images."""

SPECTRUM_FREQUENCIES = np.arange(1, 33) / 64
"""Cycles a pixel of the network's grid, up to Nyquist."""

SPECTRUM_FLOOR = 1e-3
"""Added to every amplitude before the logarithm: a white noise of this standard deviation."""

INTENSITY_BINS = 512
INTENSITY_LINEAR = 0.1
INTENSITY_REACH = 12.0


def intensity_scale(values: np.ndarray) -> np.ndarray:
    """Map intensities to the scale on which the histogram's bins are equal, any shape.

    ``asinh(x / 0.1)``: bins about 0.005 wide near zero and 5 % of the value far from it, so the
    same bins serve images scaled to 0..1, standardised ones and raw ones up to about 8,000.
    """
    scaled = np.arcsinh(np.asarray(values, dtype=np.float64) / INTENSITY_LINEAR)
    return np.clip(scaled, -INTENSITY_REACH, INTENSITY_REACH)


def intensity_edges() -> np.ndarray:
    """Return the (513,) bin edges in the images' own units; the end bins hold all beyond them."""
    scale = np.linspace(-INTENSITY_REACH, INTENSITY_REACH, INTENSITY_BINS + 1)
    return INTENSITY_LINEAR * np.sinh(scale)
