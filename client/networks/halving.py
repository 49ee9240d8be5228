"""Whether images fit a network that halves them."""

from __future__ import annotations

from collections.abc import Sequence

from fedshift import Tellable


def check_halvings(size: Sequence[int], times: int, network: str, smaller: str = "") -> None:
    """Raise :class:`fedshift.UserError` unless images of ``size`` (rows, columns) can be halved
    ``times`` times and leave at least two pixels a side.

    ``network`` says what halves them, ``smaller`` names the setting that could ask for less."""
    height, width = size
    step = 2**times
    if height % step or width % step or min(height, width) < 2 * step:
        instead = f", or a smaller {smaller}" if smaller else ""
        raise Tellable(
            f"images of {height} x {width} pixels cannot be halved {times} times for {network}: "
            f"set data.size to a multiple of {step} of at least {2 * step}{instead}"
        )
