"""Pictures of what the models see, drawn where the images are; they never leave the site."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes

from fedshift.client import tasks
from fedshift.client.contract.method import Scene
from fedshift.client.metrics import dice
from fedshift.client.model import shared_model
from fedshift.protocol.messages import Arrays
from fedshift.protocol.storage import write_atomic
from fedshift.protocol.words import short
from fedshift.sites.types import IGNORED, Case, SiteData

COLORS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00")
"""A colour a structure, from Okabe and Ito's palette, all bright on a grey image."""

MODEL_NAMES = {"global": "federated"}
"""What readers call a model, where that is not its name in the tables."""

MAX_SLICES = 3
GREY_LEVELS = 64


def draw_site(
    data: SiteData,
    models: Mapping[str, tuple[Arrays, Scene]],
    method: Mapping[str, Any],
    task: Mapping[str, Any],
    path: Path,
) -> bool:
    """Draw the first labelled test case of a site with the contours of ``models`` (name ->
    tensors and how they predict) to ``path``; False when the site has none."""
    cases = [case for case in data.splits["test"] if case.labelled.any()]
    if not cases:
        return False
    case = cases[0]
    predictions = {}
    for name, (arrays, scene) in models.items():
        model = shared_model(method, task, scene.device)
        model.load(arrays)
        predictions[MODEL_NAMES.get(name, name)] = model.predict(case.image, scene)
    tasks.build(task).draw(case, predictions, path, site=data.name)
    return True


def draw_masks(
    case: Case,
    predictions: Mapping[str, np.ndarray],
    structures: Sequence[str],
    path: Path,
    *,
    site: str,
) -> Path:
    """Draw one PNG of ``case``: a row a slice; the image, the truth, and each model's contours.

    ``predictions`` maps a model's name to labels (S, H0, W0) uint8 on the image's own grid, like
    the case's own label; each of its panels states the slice's Dice, structures in the legend's
    order. Up to three labelled slices are shown: those with the largest structures of which no
    two are neighbours. The view is cropped to the true structures with a margin, and pixels that
    are not square keep their shape.
    Raises ``ValueError`` when no slice carries a label.
    """
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patheffects import withStroke

    if not case.labelled.any():
        raise ValueError(f"case {case.id} carries no label to draw")
    reference = case.labels["mask"].native
    slices = _representative(reference, case.labelled)
    images = _native_images(case, slices)
    # Around the truth alone: a model that finds the structure everywhere must not shrink it.
    rows, columns = _window(_shown(reference[slices]))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    _, row_mm, column_mm = case.native_spacing_mm
    aspect = row_mm / column_mm
    # A dark edge, without which a bright line is lost on bright tissue.
    edge = [withStroke(linewidth=2.4, foreground="black", alpha=0.55)]
    panels = 2 + len(predictions)
    panel = 2.3
    tall = panel * height * aspect / width
    style = {**rcParamsDefault, "font.size": 8.5, "text.parse_math": False, "savefig.dpi": 150}
    with rc_context(style):
        figure = Figure(
            figsize=(panel * panels, (tall + 0.25) * len(slices) + 0.7), layout="constrained"
        )
        grid = figure.subplots(len(slices), panels, squeeze=False)
        for line, index, image in zip(grid, slices, images, strict=True):
            truth = reference[index]
            told = case.annotates or range(1, len(structures) + 1)
            titles = [f"slice {index + 1}", "truth"]
            labels: list[np.ndarray | None] = [None, truth]
            for name, prediction in predictions.items():
                found = np.where(truth == IGNORED, 0, prediction[index])
                titles.append(f"{name}\n{_dice_words(truth, found, told)}")
                labels.append(found)
            for axes, title, drawn in zip(line, titles, labels, strict=True):
                axes.imshow(image[rows, columns], cmap="gray", vmin=0, vmax=1, aspect=aspect)
                axes.set_title(title, fontsize=8.5)
                axes.set_axis_off()
                if drawn is None:
                    continue
                masks = [drawn[rows, columns] == 1 + number for number in range(len(structures))]
                for number in _outer_first(masks):
                    color = COLORS[number % len(COLORS)]
                    mask = masks[number]
                    lines = axes.contour(mask, levels=[0.5], colors=color, linewidths=1.4)
                    lines.set_path_effects(edge)
        vendor = case.domain.vendor or "vendor unknown"
        figure.suptitle(
            f"{short(site)}{'' if vendor == site else f' ({short(vendor)})'}, "
            f"case {short(case.id)}",
            x=0.01,
            ha="left",
            fontsize=10,
        )
        handles = [
            Line2D([], [], color=COLORS[index % len(COLORS)], label=short(name), path_effects=edge)
            for index, name in enumerate(structures)
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
    write_atomic(path, picture.getvalue())
    return path


def _native_images(case: Case, slices: Sequence[int]) -> np.ndarray:
    """The chosen slices of ``case.image`` on the image's own grid, (n, H0, W0) in 0..1.

    A case carries its pixels on the network's grid only, and its grid's ``to_native``, which brings
    class scores back, is the one map it has. The score ``2 t v - t ** 2`` of grey level ``t`` is
    linear in the pixel value ``v``, so it survives linear interpolation, and it is largest for the
    level nearest to ``v``: the "class" that comes back is the grey level.
    """
    chosen = case.image[list(slices)]
    low, high = np.percentile(chosen, (0.5, 99.5))
    values = np.clip((chosen - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    values = values.mean(axis=1, keepdims=True)
    levels = np.linspace(0, 1, GREY_LEVELS, dtype=np.float32)[:, None, None]
    return case.grid.to_native(2 * levels * values - levels**2) / (GREY_LEVELS - 1)


def _representative(reference: np.ndarray, labelled: np.ndarray) -> list[int]:
    """Up to three labelled slices: the ones with the most labelled pixels, no two neighbours."""
    area = np.where(labelled, _shown(reference).sum(axis=(1, 2)), -1)
    chosen: list[int] = []
    for index in np.argsort(-area, kind="stable").tolist():
        if len(chosen) == MAX_SLICES or area[index] < 0 or (chosen and area[index] == 0):
            break
        if all(abs(index - other) > 1 for other in chosen):
            chosen.append(index)
    return sorted(chosen)


def _window(masks: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around every labelled pixel of (n, H0, W0), with a margin of a half."""
    spans = []
    for axis in (1, 2):
        length = masks.shape[axis]
        used = np.flatnonzero(masks.any(axis=(0, 3 - axis)))
        if not used.size:
            used = np.array([0, length - 1])
        margin = max(8, (used[-1] - used[0]) // 2)
        spans.append(slice(int(max(0, used[0] - margin)), int(min(length, used[-1] + margin + 1))))
    return spans[0], spans[1]


def _outer_first(masks: Sequence[np.ndarray]) -> list[int]:
    """The indices of masks that have a border, from the largest outline to the smallest: where a
    structure lies inside another, both have that border, and the inner one must show."""
    drawn = [index for index, mask in enumerate(masks) if mask.any() and not mask.all()]
    return sorted(drawn, key=lambda index: -int(binary_fill_holes(masks[index]).sum()))


def _shown(reference: np.ndarray) -> np.ndarray:
    """Where a structure is, as a mask."""
    return (reference != 0) & (reference != IGNORED)


def _dice_words(truth: np.ndarray, label: np.ndarray, classes: Iterable[int]) -> str:
    """``Dice 0.91, 0.80``: that of each annotated structure in one slice; one that is absent from
    both scores 1."""
    values = [dice(truth == number, label == number) for number in classes]
    return "Dice " + ", ".join(f"{value:.2f}" for value in values)
