"""Pictures of what the models see, drawn where the images are; they never leave the site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedshift.client import rules
from fedshift.client.contract.method import Scene
from fedshift.client.model import shared_model
from fedshift.client.tasks import TASKS
from fedshift.protocol.messages import Arrays
from fedshift.sites.types import SiteData

MODEL_NAMES = {"global": "federated"}
"""What readers call a model, where that is not its name in the tables."""


class Finished(NamedTuple):
    """A model's tensors, where it predicts, and the rules of its strategy with their settings."""

    arrays: Arrays
    scene: Scene
    rules: Mapping[str, Mapping[str, Any]]


def draw_site(
    data: SiteData,
    models: Mapping[str, Finished],
    method: Mapping[str, Any],
    task: Mapping[str, Any],
    path: Path,
) -> bool:
    """Draw the first labelled test case of a site with what ``models`` (by name) predict to
    ``path``; False when the site has none."""
    cases = [case for case in data.splits["test"] if case.labelled.any()]
    if not cases:
        return False
    case = cases[0]
    predictions = {}
    for name, (arrays, scene, asked) in models.items():
        model = shared_model(method, task, scene.device)
        model.load(arrays)
        predict = rules.predictor(model, scene, asked)
        predictions[MODEL_NAMES.get(name, name)] = predict(case.image)
    TASKS.build(task).draw(case, predictions, path, site=data.name)
    return True
