"""Do two pictures show the same, though their bytes differ?

A difference hash (N. Krawetz, "Kind of Like That", 2013): the picture is averaged to 8 x 9 cells,
and each of 64 bits says whether a cell is brighter than its right neighbour. Saving a picture
again, scaling it or changing its contrast turns a few bits; of two pictures of different people
about half differ.

Sites may compare theirs without showing them: with a secret that the sites share and the
coordinator lacks, each 16-bit quarter of a hash is sent as a keyed digest, and two pictures are
alike when three of their four quarters are the same.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

import numpy as np

NEAR = 3
"""Two hashes that differ in so many of their 64 bits or fewer are of one picture."""
QUARTERS = 4
SAME_QUARTERS = 3


def perceptual_hash(picture: np.ndarray) -> str:
    """The hash of ``picture`` (H, W) in 16 hexadecimal digits; empty where the picture is smaller
    than 8 x 9 pixels or too plain to be told from another."""
    rows, columns = picture.shape
    if rows < 8 or columns < 9 or picture.min() == picture.max():
        return ""
    row_edges = np.linspace(0, rows, 9).astype(int)[:-1]
    column_edges = np.linspace(0, columns, 10).astype(int)[:-1]
    sums = np.add.reduceat(np.add.reduceat(picture.astype(float), row_edges, 0), column_edges, 1)
    areas = np.outer(np.diff([*row_edges, rows]), np.diff([*column_edges, columns]))
    cells = sums / areas
    brighter = cells[:, :-1] > cells[:, 1:]
    # A picture on a plain background has cells without any difference: bits of nothing.
    if np.count_nonzero(np.diff(cells, axis=1)) < 48:
        return ""
    return np.packbits(brighter).tobytes().hex()


def alike(one: str, other: str) -> bool:
    """Whether two hashes of :func:`perceptual_hash` are of one picture."""
    return bool(one and other) and (int(one, 16) ^ int(other, 16)).bit_count() <= NEAR


def keyed(picture: str, secret: bytes) -> tuple[str, ...]:
    """What may leave a site of a hash: its four quarters as keyed digests; none of an empty one."""
    size = len(picture) // QUARTERS
    return tuple(
        hmac.new(
            secret, f"{k}:{picture[k * size : (k + 1) * size]}".encode(), hashlib.sha256
        ).hexdigest()[:24]
        for k in range(QUARTERS if picture else 0)
    )


def keyed_alike(one: Sequence[str], other: Sequence[str]) -> bool:
    """Whether what two sites sent of two pictures says that they are one picture."""
    same = sum(a == b for a, b in zip(one, other, strict=False))
    return same >= SAME_QUARTERS
