"""No label: images alone, for what learns without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedshift.sites.geometry import Grid
from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import Drawing, Form, Survey
from fedshift.sites.legend import Legend
from fedshift.sites.readers import Contents
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class NoLabel(Form):
    """An empty label (S, 0); every slice counts as one that can be trained on and scored."""

    name = "none"
    dtype = np.uint8
    columns = ()
    part = "part"
    marks = "labels"
    needed = False

    def parts(self, table: Table, data: DataSettings, survey: Survey) -> tuple[str, ...]:
        return ()

    def decode(
        self,
        source: ImageSource,
        contents: Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        return Drawing(self.blank(image.image, 0))

    def classify(
        self,
        drawing: Drawing,
        legend: Legend,
        source: ImageSource,
        image: Decoded,
        data: DataSettings,
    ) -> np.ndarray:
        return drawing.values

    def blank(self, image: np.ndarray, parts: int) -> np.ndarray:
        return np.zeros((len(image), 0), np.uint8)

    def to_grid(self, native: np.ndarray, grid: Grid, data: DataSettings) -> np.ndarray:
        return native

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str], **style: Any) -> None:
        """Nothing."""
