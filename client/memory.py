"""How much memory one site's training takes on a GPU: measured, not guessed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fedshift.client.methods.base import Budget
from fedshift.client.model import Model
from fedshift.sites.types import Case, Domain, SiteData

_SLICES = 64
_STEPS = 2


def training_bytes(
    method: Mapping[str, Any], task: Mapping[str, Any], rounds: int, size: int, device: str
) -> int:
    """The peak of ``device``'s memory, in bytes, over two steps on random images of ``size``, in
    the first and in the middle one of ``rounds``: methods train other networks later."""
    place = torch.device(device)
    torch.cuda.reset_peak_memory_stats(place)
    before = torch.cuda.memory_allocated(place)
    model = Model(method, task, place, seed=0)
    data = _random_site(size, model.task.structures)
    for number in sorted({1, 1 + rounds // 2}):
        budget = Budget(steps=_STEPS, seed=0, device=place, round=number, rounds=rounds)
        model.method.fit(data, model.nets, {}, budget)
    peak = torch.cuda.max_memory_reserved(place) - before
    del model
    torch.cuda.empty_cache()
    return int(peak)


def _random_site(size: int, structures: tuple[str, ...]) -> SiteData:
    """A labelled site of noise, large enough to fill a batch."""
    random = np.random.default_rng(0)
    case = Case(
        id="noise",
        subject="noise",
        session="",
        domain=Domain(vendor="noise"),
        image=random.standard_normal((_SLICES, size, size), dtype=np.float32),
        label=random.integers(0, len(structures) + 1, (_SLICES, size, size), dtype=np.uint8),
        labelled=np.ones(_SLICES, dtype=bool),
        spacing_mm=(1.0, 1.0, 1.0),
        reference=None,
        native_spacing_mm=(1.0, 1.0, 1.0),
        to_native=lambda probabilities: probabilities.argmax(axis=1).astype(np.uint8),
    )
    splits = {"train": (case,), "val": (), "test": ()}
    return SiteData("noise", "train", structures, splits)  # type: ignore[arg-type]
