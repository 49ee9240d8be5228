"""Losses against numpy and finite differences."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedshift.client.losses import dice_ce, soft_dice_loss


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 5, 4), generator=generator, dtype=torch.uint8)
    return logits, labels


def numpy_softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_soft_dice_is_the_mean_over_structures_of_the_batch_dice(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = batch
    found, truth = numpy_softmax(logits.numpy()), labels.numpy()
    dice = [
        (2 * found[:, k][truth == k].sum() + 1) / (found[:, k].sum() + (truth == k).sum() + 1)
        for k in (1, 2)
    ]
    loss = soft_dice_loss(torch.softmax(logits, dim=1), labels)
    assert float(loss) == pytest.approx(1 - np.mean(dice), abs=1e-12)


def test_dice_ce_adds_the_mean_cross_entropy(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    found, truth = numpy_softmax(logits.numpy()), labels.numpy().astype(int)
    cross_entropy = -np.log(np.take_along_axis(found, truth[:, None], axis=1)).mean()
    dice = float(soft_dice_loss(torch.softmax(logits, dim=1), labels))
    assert float(dice_ce(logits, labels)) == pytest.approx(dice + cross_entropy, abs=1e-6)


def test_gradient_agrees_with_finite_differences(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    logits, labels = batch

    def loss(values: torch.Tensor) -> torch.Tensor:
        return soft_dice_loss(torch.softmax(values, dim=1), labels)

    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(),))


def test_perfect_prediction_loses_nothing_and_the_opposite_nearly_everything() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[0, 2:6, 2:6] = 1
    right = torch.stack([1.0 - labels.float(), labels.float()], dim=1)
    assert float(soft_dice_loss(right, labels)) == pytest.approx(0, abs=1e-6)
    # No overlap, 48 + 16 pixels in all: dice = 1 / 65.
    assert float(soft_dice_loss(right.flip(1), labels)) == pytest.approx(1 - 1 / 65, abs=1e-6)


def test_structure_absent_from_batch_and_prediction_loses_nothing() -> None:
    labels = torch.zeros(2, 4, 4, dtype=torch.uint8)
    background = torch.zeros(2, 3, 4, 4)
    background[:, 0] = 1
    assert float(soft_dice_loss(background, labels)) == pytest.approx(0, abs=1e-6)


def test_half_precision_logits_give_a_finite_float32_loss() -> None:
    """A 512 x 512 batch sums to more pixels than float16 can hold (65504)."""
    logits = torch.zeros(2, 2, 512, 512, dtype=torch.float16)
    loss = dice_ce(logits, torch.ones(2, 512, 512, dtype=torch.uint8))
    count = 2 * 512 * 512
    dice = (2 * 0.5 * count + 1) / (0.5 * count + count + 1)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(1 - dice + np.log(2), rel=1e-5)
