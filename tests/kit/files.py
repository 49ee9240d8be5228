"""An image file and its mask, decoded as a survey does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedshift.sites.image import Decoded, decode_image
from fedshift.sites.labels.base import Drawing
from fedshift.sites.labels.mask import Mask
from fedshift.sites.readers import Contents
from fedshift.sites.settings import DataSettings
from fedshift.sites.types import ImageSource


@dataclass(frozen=True)
class Pair:
    """An image and its mask, laid out alike."""

    decoded: Decoded
    drawing: Drawing

    @property
    def image(self) -> np.ndarray:
        """Intensities (S, R, C)."""
        return self.decoded.image

    @property
    def values(self) -> np.ndarray:
        """The mask's values (S, R, C) as in its file."""
        return self.drawing.values


def decode_pair(source: ImageSource, image: Contents, label: Contents) -> Pair:
    """Decode the bytes of an image and of its mask."""
    decoded = decode_image(source, image, None)
    return Pair(decoded, Mask().decode(source, label, decoded, DataSettings()))
