"""A model of the site's own beside the shared one: what Ditto's and APFL's rules have in common.

It has the averaged sub-networks; all others are as they were sent. A site trains it first and then
the shared model, from the weights it was sent and with the same number of steps on the same
batches: the shared model is FedAvg's to the bit. Training takes twice as long.

What a method itself notes at a site, and the sub-networks it keeps there (discriminators), the own
model has a second time, so that neither training meets the other's.
"""

from __future__ import annotations

from functools import partial

from fedshift.client.contract.method import FitReport
from fedshift.client.rules.base import LocalRule, Train, Visit
from fedshift.protocol.messages import Arrays

_KEPT = "own::"
_METHOD = "method::"


class OwnModel(LocalRule):
    """Train a model of the site's own, then the shared one; a subclass says how.

    The own model begins as the model that the site is sent the first time it trains.
    """

    def __init__(self, visit: Visit) -> None:
        super().__init__(visit)
        self.sharing = {name: info.sharing for name, info in visit.model.infos().items()}
        """Of every tensor: ``averaged``, ``kept``, ..."""

    def train_own(self, train: Train) -> FitReport:
        """Train the own model, which is loaded."""
        return train()

    def around(self, train: Train) -> FitReport:
        """Report of the own model the metrics, with ``personal_`` before their names."""
        visit, model = self.visit, self.visit.model
        sent = model.read()
        notes = _under(_METHOD, visit.memory)
        model.load({**sent, **visit.personal, **_under(_KEPT, visit.memory)})
        own = self.train_own(partial(train, memory=notes))
        trained = model.read()
        visit.personal = {n: a for n, a in trained.items() if self.sharing[n] == "averaged"}
        kept = {n: a for n, a in trained.items() if self.sharing[n] == "kept"}
        visit.memory |= {f"{_KEPT}{name}": array for name, array in kept.items()}
        visit.memory |= {f"{_METHOD}{name}": array for name, array in notes.items()}
        model.load(sent)
        model.forget_gradients()
        report = train()
        report.metrics |= {f"personal_{name}": value for name, value in own.metrics.items()}
        return report


def _under(start: str, arrays: Arrays) -> Arrays:
    """The ``arrays`` whose names begin with ``start``, without it."""
    return {n.removeprefix(start): array for n, array in arrays.items() if n.startswith(start)}
