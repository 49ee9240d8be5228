"""The risk of a model at a site: its mean loss on the labelled training slices, F_k(w) in the
papers on fairness. The coordinator is told the number as the metric ``risk_received``, of the model
it sent, and where it asks for it ``risk_trained``, of the site's model after its local training.

The loss is the task's of what the method predicts (of a method with stages: the
plainest), so it is the same quantity for every method, whatever a method's own loss is.
"""

from __future__ import annotations

from statistics import fmean

import torch

from fedshift import derive_seed
from fedshift.client import rules
from fedshift.client.contract.method import FitReport, Scene
from fedshift.client.rules.base import LocalRule, Train, Visit
from fedshift.client.slices import LabelledSlices
from fedshift.client.training import PREDICT_BATCH


class Risk(LocalRule):
    """Measure the risk before local training and, with ``trained``, after it; on at most ``slices``
    drawn slices, the same ones in every round, or on all."""

    def __init__(self, visit: Visit, slices: int | None = None, trained: bool = False) -> None:
        super().__init__(visit)
        self._slices = slices
        self._trained = trained

    def around(self, train: Train) -> FitReport:
        """The method's training between two measurements."""
        received = training_loss(self.visit, self._slices)
        report = train()
        if received is not None:
            report.metrics["risk_received"] = received
        if self._trained and (own := training_loss(self.visit, self._slices)) is not None:
            report.metrics["risk_trained"] = own
        return report


def training_loss(visit: Visit, slices: int | None) -> float | None:
    """The mean loss of the weights now loaded over the site's labelled training slices, at most
    ``slices`` of them, drawn by site and run; None at a site without any.

    Slices are taken in equal batches of drawn order, as in training, because soft Dice is a
    batch's. To fill the last batch a few slices are taken twice.
    """
    labelled = LabelledSlices(visit.site.splits["train"], visit.model.task)
    if not len(labelled):
        return None
    task, seed = visit.model.task, visit.instruction.seed
    scene = Scene(
        task,
        visit.site.name,
        visit.device,
        derive_seed(seed, "prediction"),
        visit.bank,
        *visit.model.method.stages[:1],
    )
    total = len(labelled) if slices is None else min(slices, len(labelled))
    batches = -(-total // PREDICT_BATCH)
    size = -(-total // batches)
    order = derive_seed(seed, visit.site.name, "risk")
    losses = []
    predict = rules.predictor(visit.model, scene, visit.instruction.rules)
    for batch in labelled.batches(size, batches, order, torch.device("cpu")):
        found = torch.from_numpy(predict(batch.images.numpy()))
        losses.append(float(task.risk(found, batch.labels, batch.told)))
    return fmean(losses)
