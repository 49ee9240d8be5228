"""Images of a site with their labels over them, as a network is given them."""

from __future__ import annotations

import io

import numpy as np

from fedshift.sites.labels import FORMS
from fedshift.sites.types import SPLITS, Case, SiteData

MOST_CASES, MOST_PARTS = 6, 9


def draw_site(site: SiteData) -> bytes:
    """A PNG: of up to six cases of ``site``, labelled ones of as many subjects as can be, the slice
    that holds most, without and with its label.

    Pixels that are not square keep their shape; a legend names the first nine parts."""
    from matplotlib import rc_context, rcParamsDefault
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cases = _chosen(site)
    with rc_context({**rcParamsDefault, "font.size": 8, "text.parse_math": False}):
        figure = Figure(figsize=(4.2, 0.4 + 2.1 * len(cases)), layout="constrained")
        figure.suptitle(site.name, wrap=True)
        handles = [
            Patch(color=f"C{k}", label=name) for k, name in enumerate(site.parts[:MOST_PARTS])
        ]
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        for row, case in zip(figure.subplots(len(cases), 2, squeeze=False), cases, strict=True):
            index = _fullest(case)
            picture = case.image[index].mean(axis=0)
            low, high = np.percentile(picture, (1, 99))
            _, row_mm, column_mm = case.spacing_mm
            for axes in row:
                axes.set_axis_off()
                axes.imshow(picture, cmap="gray", vmin=low, vmax=high, aspect=row_mm / column_mm)
                # What the grid cuts off is not shown: the picture would shrink to make room.
                axes.autoscale(False)
            row[0].set_title(f"{case.id}, slice {index + 1}")
            for form, label in case.labels.items():
                FORMS[form].draw(row[1], np.asarray(label.grid[index]), site.parts)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _chosen(site: SiteData) -> list[Case]:
    cases = [case for split in SPLITS for case in site.splits[split]]
    first: dict[str, Case] = {}
    for case in sorted(cases, key=lambda case: not case.labels):
        first.setdefault(case.subject, case)
    others = [case for case in cases if case is not first[case.subject]]
    return [*first.values(), *others][:MOST_CASES]


def _fullest(case: Case) -> int:
    """The slice whose label holds most; of equals the one nearest to the middle."""
    held = np.zeros(len(case.image))
    for label in case.labels.values():
        flat = np.asarray(label.grid).reshape(len(held), -1)
        held = np.count_nonzero(np.nan_to_num(flat), axis=1)
    middle = np.abs(np.arange(len(held)) - len(held) // 2)
    return int(np.lexsort((middle, -held))[0])
