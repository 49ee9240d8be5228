"""The usual training loop, and prediction slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import nn

from fedshift import derive_seed
from fedshift.client.contract.method import Budget, Networks, Scene
from fedshift.client.contract.step import Batch, Losses, Seen, Step
from fedshift.client.contract.task import Warp
from fedshift.client.descent import Descent
from fedshift.client.slices import LabelledSlices

PREDICT_BATCH = 8
"""Slices a forward pass in prediction. It bounds memory, and on a CPU larger batches are slower:
32 slices of 128 x 128 pixels no longer fit the cache and take 1.7 times as long each."""

Augment = Callable[
    [torch.Tensor, torch.Tensor, torch.Generator, Warp], tuple[torch.Tensor, torch.Tensor]
]
"""A change of a training batch: images (B, C, H, W) and labels (B, ...), on any device, a CPU
generator and how labels follow geometry, to images and labels of those shapes."""


def train(
    nets: Networks,
    key: str,
    slices: LabelledSlices,
    *,
    batch: int,
    learning_rate: float,
    augmentation: Augment,
    budget: Budget,
) -> dict[str, float]:
    """Train ``nets[key]`` in place for ``budget.steps`` steps of Adam on the task's loss.

    The networks are moved to ``budget.device`` and left there.

    Returns the means over the steps of ``loss`` (without a penalty) and, where the strategy has
    one, ``penalty``; and ``nonfinite_steps``, the number of steps whose gradient was not finite.
    Mixed precision leaves such steps out and lowers its loss scale; in full precision they spoil
    the weights, and the caller must not use them.
    """
    device, step, task = budget.device, budget.step, budget.task
    on_gpu = device.type == "cuda"
    for net in nets.values():
        net.to(device)
    net = nets[key]
    if on_gpu:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    generator = torch.Generator().manual_seed(derive_seed(budget.seed, "augmentation"))

    def objective(batch: Batch) -> tuple[Losses, Seen]:
        with descent.autocast():
            raw = net(batch.images)
        return {"loss": task.loss(raw, batch.labels, batch.told)}, {key: batch.images}

    penalty = partial(step.penalty, nets)
    descent = Descent(net, lr=learning_rate, amp=budget.amp, penalty=penalty, objective=objective)
    nonfinite = torch.zeros((), device=device)
    seed = derive_seed(budget.seed, "batches")
    for drawn in slices.batches(batch, budget.steps, seed, device):
        shown = changed(drawn, step)
        images, labels = augmentation(shown.images, shown.labels, generator, task.warp)
        if on_gpu:
            images = images.contiguous(memory_format=torch.channels_last)
        losses = step.descend(net, Batch(images, labels, shown.told), descent)
        nonfinite += ~descent.norm().isfinite()
        descent.take(losses)
    return {**descent.means(), "nonfinite_steps": float(nonfinite)}


def changed(batch: Batch, step: Step) -> Batch:
    """``batch`` with the images that ``step`` makes of its own, and as many labels."""
    images = step.change(batch.images)
    times = len(images) // len(batch)
    told = batch.told if batch.told is None else torch.cat([batch.told] * times)
    return Batch(images, torch.cat([batch.labels] * times), told)


def predict_slices(
    net: nn.Module, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
) -> np.ndarray:
    """Return the task's predictions, such as class probabilities (S, K, H, W) float32, of
    ``images``, S slices (C, H, W) float32.

    Slices go through ``net`` :data:`PREDICT_BATCH` at a time; it lies on the scene's device, as the
    networks of a method do, and is left in evaluation mode. S may not be zero.
    """
    net.eval()
    found: np.ndarray | None = None
    with torch.inference_mode():
        for start in range(0, len(images), PREDICT_BATCH):
            # A copy: torch warns of arrays it may not write to, as memory maps are.
            part = np.array(images[start : start + PREDICT_BATCH], dtype=np.float32)
            raw = net(torch.from_numpy(part).to(scene.device))
            predicted = scene.task.predictions(raw).cpu().numpy()
            if found is None:
                found = np.empty((len(images), *predicted.shape[1:]), dtype=np.float32)
            found[start : start + len(part)] = predicted
    if found is None:
        raise ValueError("no image to predict")
    return found
