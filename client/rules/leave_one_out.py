"""FedCE's error in data space: Jiang et al., Fair Federated Medical Image Segmentation via Client
Contribution Estimation, CVPR 2023: the loss, at site k, of the model as it would be without it.

    w_{-k} = (w - p_k w_k) / (1 - p_k)

from the model w that the site receives, the weights w_k it sent in the round of which w is the
average, which it keeps, and its part p_k in that average. Running statistics stay as received.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedshift.client.contract.method import FitReport
from fedshift.client.model import network_of
from fedshift.client.rules import risk
from fedshift.client.rules.base import LocalRule, Train, Visit
from fedshift.protocol.messages import Arrays

_ROUND = "round"
_SENT = "sent "


class LeaveOneOut(LocalRule):
    """Report ``risk_without``: the risk of the received model without this site's part in it.

    ``round`` is the round of the last average and ``parts`` sub-network -> site -> its part in it.
    A site without one, or with no note of that round, measures the received model itself, as does
    one that was alone in it.
    """

    def __init__(
        self,
        visit: Visit,
        round: int,
        parts: Mapping[str, Mapping[str, float]],
        slices: int | None = None,
    ) -> None:
        super().__init__(visit)
        self._round = round
        self._parts = parts
        self._slices = slices

    def around(self, train: Train) -> FitReport:
        """The method's training after the measurement; what is sent is noted."""
        visit = self.visit
        received = visit.model.read()
        visit.model.load({**received, **self._without(received)})
        loss = risk.training_loss(visit, self._slices)
        visit.model.load(received)
        del received
        report = train()
        if loss is not None:
            report.metrics["risk_without"] = loss
        visit.memory.clear()
        visit.memory[_ROUND] = np.asarray(visit.instruction.round)
        sent = [name for name in visit.exchanged() if network_of(name) in report.trained]
        for name, array in visit.model.read(sent).items():
            visit.memory[_SENT + name] = array
        return report

    def _without(self, received: Mapping[str, np.ndarray]) -> Arrays:
        """The tensors of which this site has a part, as they would be without it."""
        memory = self.visit.memory
        if int(memory.get(_ROUND, 0)) != self._round:
            return {}
        found: Arrays = {}
        for name, array in received.items():
            part = self._parts.get(network_of(name), {}).get(self.visit.site.name, 0.0)
            if 0 < part < 1 and _SENT + name in memory:
                own = np.multiply(memory[_SENT + name], part, dtype=np.float64)
                found[name] = ((array - own) / (1 - part)).astype(array.dtype)
        return found
