"""A paired image: what another scanner, sequence or kernel shows of the same place.

A label is (S, C, R, C') float32, one channel, on its image's grid; it is normalised by itself as
images are, or by ``data.normalise_pair``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshift import UserError
from fedshift.sites import geometry, readers
from fedshift.sites.alignment import lay_on
from fedshift.sites.findings import FileFault, Finding, Remark
from fedshift.sites.geometry import Grid
from fedshift.sites.image import Decoded, normalise
from fedshift.sites.labels.base import Drawing, Form, stray
from fedshift.sites.legend import Legend
from fedshift.sites.names import fold, meant
from fedshift.sites.paths import Files
from fedshift.sites.settings import DataSettings, nearest
from fedshift.sites.table import read_table
from fedshift.sites.types import ImageSource, Table

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
        pair = _by_pair(table, table.stat().st_mtime_ns).get(meant(cells["pair_id"]))
        return pair.file if pair is not None else ""

    def check_joined(self, table: Table, data: DataSettings) -> Iterator[Finding]:
        """Pairs of nobody, and pairs that their own table gives to somebody else."""
        if data.label_table is None:
            return
        other = Files(Path()).locate(data.label_table)
        pairs = {one.file: one for one in _by_pair(other, other.stat().st_mtime_ns).values()}
        named = data.site_column is None and data.site_pattern is None
        for site, images in table.images.items():
            for image in images:
                if (pair := pairs.pop(image.label_path, None)) is None:
                    continue
                for what, own in (("subject", image.subject), *([("site", site)] * named)):
                    said = meant(pair.cells.get(what, ""))
                    if said and fold(said) != fold(own):
                        yield Finding(
                            "error",
                            "pair-of-another",
                            site,
                            image.path,
                            f"is of the {what} {own!r}, and {other} (line {pair.line}) gives its "
                            f"pair to the {what} {said!r}",
                            "mend pair_id, or the name in one of the tables",
                            image.row,
                        )
        if pairs:
            yield stray(other, len(pairs), min(one.line for one in pairs.values()))

    def decode(
        self,
        source: ImageSource,
        contents: readers.Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """Intensities (S, 1, R, C) float32, as the file has them."""
        if os.path.realpath(source.label_path) == os.path.realpath(source.path):
            raise FileFault(
                "pair-itself",
                source.label_path,
                "is given as its own pair",
                "name the image of the other kind in pair_path, or its manifest in "
                "data.label_table",
            )
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
        remarks = volume.remarks
        if values.min() == values.max():
            remarks += (Remark("constant", "is constant", "export it again"),)
        return Drawing(values[:, None], remarks=remarks)

    def normalised(self, native: np.ndarray, grid: Grid, data: DataSettings) -> np.ndarray:
        return normalise(native[:, 0], data, grid, data.normalise_pair)[:, None]

    def to_grid(self, native: np.ndarray, grid: Grid) -> np.ndarray:
        return native if grid.identity else grid.image(native[:, 0])[:, None]

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """The picture itself."""
        axes.imshow(label[0], cmap="gray")


@dataclass(frozen=True)
class _Pair:
    """A row of the other manifest: its line, its image's file, and its cells by column."""

    line: int
    file: str
    cells: Mapping[str, str]


@lru_cache(maxsize=8)
def _by_pair(table: Path, changed: int) -> dict[str, _Pair]:
    """The rows of a manifest by their ``pair_id``; those without one are left out."""
    header, rows = read_table(table, ("path", "pair_id"))
    for column in ("path", "pair_id"):
        if column not in header:
            raise UserError(
                f"{table} has no column {column!r}, by which pairs are found; "
                f"{nearest('rename', column, header)}."
            )
    found: dict[str, _Pair] = {}
    files = Files(table.parent)
    for line, cells in rows:
        if not (name := meant(cells["pair_id"])):
            continue
        if not cells["path"]:
            raise UserError(f"{table}, line {line}: the column 'path' is empty; fill it.")
        pair = found.setdefault(name, _Pair(line, str(files.locate(cells["path"])), cells))
        if pair.line != line:
            raise UserError(
                f"{table}: lines {pair.line} and {line} have the pair_id {name!r}; keep the one "
                "that is meant."
            )
    return found
