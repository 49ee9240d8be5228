"""Training and prediction loops over slices, shared by the methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from fedshift import derive_seed
from fedshift.client.contract.method import Budget, Networks
from fedshift.client.displaced import displaced
from fedshift.client.episodes import Episode
from fedshift.client.losses import dice_ce
from fedshift.client.sharpness import uphill
from fedshift.sites.types import Case

PREDICT_BATCH = 8
"""Slices a forward pass in prediction. It bounds memory, and on a CPU larger batches are slower:
32 slices of 128 x 128 pixels no longer fit the cache and take 1.7 times as long each."""

Augment = Callable[[torch.Tensor, torch.Tensor, torch.Generator], tuple[torch.Tensor, torch.Tensor]]
"""A change of a training batch: images (B, 1, H, W) and labels (B, H, W), on any device, and a CPU
generator to images and labels of those shapes."""


LabelledBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Images (B, 1, H, W) float32, labels (B, H, W) uint8, and of which classes each slice's label
tells (B, C) bool, as :func:`fedshift.client.losses.dice_ce` takes it."""


class LabelledSlices:
    """The labelled slices of ``cases``, read batch by batch from their (memory-mapped) arrays; the
    labels name ``classes``, the background among them."""

    def __init__(self, cases: Sequence[Case], classes: int) -> None:
        self._slices: list[tuple[np.ndarray, np.ndarray]] = []
        told = []
        for case in cases:
            if case.label is not None:
                # A plain view of a memory map: indexing np.memmap itself costs several times more.
                image, label = np.asarray(case.image), np.asarray(case.label)
                chosen = np.flatnonzero(case.labelled)
                self._slices += [(image[s], label[s]) for s in chosen]
                told += [annotated_row(case, classes)] * len(chosen)
        complete = all(case.annotates is None and not case.ignores for case in cases)
        self._annotated = (
            None if complete else torch.from_numpy(np.array(told).reshape(-1, classes))
        )

    def __len__(self) -> int:
        return len(self._slices)

    def batches(
        self, size: int, steps: int, seed: int, device: torch.device
    ) -> Iterator[LabelledBatch]:
        """Yield ``steps`` batches on ``device``. With fewer slices than ``size``, B is the number
        of slices."""
        height, width = self._slices[0][0].shape
        for chosen in permuted(len(self), size, steps, seed):
            count = len(chosen)
            # Fresh tensors: page-locked ones may still be on their way to the GPU. PyTorch's
            # allocator hands the memory back when the copy is done.
            pinned = device.type == "cuda"
            images = torch.empty(count, 1, height, width, pin_memory=pinned)
            labels = torch.empty(count, height, width, dtype=torch.uint8, pin_memory=pinned)
            image_rows, label_rows = images.numpy(), labels.numpy()
            for row, index in enumerate(chosen):
                image_rows[row, 0], label_rows[row] = self._slices[index]
            annotated = None if self._annotated is None else self._annotated[chosen].to(device)
            yield (
                images.to(device, non_blocking=True),
                labels.to(device, non_blocking=True),
                annotated,
            )


def annotated_row(case: Case, classes: int) -> np.ndarray:
    """Of which of ``classes`` the label of ``case`` tells, (classes,) bool; always the first."""
    row = np.full(classes, case.annotates is None)
    row[[0, *(case.annotates or ())]] = True
    return row


def permuted(total: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Yield ``steps`` batches of ``size`` of the indices below ``total``, or all of them where that
    is fewer: one random permutation after another, cut without regard to where one ends, so that
    every index is seen equally often."""
    rng = np.random.default_rng(seed)
    count = min(size, total)
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < count:
            queue += rng.permutation(total).tolist()
        chosen, queue = queue[:count], queue[count:]
        yield chosen


def train_segmentation(
    nets: Networks,
    key: str,
    slices: LabelledSlices,
    *,
    batch: int,
    learning_rate: float,
    augmentation: Augment,
    budget: Budget,
) -> dict[str, float]:
    """Train ``nets[key]`` in place for ``budget.steps`` steps of Adam on Dice + cross-entropy.

    Adam starts afresh at every call: its moments belong to the weights a site had, not to those it
    is sent. The networks are moved to ``budget.device`` and left there.

    Returns the means over the steps of ``loss`` (without a penalty) and, where the budget has one,
    ``penalty``; and ``nonfinite_steps``, the number of steps whose gradient was not finite.
    Mixed precision leaves such steps out and lowers its loss scale; in full precision they spoil
    the weights, and the caller must not use them.
    """
    device = budget.device
    on_gpu = device.type == "cuda"
    for net in nets.values():
        net.to(device)
    net = nets[key]
    if on_gpu:
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=budget.amp)
    generator = torch.Generator().manual_seed(derive_seed(budget.seed, "augmentation"))

    def leave_gradients(
        images: torch.Tensor, labels: torch.Tensor, annotated: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """Leave the objective's gradients in the parameters; return the loss and the penalty."""
        with torch.autocast(device.type, dtype=torch.float16, enabled=budget.amp):
            logits = net(images)
        loss = objective = dice_ce(logits, labels, annotated)
        penalties = []
        if budget.penalty is not None:
            penalties.append(budget.penalty(nets))
        if budget.batch_penalty is not None:
            with torch.autocast(device.type, dtype=torch.float16, enabled=budget.amp):
                penalties.append(budget.batch_penalty(images))
        for penalty in penalties:
            objective = objective + penalty
        optimizer.zero_grad()
        scaler.scale(objective).backward()
        return loss.detach(), sum(penalty.detach() for penalty in penalties)

    def add_meta_test(
        episode: Episode,
        images: torch.Tensor,
        moved: torch.Tensor,
        labels: torch.Tensor,
        annotated: torch.Tensor | None,
    ) -> None:
        """Add the gradients of the episode's meta-test to those of its meta-training."""
        loss_scale = scaler.scale(torch.ones((), device=device))
        with displaced(net, lambda norm: -episode.inner_lr / loss_scale):
            with torch.autocast(device.type, dtype=torch.float16, enabled=budget.amp):
                objective = episode.meta_test(net, images, moved, labels, annotated)
            scaler.scale(objective).backward()

    episode = budget.episode
    # Sums stay tensors until the end: reading a number at every step would stall a GPU.
    loss_sum, penalty_sum, nonfinite = torch.zeros(3, device=device).unbind()
    seed = derive_seed(budget.seed, "batches")
    appearance = budget.appearance or (lambda images: images)
    for original, mask, annotated in slices.batches(batch, budget.steps, seed, device):
        images, labels = appearance(original), mask
        if episode is not None:
            images = torch.cat([images, episode.elsewhere(original)])
            labels = torch.cat([mask, mask])
        images, labels = augmentation(images, labels, generator)
        if on_gpu:
            images = images.contiguous(memory_format=torch.channels_last)
        count = len(original)
        loss, penalty = leave_gradients(images[:count], labels[:count], annotated)
        loss_sum += loss
        penalty_sum += penalty
        if budget.sharpness:
            with uphill(net, budget.sharpness):
                leave_gradients(images[:count], labels[:count], annotated)
        if episode is not None:
            add_meta_test(episode, images[:count], images[count:], labels, annotated)
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        nonfinite += ~norm.isfinite()
        scaler.step(optimizer)
        scaler.update()
    metrics = {"loss": float(loss_sum) / budget.steps, "nonfinite_steps": float(nonfinite)}
    if budget.penalty is not None or budget.batch_penalty is not None:
        metrics["penalty"] = float(penalty_sum) / budget.steps
    return metrics


def predict_probabilities(
    net: nn.Module, images: Sequence[np.ndarray] | np.ndarray, device: torch.device
) -> np.ndarray:
    """Return class probabilities (S, C, H, W) float32 of ``images``, S slices (H, W) float32.

    Slices go through ``net`` :data:`PREDICT_BATCH` at a time; ``net`` is moved to ``device`` and
    left there, in evaluation mode. S may not be zero.
    """
    net.to(device).eval()
    found: np.ndarray | None = None
    with torch.inference_mode():
        for start in range(0, len(images), PREDICT_BATCH):
            # A copy: torch warns of arrays it may not write to, as memory maps are.
            part = np.array(images[start : start + PREDICT_BATCH], dtype=np.float32)
            logits = net(torch.from_numpy(part).unsqueeze(1).to(device))
            probabilities = torch.softmax(logits.float(), dim=1).cpu().numpy()
            if found is None:
                found = np.empty((len(images), *probabilities.shape[1:]), dtype=np.float32)
            found[start : start + len(part)] = probabilities
    if found is None:
        raise ValueError("no image to predict")
    return found
