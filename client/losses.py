"""The losses of segmentation: soft Dice, cross-entropy, and their sum; also of partial labels.

Soft Dice: Milletari et al., "V-Net", 3DV 2016, with plain sums in the denominator as in
Drozdzal et al., DLMIA 2016. The sum with cross-entropy: Isensee et al., "nnU-Net", 2021.

Where an image's label does not tell of every structure, its background may be any of the others.
Their probabilities are then added to the background's: Fang and Yan, "Multi-organ segmentation over
partially labeled datasets with multi-scale feature abstraction", IEEE TMI 2020; the marginal loss
of Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation",
Medical Image Analysis 2021. Their exclusion loss is not used.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fedshift.sites.types import IGNORED

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


def dice_ce(
    logits: torch.Tensor, labels: torch.Tensor, annotated: torch.Tensor | None = None
) -> torch.Tensor:
    """Soft Dice loss plus the mean cross-entropy over pixels (nats); a scalar.

    ``logits`` (B, C, H, W), ``labels`` (B, H, W) integer class indices; every pixel of every
    slice counts, so unlabelled slices must not be in the batch. Computed in float32 whatever the
    logits' type, because sums over pixels overflow half precision.

    ``annotated`` (B, C) bool, the background's column true, says of which classes each slice's
    label tells: the others count as background in the cross-entropy and have no Dice. Pixels
    labelled :data:`~fedshift.sites.types.IGNORED` count in neither. None: the labels tell of every
    class and pixel.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    if annotated is not None:
        return _partial_dice(log_probabilities, labels, annotated) + _marginal_cross_entropy(
            log_probabilities, labels, annotated
        )
    cross_entropy = F.nll_loss(log_probabilities, labels.long())
    return soft_dice_loss(log_probabilities.exp(), labels) + cross_entropy


def _marginal_cross_entropy(
    log_probabilities: torch.Tensor, labels: torch.Tensor, annotated: torch.Tensor
) -> torch.Tensor:
    """The mean over the pixels that count, the background being all that is not annotated."""
    named = annotated.clone()
    named[:, 0] = False
    background = log_probabilities.masked_fill(named[:, :, None, None], -torch.inf)
    merged = torch.cat(
        [torch.logsumexp(background, dim=1, keepdim=True), log_probabilities[:, 1:]], dim=1
    )
    total = F.nll_loss(merged, labels.long(), ignore_index=IGNORED, reduction="sum")
    return total / (labels != IGNORED).sum().clamp(min=1)


def _partial_dice(
    log_probabilities: torch.Tensor, labels: torch.Tensor, annotated: torch.Tensor
) -> torch.Tensor:
    """:func:`soft_dice_loss` over the slices that annotate a structure and the pixels that count,
    averaged over the structures that some slice of the batch annotates."""
    structures = torch.arange(1, log_probabilities.shape[1], device=labels.device)
    told = annotated[:, 1:]
    counts = told[:, :, None, None] & (labels != IGNORED).unsqueeze(1)
    truth = (labels.unsqueeze(1) == structures.view(1, -1, 1, 1)) & counts
    found = log_probabilities[:, 1:].exp() * counts
    overlap = (found * truth).sum(dim=(0, 2, 3))
    total = found.sum(dim=(0, 2, 3)) + truth.sum(dim=(0, 2, 3))
    taught = told.any(dim=0)
    dice = (2 * overlap + SMOOTH) / (total + SMOOTH) * taught
    return 1 - dice.sum() / taught.sum().clamp(min=1)
