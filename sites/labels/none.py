"""No label: images alone, for what learns without."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedshift.sites.image import Decoded
from fedshift.sites.labels.base import Drawing, Form
from fedshift.sites.legend import Legend
from fedshift.sites.readers import Contents
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource

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

    def decode(
        self,
        source: ImageSource,
        contents: Contents,
        image: Decoded,
        data: DataSettings,
        meant: Legend | None = None,
    ) -> Drawing:
        return Drawing(self.blank(image.image, 0))

    def draw(self, axes: Axes, label: np.ndarray, parts: Sequence[str]) -> None:
        """Nothing."""
