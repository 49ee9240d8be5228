"""Cases made in a test: masks of one size with their images, without a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedshift.client.contract.task import Task
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.sites.geometry import Grid
from fedshift.sites.types import Case, Domain, Label

ISOTROPIC = (1.0, 1.0, 1.0)


def mask_case(
    image: np.ndarray,
    label: np.ndarray | None = None,
    *,
    id: str = "case",
    subject: str = "subject",
    domain: Domain = Domain("vendor"),  # noqa: B008 (frozen)
    labelled: np.ndarray | None = None,
    reference: np.ndarray | None = None,
    spacing_mm: Sequence[float] = ISOTROPIC,
    native_spacing_mm: Sequence[float] | None = None,
    grid: Grid | None = None,
    **more: Any,
) -> Case:
    """A case of slices ``image``, (S, C, H, W) or grey (S, H, W), with masks ``label`` on the
    network's grid and ``reference`` on the image's own: the same where no ``grid`` says how they
    differ."""
    spacing = tuple(float(mm) for mm in spacing_mm)
    rows, columns = image.shape[-2:]
    channels = image if image.ndim == 4 else image[:, None]
    found = {}
    if label is not None:
        found["mask"] = Label(label, label if reference is None else reference)
    return Case(
        id=id,
        subject=subject,
        session="",
        domain=domain,
        image=channels.astype(np.float32, copy=False),
        labels=found,
        labelled=np.full(len(image), label is not None) if labelled is None else labelled,
        spacing_mm=spacing,  # type: ignore[arg-type]
        native_spacing_mm=tuple(native_spacing_mm or spacing),  # type: ignore[arg-type]
        grid=grid or Grid((rows, columns), spacing[1:], spacing[1:], rows),  # type: ignore[arg-type]
        **more,
    )


def mask(case: Case) -> np.ndarray:
    """The mask of ``case`` on the network's grid, (S, H, W)."""
    return case.labels["mask"].grid


def native_mask(case: Case) -> np.ndarray:
    """The mask of ``case`` on the image's own grid, (S, H0, W0)."""
    return case.labels["mask"].native


def segmentation(*parts: str, **settings: Any) -> Task:
    """The task of segmenting ``parts``."""
    return Segmentation(parts or ("disc",), **settings)
