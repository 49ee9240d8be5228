"""Drawing what a method illustrates (:mod:`fedshift.client.contract.illustrations`), where the
images are."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshift.client.contract.illustrations import Curves, Illustration, ImageGrid, Scatter
from fedshift.protocol.storage import write_atomic
from fedshift.protocol.words import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 150
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""A colour a group or line, from Okabe and Ito's palette; beyond these, marks and dashes differ."""
MARKS = ("o", "^", "s", "D")
DASHES = ("-", "--", ":", "-.")

STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#999999",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "text.color": "#222222",
    "axes.labelcolor": "#333333",
    "text.parse_math": False,
    "savefig.dpi": DPI,
}
"""On top of matplotlib's own defaults; dark on white, which a dark page frames. Names are data:
``$`` is no markup."""

_WIDTH, _PANEL = 1530, 256
"""The widest picture, which the report shows without scaling, and the widest panel, in pixels."""
_CHARACTER, _LINE = 12, 20
"""A letter's width and a line's height in pixels, at 9 points."""
_GAP = 8


def draw(illustration: Illustration, path: Path) -> None:
    """Draw to ``path`` as PNG, without title and caption: these belong to the page. Equal arrays
    give equal bytes. Raises ``ValueError`` for a grid whose shape does not fit its names."""
    from matplotlib import rc_context, rcParamsDefault

    style: dict[Any, Any] = {**rcParamsDefault}
    with rc_context(style | STYLE):
        if isinstance(illustration, ImageGrid):
            figure = _grid(illustration)
        elif isinstance(illustration, Scatter):
            figure = _scatter(illustration)
        else:
            figure = _curves(illustration)
        picture = io.BytesIO()
        figure.savefig(picture, format="png", metadata={"Software": None})
    write_atomic(path, picture.getvalue())


def _grid(grid: ImageGrid) -> Figure:
    """A panel an image, at whole pixels: an image that is small enough is enlarged by a whole
    factor. All differences share one scale, so that rows compare."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns = len(grid.rows), len(grid.columns)
    if len(grid.images) != rows or any(len(line) != columns for line in grid.images):
        raise ValueError(f"{grid.name} has names for {rows} x {columns} images and holds others")
    sizes = {image.shape for line in grid.images for image in line if image is not None}
    if len(sizes) != 1:
        raise ValueError(f"the images of {grid.name} are of {len(sizes)} sizes, not of one")
    ((image_height, image_width),) = sizes
    names = [textwrap.wrap(short(name), 18) or [""] for name in grid.rows]
    left = _CHARACTER * max(len(part) for name in names for part in name) + 2 * _GAP
    right = 100 if grid.signed else 0
    width = min(_PANEL, (_WIDTH - left - right) // columns - _GAP)
    width -= width % image_width if width > image_width else 0
    pixels = "nearest" if width % image_width == 0 else "auto"
    height = round(width * image_height / image_width)
    titles = [
        textwrap.wrap(short(name), max(width // _CHARACTER, 8)) or [""] for name in grid.columns
    ]
    top = _LINE * max(map(len, titles)) + 2 * _GAP
    whole = (left + columns * (width + _GAP) + right, top + rows * (height + _GAP))
    figure = Figure(figsize=(whole[0] / DPI, whole[1] / DPI))

    def place(x: int, y: int, wide: int, high: int) -> tuple[float, float, float, float]:
        """Pixels from the upper left corner as matplotlib's fractions from the lower left."""
        return x / whole[0], 1 - (y + high) / whole[1], wide / whole[0], high / whole[1]

    def write(x: int, y: int, words: Sequence[str], **align: Any) -> None:
        figure.text(x / whole[0], 1 - y / whole[1], "\n".join(words), fontsize=9, **align)

    for column, words in enumerate(titles):
        middle = left + column * (width + _GAP) + width // 2
        write(middle, top - _GAP, words, ha="center", va="bottom")
    size = _largest_difference(grid)
    shown = None
    for row, images in enumerate(grid.images):
        y = top + row * (height + _GAP)
        write(left - _GAP, y + height // 2, names[row], ha="right", va="center")
        low, high = _grey_range(images, grid.signed)
        for column, image in enumerate(images):
            if image is None:
                continue
            axes = figure.add_axes(place(left + column * (width + _GAP), y, width, height))
            axes.set_axis_off()
            fill = partial(axes.imshow, image, aspect="auto", interpolation=pixels)
            if column in grid.signed:
                shown = fill(cmap="RdBu_r", vmin=-size, vmax=size)
            else:
                fill(cmap="gray", vmin=low, vmax=high)
    if shown is not None:
        x = left + columns * (width + _GAP) + _GAP
        scale = figure.add_axes(place(x, top, 14, min(_PANEL, rows * (height + _GAP) - _GAP)))
        bar = figure.colorbar(shown, cax=scale)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=7.5, length=2)
        bar.locator = MaxNLocator(5)
        bar.update_ticks()
    return figure


def _grey_range(images: Sequence[np.ndarray | None], signed: frozenset[int]) -> tuple[float, float]:
    """Black and white of a row: the percentiles 0.5 and 99.5 of all its grey images together."""
    grey = [
        image.ravel()
        for column, image in enumerate(images)
        if image is not None and column not in signed
    ]
    if not grey:
        return 0.0, 1.0
    low, high = np.percentile(np.concatenate(grey), (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _largest_difference(grid: ImageGrid) -> float:
    """The percentile 99.5 of the size of all differences."""
    found = [
        np.abs(image).ravel()
        for line in grid.images
        for column, image in enumerate(line)
        if image is not None and column in grid.signed
    ]
    return max(float(np.percentile(np.concatenate(found), 99.5)), 1e-6) if found else 1.0


def _scatter(scatter: Scatter) -> Figure:
    """Both axes on one scale, so that distances in the plane are what they seem."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 4.6), layout="constrained")
    axes = figure.subplots()
    handles = []
    for index, points in enumerate(scatter.groups.values()):
        few = len(points) <= 12
        drawn = axes.scatter(
            points[:, 0],
            points[:, 1],
            s=70 if few else 16,
            c=COLORS[index % len(COLORS)],
            marker=MARKS[index // len(COLORS) % len(MARKS)],
            alpha=0.95 if few else 0.5,
            edgecolors="white" if few else "none",
            linewidths=0.8,
            # Few points, such as a site's mean, must not vanish under many samples.
            zorder=3 if few else 2,
        )
        handles.append(drawn)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xlabel(scatter.axes[0])
    axes.set_ylabel(scatter.axes[1])
    _legend(figure, handles, scatter.groups)
    return figure


def _curves(curves: Curves) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    axes = figure.subplots()
    handles = []
    for index, values in enumerate(curves.lines.values()):
        known = np.isfinite(values)
        handles += axes.plot(
            curves.x[known],
            values[known],
            color=COLORS[index % len(COLORS)],
            linestyle=DASHES[index // len(COLORS) % len(DASHES)],
            marker="o" if known.sum() <= 30 else "",
            markersize=3.5,
        )
    axes.locator_params(axis="x", integer=curves.x.dtype.kind in "iu")
    axes.set_xlabel(curves.axes[0])
    axes.set_ylabel(curves.axes[1])
    _legend(figure, handles, curves.lines)
    return figure


def _legend(figure: Figure, handles: Sequence[Any], names: Iterable[str]) -> None:
    """By handles, as matplotlib would leave out names that begin with an underscore."""
    figure.legend(handles, list(map(short, names)), loc="outside right upper")
