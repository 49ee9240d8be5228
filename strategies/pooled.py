"""All data in one place: the upper bound, which only a simulation can train.

One simulated site holds every training site's data and takes as many steps a round as all sites
together, so that each image is seen as often as in the federation.
"""

from __future__ import annotations

from typing import ClassVar

from fedshift.strategies.local import Local


class Pooled(Local):
    """Local training at the site that holds all data."""

    model: ClassVar[str] = "pooled"
    pools: ClassVar[bool] = True
    travels: ClassVar[str] = "all images (simulated)"
    stays: ClassVar[str] = "nothing"
