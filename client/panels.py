"""Slices of a case in rows and columns of panels: the picture of any task's labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshift.protocol.storage import write_atomic
from fedshift.protocol.words import short
from fedshift.sites.types import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#E69F00", "#56B4E9", "#F0E442", "#CC79A7", "#009E73", "#D55E00")
"""A colour a structure, from Okabe and Ito's palette, all bright on a grey image."""

MAX_SLICES = 3
"""Slices of a case that a picture shows."""

Panel = Callable[["Axes", int], str]
"""Paints one slice's label over its image on axes, and says the panel's title."""


def draw_panels(
    case: Case,
    slices: Sequence[int],
    view: tuple[slice, slice],
    panels: Sequence[Panel],
    parts: Sequence[str],
    path: Path,
    *,
    site: str,
) -> Path:
    """Draw one PNG of ``case``: a row for each of ``slices``, cropped to the rows and columns of
    ``view``; the image, and a panel for each of ``panels``. A legend names ``parts`` by
    :data:`COLORS`; pixels that are not square keep their shape."""
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    images = native_images(case, slices)
    rows, columns = view
    height, width = rows.stop - rows.start, columns.stop - columns.start
    _, row_mm, column_mm = case.native_spacing_mm
    aspect = row_mm / column_mm
    panel = 2.3
    tall = panel * height * aspect / width
    count = 1 + len(panels)
    style = {**rcParamsDefault, "font.size": 8.5, "text.parse_math": False, "savefig.dpi": 150}
    with rc_context(style):
        figure = Figure(
            figsize=(panel * count, (tall + 0.25) * len(slices) + 0.7), layout="constrained"
        )
        grid = figure.subplots(len(slices), count, squeeze=False)
        for line, index, image in zip(grid, slices, images, strict=True):
            for axes, paint in zip(line, (None, *panels), strict=True):
                axes.imshow(image[rows, columns], cmap="gray", vmin=0, vmax=1, aspect=aspect)
                axes.autoscale(False)  # What lies beyond the picture takes no room in it.
                axes.set_axis_off()
                title = f"slice {index + 1}" if paint is None else paint(axes, index)
                axes.set_title(title, fontsize=8.5)
        vendor = case.domain.vendor or "vendor unknown"
        figure.suptitle(
            f"{short(site)}{'' if vendor == site else f' ({short(vendor)})'}, "
            f"case {short(case.id)}",
            x=0.01,
            ha="left",
            fontsize=10,
        )
        handles = [
            Line2D([], [], color=color_of(number), label=short(name), path_effects=edge())
            for number, name in enumerate(parts, start=1)
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
    write_atomic(path, picture.getvalue())
    return path


def color_of(number: int) -> str:
    """The colour of a part, by its number from 1."""
    return COLORS[(number - 1) % len(COLORS)]


def edge() -> list[Any]:
    """A dark edge, without which a bright line is lost on bright tissue."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.4, foreground="black", alpha=0.55)]


def native_images(case: Case, slices: Sequence[int]) -> np.ndarray:
    """The chosen slices of ``case.image`` on the image's own grid, (n, H0, W0) in 0..1; black where
    the network's grid, on which a case carries its pixels, does not reach."""
    chosen = case.image[list(slices)]
    low, high = np.percentile(chosen, (0.5, 99.5))
    values = np.clip((chosen - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return case.grid.values_to_native(values.mean(axis=1, keepdims=True), outside=0)[:, 0]
