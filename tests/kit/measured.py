"""What a segmentation run says of its measures, for run folders that tests write by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from fedshift.client.tasks.segmentation import Segmentation
from fedshift.protocol.cards import MethodCard
from fedshift.protocol.measures import TaskCard

SEGMENTATION = Segmentation(("cavity", "wall")).card("segmentation")
DICE, HD95 = SEGMENTATION.headline, SEGMENTATION.measure("hd95_mm")


def write_method(run: Path, task: TaskCard = SEGMENTATION) -> None:
    """Write the ``method.json`` of a run of ``task``."""
    card = MethodCard({}, "labelled", (), task, (), False)
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / "method.json").write_text(json.dumps(card.to_json()))


def measured(value: float = 0.0, task: TaskCard = SEGMENTATION) -> dict[str, Any]:
    """Every measure of a case: ``value``, or nan where only some cases have it."""
    return {
        measure.name: math.nan if measure.sparse else value
        for measure in task.measures
        if not measure.whole
    }
