"""Training and prediction loops over slices, shared by the methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from fedshift import derive_seed
from fedshift.client.contract.method import Budget, Networks, Scene
from fedshift.client.contract.task import Task, Warp
from fedshift.client.displaced import displaced
from fedshift.client.episodes import Episode
from fedshift.client.sharpness import uphill
from fedshift.sites.types import Case

PREDICT_BATCH = 8
"""Slices a forward pass in prediction. It bounds memory, and on a CPU larger batches are slower:
32 slices of 128 x 128 pixels no longer fit the cache and take 1.7 times as long each."""

Augment = Callable[
    [torch.Tensor, torch.Tensor, torch.Generator, Warp], tuple[torch.Tensor, torch.Tensor]
]
"""A change of a training batch: images (B, C, H, W) and labels (B, ...), on any device, a CPU
generator and how labels follow geometry, to images and labels of those shapes."""


LabelledBatch = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Images (B, C, H, W) float32, labels (B, ...) of the task's form, and of which parts each slice's
label tells, (B, 1 + parts) bool, as :meth:`fedshift.client.contract.task.Task.loss` takes them."""


class LabelledSlices:
    """The slices of ``cases`` with a label of the ``task``'s form, read batch by batch from their
    (memory-mapped) arrays."""

    def __init__(self, cases: Sequence[Case], task: Task) -> None:
        self._slices: list[tuple[np.ndarray, np.ndarray]] = []
        told = []
        for case in cases:
            if task.form in case.labels:
                # A plain view of a memory map: indexing np.memmap itself costs several times more.
                image, label = np.asarray(case.image), np.asarray(case.labels[task.form].grid)
                chosen = np.flatnonzero(case.labelled)
                self._slices += [(image[s], label[s]) for s in chosen]
                told += [annotated_row(case, len(task.parts))] * len(chosen)
        complete = all(case.annotates is None and not case.ignores for case in cases)
        self._annotated = (
            None if complete else torch.from_numpy(np.array(told).reshape(-1, 1 + len(task.parts)))
        )

    def __len__(self) -> int:
        return len(self._slices)

    def batches(
        self, size: int, steps: int, seed: int, device: torch.device
    ) -> Iterator[LabelledBatch]:
        """Yield ``steps`` batches on ``device``. With fewer slices than ``size``, B is the number
        of slices."""
        shape = self._slices[0][0].shape
        # Of forms that list what varies in number, sites may pad their lists to different lengths.
        lengths = [label.shape for _, label in self._slices]
        label_shape = tuple(map(max, zip(*lengths, strict=True)))
        padded = any(length != label_shape for length in lengths)
        label_type = torch.from_numpy(np.empty(0, self._slices[0][1].dtype)).dtype
        for chosen in permuted(len(self), size, steps, seed):
            count = len(chosen)
            # Fresh tensors: page-locked ones may still be on their way to the GPU. PyTorch's
            # allocator hands the memory back when the copy is done.
            pinned = device.type == "cuda"
            images = torch.empty(count, *shape, pin_memory=pinned)
            labels = torch.empty(count, *label_shape, dtype=label_type, pin_memory=pinned)
            image_rows, label_rows = images.numpy(), labels.numpy()
            if padded:
                label_rows.fill(np.nan)
            for row, index in enumerate(chosen):
                image_rows[row], label = self._slices[index]
                label_rows[row][tuple(map(slice, label.shape))] = label
            annotated = None if self._annotated is None else self._annotated[chosen].to(device)
            yield (
                images.to(device, non_blocking=True),
                labels.to(device, non_blocking=True),
                annotated,
            )


def annotated_row(case: Case, parts: int) -> np.ndarray:
    """Of which of so many ``parts`` the label of ``case`` tells, (1 + parts,) bool; the first place
    is that of no part, and true."""
    row = np.full(1 + parts, case.annotates is None)
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
        loss = objective = budget.task.loss(logits, labels, annotated)
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
        images, labels = augmentation(images, labels, generator, budget.task.warp)
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


def predict_slices(
    net: nn.Module, images: Sequence[np.ndarray] | np.ndarray, scene: Scene
) -> np.ndarray:
    """Return the task's predictions, such as class probabilities (S, K, H, W) float32, of
    ``images``, S slices (C, H, W) float32.

    Slices go through ``net`` :data:`PREDICT_BATCH` at a time; ``net`` is moved to the scene's
    device and left there, in evaluation mode. S may not be zero.
    """
    net.to(scene.device).eval()
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
