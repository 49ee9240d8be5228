"""A paired image: what another scanner, sequence or kernel shows of the same place.

A label is (S, C, R, C') float32, one channel, on its image's grid; it is normalised by itself as
images are, or by ``data.normalise_pair``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshift import UserError
from fedshift.sites import geometry, readers
from fedshift.sites.alignment import lay_on
from fedshift.sites.findings import FileFault
from fedshift.sites.geometry import Grid
from fedshift.sites.image import Decoded, normalise
from fedshift.sites.labels.base import Drawing, Form
from fedshift.sites.legend import Legend
from fedshift.sites.settings import DataSettings, nearest
from fedshift.sites.table import read_table
from fedshift.sites.types import ImageSource

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class PairedImage(Form):
    """An image as the label of another."""

    name = "image"
    dtype = np.float32
    columns = ("pair_path",)
    part = "image"
    marks = "paired images"
    tabled = True

    def in_table(self, table: Path, image: str, cells: Mapping[str, str]) -> str:
        """The image of the other manifest that has the same ``pair_id``."""
        if not cells["pair_id"]:
            raise UserError(
                f"{image} has no pair_id, by which its pair in {table} is found; fill the column "
                "pair_id, or give the file itself in a column pair_path."
            )
        return _by_pair(table, table.stat().st_mtime_ns).get(cells["pair_id"], "")

    def decode(
        self,
        source: ImageSource,
        contents: readers.Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """Intensities (S, 1, R, C) float32, as the file has them."""
        volume = readers.decode(Path(source.label_path), contents)
        own, theirs = volume.array.shape, image.volume.array.shape
        if sorted(own) != sorted(theirs):
            raise FileFault(
                "pair-shape",
                source.label_path,
                f"has {' x '.join(map(str, own))} voxels, and its image {source.path} "
                f"{' x '.join(map(str, theirs))}",
                "resample one of the two onto the other's grid",
            )
        volume = lay_on(image.volume, volume, source)
        values, _ = geometry.orient(volume.array, image.volume.affine, image.axis)
        return Drawing(values[:, None], remarks=volume.remarks)

    def normalised(self, native: np.ndarray, grid: Grid, data: DataSettings) -> np.ndarray:
        return normalise(native[:, 0], data, grid, data.normalise_pair)[:, None]

    def to_grid(self, native: np.ndarray, grid: Grid) -> np.ndarray:
        return native if grid.identity else grid.image(native[:, 0])[:, None]

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """The picture itself."""
        axes.imshow(label[0], cmap="gray")


@lru_cache(maxsize=8)
def _by_pair(table: Path, changed: int) -> dict[str, str]:
    """The images of a manifest by their ``pair_id``."""
    header, rows = read_table(table, ("path", "pair_id"))
    for column in ("path", "pair_id"):
        if column not in header:
            raise UserError(
                f"{table} has no column {column!r}, by which pairs are found; "
                f"{nearest('rename', column, header)}."
            )
    found: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, cells in rows:
        pair = cells.get("pair_id", "")
        if pair and lines.setdefault(pair, line) != line:
            raise UserError(
                f"{table}: lines {lines[pair]} and {line} have the pair_id {pair!r}; keep the one "
                "that is meant."
            )
        found[pair] = str(table.parent / cells.get("path", ""))
    return found
