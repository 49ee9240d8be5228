"""Pictures of the styles that sites published, and of slices in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from fedshift import derive_seed
from fedshift.client.contract.illustrations import Illustration, ImageGrid, Scatter
from fedshift.client.contract.method import Scene
from fedshift.client.methods.style_transfer.style_bank import SiteStyle, extrapolated, of_any
from fedshift.sites.types import SiteData

SHOWN = 3
SHOWN_CODES = 60
"""Slices and drawn styles in an illustration."""


def pictures(
    site: SiteData,
    scene: Scene,
    restyle: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    reach: float,
) -> list[Illustration]:
    """The site's slices in every published style and in styles up to ``reach`` times as far from
    their mean; the style bank in the plane of its first two principal components. Nothing where no
    style is published.

    ``restyle`` renders images (B, C, H, W) in the styles of codes (B, D).
    """
    bank = {
        name: SiteStyle.from_bank(found, scene.device)
        for name, found in sorted(scene.bank.items())
        if found
    }
    cases = site.splits["test"][:SHOWN]
    if not bank or not cases:
        return []
    generator = torch.Generator().manual_seed(derive_seed(scene.seed, "illustrate"))
    known = list(bank.values())
    centre = torch.stack([style.mean for style in known]).mean(0)

    def beyond(count: int) -> torch.Tensor:
        return extrapolated(of_any(known, count, generator), centre, reach, generator)

    middle = [np.asarray(case.image[len(case.image) // 2]) for case in cases]
    images = torch.from_numpy(np.stack(middle)).to(scene.device)
    columns, shown, signed = ["original"], [images], set()
    for name, style in bank.items():
        rendered = restyle(images, style.mean.expand(len(images), -1))
        signed.add(len(columns) + 1)
        columns += [f"as {name}", "difference"]
        shown += [rendered, rendered - images]
    for number in range(1, 3):
        columns.append(f"beyond, {number}")
        shown.append(restyle(images, beyond(len(images))))
    grid = torch.stack([rendered.mean(1) for rendered in shown], dim=1).cpu().numpy()
    drawn = {name: style.draw(SHOWN_CODES, generator) for name, style in bank.items()}
    drawn["beyond"] = beyond(SHOWN_CODES)
    return [
        ImageGrid(
            "styles",
            f"Slices of {site.name} in other styles",
            "Each row is a test slice; the columns show it in the mean style that a site "
            "published, what changed, and two styles beyond the published ones.",
            [list(row) for row in grid],
            columns,
            [case.id for case in cases],
            frozenset(signed),
        ),
        Scatter(
            "style_bank",
            "The style bank",
            "Styles drawn from what each site published, and styles drawn beyond them, in the "
            "plane of the published means' and samples' first two principal components.",
            plane(drawn),
            ("first component", "second component"),
        ),
    ]


def plane(groups: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Groups of codes (N, D) in the plane (N, 2) of the first two principal components of all."""
    codes = torch.cat(list(groups.values())).double()
    centre = codes.mean(0)
    axes = torch.linalg.svd(codes - centre, full_matrices=False).Vh[:2]
    return {
        name: ((group.double() - centre) @ axes.T).cpu().numpy() for name, group in groups.items()
    }
