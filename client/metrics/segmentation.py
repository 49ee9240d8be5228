"""The metrics of one segmented case, with a fixed rule for empty masks.

- Overlap: Dice, Jaccard, precision and recall over voxels.
- ``hd95_mm``: the 95th percentile (linear interpolation) of the two directed lists of surface
  distances taken together, as MedPy's ``hd95``; not the larger of two percentiles.
- ``assd_mm``: the mean of the same joined list, as MedPy's ``assd``; not the mean of two means.
- ``nsd``: the fraction of the border voxels of both masks that lie within the tolerance of the
  other's border. Nikolov et al. 2018 (arXiv:1809.04430) weigh each surface element by its area;
  here every border voxel counts as one.
- ``false_positive_ml``: the volume predicted outside the reference.
  ``false_positive_components``: the predicted components (neighbours by face, edge or corner) that
  share no voxel with the reference.

Both masks empty: Dice, Jaccard, precision, recall and NSD are 1 and the distances 0. Exactly one
empty: those are 0, the distances are the diagonal of the image's grid, and the case is marked as
failed, so that a missed structure can never vanish from a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import find_objects, generate_binary_structure, label

from fedshift import UserError
from fedshift.client.metrics.surface import surface_distances

_ROUNDING = 1 + 1e-9
"""A distance equal to the tolerance is within it, whatever the last bits of ``n * spacing``."""


def score_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing_mm: Sequence[float],
    structures: Sequence[str],
    tolerance_mm: float,
) -> list[dict[str, Any]]:
    """Score a predicted label map against its reference, one dict for each structure.

    ``reference`` and ``prediction`` are (S, H, W) uint8, 0 for the background and ``k + 1`` for
    ``structures[k]``; ``spacing_mm`` is (slice, row, column). A case of one slice is measured in
    its plane. Each dict has ``structure``, ``dice``, ``jaccard``, ``precision``, ``recall`` and
    ``nsd`` (0 to 1), ``hd95_mm`` and ``assd_mm`` (mm), ``volume_ml`` (predicted),
    ``reference_volume_ml``, ``volume_error_ml`` (predicted minus reference) and
    ``false_positive_ml`` (mL), ``false_positive_components``, and ``failed`` (1 when exactly one of
    the masks is empty, else 0).

    Raises ``UserError`` when the tolerance is negative or not finite, and ``ValueError`` when the
    shapes differ, a spacing is not positive, or a label has no structure.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    _check(reference, prediction, spacing, len(structures), tolerance_mm)
    voxel_ml = float(spacing.prod()) / 1000.0
    if reference.shape[0] == 1:
        # In a volume of one slice every voxel touches the outside: a mask would be all border.
        reference, prediction, spacing = reference[0], prediction[0], spacing[1:]
    diagonal_mm = float(np.linalg.norm(reference.shape * spacing))

    rows = []
    for value, (name, reference_box, prediction_box) in enumerate(
        zip(
            structures,
            find_objects(reference, len(structures)),
            find_objects(prediction, len(structures)),
            strict=True,
        ),
        start=1,
    ):
        box = _union(reference_box, prediction_box)
        truth, found = reference[box] == value, prediction[box] == value
        n_truth, n_found, n_both = (int(m.sum()) for m in (truth, found, truth & found))
        if n_truth and n_found:
            distances = np.concatenate(surface_distances(truth, found, spacing))
            hd95, assd = float(np.percentile(distances, 95)), float(distances.mean())
            nsd = float((distances <= tolerance_mm * _ROUNDING).mean())
            precision, recall = n_both / n_found, n_both / n_truth
            dice = 2 * n_both / (n_truth + n_found)
            jaccard = n_both / (n_truth + n_found - n_both)
            failed = 0
        else:
            failed = int(n_truth != n_found)
            hd95 = assd = diagonal_mm * failed
            dice = jaccard = precision = recall = nsd = 1.0 - failed
        rows.append(
            {
                "structure": name,
                "dice": dice,
                "hd95_mm": hd95,
                "assd_mm": assd,
                "nsd": nsd,
                "volume_ml": n_found * voxel_ml,
                "reference_volume_ml": n_truth * voxel_ml,
                "false_positive_ml": (n_found - n_both) * voxel_ml,
                "false_positive_components": _stray_components(truth, found),
                "failed": failed,
                "jaccard": jaccard,
                "precision": precision,
                "recall": recall,
                "volume_error_ml": (n_found - n_truth) * voxel_ml,
            }
        )
    return rows


def _stray_components(truth: np.ndarray, found: np.ndarray) -> int:
    """How many components of ``found`` share no voxel with ``truth``."""
    if not found.any():
        return 0
    parts, count = label(found, generate_binary_structure(found.ndim, found.ndim))
    return int(count - np.count_nonzero(np.unique(parts[truth])))


def dice(first: np.ndarray, second: np.ndarray) -> float:
    """Dice of two masks of one shape, 0 to 1; 1 when both are empty."""
    size = int(first.sum()) + int(second.sum())
    return 2.0 * int((first & second).sum()) / size if size else 1.0


def _check(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: np.ndarray,
    n_structures: int,
    tolerance_mm: float,
) -> None:
    if reference.ndim != 3 or reference.shape != prediction.shape:
        raise ValueError(
            f"reference {reference.shape} and prediction {prediction.shape} must both be (S, H, W)"
        )
    if spacing.shape != (3,) or not np.all(np.isfinite(spacing) & (spacing > 0)):
        raise ValueError(f"spacing_mm must be three positive numbers, not {spacing.tolist()}")
    largest = max(reference.max(initial=0), prediction.max(initial=0))
    if largest > n_structures:
        raise ValueError(f"label {largest} has no name among {n_structures} structures")
    if not 0 <= tolerance_mm < np.inf:
        raise UserError(f"tolerance_mm is {tolerance_mm}; set it to 0 mm or more")


def _union(first: tuple[slice, ...] | None, second: tuple[slice, ...] | None) -> tuple[slice, ...]:
    """The bounding box of both boxes; an empty one where there is neither."""
    if first is None or second is None:
        return first or second or (slice(0),)
    return tuple(
        slice(min(a.start, b.start), max(a.stop, b.stop))
        for a, b in zip(first, second, strict=True)
    )
