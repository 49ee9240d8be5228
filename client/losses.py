"""The losses of segmentation: soft Dice, cross-entropy, and their sum.

Soft Dice: Milletari et al., "V-Net", 3DV 2016, with plain sums in the denominator as in
Drozdzal et al., DLMIA 2016. The sum with cross-entropy: Isensee et al., "nnU-Net", 2021.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

SMOOTH = 1.0
"""Pixels added above and below in the soft Dice: a class absent from the batch and from the
prediction scores 1, and its gradient stays bounded."""


def soft_dice_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One minus the soft Dice, averaged over the structures; a scalar in [0, 1].

    ``probabilities`` (B, C, H, W) sum to one over the classes, ``labels`` (B, H, W) are integer
    class indices. A structure's Dice is taken over all pixels of the batch, so that a slice
    without it does not count as a slice of its own; the background (class 0) has no term.
    """
    structures = torch.arange(1, probabilities.shape[1], device=labels.device)
    truth = labels.unsqueeze(1) == structures.view(1, -1, 1, 1)
    found = probabilities[:, 1:]
    overlap = (found * truth).sum(dim=(0, 2, 3))
    total = found.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    return 1 - ((2 * overlap + SMOOTH) / (total + SMOOTH)).mean()


def dice_ce(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Soft Dice loss plus the mean cross-entropy over pixels (nats); a scalar.

    ``logits`` (B, C, H, W), ``labels`` (B, H, W) integer class indices; every pixel of every
    slice counts, so unlabelled slices must not be in the batch. Computed in float32 whatever the
    logits' type, because sums over pixels overflow half precision.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    cross_entropy = F.nll_loss(log_probabilities, labels.long())
    return soft_dice_loss(log_probabilities.exp(), labels) + cross_entropy
