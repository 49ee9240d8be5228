"""How well an encoder and a generator keep content and style apart: the CIFC error.

Havaei et al., "Conditional Generation of Medical Images via Disentangled Adversarial Inference",
2021, appendix D.3, Eq. 10 and Fig. 9. Two images a and b swap their styles, and the two hybrids
swap them back; codes inferred from the result are compared with those of the images.

Corrected: the text makes the first hybrid from "(z_a, z_b)"; it is (c_a, z_b). Open in the paper:
the norm, here the mean absolute difference of a code's components, so that codes of other sizes
compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Codes = tuple[torch.Tensor, torch.Tensor]
"""Style codes (B, Z) and content codes (B, C)."""


@dataclass(frozen=True)
class Consistency:
    """``error`` is the CIFC of Eq. 10: lower is better, and 0 for codes that never vary, so it says
    nothing without ``spread``: the same sum for the two images of a pair instead of an image and
    its reconstruction. ``relative`` is their ratio, which does not depend on the codes' scale: 0 is
    perfect, 1 no better than taking one image for the other; nan when the codes do not vary."""

    error: float
    spread: float

    @property
    def relative(self) -> float:
        return self.error / self.spread if self.spread > 0 else float("nan")


def cross_image_consistency(
    encode: Callable[[torch.Tensor], Codes],
    decode: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    first: Codes,
    second: Codes,
) -> Consistency:
    """The error over the pairs a of ``first`` and b of ``second``, codes of B images each.

    ``encode`` gives the style and content codes of images (B, ...); ``decode`` makes images from
    style and content codes, in this order.
    """
    (z_a, c_a), (z_b, c_b) = first, second
    z_from_ba, c_from_ba = encode(decode(z_a, c_b))
    z_from_ab, c_from_ab = encode(decode(z_b, c_a))
    again_a = encode(decode(z_from_ba, c_from_ab))
    again_b = encode(decode(z_from_ab, c_from_ba))
    error = _distance(first, again_a) + _distance(second, again_b)
    return Consistency(float(error), 2 * float(_distance(first, second)))


def _distance(one: Codes, other: Codes) -> torch.Tensor:
    return sum((a - b).abs().mean() for a, b in zip(one, other, strict=True))  # type: ignore[return-value]
