"""Run folders of an earlier fedshift, completed by what it had no need to write down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.protocol.needs import CHANGE, DECODER, DESCEND, ENCODER, PIXEL_CLASSES
from fedshift.protocol.storage import check_links, read_json, write_atomic
from fedshift.server.record import read_cards
from fedshift.server.report.run import run_of

OFFERED = sorted({CHANGE, DECODER, DESCEND, ENCODER, PIXEL_CLASSES})
"""By a method that trained its segmentation network in the usual loop."""
_RUNS = ("", "folds/*/", "cells/*/", "cells/*/folds/*/")
"""Where the runs are in the folder of a run or of a comparison."""


def complete(folder: Path) -> None:
    """Write into each run of ``folder`` what it measures, where it does not say so: it is of a time
    when every task was a segmentation.

    Raises :class:`fedshift.UserError` for a damaged or missing file, and for a link that leads out
    of the folder.
    """
    check_links(run_of(folder))
    for runs in _RUNS:
        for path in sorted(run_of(folder).glob(f"{runs}checkpoints/method.json")):
            card = read_json(path, _mapping)
            if card is None or "task" in card:
                continue
            cards = read_cards(path.with_name("sites.json"))
            if cards is None:
                raise UserError(f"{path.parent} has no sites.json; restore it from a copy")
            task = Segmentation(cards[0].parts).card("segmentation")
            told = {**card, "task": task.to_json(), "offers": OFFERED if card["segmenting"] else []}
            write_atomic(path, json.dumps(told) + "\n")


def _mapping(node: Any) -> dict[str, Any]:
    return {**node, "segmenting": bool(node.get("segmenting"))}
