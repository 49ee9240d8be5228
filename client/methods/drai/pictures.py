"""Pictures of DRAI's codes: one held, the other sampled or exchanged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fedshift import derive_seed
from fedshift.client.contract.illustrations import Illustration, ImageGrid
from fedshift.client.contract.method import Scene
from fedshift.client.methods.drai.disentangling import Codes
from fedshift.sites.types import SiteData

SHOWN = 4
"""Images a side of the grids."""


def pictures(
    site: SiteData,
    scene: Scene,
    generator: nn.Module,
    codes: Callable[[torch.Tensor], Codes],
    restyle: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> list[Illustration]:
    """Samples of the style with the content held (the paper's Fig. 2), hybrids of the site's images
    (Fig. 3), and its images in the styles of the other sites.

    ``codes`` gives images (B, C, H, W) their style and content codes; ``restyle`` renders images in
    styles (B, D).
    """
    test = [case for case in site.splits["test"] if case.labelled.any()]
    if not test:
        return []
    # One slice a subject, the middle one that has a label.
    chosen = [(c, np.flatnonzero(c.labelled)[c.labelled.sum() // 2]) for c in test[:SHOWN]]
    pixels = np.stack([np.asarray(case.image[s], np.float32) for case, s in chosen])
    names = [case.id for case, _ in chosen]
    random = torch.Generator().manual_seed(derive_seed(scene.seed, "illustrations"))
    with torch.no_grad():
        images = torch.from_numpy(pixels).to(scene.device)
        style, content = codes(images)
        sampled = torch.randn(SHOWN, style.shape[1], generator=random).to(scene.device)
        grids = [
            ImageGrid(
                "samples",
                "Content held, style sampled",
                "The first column is an image; the others have its content code and a style "
                "code drawn from the prior.",
                _table(images, _every(generator, content, sampled)),
                ["image", *(f"sample {n + 1}" for n in range(SHOWN))],
                names,
            ),
            ImageGrid(
                "hybrids",
                "Hybrids: content of the row, style of the column",
                "Generated from the content code of the row's image and the style code of the "
                "column's; on the diagonal are reconstructions.",
                _table(images, _every(generator, content, style)),
                ["image", *(f"style of {name}" for name in names)],
                names,
            ),
        ]
        known = {
            name: torch.from_numpy(found["style_mean"]).float().to(scene.device)
            for name, found in sorted(scene.bank.items())
            if name != site.name and found
        }
        if known:
            columns = [restyle(images, mean.expand(len(images), -1)) for mean in known.values()]
            grids.append(
                ImageGrid(
                    "restyled",
                    "In the mean style of other sites",
                    "The image, with its own style exchanged for another site's: what the "
                    "segmentation is trained on with method.use=hybrids.",
                    _table(images, torch.stack(columns, dim=1)),
                    ["image", *known],
                    names,
                )
            )
    return list(grids)


def _every(generator: nn.Module, contents: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """Images (R, N, C, H, W) of R content codes, each in N styles."""
    rows = [generator(styles, content.expand(len(styles), -1)) for content in contents]
    return torch.stack(rows)


def _table(first: torch.Tensor, others: torch.Tensor) -> list[list[np.ndarray]]:
    """``first`` (R, C, H, W) and ``others`` (R, N, C, H, W) as R rows of N + 1 images."""
    rows = torch.cat([first.unsqueeze(1), others], dim=1).mean(2).cpu().numpy()
    return [list(row) for row in rows]
