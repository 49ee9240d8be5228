"""A graph: the weights between its nodes, a symmetric matrix, as of a connectome.

A label is (S, N, N) float32. A graph has no place in an image: it stays as it is whatever happens
to the picture. A manifest whose images are matrices needs no column ``graph_path``: ``path`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import Drawing, Form
from fedshift.sites.legend import Legend
from fedshift.sites.names import meant
from fedshift.sites.readers import Contents, is_matrix
from fedshift.sites.readers.matrix import read_matrix
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Graph(Form):
    """An adjacency matrix."""

    name = "graph"
    dtype = np.float32
    columns = ("graph_path", "path")
    part = "graph"
    marks = "graphs"
    one_size = True

    def named(self, cells: Mapping[str, str]) -> str:
        own = cells["path"] if is_matrix(cells["path"]) else ""
        return cells["graph_path"] if meant(cells["graph_path"]) else own

    def decode(
        self,
        source: ImageSource,
        contents: Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        """The matrix, for every slice (S, N, N)."""
        matrix = read_matrix(Path(source.label_path), contents[0][1])
        return Drawing(np.repeat(matrix[None], len(image.image), axis=0))

    def counts(self, drawing: Drawing) -> dict[int, int]:
        """Its nodes."""
        return {1: drawing.values.shape[1]}

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """The matrix as a picture, as large as the image."""
        place = (*axes.get_xlim(), *axes.get_ylim())
        axes.imshow(
            label, cmap="viridis", interpolation="nearest", extent=place, aspect=axes.get_aspect()
        )
