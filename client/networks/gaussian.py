"""Gaussian latent variables with a diagonal covariance, as variational encoders give them.

Kingma & Welling, "Auto-Encoding Variational Bayes", 2013: the reparameterised sample and the
divergence from the standard normal prior.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class DiagonalGaussian:
    """Independent normal variables: ``mean`` and ``log_variance`` of one shape, (B, ...)."""

    mean: torch.Tensor
    log_variance: torch.Tensor

    def sample(self, generator: torch.Generator) -> torch.Tensor:
        """Draw once, ``mean + sigma * e`` with e ~ N(0, I), differentiable in both parameters.

        ``generator`` is a CPU generator: e is drawn there, so that every device sees the same.
        """
        noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype)
        return self.mean + (0.5 * self.log_variance).exp() * noise.to(self.mean.device)

    def kl(self) -> torch.Tensor:
        """KL divergence from N(0, I) in nats, summed over all but the first dimension: (B,)."""
        each = self.mean.square() + self.log_variance.exp() - self.log_variance - 1
        return 0.5 * each.flatten(1).sum(1)
