"""Adam at the coordinator, for sub-networks whose gradients are summed: Kingma & Ba, "Adam: A
Method for Stochastic Optimization", ICLR 2015, Algorithm 1.

    m = b1 m + (1 - b1) g        v = b2 v + (1 - b2) g^2
    w = w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

With one local step a round and the gradients of all terms added, this is what centralised training
computes.
"""

from __future__ import annotations

import numpy as np

from fedshift.protocol.messages import Adam, Arrays


def adam_step(
    state: Arrays, name: str, weight: np.ndarray, gradient: np.ndarray, adam: Adam, round: int
) -> np.ndarray:
    """Return the tensor ``name``, now ``weight``, after one step along ``gradient``.

    Its moments are kept in ``state``, which is what a resume needs: ``m/<tensor>`` and
    ``v/<tensor>`` of its shape, and ``t/<tensor>`` () int64, the steps it took.
    """
    m = state.get(f"m/{name}", np.zeros_like(weight))
    v = state.get(f"v/{name}", np.zeros_like(weight))
    t = int(state.get(f"t/{name}", 0)) + 1
    m = adam.beta1 * m + (1 - adam.beta1) * gradient
    v = adam.beta2 * v + (1 - adam.beta2) * gradient**2
    state |= {f"m/{name}": m, f"v/{name}": v, f"t/{name}": np.asarray(t, np.int64)}
    rate = adam.rate(round) / (1 - adam.beta1**t)
    scale = np.sqrt(v) / np.sqrt(1 - adam.beta2**t).astype(weight.dtype) + adam.eps
    return np.asarray(weight - rate * m / scale, weight.dtype)
